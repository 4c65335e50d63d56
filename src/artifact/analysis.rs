//! Analysis: what a model's attention, keys, values and experts look like on calibration text. Knows no way to measure it.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use super::{Artifact, ArtifactError, Files, file, read_json};

/// The figures, and a page about them in words.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Analysis {
    /// All figures.
    pub figures: Figures,
    /// `summary.md`.
    pub summary: String,
    /// `attention.svg`: how far each full-attention layer looks back.
    pub picture: String,
}

/// All figures of an analysis.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    /// What was measured on.
    pub protocol: Protocol,
    /// The analysed layers, ascending.
    pub layers: Vec<Layer>,
}

/// What was measured on what.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocol {
    /// Sequences.
    pub sequences: usize,
    /// Tokens in them.
    pub tokens: usize,
    /// Sequences were cut after this many tokens.
    pub max_length: usize,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Its index.
    pub layer: usize,
    /// `full`, `sliding` or `latent`.
    pub attention: String,
    /// Query heads.
    pub heads: Vec<Head>,
    /// Key/value heads.
    pub kv_heads: Vec<KvHead>,
    /// Rotary pairs; empty for latent attention.
    pub pairs: Vec<Pair>,
    /// Experts.
    pub routing: Routing,
    /// Spectra of keys and values; full attention only.
    pub spectra: Option<Spectra>,
}

/// One query head.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The learned sink logit.
    pub sink_logit: f64,
    /// Mean share of a query's attention that goes to the sink.
    pub sink_mass: f64,
    /// Mean share that goes to the sequence's first token.
    pub first_token_mass: f64,
    /// Share that goes to distances 0, 1, 2–3, 4–7, …: entry `i > 0` is `2^(i−1) <= distance < 2^i`. Sums to 1 − sink mass.
    pub distance: Vec<f64>,
    /// Root mean square of the query's norm, without YaRN's factor.
    pub query_norm: f64,
}

/// One key/value head.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KvHead {
    /// Root mean square of the key's norm, without YaRN's factor.
    pub key_norm: f64,
    /// Mean key norm at positions 0 to 3 over the mean at the others.
    pub first_key_ratio: f64,
}

/// One rotary pair.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// Radians per token.
    pub frequency: f64,
    /// Mean square of the pair's query components, summed over heads.
    pub query_energy: f64,
    /// Mean square of the pair's key components, summed over key/value heads.
    pub key_energy: f64,
    /// Share of the key energy that one complex component shared by all key/value heads holds; 1 / heads is none. Full attention only.
    pub sharing: Option<f64>,
}

/// Experts of one layer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Routing {
    /// Share of all choices that fell on each expert; sums to 1.
    pub load: Vec<f64>,
    /// Mean entropy of the router's softmax in nats.
    pub entropy: f64,
    /// Mean gap between the last chosen logit and the first one left out.
    pub top_k_gap: f64,
    /// Experts that no token chose.
    pub dead: Vec<usize>,
}

/// Singular values per token (root mean square) of keys and values before rotation, largest first.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spectra {
    /// Of the values, all heads together.
    pub values: Vec<f64>,
    /// Of keys and values together.
    pub joint: Vec<f64>,
    /// `exp` of the entropy of the squared spectrum.
    pub values_effective_rank: f64,
    /// The same of keys and values together.
    pub joint_effective_rank: f64,
}

const FILE: &str = "analysis.json";
const SUMMARY: &str = "summary.md";
const PICTURE: &str = "attention.svg";

impl Artifact for Analysis {
    const KIND: &'static str = "analysis";

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        let figures = serde_json::to_string_pretty(&self.figures).expect("plain data serialises") + "\n";
        for (name, text) in [(FILE, &figures), (SUMMARY, &self.summary), (PICTURE, &self.picture)] {
            let path = dir.join(name);
            fs::write(&path, text).map_err(ArtifactError::io(&path))?;
        }
        Ok(())
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        let read = |name: &str| {
            let path = file(Self::KIND, files, name)?;
            fs::read_to_string(path).map_err(ArtifactError::io(path))
        };
        let figures = read_json(Self::KIND, files, FILE)?;
        Ok(Self { figures, summary: read(SUMMARY)?, picture: read(PICTURE)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::checkpoint::files_in;

    #[test]
    fn round_trip_and_place_of_a_fault() {
        let layer = Layer {
            layer: 1,
            attention: "full".into(),
            heads: vec![Head { sink_mass: 0.1, distance: vec![0.5, 0.4], ..Head::default() }],
            spectra: Some(Spectra { values: vec![3.0, 1.0], ..Spectra::default() }),
            ..Layer::default()
        };
        let analysis = Analysis {
            figures: Figures { protocol: Protocol::default(), layers: vec![layer] },
            summary: "# A model\n".into(),
            picture: "<svg/>".into(),
        };
        let dir = tempfile::tempdir().unwrap();
        analysis.save(dir.path()).unwrap();
        assert_eq!(Analysis::load(&files_in(dir.path()).unwrap()).unwrap(), analysis);
        fs::write(dir.path().join(FILE), "{\n\"protocol\": 3}").unwrap();
        let error = Analysis::load(&files_in(dir.path()).unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("artifact `analysis`, file `analysis.json`, line 2"), "{error}");
    }
}
