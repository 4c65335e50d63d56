//! Decontamination: which documents share runs of words with evaluation data. Knows no other rule; order decides nothing.

use std::{collections::VecDeque, path::Path, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    CorpusError, files,
    rows::{Batch, Fields, Raw},
};
use crate::{
    engine::action::{Cx, Failure, Repo},
    math::hash::{hash, mix},
    stage::{
        Invalid, Read, UserPath,
        hub::{self, Address},
    },
};

/// Evaluation data that no document may repeat. Words are what white space separates, in lower case and without signs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Decontaminate {
    /// Glob of text files, relative to the manifest: one evaluation item each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<UserPath>,
    /// Glob of JSONL files, relative to the manifest: one evaluation item a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jsonl: Option<UserPath>,
    /// Glob of Parquet files, relative to the manifest: one evaluation item a row. Give `files`, `jsonl` or `parquet`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parquet: Option<UserPath>,
    /// A dataset of the Hugging Face hub, such as `openai/gsm8k`: the glob then names files there.
    #[serde(default, skip_serializing)]
    pub hub: Option<Address>,
    /// With `hub`: a commit, a tag or a branch. Default: `main`.
    #[serde(default, skip_serializing)]
    pub revision: Option<Address>,
    /// With `jsonl` or `parquet`: the fields or columns that hold the item's texts, each taken for itself. Default: `["text"]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<Vec<String>>,
    /// Words in a run. Texts of the evaluation that have fewer words are not looked for.
    #[serde(default = "thirteen")]
    pub ngram: usize,
    /// How many different runs a document must share with one evaluation file to be dropped.
    #[serde(default = "one")]
    pub shared: usize,
}

fn thirteen() -> usize {
    13
}

fn one() -> usize {
    1
}

/// The first part of the names of evaluation files; no source is called so.
pub(super) const LABEL: &str = "decontaminate";

impl Decontaminate {
    fn globs(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [("files", &self.files), ("jsonl", &self.jsonl), ("parquet", &self.parquet)];
        all.into_iter().filter_map(|(field, glob)| glob.as_ref().map(|glob| (field, glob.0.as_str())))
    }

    pub(super) fn check(&self) -> Result<(), Invalid> {
        let invalid = |field: &str, why: &str| Err(Invalid::new(format!("{LABEL}{field}"), why));
        if self.globs().count() != 1 {
            return invalid("", "needs exactly one of `files`, `jsonl` and `parquet`");
        }
        hub::check_dataset(self.hub.as_ref(), self.revision.as_ref(), &format!("{LABEL}."))?;
        match &self.fields {
            Some(_) if self.files.is_some() => {
                return invalid(".fields", "`fields` names fields of rows, and a text file has none");
            }
            Some(fields) if fields.is_empty() => return invalid(".fields", "names no field"),
            _ => {}
        }
        if !(1..=64).contains(&self.ngram) {
            return invalid(".ngram", &format!("`ngram` is {}, outside 1 to 64", self.ngram));
        }
        if self.shared == 0 {
            return invalid(".shared", "`shared` is 0, which every document reaches; the least is 1");
        }
        Ok(())
    }

    pub(super) fn reads(&self, base: &dyn Fn(&str) -> std::path::PathBuf) -> Result<Vec<Read>, Invalid> {
        let Some((field, pattern)) = self.globs().next().filter(|_| self.hub.is_none()) else {
            return Ok(Vec::new());
        };
        let param = format!("{LABEL}.{field}");
        files::matching(&base(&param), pattern, &param, LABEL)
    }

    /// What it reads on the hub.
    pub(super) fn repo(&self) -> Option<Repo> {
        let globs: Vec<&str> = self.globs().map(|(_, glob)| glob).collect();
        hub::dataset(&format!("{LABEL}/"), (self.hub.as_ref(), self.revision.as_ref()), &globs)
    }

    /// Reads the evaluation files.
    pub(super) fn index(&self, cx: &Cx<'_>) -> Result<Index, Failure> {
        let (mut index, mut items) = (Index { rule: self.clone(), ..Index::default() }, 0);
        let mut short = 0;
        let prefix = format!("{LABEL}/");
        for (name, path) in files::below(&cx.reads, &prefix) {
            cx.check_stop()?;
            let file = index.files.len() as u32;
            index.files.push(name[prefix.len()..].to_owned());
            self.texts(path, &mut |text| {
                let before = index.runs.len();
                let words = grams(text, self.ngram, &mut |gram| index.runs.push((gram, file)));
                items += 1;
                short += u64::from(words > 0 && index.runs.len() == before);
            })?;
            cx.progress.advance(1);
        }
        if index.runs.is_empty() {
            return Err(CorpusError::NothingToLookFor { items, ngram: self.ngram }.into());
        }
        if short > 0 {
            let n = self.ngram;
            cx.progress.say(&format!(
                "decontaminate: {short} of {items} texts have fewer than {n} words and are not looked for"
            ));
        }
        index.finish();
        Ok(index)
    }

