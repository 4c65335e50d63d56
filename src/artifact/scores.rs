//! Scores: how far models are from the original one, with the protocol they were measured by. Knows no way to measure.

mod table;

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use super::{Artifact, ArtifactError, Files, read_json};

/// The table of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    /// How the figures were made; a figure without it means nothing.
    pub protocol: Protocol,
    /// One row per model, the original first.
    pub models: Vec<Row>,
}

/// What was measured on what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Where the text comes from, such as `split calib_mixed_golden, held-out rows`.
    pub text: String,
    /// Number of documents.
    pub documents: usize,
    /// Predicted tokens: those with a next token in their document.
    pub tokens: usize,
    /// Documents are cut after this many tokens.
    pub max_tokens: usize,
    /// The token put before every document, if there is one; it is context, never predicted.
    pub bos: Option<String>,
    /// Arithmetic of the forward pass, such as `f32, cpu`.
    pub numerics: String,
    /// Bytes per cached element in the KV figures: 2 for BF16.
    pub kv_element_bytes: usize,
}

/// One model's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Row {
    /// `original`, `converted`, `healed`, or as the user named it.
    pub model: String,
    /// Over all positions.
    pub all: Figures,
    /// By position in the document, ascending, without gaps.
    pub buckets: Vec<Bucket>,
    /// Recall of facts stated far back; `None` where the text has no marked answers.
    pub recall: Option<Recall>,
    /// KV cache bytes that one more token of context costs, over all full-attention (or latent) layers.
    pub kv_bytes_per_token: usize,
    /// The same over the sliding-window layers, which stop growing at the window.
    pub kv_bytes_per_token_sliding: usize,
    /// Cached elements per token in each full-attention (or latent) layer, in order.
    pub kv_elements_per_layer: Vec<usize>,
    /// Share of the original's `kv_bytes_per_token` that is saved.
    pub kv_cut: f64,
    /// Share of the whole model's cache that is saved at a context of the protocol's `max_tokens`, windows included.
    pub kv_cut_whole_model: f64,
}

/// Figures of the positions `from <= position < to`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// First position.
    pub from: usize,
    /// One past the last position.
    pub to: usize,
    /// The figures.
    #[serde(flatten)]
    pub figures: Figures,
}

/// Figures over some predicted tokens. The KL divergence is `KL(original ‖ model)` in nats per token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Predicted tokens.
    pub tokens: usize,
    /// Mean KL divergence; 0 for the original itself.
    pub kl_mean: f64,
    /// Its standard error, tokens of one document taken as dependent; `None` for fewer than two documents.
    pub kl_mean_se: Option<f64>,
    /// Its median.
    pub kl_median: f64,
    /// Its 90th percentile.
    pub kl_p90: f64,
    /// Its 95th percentile.
    pub kl_p95: f64,
    /// Its 99th percentile.
    pub kl_p99: f64,
    /// Its 99.9th percentile.
    pub kl_p999: f64,
    /// Its greatest value.
    pub kl_max: f64,
    /// Share of tokens whose likeliest next token is the original's.
    pub top1: f64,
    /// Its standard error, tokens of one document taken as dependent; `None` for fewer than two documents.
    pub top1_se: Option<f64>,
    /// Mean change of the probability of the token that follows.
    pub delta_p_mean: f64,
    /// Root mean square of that change.
    pub delta_p_rms: f64,
    /// `exp` of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Perplexity divided by the original's on the same tokens.
    pub perplexity_ratio: f64,
    /// Natural logarithm of that ratio: the mean difference of the negative log-likelihoods.
    pub ln_ratio: f64,
    /// Its standard error, tokens of one document taken as dependent; `None` for fewer than two documents.
    pub ln_ratio_se: Option<f64>,
}

/// Accuracy on answers that depend on something stated earlier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recall {
    /// Marked answers.
    pub answers: usize,
    /// Share of answers of which every token was the likeliest one, given the text before it.
    pub accuracy: f64,
    /// What guessing among the possible answers gives.
    pub chance: f64,
    /// Marks left out, because a token reaches over the end of the answer.
    pub skipped: usize,
    /// By the number of tokens between statement and answer, ascending; distances without an answer are left out.
    pub by_distance: Vec<Distance>,
}

