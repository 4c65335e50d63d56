//! A corpus made from a seed: three domains whose late answers depend on early statements. Knows no file and no stage.
//!
//! Every document draws from a random stream of its own, named by seed, domain and number, so neither threads nor the number
//! of documents change it. A fact is stated early and said again at random gaps, always with its key directly before its value;
//! a value that was last said 100 to 4,000 tokens before carries a [`Mark`](crate::artifact::texts::Mark).

mod maths;
mod page;
mod programs;
mod prose;
mod words;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::page::{Draw, Page};
use crate::{artifact::texts::Text, stage::Invalid};

/// A generated corpus: how many documents of each domain, and how long. Tokens are words, digits and marks of punctuation; the
/// `tokenizer` stage trained on such a corpus makes one token of each.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Synthetic {
    /// Documents of prose: small worlds with facts set early and asked for late.
    pub prose: u32,
    /// Documents with programs in a small language and their execution traces.
    pub programs: u32,
    /// Documents of step-by-step arithmetic and algebra with named intermediate results.
    pub maths: u32,
    /// The least number of tokens in a document; at least 64.
    pub min_tokens: u32,
    /// The greatest number of tokens in a document; at least twice `min-tokens`. Lengths are about log-uniform between.
    pub max_tokens: u32,
}

impl Default for Synthetic {
    fn default() -> Self {
        Self { prose: 100, programs: 100, maths: 100, min_tokens: 100, max_tokens: 8_000 }
    }
}

/// The longest document that may be asked for, in tokens.
const MAX_TOKENS: u32 = 1 << 20;

impl Synthetic {
    /// Checks the bounds. `at` is where the parameters stand in the manifest: `sources.0.synthetic`.
    pub fn check(&self, at: &str) -> Result<(), Invalid> {
        let fault = |param: &str, why: String| Err(Invalid::new(format!("{at}.{param}"), why));
        if self.min_tokens < 64 {
            return fault(
                "min-tokens",
                format!("is {}, but a document needs at least 64 tokens", self.min_tokens),
            );
        }
        if self.max_tokens > MAX_TOKENS {
            return fault(
                "max-tokens",
                format!("is {}, but at most {MAX_TOKENS} are possible", self.max_tokens),
            );
        }
        if self.max_tokens < 2 * self.min_tokens {
            let least = 2 * self.min_tokens;
            return fault(
                "max-tokens",
                format!("is {}; twice `min-tokens` or more is needed: {least}", self.max_tokens),
            );
        }
        Ok(())
    }
}

type Write = fn(&mut Page, &mut Draw);
const DOMAINS: [(&str, Write); 3] =
    [("prose", prose::write), ("programs", programs::write), ("maths", maths::write)];

/// Generates the documents, sorted by id. The parameters must have passed [`Synthetic::check`].
///
/// Of documents with the same text, one is kept; at 64 tokens or more, none was ever seen.
pub fn generate(params: &Synthetic, seed: u64) -> Vec<Text> {
    let counts = [params.prose, params.programs, params.maths];
    let jobs: Vec<(&str, Write, u64)> = DOMAINS
        .into_iter()
        .zip(counts)
        .flat_map(|((domain, write), n)| (0..u64::from(n)).map(move |document| (domain, write, document)))
        .collect();
    let mut texts: Vec<Text> = jobs
        .into_par_iter()
        .map(|(domain, write, document)| {
            let mut draw = Draw::new(seed, domain, document);
            let (min, max) = (params.min_tokens as usize, params.max_tokens as usize);
            let mut page = Page::new(draw.length((min + page::LONGEST).min(max), max));
            write(&mut page, &mut draw);
            finish(domain, page)
        })
        .collect();
    texts.sort_unstable_by(|a, b| a.id.cmp(&b.id));
    texts.dedup_by(|a, b| a.id == b.id);
    texts
}

/// Every key and every value that a fact can have: what a tokenizer should keep whole.
#[cfg(test)]
pub(crate) fn closed_sets() -> impl Iterator<Item = &'static str> {
    use words::{ATOMS, COLOURS, DIGITS, GIFTS, NAMES, QUANTITIES, ROLES, VARIABLES};
    let sets: [&[&str]; 8] = [&NAMES, &COLOURS, &ROLES, &GIFTS, &VARIABLES, &ATOMS, &DIGITS, &QUANTITIES];
    sets.into_iter().flatten().copied()
}

fn finish(domain: &str, page: Page) -> Text {
    Text {
        id: blake3::hash(page.text.as_bytes()).to_hex().to_string(),
        source: format!("synthetic/{domain}"),
        licence: "MIT".to_owned(),
        text: page.text,
        special_tokens: false,
        marks: page.marks,
    }
}

#[cfg(test)]
mod tests;
