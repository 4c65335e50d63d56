//! The figures of a layer from its sums: shares, norms, energies, spectra. Knows no model file and no way to observe.

use faer::{Mat, MatRef};

use crate::{
    artifact::{
        analysis::{Head, KvHead, Layer, Pair, Routing, Spectra},
        moments::{LayerMoments, Model},
    },
    math::linalg::{LinalgError, effective_rank, eigh},
};

/// What the sums of layer `index` say.
pub(super) fn layer(model: &Model, index: usize, sums: &LayerMoments) -> Result<Layer, LinalgError> {
    let figures = Of { model, sums, tokens: sums.tokens.max(1) as f64 };
    Ok(Layer {
        layer: index,
        attention: sums.attention.clone(),
        heads: (0..sums.sink.len()).map(|h| figures.head(h)).collect(),
        kv_heads: (0..sums.key_energy.len()).map(|g| figures.kv_head(g)).collect(),
        pairs: figures.pairs()?,
        routing: figures.routing(),
        spectra: (!sums.keys_values.is_empty()).then(|| figures.spectra()).transpose()?,
    })
}

/// The sums of one layer, and how many tokens are in them.
struct Of<'a> {
    model: &'a Model,
    sums: &'a LayerMoments,
    tokens: f64,
}

impl Of<'_> {
    fn head(&self, h: usize) -> Head {
        let width = self.sums.distance.len() / self.sums.sink.len();
        let mass = &self.sums.distance[h * width..][..width];
        let buckets = usize::BITS as usize - width.saturating_sub(1).leading_zeros() as usize + 1;
        let mut distance = vec![0.0; buckets];
        for (i, x) in mass.iter().enumerate() {
            distance[(usize::BITS - i.leading_zeros()) as usize] += x / self.tokens;
        }
        Head {
            sink_logit: self.sums.sink_logits[h],
            sink_mass: self.sums.sink[h] / self.tokens,
            first_token_mass: self.sums.first_token[h] / self.tokens,
            distance,
            query_norm: (self.sums.query_energy[h] / self.tokens).sqrt() / self.model.concentration,
        }
    }

    fn kv_head(&self, g: usize) -> KvHead {
        let [first, firsts, rest, rests] =
            self.sums.first_keys[4 * g..][..4].try_into().expect("four sums a head");
        let ratio = if rests > 0.0 { (first / firsts) / (rest / rests).max(f64::MIN_POSITIVE) } else { 1.0 };
        KvHead {
            key_norm: (self.sums.key_energy[g] / self.tokens).sqrt() / self.model.concentration,
            first_key_ratio: ratio,
        }
    }

    fn pairs(&self) -> Result<Vec<Pair>, LinalgError> {
        let n = self.tokens * self.model.concentration.powi(2);
        let keys = self.keys_values();
        let keys = keys.as_ref().map(|both| both.submatrix(0, 0, both.nrows() / 2, both.nrows() / 2));
        let pair = |(j, (query, key)): (usize, (&f64, &f64))| {
            Ok(Pair {
                frequency: self.model.inv_freq[j],
                query_energy: query / n,
                key_energy: key / n,
                sharing: keys.map(|keys| sharing(keys, j, self.model.head_dim)).transpose()?,
            })
        };
        self.sums.query_pairs.iter().zip(&self.sums.key_pairs).enumerate().map(pair).collect()
    }

    fn routing(&self) -> Routing {
        let chosen = &self.sums.chosen;
        let all: f64 = chosen.iter().sum();
        Routing {
            load: chosen.iter().map(|c| c / all.max(1.0)).collect(),
            entropy: self.sums.router_entropy[0] / self.tokens,
            top_k_gap: self.sums.router_gap[0] / self.tokens,
            dead: (0..chosen.len()).filter(|&e| chosen[e] <= 0.0).collect(),
        }
    }

    fn keys_values(&self) -> Option<MatRef<'_, f64>> {
        let sums = &self.sums.keys_values;
        let width = sums.len().isqrt();
        (width > 0).then(|| MatRef::from_row_major_slice(sums, width, width))
    }

    fn spectra(&self) -> Result<Spectra, LinalgError> {
        let both = self.keys_values().expect("asked for where it is there");
        let half = both.nrows() / 2;
        let singular =
            |energies: &[f64]| energies.iter().map(|e| (e.max(0.0) / self.tokens).sqrt()).collect::<Vec<_>>();
        let values = eigh(both.submatrix(half, half, half, half))?.values;
        let joint = eigh(both)?.values;
        Ok(Spectra {
            values: singular(&values),
            joint: singular(&joint),
            values_effective_rank: effective_rank(&values),
            joint_effective_rank: effective_rank(&joint),
        })
    }
}