/// Recall of what was stated `from <= distance < to` tokens before the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distance {
    /// Least distance.
    pub from: usize,
    /// One past the greatest distance; `None` where there is no bound.
    pub to: Option<usize>,
    /// Marked answers.
    pub answers: usize,
    /// Share of answers of which every token was the likeliest one.
    pub accuracy: f64,
    /// What guessing gives.
    pub chance: f64,
}

const FILE: &str = "scores.json";
const TABLE: &str = "scores.md";

impl Artifact for Scores {
    const KIND: &'static str = "scores";

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        let path = dir.join(FILE);
        let mut text = serde_json::to_string_pretty(self).map_err(|e| ArtifactError::io(&path)(e.into()))?;
        text.push('\n');
        fs::write(&path, text).map_err(ArtifactError::io(&path))?;
        let path = dir.join(TABLE);
        fs::write(&path, self.markdown()).map_err(ArtifactError::io(&path))
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        read_json(Self::KIND, files, FILE)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Scores of two models with plausible figures.
    pub(crate) fn example() -> Scores {
        let figures = |kl: f64, perplexity: f64| Figures {
            tokens: 1000,
            kl_mean: kl,
            kl_mean_se: Some(kl / 16.0),
            kl_median: kl / 2.0,
            kl_p90: kl * 2.0,
            kl_p95: kl * 4.0,
            kl_p99: kl * 9.0,
            kl_p999: kl * 16.0,
            kl_max: kl * 20.0,
            top1: 1.0 - kl,
            top1_se: Some(kl / 32.0),
            delta_p_mean: -kl / 8.0,
            delta_p_rms: kl / 2.0,
            perplexity,
            perplexity_ratio: perplexity / 2.5,
            ln_ratio: (perplexity / 2.5).ln(),
            ln_ratio_se: Some(kl / 8.0),
        };
        let distance = |accuracy| Distance { from: 128, to: Some(512), answers: 40, accuracy, chance: 0.125 };
        let row = |model: &str, kl, perplexity, accuracy, kv| Row {
            model: model.to_owned(),
            all: figures(kl, perplexity),
            buckets: vec![Bucket { from: 0, to: 512, figures: figures(kl, perplexity) }],
            recall: Some(Recall {
                answers: 40,
                accuracy,
                chance: 0.125,
                skipped: 1,
                by_distance: vec![distance(accuracy)],
            }),
            kv_bytes_per_token: kv,
            kv_bytes_per_token_sliding: 768,
            kv_elements_per_layer: vec![kv / 4, kv / 4],
            kv_cut: 1.0 - kv as f64 / 768.0,
            kv_cut_whole_model: (1.0 - kv as f64 / 768.0) * 0.875,
        };
        Scores {
            protocol: Protocol {
                text: "split calib_mixed_golden".to_owned(),
                documents: 12,
                tokens: 1000,
                max_tokens: 4096,
                bos: Some("<|startoftext|>".to_owned()),
                numerics: "f32, cpu".to_owned(),
                kv_element_bytes: 2,
            },
            models: vec![row("original", 0.0, 2.5, 0.975, 768), row("healed", 0.0625, 2.625, 0.95, 432)],
        }
    }

    #[test]
    fn round_trip() {
        let dir = tempfile::tempdir().unwrap();
        example().save(dir.path()).unwrap();
        let files = Files::from([(FILE.to_owned(), dir.path().join(FILE))]);
        assert_eq!(Scores::load(&files).unwrap(), example());
    }

    #[test]
    fn a_wrong_field_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        example().save(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap().replacen("\"documents\"", "\"papers\"", 1);
        fs::write(&path, text).unwrap();
        let error = Scores::load(&Files::from([(FILE.to_owned(), path)])).unwrap_err().to_string();
        assert!(
            error.starts_with("artifact `scores`, file `scores.json`, line 4: unknown field `papers`"),
            "{error}"
        );
    }
}
