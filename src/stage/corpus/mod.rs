//! The corpus stage: gathers documents, gives them a canonical form and an id, and drops what should not be learnt from.
//!
//! Knows no tokenizer and no embedding. The result does not depend on the order or the place of the files.

mod dedup;
mod files;
mod jsonl;
mod near;
mod normalise;
pub mod synthetic;

use std::{collections::BTreeMap, path::Path};

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{near::NearDuplicates, synthetic::Synthetic};
use crate::{
    artifact::{
        Artifact,
        drops::{Drop, Drops, Tally},
        texts::{Text, Texts, group},
    },
    engine::action::{Cx, Failure, Numerics, OutputPort},
    stage::{
        Base, Invalid, Read, Stage, UserPath,
        code::{self, Code},
    },
};

/// Gathers documents from files, JSONL rows or a generator. Text becomes UTF-8, NFC, with line feeds; its BLAKE3 is its id.
/// Exact duplicates leave one row; what is dropped is counted by reason in the `drops` output.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Corpus {
    /// Where documents come from; each entry has exactly one of `files`, `jsonl` and `synthetic`.
    pub sources: Vec<Source>,
    /// Also drops near duplicates: of documents that share most of their runs of words, the one with the smallest id stays.
    /// `near-duplicates = {}` turns it on with the usual figures. Default: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub near_duplicates: Option<NearDuplicates>,
}

/// One source of documents.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Source {
    /// Glob of text files, relative to the manifest: one document each. Symbolic links are not followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<UserPath>,
    /// Glob of JSONL files, relative to the manifest: one document a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jsonl: Option<UserPath>,
    /// Documents made from the stage's seed: `synthetic = { prose = 100 }`. At most one such source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<Synthetic>,
    /// With `jsonl`: the field that holds the text. Default: `text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The first part of the `source` of every document from here, and the group that quotas count. Default: `sources.N`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Licence of these documents, written into every row.
    #[serde(default)]
    pub licence: String,
    /// Documents with fewer characters are dropped.
    #[serde(default = "one")]
    pub min_chars: usize,
    /// Documents with more characters are dropped. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_chars: Option<usize>,
}

fn one() -> usize {
    1
}

/// Why the corpus could not be made.
#[derive(Debug, thiserror::Error)]
enum CorpusError {
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
    #[error("no document is left of {read}: {reasons}; check the globs and the length limits")]
    Empty { read: u64, reasons: String },
}

impl Stage for Corpus {
    const KIND: &'static str = "corpus";
    const CODE: Code = code::of("corpus");
    const NUMERICS: Numerics = Numerics::Bitwise;
    const OUTPUTS: &'static [OutputPort] =
        &[OutputPort { name: "texts", kind: Texts::KIND }, OutputPort { name: "drops", kind: Drops::KIND }];

    fn reads(&self, base: &Base<'_>) -> Result<Vec<Read>, Invalid> {
        let mut reads = Vec::new();
        for (i, source) in self.sources.iter().enumerate() {
            for (field, glob) in [("files", &source.files), ("jsonl", &source.jsonl)] {
                if let Some(UserPath(pattern)) = glob {
                    let param = format!("sources.{i}.{field}");
                    reads.extend(files::matching(&base(&param), pattern, &param, &source.label(i))?);
                }
            }
        }
        Ok(reads)
    }

    fn check(&self) -> Result<(), Invalid> {
        if self.sources.is_empty() {
            return Err(Invalid::new("sources", "there is no source")
                .hint("write `sources = [{ files = \"docs/**/*.md\" }]`"));
        }
        self.near_duplicates.as_ref().map_or(Ok(()), NearDuplicates::check)?;
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
        cx.progress.phase("reading", Some(cx.reads.len() as u64), "files");
        let mut found = Found::default();
        for (i, source) in self.sources.iter().enumerate() {
            found.append(source.read(i, cx)?);
        }
        let (texts, drops) = found.finish(self.near_duplicates.as_ref())?;
        texts.save(&cx.output("texts")).map_err(Failure::stage)?;
        drops.save(&cx.output("drops")).map_err(Failure::stage)?;
        let total = drops.total();
        cx.progress.say(&format!("{} of {} documents kept{}", total.kept, total.read, reasons(&total, "; ")));
        Ok(())
    }
}

impl Source {
    fn label(&self, i: usize) -> String {
        self.name.clone().unwrap_or_else(|| format!("sources.{i}"))
    }

    fn check(&self, i: usize) -> Result<(), Invalid> {
        let invalid = |field: &str, why: &str| Err(Invalid::new(format!("sources.{i}{field}"), why));
        let kinds = [self.files.is_some(), self.jsonl.is_some(), self.synthetic.is_some()];
        if kinds.into_iter().filter(|given| *given).count() != 1 {
            return invalid("", "a source needs exactly one of `files`, `jsonl` and `synthetic`");
        }
        if let Some(synthetic) = &self.synthetic {
            synthetic.check(&format!("sources.{i}.synthetic"))?;
            if self.name.is_some() {
                return invalid(
                    ".name",
                    "a synthetic source names its documents itself: `synthetic/prose` …",
                );
            }
        }
        if self.text.is_some() && self.jsonl.is_none() {
            return invalid(".text", "`text` names a field of JSONL rows, and this source has no `jsonl`");
        }
        if self.max_chars.is_some_and(|max| max < self.min_chars) {
            return invalid(".max-chars", "`max-chars` is smaller than `min-chars`");
        }
        let reserved = |name: &str| {
            name.is_empty() || name.contains('/') || name == "synthetic" || name.starts_with("sources.")
        };
        if self.name.as_deref().is_some_and(reserved) {
            return invalid(
                ".name",
                "a name is not empty, has no `/`, and is neither `synthetic` nor `sources.…`",
            );
        }
        Ok(())
    }

