//! Moments: the statistics of a calibration pass that a conversion needs. Knows no way to make or to use them.

use std::{collections::BTreeMap, fs, path::Path};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use super::{Artifact, ArtifactError, Files, file};

/// Sums over the calibration tokens of each full-attention layer, and sequences kept out of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Moments {
    /// What was calibrated on.
    pub about: About,
    /// By layer index.
    pub layers: BTreeMap<usize, LayerMoments>,
    /// Token ids of sequences that are in no sum, for measuring a conversion.
    pub held_out: Vec<Vec<u32>>,
}

/// The calibration data in figures.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// Sequences in the sums.
    pub sequences: usize,
    /// Tokens in the sums.
    pub tokens: usize,
    /// Sequences were cut after this many tokens.
    pub max_length: usize,
}

/// One layer's sums. `D` is the hidden size, `n` the query heads, `d` the head width, `P = d / 2` the rotary pairs; `a` are attention
/// weights with the sink in the denominator, `s` a key's token and `t` a query's.
///
/// `G_h(t,s) = a_h(t,s)² ‖W_O,h (v_s − o_h,t)‖²` is the squared change of the block's output for a unit change of one logit.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerMoments {
    /// A digest of the attention tensors that made them.
    pub weights: String,
    /// `Σ_s x̃ x̃ᵀ` [D + 1, D + 1] of the normalised input with a 1 appended.
    pub plain: Vec<f64>,
    /// `Σ_s w_s x̃ x̃ᵀ` with `w_s = Σ_h,t a_h(t,s)²`.
    pub attended: Vec<f64>,
    /// `Σ_t,s a_h a_h'` [n, n].
    pub overlap: Vec<f64>,
    /// `Σ_t,s G_h q_t q_tᵀ` [n, d, d] of queries before rotation, without YaRN's factor.
    pub query: Vec<f64>,
    /// `Σ_t,s G_h cos θ_j (t − s)` over `Σ_t,s G_h` [n, P].
    pub turn_cos: Vec<f64>,
    /// The same of the sine.
    pub turn_sin: Vec<f64>,
}

const KIND: &str = "moments";
const FILE: &str = "moments.safetensors";
const ABOUT: &str = "about.json";

impl LayerMoments {
    fn fields(&self) -> [(&'static str, &Vec<f64>); 6] {
        [
            ("plain", &self.plain),
            ("attended", &self.attended),
            ("overlap", &self.overlap),
            ("query", &self.query),
            ("turn_cos", &self.turn_cos),
            ("turn_sin", &self.turn_sin),
        ]
    }
}

/// What `about.json` holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    about: About,
    /// The digest of each layer's attention tensors.
    layers: BTreeMap<usize, String>,
    held_out: Vec<Vec<u32>>,
}

impl Artifact for Moments {
    const KIND: &'static str = KIND;

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        let mut bytes: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (layer, moments) in &self.layers {
            for (name, values) in moments.fields() {
                let data = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                bytes.insert(format!("layers.{layer}.{name}"), data);
            }
        }
        let views = bytes.iter().map(|(name, data)| {
            let view = TensorView::new(Dtype::F64, vec![data.len() / 8], data);
            (name.as_str(), view.expect("eight bytes an element"))
        });
        let path = dir.join(FILE);
        safetensors::serialize_to_file(views, None, &path)
            .map_err(|e| ArtifactError::io(&path)(std::io::Error::other(e.to_string())))?;
        let written = Written {
            about: self.about.clone(),
            layers: self.layers.iter().map(|(&layer, m)| (layer, m.weights.clone())).collect(),
            held_out: self.held_out.clone(),
        };
        let text = serde_json::to_vec(&written).expect("plain data serialises");
        let path = dir.join(ABOUT);
        fs::write(&path, text).map_err(ArtifactError::io(&path))
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        let path = file(KIND, files, ABOUT)?;
        let text = fs::read(path).map_err(ArtifactError::io(path))?;
        let written: Written = serde_json::from_slice(&text)
            .map_err(|e| malformed(ABOUT, format!("line {}", e.line()), e.to_string()))?;
        let path = file(KIND, files, FILE)?;
        let bytes = fs::read(path).map_err(ArtifactError::io(path))?;
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|e| malformed(FILE, "header".to_owned(), e.to_string()))?;
        let read = |layer: usize, name: &str| {
            let name = format!("layers.{layer}.{name}");
            let view =
                tensors.tensor(&name).map_err(|e| malformed(FILE, format!("`{name}`"), e.to_string()))?;
            if view.dtype() != Dtype::F64 {
                return Err(malformed(FILE, format!("`{name}`"), format!("{:?}, not F64", view.dtype())));
            }
            let element = |b: &[u8]| f64::from_le_bytes(b.try_into().expect("chunks of eight"));
            Ok(view.data().chunks_exact(8).map(element).collect())
        };
        let layer = |(&layer, weights): (&usize, &String)| {
            let moments = LayerMoments {
                weights: weights.clone(),
                plain: read(layer, "plain")?,
                attended: read(layer, "attended")?,
                overlap: read(layer, "overlap")?,
                query: read(layer, "query")?,
                turn_cos: read(layer, "turn_cos")?,
                turn_sin: read(layer, "turn_sin")?,
            };
            Ok((layer, moments))
        };
        let layers = written.layers.iter().map(layer).collect::<Result<_, ArtifactError>>()?;
        Ok(Self { about: written.about, layers, held_out: written.held_out })
    }
}

fn malformed(file: &str, place: String, why: String) -> ArtifactError {
    ArtifactError::Malformed { kind: KIND, file: file.to_owned(), place, why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::checkpoint::files_in;

    fn moments() -> Moments {
        let layer = |x: f64| LayerMoments {
            weights: format!("digest {x}"),
            plain: vec![x, 0.1, 0.1, 1.0 / 3.0],
            attended: vec![x; 4],
            overlap: vec![2.0],
            query: vec![f64::MIN_POSITIVE, -7.5],
            turn_cos: vec![0.5],
            turn_sin: vec![-0.5],
        };
        Moments {
            about: About { sequences: 2, tokens: 30, max_length: 20 },
            layers: [(1, layer(4.0)), (11, layer(5.0))].into(),
            held_out: vec![vec![3, 1, 2], vec![]],
        }
    }

    #[test]
    fn round_trip_keeps_every_bit() {
        let dir = tempfile::tempdir().unwrap();
        moments().save(dir.path()).unwrap();
        assert_eq!(Moments::load(&files_in(dir.path()).unwrap()).unwrap(), moments());
    }

    #[test]
    fn a_missing_sum_is_named() {
        let dir = tempfile::tempdir().unwrap();
        moments().save(dir.path()).unwrap();
        let about = fs::read_to_string(dir.path().join(ABOUT)).unwrap();
        fs::write(dir.path().join(ABOUT), about.replace("\"11\":", "\"2\":")).unwrap();
        let error = Moments::load(&files_in(dir.path()).unwrap()).unwrap_err().to_string();
        assert!(
            error.contains("moments.safetensors, `layers.2.plain`") || error.contains("`layers.2.plain`")
        );
    }
}
