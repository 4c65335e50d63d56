//! Rotary pairs: their energy, how far they turn where attention looks, and what heads have in common at each frequency. Knows no experts.

use faer::{Mat, MatRef};

use super::{
    Of,
    heads::{distances, first_four_ratio, first_ratio},
};
use crate::{
    artifact::analysis::{Geometry, Pair},
    math::linalg::{LinalgError, eigvalsh},
};

/// A pair that turns by at least this many radians over the layer's reach turns.
const TURNS: f64 = 1.0;

impl Of<'_> {
    /// Lengths and distances of all heads together, and the pairs.
    pub(super) fn geometry(&self) -> Result<(Geometry, Vec<Pair>), LinalgError> {
        let (sums, whole) = (self.sums, self.sums.key_energy.len());
        let query_norm = self.root_mean_square(sums.query_energy.iter().sum());
        let key_norm = self.root_mean_square(sums.key_energy.iter().sum());
        let (mean_distance, reach) = distances(&self.all_heads());
        let pairs = self.pairs(mean_distance, reach)?;
        let energy: f64 = pairs.iter().map(|pair| pair.key_energy).sum();
        let shared = pairs.iter().map(|pair| pair.sharing.map(|share| share * pair.key_energy / energy));
        let correlated = pairs.iter().map(|pair| pair.correlation.map(|x| x / pairs.len() as f64));
        let geometry = Geometry {
            query_norm,
            key_norm,
            query_key_ratio: if key_norm > 0.0 { query_norm / key_norm } else { 0.0 },
            first_key_ratio: first_ratio(&sums.first_keys, whole),
            first_four_keys_ratio: first_four_ratio(&sums.first_keys, whole),
            first_value_ratio: first_ratio(&sums.first_values, whole),
            mean_distance,
            reach,
            still_pairs: pairs.iter().filter(|pair| !pair.turns).count(),
            sharing: if energy > 0.0 { shared.sum() } else { None },
            correlation: if pairs.is_empty() { None } else { correlated.sum() },
        };
        Ok((geometry, pairs))
    }

    /// All heads' attention by distance.
    fn all_heads(&self) -> Vec<f64> {
        let mut all = vec![0.0; self.sums.distance.len() / self.heads()];
        for h in 0..self.heads() {
            all.iter_mut().zip(self.distances(h)).for_each(|(all, x)| *all += x);
        }
        all
    }

    fn pairs(&self, mean_distance: f64, reach: usize) -> Result<Vec<Pair>, LinalgError> {
        let model = &self.about.model;
        let n = self.tokens * model.concentration.powi(2);
        let keys = self.keys_values();
        let keys = keys.as_ref().map(|both| both.submatrix(0, 0, both.nrows() / 2, both.nrows() / 2));
        let sees = if self.sums.attention == "sliding" { model.sliding_window } else { usize::MAX };
        let longest = self.about.max_length.min(sees).saturating_sub(1);
        let energies = self.sums.query_pairs.iter().zip(&self.sums.key_pairs).enumerate();
        let pair = |(j, (query, key)): (usize, (&f64, &f64))| {
            let frequency = model.inv_freq[j];
            let turn_reach = frequency * reach as f64;
            Ok(Pair {
                frequency,
                query_energy: query / n,
                key_energy: key / n,
                turn_mean: frequency * mean_distance,
                turn_reach,
                turn_longest: frequency * longest as f64,
                turns: turn_reach >= TURNS,
                coherence: self.coherence(frequency),
                sharing: keys.map(|keys| sharing(keys, j, model.head_dim)).transpose()?,
                correlation: keys.and_then(|keys| correlation(keys, j, model.head_dim)),
            })
        };
        energies.map(pair).collect()
    }

    /// `|E e^{iθΔ}|` over each head's attention by distance, mean over heads.
    fn coherence(&self, frequency: f64) -> f64 {
        let width = self.sums.distance.len() / self.heads();
        let turns: Vec<(f64, f64)> = (0..width).map(|i| (frequency * i as f64).sin_cos()).collect();
        let of = |mass: &[f64]| {
            let (mut sin, mut cos, mut total) = (0.0, 0.0, 0.0);
            for (x, turn) in mass.iter().zip(&turns) {
                sin += x * turn.0;
                cos += x * turn.1;
                total += x;
            }
            // A head that looks at nothing but the sink does not turn.
            if total > 0.0 { sin.hypot(cos) / total } else { 1.0 }
        };
        (0..self.heads()).map(|h| of(self.distances(h))).sum::<f64>() / self.heads() as f64
    }
}

