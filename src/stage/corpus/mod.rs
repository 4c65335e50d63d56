//! The corpus stage: gathers documents, gives them a canonical form and an id, and drops what should not be learnt from.
//!
//! Knows no tokenizer and no embedding. The result does not depend on the order or the place of the files. Texts pass through
//! memory in batches: read, judged on all threads, put away in a scratch file (`spool`) until the last one is known.

mod chat;
mod columns;
mod decontaminate;
mod dedup;
mod files;
mod jsonl;
mod language;
mod near;
mod nested;
mod normalise;
mod quality;
mod rows;
mod source;
mod spool;
pub mod synthetic;

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::source::Source;
use self::{decontaminate::Decontaminate, near::NearDuplicates, source::Rules, spool::Spool};
use crate::{
    artifact::{
        Artifact,
        drops::{Drops, Tally},
        texts::Texts,
    },
    engine::action::{Cx, Failure, Numerics, OutputPort, Repo},
    stage::{
        Base, Invalid, Read, Stage,
        code::{self, Code},
    },
};

/// Gathers documents from files, rows of JSONL or Parquet, on this machine or on the hub, or from a generator. Text becomes UTF-8, NFC, with line feeds; its BLAKE3 is its id.
/// Exact duplicates leave one row; what is dropped is counted by reason in the `drops` output.
/// With `format = "chat"` the rows of a source are conversations, which become texts in GPT-OSS's Harmony format:
/// `{ jsonl = "chats/*.jsonl", format = "chat", chat = { messages = "conversations", reasoning-effort = "high" } }`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Corpus {
    /// Where documents come from; each entry has exactly one of `files`, `jsonl`, `parquet` and `synthetic`.
    pub sources: Vec<Source>,
    /// Also drops near duplicates: of documents that share most of their runs of words, the one with the smallest id stays.
    /// `near-duplicates = {}` turns it on with the usual figures. Default: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub near_duplicates: Option<NearDuplicates>,
    /// Also drops documents that share runs of words with evaluation files, so that scores stay honest:
    /// `decontaminate = { jsonl = "eval/*.jsonl", fields = ["question"] }`. Default: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decontaminate: Option<Decontaminate>,
}

/// Why the corpus could not be made.
#[derive(Debug, thiserror::Error)]
enum CorpusError {
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
    #[error("{path}:{line}: {why}")]
    BadLine { path: String, line: usize, why: String },
    #[error("{path}: row {row}: {why}")]
    BadRow { path: String, row: usize, why: String },
    #[error("{path}: not a sound Parquet file ({why}); it may be cut off: fetch or write it again")]
    BadTable { path: String, why: String },
    #[error("{path}: {why}")]
    BadColumn { path: String, why: String },
    #[error("{path}: the evaluation data is not UTF-8; convert it, or narrow the glob of `decontaminate`")]
    NotUtf8 { path: String },
    #[error(
        "`decontaminate`: none of {items} texts has {ngram} words; give files with longer texts, or a smaller `ngram`"
    )]
    NothingToLookFor { items: u64, ngram: usize },
    #[error("no document is left of {read}{reasons}; check the globs and the limits")]
    Empty { read: u64, reasons: String },
}

impl CorpusError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.display().to_string(), source }
    }
}

impl From<CorpusError> for Failure {
    fn from(error: CorpusError) -> Self {
        Self::stage(error)
    }
}

/// How many bytes of documents are in memory at once, in their files' form; a longer document is a batch of its own.
const BATCH: u64 = 32 << 20;

impl Stage for Corpus {
    const KIND: &'static str = "corpus";
    const CODE: Code = code::of("corpus");
    const NUMERICS: Numerics = Numerics::Bitwise;
    const OUTPUTS: &'static [OutputPort] =
        &[OutputPort { name: "texts", kind: Texts::KIND }, OutputPort { name: "drops", kind: Drops::KIND }];

    fn reads(&self, base: &Base<'_>) -> Result<Vec<Read>, Invalid> {
        let mut reads = Vec::new();
        for (i, source) in self.sources.iter().enumerate() {
            for (field, pattern) in source.globs() {
                let param = format!("sources.{i}.{field}");
                reads.extend(files::matching(&base(&param), pattern, &param, &source.label(i))?);
            }
        }
        if let Some(rule) = &self.decontaminate {
            reads.extend(rule.reads(base)?);
        }
        Ok(reads)
    }

    fn repos(&self) -> Vec<Repo> {
        let of_sources = self.sources.iter().enumerate().filter_map(|(i, source)| source.repo(i));
        of_sources.chain(self.decontaminate.as_ref().and_then(Decontaminate::repo)).collect()
    }

    fn check(&self) -> Result<(), Invalid> {
        if self.sources.is_empty() {
            return Err(Invalid::new("sources", "there is no source")
                .hint("write `sources = [{ files = \"docs/**/*.md\" }]`"));
        }
        self.near_duplicates.as_ref().map_or(Ok(()), NearDuplicates::check)?;
        self.decontaminate.as_ref().map_or(Ok(()), Decontaminate::check)?;
        let mut labels = std::collections::BTreeSet::new();
        for (i, source) in self.sources.iter().enumerate() {
            source.check(i)?;
            if source.synthetic.is_some() && self.sources[..i].iter().any(|other| other.synthetic.is_some()) {
                return Err(Invalid::new(
                    format!("sources.{i}.synthetic"),
                    "two sources of one corpus are synthetic, and one seed would make the same documents twice",
                )
                .hint("ask one source for more documents, or make two corpus stages with different `seed`s"));
            }
            if !labels.insert(source.label(i)) {
                return Err(Invalid::new(
                    format!("sources.{i}.name"),
                    "two sources have the same name, so their documents could not be told apart",
                ));
            }
        }
        Ok(())
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        self.run_in_batches(cx, BATCH)
    }
}

impl Corpus {
    /// Runs the stage; the size of a batch changes nothing but the memory that it takes.
    fn run_in_batches(&self, cx: &Cx<'_>, limit: u64) -> Result<(), Failure> {
        cx.progress.phase("reading", Some(cx.reads.len() as u64), "files");
        let evaluation = self.decontaminate.as_ref().map(|rule| rule.index(cx)).transpose()?;
        let rules = Rules { near: self.near_duplicates.as_ref(), evaluation: evaluation.as_ref() };
        let mut spool = Spool::create(&cx.scratch)?;
        for (i, source) in self.sources.iter().enumerate() {
            source.read(i, cx, limit, &mut |batch| {
                cx.check_stop()?;
                Ok(spool.add(source.judge(i, batch, rules)?)?)
            })?;
        }
        let drops = spool.finish(rules.near, &cx.output("texts"), &|| cx.check_stop())?;
        let total = drops.total();
        if total.kept == 0 {
            let reasons = reasons(&total, ": ");
            return Err(CorpusError::Empty { read: total.read, reasons }.into());
        }
        drops.save(&cx.output("drops")).map_err(Failure::stage)?;
        cx.progress.say(&format!("{} of {} documents kept{}", total.kept, total.read, reasons(&total, "; ")));
        Ok(())
    }
}

fn reasons(tally: &Tally, before: &str) -> String {
    let parts: Vec<_> = tally.dropped.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    if parts.is_empty() { String::new() } else { format!("{before}{}", parts.join(", ")) }
}

#[cfg(test)]
mod tests;
