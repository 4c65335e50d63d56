//! The sums of one layer: their meaning, their file, their addition. Knows no other layer.

use std::{collections::HashMap, path::Path};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use super::{
    super::{ArtifactError, checkpoint::mapped},
    KIND,
};

/// One layer's sums over tokens. `D` is the hidden size, `n` the query heads, `g` the key/value heads, `d` the head width, `P = d / 2` the
/// rotary pairs, `E` the experts; `a` are attention weights with the sink in the denominator, `s` a key's token and `t` a query's. What a
/// layer does not have or nobody asked for is empty.
///
/// `G_h(t,s) = a_h(t,s)² ‖W_O,h (v_s − o_h,t)‖²` is the squared change of the block's output for a unit change of one logit.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LayerMoments {
    /// `full`, `sliding` or `latent`.
    pub attention: String,
    /// A digest of the attention tensors that made them.
    pub weights: String,
    /// Tokens in the sums.
    pub tokens: usize,
    /// The learned sink logits `[n]`; no sum.
    pub sink_logits: Vec<f64>,
    /// Attention that went to the sink `[n]`.
    pub sink: Vec<f64>,
    /// Attention that went to the first token of the sequence `[n]`.
    pub first_token: Vec<f64>,
    /// Attention by distance `t − s` [n, distances].
    pub distance: Vec<f64>,
    /// Squared norms of queries `[n]`, with YaRN's factor.
    pub query_energy: Vec<f64>,
    /// Squared norms of keys `[g]`, with YaRN's factor.
    pub key_energy: Vec<f64>,
    /// Key norms at positions 0 to 3 and their number, at the others and their number [g, 4].
    pub first_keys: Vec<f64>,
    /// Squares of the query components of each pair, over all heads `[P]`.
    pub query_pairs: Vec<f64>,
    /// Squares of the key components of each pair, over all key/value heads `[P]`.
    pub key_pairs: Vec<f64>,
    /// Tokens that chose each expert `[E]`.
    pub chosen: Vec<f64>,
    /// Entropy of the router's softmax in nats `[1]`.
    pub router_entropy: Vec<f64>,
    /// Gap between the last chosen logit and the first one left out `[1]`.
    pub router_gap: Vec<f64>,
    /// `Σ_s x̃ x̃ᵀ` [D + 1, D + 1] of the normalised input with a 1 appended.
    pub plain: Vec<f64>,
    /// `Σ_s w_s x̃ x̃ᵀ` with `w_s = Σ_h,t a_h(t,s)²`.
    pub attended: Vec<f64>,
    /// `Σ_s [k; v] [k; v]ᵀ` [2 g d, 2 g d] of keys before rotation and values, without YaRN's factor.
    pub keys_values: Vec<f64>,
    /// `Σ_t,s a_h a_h'` [n, n].
    pub overlap: Vec<f64>,
    /// `Σ_t,s G_h q_t q_tᵀ` [n, d, d] of queries before rotation, without YaRN's factor.
    pub query: Vec<f64>,
    /// `Σ_t,s G_h` by distance `t − s` [n, distances].
    pub gauss: Vec<f64>,
}