    /// All documents of this source. Files are read in parallel; their order is that of their names.
    fn read(&self, i: usize, cx: &Cx<'_>) -> Result<Found, Failure> {
        if let Some(params) = &self.synthetic {
            return Ok(self.make(params, cx.seed));
        }
        let prefix = self.label(i) + "/";
        let reads: Vec<_> =
            cx.reads.range(prefix.clone()..).take_while(|r| r.0.starts_with(&prefix)).collect();
        let parts: Result<Vec<Found>, Failure> = reads
            .into_par_iter()
            .map(|(name, path)| {
                cx.check_stop()?;
                let found = self.read_file(name, path);
                cx.progress.advance(1);
                found
            })
            .collect();
        let mut all = Found::default();
        parts?.into_iter().for_each(|part| all.append(part));
        Ok(all)
    }

    /// Generated documents, which are canonical already. The generator's licence gives way to the user's.
    fn make(&self, params: &Synthetic, seed: u64) -> Found {
        let mut found = Found::default();
        for mut text in synthetic::generate(params, seed) {
            if let Some(reason) = self.fault(&text.text) {
                found.drop_row(&text.source, reason);
                continue;
            }
            if !self.licence.is_empty() {
                text.licence.clone_from(&self.licence);
            }
            found.texts.push(text);
        }
        found
    }

    fn read_file(&self, name: &str, path: &Path) -> Result<Found, Failure> {
        let bytes = std::fs::read(path)
            .map_err(|source| CorpusError::Io { path: path.display().to_string(), source })
            .map_err(Failure::stage)?;
        let mut found = Found::default();
        if self.jsonl.is_some() {
            let field = self.text.as_deref().unwrap_or("text");
            for text in jsonl::texts(path, &bytes, field).map_err(Failure::stage)? {
                self.judge(name, Some(normalise::canonical_text(&text)), &mut found);
            }
        } else {
            self.judge(name, normalise::canonical(&bytes), &mut found);
        }
        Ok(found)
    }

    /// Keeps one document, or drops it with a reason.
    fn judge(&self, name: &str, text: Option<String>, found: &mut Found) {
        match text.map(|text| (self.fault(&text), text)) {
            None => found.drop_row(name, "invalid-utf8"),
            Some((Some(reason), _)) => found.drop_row(name, reason),
            Some((None, text)) => found.texts.push(Text {
                id: normalise::id(&text),
                source: name.to_owned(),
                licence: self.licence.clone(),
                text,
                marks: Vec::new(),
            }),
        }
    }

    fn fault(&self, text: &str) -> Option<&'static str> {
        let chars = text.chars().count();
        if text.trim().is_empty() {
            Some("empty")
        } else if chars < self.min_chars {
            Some("too-short")
        } else if self.max_chars.is_some_and(|max| chars > max) {
            Some("too-long")
        } else {
            None
        }
    }
}

/// What reading gave so far.
#[derive(Debug, Default)]
struct Found {
    texts: Vec<Text>,
    drops: Vec<Drop>,
}

impl Found {
    fn drop_row(&mut self, source: &str, reason: &str) {
        self.drops.push(Drop { source: source.to_owned(), reason: reason.to_owned(), kept: String::new() });
    }

    fn append(&mut self, mut other: Self) {
        self.texts.append(&mut other.texts);
        self.drops.append(&mut other.drops);
    }

    fn finish(mut self, near: Option<&NearDuplicates>) -> Result<(Texts, Drops), Failure> {
        let mut texts = dedup::exact(self.texts, &mut self.drops);
        if let Some(near) = near {
            texts = near.remove(texts, &mut self.drops);
        }
        self.drops.sort();
        let mut sources: BTreeMap<String, Tally> = BTreeMap::new();
        for text in &texts {
            let tally = sources.entry(group(&text.source).to_owned()).or_default();
            tally.read += 1;
            tally.kept += 1;
        }
        for row in &self.drops {
            let tally = sources.entry(group(&row.source).to_owned()).or_default();
            tally.read += 1;
            *tally.dropped.entry(row.reason.clone()).or_default() += 1;
        }
        let drops = Drops { sources, rows: self.drops };
        if texts.is_empty() {
            let total = drops.total();
            let reasons = reasons(&total, "");
            return Err(Failure::stage(CorpusError::Empty { read: total.read, reasons }));
        }
        Ok((Texts(texts), drops))
    }
}

fn reasons(tally: &Tally, before: &str) -> String {
    let parts: Vec<_> = tally.dropped.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    if parts.is_empty() { String::new() } else { format!("{before}{}", parts.join(", ")) }
}

#[cfg(test)]
mod tests;
