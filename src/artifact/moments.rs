//! Moments: the statistics of a calibration pass that a conversion and an analysis need. Knows no way to make or to use them.
//!
//! Everything is a sum over tokens in f64, so the moments of a text are those of its parts, added. Each layer is a file of its own and is
//! read when it is asked for: all of them together may be larger than the memory.

mod layer;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::layer::LayerMoments;
use super::{Artifact, ArtifactError, Files, file, read_json};

/// Sums over the calibration tokens of each layer, and sequences kept out of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Moments {
    /// What was calibrated on, and with what model.
    pub about: About,
    /// Token ids of the sequences in the sums, for what a conversion fits to activations.
    pub calibration: Vec<Vec<u32>>,
    /// Token ids of sequences that are in no sum, for measuring a conversion.
    pub held_out: Vec<Vec<u32>>,
    /// The file of each layer.
    pub layers: BTreeMap<usize, PathBuf>,
}

/// The calibration data in figures, and what of the model gives the sums their meaning.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Sequences in the sums.
    pub sequences: usize,
    /// Tokens in the sums.
    pub tokens: usize,
    /// Tokens whose gradients are in the Fisher sums; 0 where there are none.
    pub fisher_tokens: usize,
    /// What logits were divided by for them.
    pub fisher_temperature: f64,
    /// Sequences were cut after this many tokens.
    pub max_length: usize,
    /// The model.
    pub model: Model,
}

/// What of the model gives the sums their meaning.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens that a sliding layer sees.
    pub sliding_window: usize,
    /// Experts of a layer, 0 where there are none.
    pub num_local_experts: usize,
    /// Experts that a token takes.
    pub num_experts_per_tok: usize,
    /// Radians per token of each rotary pair [head_dim / 2].
    pub inv_freq: Vec<f64>,
    /// YaRN's factor on cosines and sines.
    pub concentration: f64,
}

/// What `about.json` holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    about: About,
    layers: Vec<usize>,
    calibration: Vec<Vec<u32>>,
    held_out: Vec<Vec<u32>>,
}

/// Entries of what goes by a position or a distance in powers of two.
pub const BUCKETS: usize = 33;

/// The entry of a position or a distance: 0 for 0, and `i > 0` for `2^(i−1) <= x < 2^i`.
pub fn bucket(x: usize) -> usize {
    ((usize::BITS - x.leading_zeros()) as usize).min(BUCKETS - 1)
}

/// Where an entry begins.
pub fn begin(bucket: usize) -> usize {
    if bucket == 0 { 0 } else { 1 << (bucket - 1) }
}

/// Gaps between router logits at which a histogram of them is divided.
pub const GAPS: [f64; 6] = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0];

const KIND: &str = "moments";
const ABOUT: &str = "about.json";

/// The name of a layer's file.
pub fn file_of(layer: usize) -> String {
    format!("layer-{layer:03}.safetensors")
}

impl Moments {
    /// Reads the sums of layer `index`.
    ///
    /// # Panics
    /// If the layer is not among [`Self::layers`].
    pub fn layer(&self, index: usize) -> Result<LayerMoments, ArtifactError> {
        LayerMoments::load(&self.layers[&index], &file_of(index))
    }

    /// Writes `about.json` beside the files of the layers that are in `dir` already.
    pub fn describe(&self, dir: &Path) -> Result<(), ArtifactError> {
        let layers = self.layers.keys().copied().collect();
        let (calibration, held_out) = (self.calibration.clone(), self.held_out.clone());
        let written = Written { about: self.about.clone(), layers, calibration, held_out };
        let text = serde_json::to_vec(&written).expect("plain data serialises");
        let path = dir.join(ABOUT);
        fs::write(&path, text).map_err(ArtifactError::io(&path))
    }
}

impl Artifact for Moments {
    const KIND: &'static str = KIND;

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        for (&layer, path) in &self.layers {
            fs::copy(path, dir.join(file_of(layer))).map_err(ArtifactError::io(path))?;
        }
        self.describe(dir)
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        let written: Written = read_json(KIND, files, ABOUT)?;
        let path = |&layer: &usize| {
            let path = file(KIND, files, &file_of(layer))?;
            LayerMoments::check(path, &file_of(layer))?;
            Ok((layer, path.to_path_buf()))
        };
        let layers = written.layers.iter().map(path).collect::<Result<_, ArtifactError>>()?;
        let Written { about, calibration, held_out, .. } = written;
        Ok(Self { about, calibration, held_out, layers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::checkpoint::files_in;

    fn layer(x: f64) -> LayerMoments {
        LayerMoments {
            attention: "full".into(),
            weights: format!("digest {x}"),
            tokens: 30,
            plain: vec![x, 0.1, 0.1, 1.0 / 3.0],
            query: vec![f64::MIN_POSITIVE, -7.5],
            ..LayerMoments::default()
        }
    }

    fn saved(dir: &Path) {
        for (index, x) in [(1, 4.0), (11, 5.0)] {
            layer(x).save(&dir.join(file_of(index))).unwrap();
        }
        let about = About { sequences: 2, tokens: 30, max_length: 20, ..About::default() };
        let layers = [(1, PathBuf::new()), (11, PathBuf::new())].into();
        let (calibration, held_out) = (vec![vec![7, 8], vec![9]], vec![vec![3, 1, 2], vec![]]);
        Moments { about, calibration, held_out, layers }.describe(dir).unwrap();
    }

    #[test]
    fn a_bucket_begins_at_a_power_of_two() {
        assert_eq!([0, 1, 2, 3, 4, 7, 8, 4095, 4096].map(bucket), [0, 1, 2, 2, 3, 3, 4, 12, 13]);
        assert!((0..BUCKETS).all(|i| bucket(begin(i)) == i));
        assert_eq!((1..BUCKETS).find(|&i| bucket(begin(i) - 1) != i - 1), None);
        assert_eq!(bucket(usize::MAX), BUCKETS - 1, "the last one has no end");
    }

    #[test]
    fn a_copy_keeps_every_bit() {
        let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        saved(dir.path());
        let moments = Moments::load(&files_in(dir.path()).unwrap()).unwrap();
        moments.save(copy.path()).unwrap();
        let again = Moments::load(&files_in(copy.path()).unwrap()).unwrap();
        assert_eq!((&again.about, &again.held_out), (&moments.about, &moments.held_out));
        assert_eq!(again.calibration, [vec![7, 8], vec![9]]);
        assert_eq!(again.held_out, [vec![3, 1, 2], vec![]]);
        assert_eq!(again.layer(1).unwrap(), layer(4.0));
        assert_eq!(again.layer(11).unwrap(), layer(5.0));
    }

    #[test]
    fn a_missing_layer_is_named() {
        let dir = tempfile::tempdir().unwrap();
        saved(dir.path());
        fs::remove_file(dir.path().join(file_of(11))).unwrap();
        let error = Moments::load(&files_in(dir.path()).unwrap()).unwrap_err().to_string();
        assert!(error.contains("layer-011.safetensors"), "{error}");
    }
}
