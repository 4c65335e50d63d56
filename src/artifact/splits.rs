//! Calibration splits: chosen documents, each with the reason why it was chosen. Knows no selection method.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{
    Artifact, ArtifactError, Files,
    texts::{Mark, read_jsonl, write_jsonl},
};

/// One chosen document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chosen {
    /// BLAKE3 of `text`, 64 hex digits.
    pub id: String,
    /// The normalised text.
    pub text: String,
    /// As in [`super::texts::Text::special_tokens`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub special_tokens: bool,
    /// Where it came from.
    pub source: String,
    /// Licence name as the user wrote it.
    pub licence: String,
    /// Length by the target model's tokenizer.
    pub n_tokens: usize,
    /// Length stratum: `swa`, `gap` or `full`.
    pub bucket: String,
    /// Index of its cluster.
    pub cluster: u32,
    /// Why it was chosen: `near` (to a centroid), `outlier` or `mix`.
    pub reason: String,
    /// Its place among the documents found for the same reason, from 0; some of these may have been left out again.
    pub rank: u32,
    /// Exact integer similarity to its centroid, in grid units squared.
    pub score: i64,
    /// How far the score is from the decision's edge, in the same unit; small means borderline.
    pub margin: i64,
    /// Name of the split that has it.
    pub split: String,
    /// Mean product with its nearest neighbours, where outliers are told by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub density: Option<i64>,
    /// How often a rare token comes again after more than the window.
    pub recalls: u32,
    /// The median of these distances in tokens; 0 without any.
    pub recall_typical: u32,
    /// The largest of these distances.
    pub recall_longest: u32,
    /// By how much a model's loss falls when it sees all of the document instead of a window: millionths of a nat, a mean over some
    /// tokens. Absent where it was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_gain: Option<i64>,
    /// The standard error of that mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_gain_error: Option<i64>,
    /// Answers whose facts lie far back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<Mark>,
}

/// One split: rows sorted by id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Split(pub Vec<Chosen>);

const FILE: &str = "split.jsonl";

impl Artifact for Split {
    const KIND: &'static str = "split";

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        write_jsonl(&dir.join(FILE), &self.0)
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        read_jsonl(Self::KIND, files, FILE).map(Self)
    }
}
