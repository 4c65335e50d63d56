//! Drops: every document that a corpus left out, with the reason, and the counts. Knows no rule that drops documents.

use std::{collections::BTreeMap, fs::File, path::Path};

use serde::{Deserialize, Serialize};

use super::{
    Artifact, ArtifactError, Files, read_json,
    texts::{read_jsonl, write_jsonl},
};

/// One document that was left out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drop {
    /// Where it came from, as in [`super::texts::Text::source`].
    pub source: String,
    /// Why it was left out, such as `duplicate` or `too-short`.
    pub reason: String,
    /// The id of the document that was kept in its place; empty where there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kept: String,
    /// What it was held against, such as the evaluation file that it shares text with; empty where that is only itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
}

impl Drop {
    /// A document that breaks a rule.
    pub fn new(reason: &str, source: &str) -> Self {
        Self::instead(reason, source, String::new())
    }

    /// A document in whose place the one with the id `kept` stays.
    pub fn instead(reason: &str, source: &str, kept: String) -> Self {
        Self { source: source.to_owned(), reason: reason.to_owned(), kept, by: String::new() }
    }
}

/// How many documents one source gave.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// Documents read.
    pub read: u64,
    /// Documents kept.
    pub kept: u64,
    /// Documents dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
}

/// The report of one corpus: `read == kept + Σ dropped` for each source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Drops {
    /// Counts by source.
    pub sources: BTreeMap<String, Tally>,
    /// Every drop, sorted.
    pub rows: Vec<Drop>,
}

const COUNTS: &str = "counts.json";
const ROWS: &str = "drops.jsonl";

impl Drops {
    /// Counts over all sources.
    pub fn total(&self) -> Tally {
        let mut total = Tally::default();
        for tally in self.sources.values() {
            total.read += tally.read;
            total.kept += tally.kept;
            for (reason, n) in &tally.dropped {
                *total.dropped.entry(reason.clone()).or_default() += n;
            }
        }
        total
    }
}

impl Artifact for Drops {
    const KIND: &'static str = "drops";

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        let path = dir.join(COUNTS);
        let out = File::create(&path).map_err(ArtifactError::io(&path))?;
        serde_json::to_writer_pretty(out, &self.sources).map_err(|e| ArtifactError::io(&path)(e.into()))?;
        write_jsonl(&dir.join(ROWS), &self.rows)
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        let sources = read_json(Self::KIND, files, COUNTS)?;
        Ok(Self { sources, rows: read_jsonl(Self::KIND, files, ROWS)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_totals() {
        let tally = |read, kept, reason: &str| Tally {
            read,
            kept,
            dropped: BTreeMap::from([(reason.to_owned(), read - kept)]),
        };
        let drops = Drops {
            sources: BTreeMap::from([
                ("a".to_owned(), tally(5, 3, "duplicate")),
                ("b".to_owned(), tally(4, 3, "duplicate")),
            ]),
            rows: vec![
                Drop::instead("duplicate", "a/x", "00".to_owned()),
                Drop { by: "quiz.jsonl".to_owned(), ..Drop::new("contaminated", "b/y") },
            ],
        };
        let dir = tempfile::tempdir().unwrap();
        drops.save(dir.path()).unwrap();
        let files = [COUNTS, ROWS].map(|f| (f.to_owned(), dir.path().join(f))).into();
        assert_eq!(Drops::load(&files).unwrap(), drops);
        assert_eq!(drops.total(), tally(9, 6, "duplicate"));
    }

    #[test]
    fn a_broken_count_file_names_its_line() {
        let dir = tempfile::tempdir().unwrap();
        Drops::default().save(dir.path()).unwrap();
        let path = dir.path().join(COUNTS);
        std::fs::write(&path, "{\n\"a\": 3}").unwrap();
        let files = [COUNTS, ROWS].map(|f| (f.to_owned(), dir.path().join(f))).into();
        let error = Drops::load(&files).unwrap_err().to_string();
        assert!(error.starts_with("artifact `drops`, file `counts.json`, line 2: "), "{error}");
    }
}
