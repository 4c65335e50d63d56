//! Conversion report: what a conversion to latent attention kept, dropped and measured. Knows no way to convert.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use super::{Artifact, ArtifactError, Files, read_json};

/// What a conversion did.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conversion {
    /// The method's name: `metric` or that of a published one.
    pub method: String,
    /// `a` (all keys rotated), `b` (slow pairs in the latent), `d` (components that heads share are rotated) or `recompute` (keys are
    /// made again).
    pub layout: String,
    /// How the calibration was done, in words.
    pub calibration: String,
    /// The gate that was passed first.
    pub parity: Parity,
    /// One entry per converted layer.
    pub layers: Vec<Converted>,
    /// The splits between rotated pairs and rank that were compared; empty when both were given.
    pub candidates: Vec<Candidate>,
    /// The best split of each budget that was searched, ascending; empty without a search.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub curve: Vec<Candidate>,
    /// The output projections that were fitted anew, where that was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refit: Option<Refit>,
    /// What the whole model caches.
    pub cache: Cache,
}

/// Output projections fitted anew to what the heads of converted layers give.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refit {
    /// Calibration tokens that they were fitted to.
    pub tokens: usize,
    /// Mean KL divergence on held-out sequences without them.
    pub kl_before: f64,
    /// And with them.
    pub kl_after: f64,
    /// Whether they were taken.
    pub taken: bool,
    /// One entry per converted layer.
    pub layers: Vec<Refitted>,
}

/// The output projection of one layer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refitted {
    /// The layer's index.
    pub layer: usize,
    /// The pull towards the projection that was there, as a share of the mean square of a head's output; `None` if that one stayed.
    pub ridge: Option<f64>,
    /// Squared error of the attention block's output on held-out text behind converted layers, over the output's square, before.
    pub error_before: f64,
    /// The same afterwards.
    pub error_after: f64,
}

/// The lossless factorisation against the original.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parity {
    /// Largest difference of a logit over the largest logit, both absolute.
    pub relative_difference: f64,
    /// The most that was allowed.
    pub tolerance: f64,
    /// The largest absolute logit of the original.
    pub largest_logit: f64,
    /// Tokens compared.
    pub tokens: usize,
}

/// One converted layer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Converted {
    /// Its index.
    pub layer: usize,
    /// Rotary pairs that stay rotated.
    pub rope_pairs: Vec<usize>,
    /// Width of the latent.
    pub kv_lora_rank: usize,
    /// Share of the weighted energy of un-rotated keys and values that the latent drops.
    pub latent_error: f64,
    /// Predicted error in the metric from not rotating, over that from dropping keys and values altogether.
    pub rope_error: f64,
    /// Cached elements per token before.
    pub kv_elements_before: usize,
    /// Cached elements per token now.
    pub kv_elements_after: usize,
}

/// One split of the budget.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Adjacent frequencies that are treated as one.
    pub freqfold: usize,
    /// Rotated pairs per key/value head, or rotated components that the heads share.
    pub rope_pairs: usize,
    /// Of each converted layer, where they differ; the number above is their mean.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pairs_by_layer: Vec<usize>,
    /// Width of the latent, or its mean.
    pub kv_lora_rank: usize,
    /// Cached elements per token of a converted layer; their mean where layers differ.
    pub kv_elements: usize,
    /// Of each converted layer, where they differ.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<usize>,
    /// Predicted error in the metric, summed over layers, over that from dropping keys and values altogether.
    pub predicted: f64,
    /// Mean KL divergence (nats per token) from the original on held-out sequences, where it was measured.
    pub kl: Option<f64>,
    /// Whether it was taken.
    pub chosen: bool,
}

/// Cached bytes at the served context.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// The served context in tokens.
    pub context: usize,
    /// Bytes per cached element in the figures below.
    pub element_bytes: usize,
    /// Elements per token of all layers that see the whole context, before.
    pub growing_elements_before: usize,
    /// The same now.
    pub growing_elements_after: usize,
    /// Share of the growing cache that was cut, 0 to 1.
    pub growing_cut: f64,
    /// Bytes of the sliding layers, which stop growing at the window, before.
    pub sliding_bytes_before: u64,
    /// The same now.
    pub sliding_bytes_after: u64,
    /// Bytes of all layers at the served context, before.
    pub bytes_before: u64,
    /// The same now.
    pub bytes_after: u64,
}

const FILE: &str = "conversion.json";

impl Artifact for Conversion {
    const KIND: &'static str = "conversion";

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        let path = dir.join(FILE);
        let text = serde_json::to_string_pretty(self).expect("plain data serialises") + "\n";
        fs::write(&path, text).map_err(ArtifactError::io(&path))
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        read_json(Self::KIND, files, FILE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::checkpoint::files_in;

    #[test]
    fn round_trip() {
        let report = Conversion {
            layout: "b".into(),
            layers: vec![Converted { layer: 1, rope_pairs: vec![0, 2], ..Converted::default() }],
            candidates: vec![Candidate { kl: Some(0.25), chosen: true, ..Candidate::default() }],
            ..Conversion::default()
        };
        let dir = tempfile::tempdir().unwrap();
        report.save(dir.path()).unwrap();
        assert_eq!(Conversion::load(&files_in(dir.path()).unwrap()).unwrap(), report);
    }
}
