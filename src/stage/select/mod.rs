//! The select stage: three calibration splits, by length in tokens of the target model. Knows no embedder and no model.

mod card;
mod certificate;
mod choice;
mod corpus;
mod dataset;
mod decision;
mod golden;
mod mix;
mod moved;
mod picture;
mod recall;
mod report;
mod run;
mod thin;
mod tokens;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::dataset::Compat;
use self::tokens::{Counter, Encoding, TokensError};
use crate::{
    artifact::{
        Artifact,
        clusters::Clusters,
        drops::Drops,
        embeddings::Embeddings,
        files::{Any, FileSet},
        gains::Gains,
        splits::Split,
        texts::Texts,
    },
    engine::action::{Cx, Failure, Numerics, OutputPort},
    kernel::nearest::NearestError,
    stage::{
        Finite, Input, InputPort, Invalid, Stage,
        code::{self, Code},
    },
};

/// Chooses documents for calibration: for each length stratum the nearest to every centroid and the farthest few per cent, and a
/// mixed split with quotas by source and length. Also writes a dataset folder (Parquet, JSONL and a card), and a report: figures for
/// plots, and the certificate, which lists every decision that an error in the vectors could change.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Select {
    /// The documents.
    pub texts: Input<Texts>,
    /// Their clusters.
    pub clusters: Input<Clusters>,
    /// Their vectors: the ones that were clustered. Needed by `distinct`, `semantic-duplicates`, `copies` and `compat`, and for the
    /// scatter in the report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embeddings: Option<Input<Embeddings>>,
    /// The stage whose output holds the target model's `tokenizer.json`. Default: the embedded `encoding`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<Input<Any>>,
    /// Without `tokenizer`: the embedded tokenizer to count with.
    #[serde(default)]
    pub encoding: Encoding,
    /// The corpus's report of drops, for the card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drops: Option<Input<Drops>>,
    /// Documents with fewer tokens are `swa`.
    #[serde(default = "swa_below")]
    pub swa_below: usize,
    /// Documents with more tokens are `full`. Those between are `gap`, and only in the mixed split.
    #[serde(default = "full_above")]
    pub full_above: usize,
    /// Outliers per stratum, in per cent of its documents, rounded down; at most 50.
    #[serde(default = "outlier_percent")]
    pub outlier_percent: u32,
    /// Documents in the mixed split; at most half of the corpus.
    #[serde(default = "mixed")]
    pub mixed: usize,
    /// The largest number of tokens in each split, such as `{ swa = 500000, full = 2000000 }`. Nearest documents and outliers are
    /// taken by rank, both at the same pace; one that does not fit is left out and later ones are tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Budgets>,
    /// Leaves a row out of a split if its similarity (cosine, 0 to 1) to one that ranks higher there exceeds this. Nearest documents
    /// rank before outliers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distinct: Option<Finite>,
    /// Before all else, leaves a document out if its similarity (cosine, 0 to 1) to one that stays and has a smaller id exceeds
    /// this. Compares all pairs, so time grows with the square of the number of documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub semantic_duplicates: Option<Finite>,
    /// `"original"`: the JSONL files in the dataset folder have the rows of the original toolkit, `{"text", "meta": {"type",
    /// "model"}}`. Parquet keeps all columns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compat: Option<Compat>,
    /// Tokens beyond which a rare token that comes again is evidence of long range. Default: 128, the window of GPT-OSS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
    /// The stage that measured what a model gains from context beyond a window (kind `context-gain`), on the same documents. Every
    /// row then says its document's gain, and the card each split's median.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_gain: Option<Input<Gains>>,
    /// With `context-gain`: documents that gain less than this, in nats per token, and those that were not measured, are left out
    /// of `full` before the nearest and the outliers are looked for. Their gain is a sample's: its error stands beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_gain: Option<Finite>,
    /// For the certificate: how far a vector may be off, as a share of its length. Default: what rounding to the grid alone may have
    /// done, half a unit in each coordinate: √dim / 2 of 4000 units, which is 0.0025 for 384 coordinates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noise: Option<Finite>,
    /// For the certificate: how many times to choose again with all vectors moved by `noise`, among the same centroids; at most
    /// 100. Default: 5 with `embeddings`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copies: Option<u32>,
}

/// Tokens that each split may have; a split that is not named has no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    /// Of `calib_swa_golden`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swa: Option<u64>,
    /// Of `calib_full_golden`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<u64>,
    /// Of `calib_mixed_golden`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixed: Option<u64>,
}

fn swa_below() -> usize {
    2048
}
fn full_above() -> usize {
    4096
}
fn outlier_percent() -> u32 {
    5
}
fn mixed() -> usize {
    256
}

