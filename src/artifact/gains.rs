//! Context gains: by how much a model's loss on a document falls when it sees more than a window. Knows no model.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{
    Artifact, ArtifactError, Files, read_json,
    texts::{read_jsonl, write_jsonl},
};

/// The gain of one document.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gain {
    /// The document.
    pub id: String,
    /// The mean over the scored tokens of the loss with the last tokens alone less the loss with all before, in millionths of a nat.
    /// Absent where no token was scored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gain: Option<i64>,
    /// The standard error of that mean, in the same unit, as if the scored tokens had been drawn one by one. Absent for less than two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<i64>,
    /// Tokens that were scored.
    pub scored: usize,
    /// The document's length in tokens of the model.
    pub tokens: usize,
    /// Whether the model saw its beginning only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// How gains were measured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Tokens of the short context.
    pub window: usize,
    /// The largest number of tokens that were scored in a document.
    pub samples: usize,
    /// Documents were cut after this many tokens.
    pub max_tokens: usize,
}

/// The gains of a corpus, by ascending id.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Gains {
    /// How they were measured.
    pub about: About,
    /// One row per document.
    pub rows: Vec<Gain>,
}

const ABOUT: &str = "about.json";
const ROWS: &str = "gains.jsonl";

impl Artifact for Gains {
    const KIND: &'static str = "gains";

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        let path = dir.join(ABOUT);
        let about = serde_json::to_vec_pretty(&self.about).map_err(|e| ArtifactError::io(&path)(e.into()))?;
        std::fs::write(&path, about).map_err(ArtifactError::io(&path))?;
        write_jsonl(&dir.join(ROWS), &self.rows)
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        let about = read_json(Self::KIND, files, ABOUT)?;
        let rows: Vec<Gain> = read_jsonl(Self::KIND, files, ROWS)?;
        let malformed = |at: usize, why: &str| ArtifactError::Malformed {
            kind: Self::KIND,
            file: ROWS.to_owned(),
            place: format!("line {}", at + 1),
            why: why.to_owned(),
        };
        if let Some(at) = rows.iter().position(|row| row.gain.is_some() != (row.scored > 0)) {
            return Err(malformed(at, "`gain` goes with scored tokens"));
        }
        if let Some(at) = rows.windows(2).position(|pair| pair[0].id >= pair[1].id) {
            return Err(malformed(at + 1, "ids are not ascending"));
        }
        Ok(Self { about, rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::testing::{comes_back, edited};

    fn gains() -> Gains {
        let about = About { window: 128, samples: 64, max_tokens: 8192 };
        let measured = Gain {
            id: "a".into(),
            gain: Some(-3),
            error: Some(20),
            scored: 64,
            tokens: 9000,
            truncated: true,
        };
        let short = Gain { id: "b".into(), tokens: 5, ..Gain::default() };
        Gains { about, rows: vec![measured, short] }
    }

    #[test]
    fn rows_come_back_and_say_only_what_is_known() {
        comes_back(&gains());
        let lines: Vec<String> = gains().rows.iter().map(|row| serde_json::to_string(row).unwrap()).collect();
        let expected = [
            r#"{"id":"a","gain":-3,"error":20,"scored":64,"tokens":9000,"truncated":true}"#,
            r#"{"id":"b","scored":0,"tokens":5}"#,
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn rows_that_contradict_themselves_are_told_with_their_line() {
        let at = |line: usize| format!("artifact `gains`, file `gains.jsonl`, line {line}: ");
        let rows = |from, to| edited(&gains(), "gains.jsonl", from, to);
        assert_eq!(rows("\"scored\":0", "\"scored\":1"), at(2) + "`gain` goes with scored tokens");
        assert_eq!(rows("\"gain\":-3,", ""), at(1) + "`gain` goes with scored tokens");
        assert_eq!(rows("\"b\"", "\"a\""), at(2) + "ids are not ascending");
    }
}