impl LayerMoments {
    /// Every sum with its name in the file.
    pub(crate) fn sums(&mut self) -> [(&'static str, &mut Vec<f64>); 18] {
        [
            ("sink", &mut self.sink),
            ("first_token", &mut self.first_token),
            ("distance", &mut self.distance),
            ("query_energy", &mut self.query_energy),
            ("key_energy", &mut self.key_energy),
            ("first_keys", &mut self.first_keys),
            ("query_pairs", &mut self.query_pairs),
            ("key_pairs", &mut self.key_pairs),
            ("chosen", &mut self.chosen),
            ("router_entropy", &mut self.router_entropy),
            ("router_gap", &mut self.router_gap),
            ("plain", &mut self.plain),
            ("attended", &mut self.attended),
            ("keys_values", &mut self.keys_values),
            ("overlap", &mut self.overlap),
            ("query", &mut self.query),
            ("gauss", &mut self.gauss),
            ("sink_logits", &mut self.sink_logits),
        ]
    }

    /// Adds the sums of other tokens. What goes by distance may reach further in one of the two.
    ///
    /// # Errors
    /// Returns what differs if the two are not of one layer of one model.
    pub fn add(&mut self, mut other: Self) -> Result<(), &'static str> {
        if self.weights != other.weights || self.attention != other.attention {
            return Err("the attention tensors");
        }
        if self.sink_logits != other.sink_logits {
            return Err("the sinks");
        }
        let heads = self.sink.len();
        widen(&mut self.distance, &mut other.distance, heads);
        widen(&mut self.gauss, &mut other.gauss, heads);
        self.tokens += other.tokens;
        let constants = std::mem::take(&mut self.sink_logits);
        other.sink_logits = Vec::new();
        for ((name, sum), (_, more)) in self.sums().into_iter().zip(other.sums()) {
            if sum.len() != more.len() {
                return Err(name);
            }
            sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += *more);
        }
        self.sink_logits = constants;
        Ok(())
    }

    /// Mean cosine and sine [n, P] of the angle `θ (t − s)` for the given radians per token, weighted by `G`.
    pub fn turns(&self, inv_freq: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let width = self.gauss.len() / self.overlap.len().isqrt().max(1);
        let turn = |turn: fn(f64) -> f64| {
            let of = |gauss: &[f64], f: f64| {
                let total: f64 = gauss.iter().sum();
                let sum: f64 = gauss.iter().enumerate().map(|(i, g)| g * turn(f * i as f64)).sum();
                // A head that never sees an error: no distance counts, as if it looked at itself.
                if total > 0.0 { sum / total } else { turn(0.0) }
            };
            let heads = self.gauss.chunks_exact(width.max(1));
            heads.flat_map(|gauss| inv_freq.iter().map(move |&f| of(gauss, f))).collect()
        };
        (turn(f64::cos), turn(f64::sin))
    }

    /// Writes the file of the layer.
    pub fn save(&self, path: &Path) -> Result<(), ArtifactError> {
        let failed =
            |e: safetensors::SafeTensorError| ArtifactError::io(path)(std::io::Error::other(e.to_string()));
        let mut own = self.clone();
        let mut bytes: Vec<(&str, Vec<u8>)> = Vec::new();
        for (name, sum) in own.sums() {
            bytes.push((name, sum.iter().flat_map(|x| x.to_le_bytes()).collect()));
            *sum = Vec::new(); // large, and not needed twice
        }
        let mut views = Vec::with_capacity(bytes.len());
        for (name, data) in &bytes {
            views.push((name, TensorView::new(Dtype::F64, vec![data.len() / 8], data).map_err(failed)?));
        }
        let about =
            About { attention: self.attention.clone(), weights: self.weights.clone(), tokens: self.tokens };
        let text = serde_json::to_string(&about).expect("plain data serialises");
        let metadata: HashMap<String, String> = [(ABOUT.to_owned(), text)].into();
        safetensors::serialize_to_file(views, Some(metadata), path).map_err(failed)
    }

    /// Reads the file of a layer, `name` in the artifact.
    pub fn load(path: &Path, name: &str) -> Result<Self, ArtifactError> {
        let (map, about) = open(path, name)?;
        let About { attention, weights, tokens } = about;
        let mut moments = Self { attention, weights, tokens, ..Self::default() };
        let tensors = SafeTensors::deserialize(&map).expect("opened a moment ago");
        for (sum, into) in moments.sums() {
            let element = |b: &[u8]| f64::from_le_bytes(b.try_into().expect("chunks of eight"));
            let view = tensors.tensor(sum).expect("checked when it was opened");
            *into = view.data().chunks_exact(8).map(element).collect();
        }
        Ok(moments)
    }

    /// Checks the header of a layer's file without reading the sums.
    pub(super) fn check(path: &Path, name: &str) -> Result<(), ArtifactError> {
        open(path, name).map(drop)
    }
}

/// What the file says of itself.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    attention: String,
    weights: String,
    tokens: usize,
}

/// Its place in the file's metadata: one entry, because several have no order.
const ABOUT: &str = "about";

/// Maps a layer's file, and checks that every sum is there.
fn open(path: &Path, name: &str) -> Result<(Mmap, About), ArtifactError> {
    let malformed = |place: &str, why: String| ArtifactError::Malformed {
        kind: KIND,
        file: name.to_owned(),
        place: place.to_owned(),
        why,
    };
    let map = mapped(path)?;
    let tensors = SafeTensors::deserialize(&map).map_err(|e| malformed("header", e.to_string()))?;
    let (_, header) = SafeTensors::read_metadata(&map).map_err(|e| malformed("header", e.to_string()))?;
    let about = header.metadata().as_ref().and_then(|metadata| metadata.get(ABOUT));
    let about = about.ok_or_else(|| malformed("header", format!("`{ABOUT}` is missing")))?;
    let about = serde_json::from_str(about).map_err(|e| malformed("header", e.to_string()))?;
    for (sum, _) in LayerMoments::default().sums() {
        let view = tensors.tensor(sum).map_err(|e| malformed(&format!("`{sum}`"), e.to_string()))?;
        if view.dtype() != Dtype::F64 {
            return Err(malformed(&format!("`{sum}`"), format!("{:?}, not F64", view.dtype())));
        }
    }
    Ok((map, about))
}