/// `E k_g k̄_g'` of pair `j` in heads `g` and `o`, real and imaginary part.
fn product(keys: MatRef<'_, f64>, j: usize, d: usize, (g, o): (usize, usize)) -> (f64, f64) {
    let (re, im) = (|g: usize| g * d + j, |g: usize| g * d + j + d / 2);
    // (re + i im) (re' − i im') = (re re' + im im') + i (im re' − re im')
    let real = keys[(re(g), re(o))] + keys[(im(g), im(o))];
    (real, keys[(im(g), re(o))] - keys[(re(g), im(o))])
}

/// The share of pair `j`'s key energy that the best complex combination of all heads holds: the first eigenvalue of the Hermitian
/// moment across heads, over its trace. `keys` [kv heads · d, kv heads · d] is the moment of keys before rotation.
fn sharing(keys: MatRef<'_, f64>, j: usize, d: usize) -> Result<f64, LinalgError> {
    let heads = keys.nrows() / d;
    // As a real matrix of twice the size with every eigenvalue doubled.
    let matrix = Mat::from_fn(2 * heads, 2 * heads, |a, b| {
        let (real, imaginary) = product(keys, j, d, (a % heads, b % heads));
        match (a < heads, b < heads) {
            (true, true) | (false, false) => real,
            (true, false) => -imaginary,
            (false, true) => imaginary,
        }
    });
    let values = eigvalsh(matrix.as_ref())?;
    let total: f64 = values.iter().sum::<f64>() / 2.0;
    Ok(if total > 0.0 { values[0] / total } else { 1.0 })
}

/// The mean over pairs of heads of the absolute correlation of pair `j`'s keys as complex numbers, not centred.
fn correlation(keys: MatRef<'_, f64>, j: usize, d: usize) -> Option<f64> {
    let heads = keys.nrows() / d;
    let of = |g: usize, o: usize| {
        let (real, imaginary) = product(keys, j, d, (g, o));
        let scale = (product(keys, j, d, (g, g)).0 * product(keys, j, d, (o, o)).0).sqrt();
        if scale > 0.0 { real.hypot(imaginary) / scale } else { 0.0 }
    };
    let pairs = (0..heads).flat_map(|g| (0..g).map(move |o| (g, o)));
    let sum: f64 = pairs.map(|(g, o)| of(g, o)).sum();
    (heads > 1).then(|| sum / (heads * (heads - 1) / 2) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::linalg::congruence;

    fn near(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-12, "{got} {want}");
    }

    #[test]
    fn one_key_turned_by_a_phase_in_every_head_is_fully_shared() {
        // Two heads of width 2 (one pair): the second head's key is the first one's, turned by a quarter.
        let w = Mat::from_fn(4, 2, |i, j| [[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0]][i][j]);
        let keys = congruence(w.as_ref(), Mat::<f64>::identity(2, 2).as_ref());
        near(sharing(keys.as_ref(), 0, 2).unwrap(), 1.0);
        near(correlation(keys.as_ref(), 0, 2).unwrap(), 1.0);
        // Independent heads of equal energy share half.
        let apart = Mat::identity(4, 4);
        near(sharing(apart.as_ref(), 0, 2).unwrap(), 0.5);
        near(correlation(apart.as_ref(), 0, 2).unwrap(), 0.0);
        assert_eq!(correlation(Mat::identity(2, 2).as_ref(), 0, 2), None, "one head has no other");
    }

    #[test]
    fn what_three_heads_share_by_hand() {
        // One pair. Heads 0 and 1: keys (a, 0) and (0, 2a); head 2: another (b, 0). Energies 1, 4, 1.
        let w = Mat::from_fn(6, 2, |i, j| {
            if (i, j) == (3, 0) { 2.0 } else { f64::from([(0, 0), (4, 1)].contains(&(i, j))) }
        });
        let keys = congruence(w.as_ref(), Mat::<f64>::identity(2, 2).as_ref());
        near(sharing(keys.as_ref(), 0, 2).unwrap(), 5.0 / 6.0);
        near(correlation(keys.as_ref(), 0, 2).unwrap(), 1.0 / 3.0);
        let none = Mat::zeros(6, 6);
        near(sharing(none.as_ref(), 0, 2).unwrap(), 1.0);
        near(correlation(none.as_ref(), 0, 2).unwrap(), 0.0);
    }
}