const SWA: &str = "calib_swa_golden";
const FULL: &str = "calib_full_golden";
const MIXED: &str = "calib_mixed_golden";
/// The stratum of [`FULL`].
const FULL_STRATUM: &str = "full";
/// Short, long and mixed: the order in which splits stand everywhere.
const SPLITS: [&str; 3] = [SWA, FULL, MIXED];

/// Why nothing could be chosen.
#[derive(Debug, thiserror::Error)]
enum SelectError {
    #[error("inputs are of different corpora: {0}; let all inputs come from the same corpus")]
    Mismatch(String),
    #[error(
        "these embeddings are not the ones that were clustered; let `embeddings` name the stage that the cluster stage names"
    )]
    OtherVectors,
    #[error("the embeddings cannot be compared exactly: {0}")]
    Nearest(#[from] NearestError),
    #[error("the output of `{0}` has no file `tokenizer.json`")]
    NoTokenizer(String),
    #[error(transparent)]
    Tokens(#[from] TokensError),
    #[error("the dataset card cannot be written: {0}")]
    Card(#[from] minijinja::Error),
    #[error(transparent)]
    Draw(#[from] picture::DrawError),
}

impl From<SelectError> for Failure {
    fn from(error: SelectError) -> Self {
        Self::stage(error)
    }
}

impl From<TokensError> for Failure {
    fn from(error: TokensError) -> Self {
        SelectError::from(error).into()
    }
}

impl Stage for Select {
    const KIND: &'static str = "select";
    const CODE: Code = code::of("select");
    const NUMERICS: Numerics = Numerics::Bitwise;
    const OUTPUTS: &'static [OutputPort] = &[
        OutputPort { name: SWA, kind: Split::KIND },
        OutputPort { name: FULL, kind: Split::KIND },
        OutputPort { name: MIXED, kind: Split::KIND },
        OutputPort { name: "dataset", kind: FileSet::KIND },
        OutputPort { name: "report", kind: FileSet::KIND },
    ];

    fn inputs(&self) -> Vec<InputPort> {
        let mut ports = vec![self.texts.port("texts"), self.clusters.port("clusters")];
        ports.extend(self.embeddings.as_ref().map(|input| input.port("embeddings")));
        ports.extend(self.tokenizer.as_ref().map(|input| input.port("tokenizer")));
        ports.extend(self.drops.as_ref().map(|input| input.port("drops")));
        ports.extend(self.context_gain.as_ref().map(|input| input.port("context-gain")));
        ports
    }

    fn check(&self) -> Result<(), Invalid> {
        if self.swa_below > self.full_above + 1 {
            return Err(Invalid::new(
                "swa-below",
                "the strata overlap: `swa-below` exceeds `full-above` + 1",
            ));
        }
        if self.outlier_percent > 50 {
            return Err(Invalid::new("outlier-percent", "`outlier-percent` is larger than 50"));
        }
        if self.copies.is_some_and(|copies| copies > 100) {
            return Err(Invalid::new("copies", "`copies` is larger than 100"));
        }
        let shares = [
            ("noise", self.noise),
            ("distinct", self.distinct),
            ("semantic-duplicates", self.semantic_duplicates),
        ];
        for (name, share) in shares {
            if share.is_some_and(|share| !(0.0..=1.0).contains(&share.0)) {
                return Err(Invalid::new(name, format!("`{name}` is outside 0 to 1")));
            }
        }
        if self.min_gain.is_some() && self.context_gain.is_none() {
            return Err(Invalid::new("min-gain", "`min-gain` needs `context-gain`")
                .hint("name a stage of kind `context-gain` that measures these documents"));
        }
        let needs = [
            ("distinct", self.distinct.is_some()),
            ("semantic-duplicates", self.semantic_duplicates.is_some()),
            ("copies", self.copies.is_some_and(|copies| copies > 0)),
            ("compat", self.compat.is_some()),
        ];
        match needs.iter().find(|(_, given)| *given && self.embeddings.is_none()) {
            Some((name, _)) => Err(Invalid::new(*name, format!("`{name}` needs `embeddings`"))
                .hint("name the stage that the cluster stage takes its embeddings from")),
            None => Ok(()),
        }
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        run::run(self, cx)
    }
}

impl Select {
    fn counter(&self, cx: &Cx<'_>) -> Result<Counter, Failure> {
        let Some(input) = &self.tokenizer else { return Ok(Counter::embedded(self.encoding)?) };
        let files = input.load(cx, "tokenizer")?.0;
        let path = files.get("tokenizer.json").ok_or_else(|| SelectError::NoTokenizer(input.from.clone()))?;
        Ok(Counter::from_file(path)?)
    }

    fn bucket(&self, n_tokens: usize) -> &'static str {
        if n_tokens < self.swa_below {
            "swa"
        } else if n_tokens > self.full_above {
            FULL_STRATUM
        } else {
            "gap"
        }
    }

    fn window(&self) -> usize {
        self.window.unwrap_or(128)
    }
}

#[cfg(test)]
mod tests;