/// The share of pair `j`'s key energy that the best complex combination of all heads holds: the first eigenvalue of the Hermitian
/// moment across heads, over its trace. `keys` [kv heads · d, kv heads · d] is the moment of keys before rotation.
fn sharing(keys: MatRef<'_, f64>, j: usize, d: usize) -> Result<f64, LinalgError> {
    let heads = keys.nrows() / d;
    let (re, im) = (|g: usize| g * d + j, |g: usize| g * d + j + d / 2);
    // k_g conj(k_g') = (re re' + im im') + i (im re' − re im'), as a real matrix of twice the size with every eigenvalue doubled.
    let matrix = Mat::from_fn(2 * heads, 2 * heads, |a, b| {
        let (g, o) = (a % heads, b % heads);
        let real = keys[(re(g), re(o))] + keys[(im(g), im(o))];
        let imaginary = keys[(im(g), re(o))] - keys[(re(g), im(o))];
        match (a < heads, b < heads) {
            (true, true) | (false, false) => real,
            (true, false) => -imaginary,
            (false, true) => imaginary,
        }
    });
    let eigen = eigh(matrix.as_ref())?;
    let total: f64 = eigen.values.iter().sum::<f64>() / 2.0;
    Ok(if total > 0.0 { eigen.values[0] / total } else { 1.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::linalg::congruence;

    #[test]
    fn one_key_turned_by_a_phase_in_every_head_is_fully_shared() {
        // Two heads of width 2 (one pair): the second head's key is the first one's, turned by a quarter.
        let w = Mat::from_fn(4, 2, |i, j| [[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0]][i][j]);
        let keys = congruence(w.as_ref(), Mat::<f64>::identity(2, 2).as_ref());
        assert!((sharing(keys.as_ref(), 0, 2).unwrap() - 1.0).abs() < 1e-12);
        // Independent heads of equal energy share half.
        assert!((sharing(Mat::identity(4, 4).as_ref(), 0, 2).unwrap() - 0.5).abs() < 1e-12);
    }

    fn model() -> Model {
        Model { head_dim: 2, inv_freq: vec![1.0], concentration: 2.0, ..Model::default() }
    }

    fn sums() -> LayerMoments {
        LayerMoments {
            attention: "full".into(),
            tokens: 4,
            sink_logits: vec![0.5],
            sink: vec![1.0],
            first_token: vec![2.0],
            distance: vec![1.0, 0.5, 0.25, 0.25, 1.0],
            query_energy: vec![64.0],
            key_energy: vec![16.0],
            first_keys: vec![10.0, 1.0, 15.0, 3.0],
            query_pairs: vec![64.0],
            key_pairs: vec![16.0],
            chosen: vec![3.0, 0.0, 1.0],
            router_entropy: vec![2.0],
            router_gap: vec![1.0],
            // Keys of energy 4 and 0, values of energy 36 and 16, none of them correlated.
            keys_values: (0..16)
                .map(|at| if at / 4 == at % 4 { [4.0, 0.0, 36.0, 16.0][at / 4] } else { 0.0 })
                .collect(),
            ..LayerMoments::default()
        }
    }

    #[test]
    fn every_figure_is_a_mean_by_hand() {
        let layer = layer(&model(), 7, &sums()).unwrap();
        assert_eq!((layer.layer, layer.attention.as_str()), (7, "full"));
        let head = &layer.heads[0];
        assert_eq!((head.sink_logit, head.sink_mass, head.first_token_mass), (0.5, 0.25, 0.5));
        assert_eq!(head.distance, [0.25, 0.125, 0.125, 0.25], "0, 1, 2 to 3, 4 to 7");
        assert!((head.query_norm - 2.0).abs() < 1e-15, "YaRN's factor is taken out");
        assert_eq!((layer.kv_heads[0].key_norm, layer.kv_heads[0].first_key_ratio), (1.0, 2.0));
        assert_eq!((layer.pairs[0].query_energy, layer.pairs[0].key_energy), (4.0, 1.0));
        assert_eq!(layer.routing.load, [0.75, 0.0, 0.25]);
        assert_eq!((layer.routing.entropy, layer.routing.top_k_gap), (0.5, 0.25));
        assert_eq!(layer.routing.dead, [1]);
        let spectra = layer.spectra.unwrap();
        let near =
            |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(near(&spectra.values, &[3.0, 2.0]) && near(&spectra.joint, &[3.0, 2.0, 1.0, 0.0]));
    }

    #[test]
    fn a_layer_without_experts_or_pairs_has_none() {
        let bare = LayerMoments {
            chosen: vec![],
            query_pairs: vec![],
            key_pairs: vec![],
            keys_values: vec![],
            ..sums()
        };
        let layer = layer(&model(), 0, &bare).unwrap();
        assert!(layer.pairs.is_empty() && layer.routing.load.is_empty() && layer.spectra.is_none());
    }
}