/// Gives both the longer rows of the two, with zeros behind the shorter ones.
fn widen(a: &mut Vec<f64>, b: &mut Vec<f64>, heads: usize) {
    let width = |x: &[f64]| x.len() / heads.max(1);
    let wide = width(a).max(width(b));
    for x in [a, b] {
        let old = width(x);
        if old < wide && old > 0 {
            let row = |row: &[f64]| row.iter().copied().chain(std::iter::repeat_n(0.0, wide - old)).collect();
            *x = x.chunks_exact(old).flat_map(|x| -> Vec<f64> { row(x) }).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(distances: usize) -> LayerMoments {
        LayerMoments {
            attention: "full".into(),
            weights: "digest".into(),
            tokens: 3,
            sink_logits: vec![0.5, -1.0],
            sink: vec![1.0, 2.0],
            distance: (0..2 * distances).map(|i| i as f64).collect(),
            gauss: (0..2 * distances).map(|i| 1.0 + i as f64).collect(),
            overlap: vec![1.0; 4],
            plain: vec![1.0, 2.0, 3.0, 4.0],
            ..LayerMoments::default()
        }
    }

    #[test]
    fn a_sum_of_two_is_wide_enough_for_both() {
        let mut sum = layer(2);
        sum.add(layer(3)).unwrap();
        assert_eq!((sum.tokens, &sum.sink, &sum.sink_logits), (6, &vec![2.0, 4.0], &vec![0.5, -1.0]));
        assert_eq!(sum.distance, [0.0, 2.0, 2.0, 5.0, 7.0, 5.0]);
        let mut other = layer(3);
        other.add(layer(2)).unwrap();
        assert_eq!(sum, other);
    }

    #[test]
    fn what_is_not_of_one_layer_is_not_added() {
        let check = |change: &dyn Fn(&mut LayerMoments), what: &str| {
            let mut other = layer(2);
            change(&mut other);
            assert_eq!(layer(2).add(other), Err(what));
        };
        check(&|l| l.weights = "other".into(), "the attention tensors");
        check(&|l| l.sink_logits[0] = 0.25, "the sinks");
        check(&|l| l.plain.truncate(1), "plain");
        check(&|l| l.sink = vec![0.0; 3], "sink");
    }

    #[test]
    fn turns_are_means_by_hand() {
        let layer = LayerMoments { gauss: vec![1.0, 3.0, 0.0, 0.0], ..layer(2) };
        let (cos, sin) = layer.turns(&[0.5, 0.0]);
        let want = [(1.0 + 3.0 * 0.5f64.cos()) / 4.0, 1.0, 1.0, 1.0];
        assert!(cos.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-15), "{cos:?}");
        assert!((sin[0] - 0.75 * 0.5f64.sin()).abs() < 1e-15);
        assert_eq!(sin[1..], [0.0, 0.0, 0.0]);
    }

    #[test]
    fn a_file_of_another_type_or_length_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        layer(1).save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let told = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            LayerMoments::load(&path, "layer-000.safetensors").unwrap_err().to_string()
        };
        let error = told(&bytes[..bytes.len() - 8]);
        assert!(error.starts_with("artifact `moments`, file `layer-000.safetensors`, header: "), "{error}");
        let from = bytes.windows(5).position(|w| w == b"\"F64\"").unwrap();
        let mut other = bytes.clone();
        other[from..from + 5].copy_from_slice(b"\"I64\"");
        let error = told(&other);
        assert!(error.ends_with("I64, not F64"), "{error}");
    }

    #[test]
    fn a_missing_sum_and_a_missing_word_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("layer");
        layer(1).save(&path).unwrap();
        assert_eq!(LayerMoments::load(&path, "layer").unwrap(), layer(1));
        let bytes = std::fs::read(&path).unwrap();
        for (from, to, what) in
            [("\"plain\"", "\"plaim\"", "`plain`"), ("\"about\"", "\"abaut\"", "`about` is missing")]
        {
            let text = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
            let mut changed = bytes.clone();
            changed[text..text + to.len()].copy_from_slice(to.as_bytes());
            std::fs::write(&path, changed).unwrap();
            let error = LayerMoments::load(&path, "layer-000.safetensors").unwrap_err().to_string();
            assert!(error.contains("layer-000.safetensors") && error.contains(what), "{error}");
        }
    }
}