    /// Hands on every text of an evaluation file.
    fn texts(&self, path: &Path, each: &mut dyn FnMut(&str)) -> Result<(), Failure> {
        let default = ["text".to_owned()];
        let fields = self.fields.as_deref().unwrap_or(&default);
        let name: Arc<str> = LABEL.into();
        if self.parquet.is_some() {
            // Column after column: a row's texts are taken each for itself.
            return fields.iter().try_for_each(|field| column(path, field, each));
        }
        let mut sink = |batch: Vec<(Arc<str>, Raw)>| {
            for (raw, field) in batch.iter().flat_map(|(_, raw)| fields.iter().map(move |field| (raw, field)))
            {
                let row =
                    raw.clone().parse(Fields { text: field, licence: None, source: None, chat: None })?;
                let bad = || CorpusError::NotUtf8 { path: path.display().to_string() };
                each(&row.text.ok_or_else(bad)?);
            }
            Ok(())
        };
        let mut batch = Batch::<Failure>::new(1 << 20, &mut sink);
        if self.jsonl.is_some() {
            batch.lines(&name, path)?;
        } else {
            batch.file(&name, path)?;
        }
        batch.flush()
    }
}

/// Hands on every text of a column of a Parquet file.
fn column(path: &Path, field: &str, each: &mut dyn FnMut(&str)) -> Result<(), Failure> {
    let fields = Fields { text: field, licence: None, source: None, chat: None };
    let mut sink = |batch: Vec<(Arc<str>, Raw)>| {
        for (_, raw) in batch {
            let bad = || CorpusError::NotUtf8 { path: path.display().to_string() };
            each(&raw.parse(fields)?.text.ok_or_else(bad)?);
        }
        Ok(())
    };
    let mut batch = Batch::<Failure>::new(1 << 20, &mut sink);
    batch.table(&LABEL.into(), path, fields)?;
    batch.flush()
}

/// Hands on the hash of every run of `n` words, and says how many words there are. At 64 bits,
/// 10^8 runs of a corpus and 10^6 of an evaluation meet by accident once in 10^5 times.
fn grams(text: &str, n: usize, each: &mut dyn FnMut(u64)) -> usize {
    // A polynomial of the words' hashes, so that a run costs one step however long it is.
    const BASE: u64 = 0x9e37_79b9_7f4a_7c15;
    let top = (1..n).fold(1_u64, |power, _| power.wrapping_mul(BASE));
    let (mut run, mut value, mut count) = (VecDeque::with_capacity(n), 0_u64, 0);
    let mut word = String::new();
    for piece in text.split_whitespace() {
        word.clear();
        word.extend(piece.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase));
        if word.is_empty() {
            continue;
        }
        count += 1;
        if run.len() == n {
            let oldest: u64 = run.pop_front().unwrap_or_default();
            value = value.wrapping_sub(oldest.wrapping_mul(top));
        }
        let new = hash(2, [word.as_bytes()]);
        run.push_back(new);
        value = value.wrapping_mul(BASE).wrapping_add(new);
        if run.len() == n {
            each(mix(value));
        }
    }
    count
}

/// The runs of the evaluation files.
#[derive(Debug)]
pub(super) struct Index {
    rule: Decontaminate,
    /// Their names, without [`LABEL`].
    files: Vec<String>,
    /// Sorted, each once: a run and a file that holds it.
    runs: Vec<(u64, u32)>,
    /// A bit for the low bits of every run, which spares most searches. Its length is a power of two.
    seen: Vec<u64>,
}

impl Default for Index {
    fn default() -> Self {
        let (ngram, shared) = (thirteen(), one());
        let rule = Decontaminate {
            files: None,
            jsonl: None,
            parquet: None,
            hub: None,
            revision: None,
            fields: None,
            ngram,
            shared,
        };
        Self { rule, files: Vec::new(), runs: Vec::new(), seen: Vec::new() }
    }
}

impl Index {
    fn finish(&mut self) {
        self.runs.sort_unstable();
        self.runs.dedup();
        self.seen = vec![0; (self.runs.len() / 4).next_power_of_two()];
        for &(run, _) in &self.runs {
            let (word, bit) = place(run, self.seen.len());
            self.seen[word] |= bit;
        }
    }

    /// The evaluation file with which `text` shares too many runs: the one with the most, and of those the first.
    pub(super) fn source_of(&self, text: &str) -> Option<&str> {
        let mut hits = Vec::new();
        grams(text, self.rule.ngram, &mut |run| {
            let (word, bit) = place(run, self.seen.len());
            if self.seen[word] & bit != 0 {
                let from = self.runs.partition_point(|&(other, _)| other < run);
                hits.extend(self.runs[from..].iter().take_while(|&&(other, _)| other == run));
            }
        });
        hits.sort_unstable();
        hits.dedup();
        let mut shared = vec![0; self.files.len()];
        for &(_, file) in &hits {
            shared[file as usize] += 1;
        }
        // `max_by_key` gives the last of equal ones.
        let (file, &most) = shared.iter().enumerate().rev().max_by_key(|(_, n)| **n)?;
        (most >= self.rule.shared).then(|| self.files[file].as_str())
    }
}

/// Where the bit of a run is.
fn place(run: u64, words: usize) -> (usize, u64) {
    (((run >> 6) as usize) & (words - 1), 1 << (run & 63))
}

#[cfg(test)]
mod tests;
