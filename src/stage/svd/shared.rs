//! One rotated key for all heads: at each frequency, principal components across the key/value heads as complex numbers.
//!
//! A rotary pair `(a, b)` of a key is the complex number `k = a + i b`, and the rotation multiplies it by `e^{iθt}`. A complex-linear map
//! across heads therefore commutes with it. With `Σ = E[k kᴴ]` over heads at one frequency and the weights `D` of their queries, the
//! components are the eigenvectors `E` of `D^½ Σ D^½`: `z = Eᴴ D^½ k` on the side of keys, `k = U z` with `U = D^−½ E`, so queries see
//! `q̃ = conj(u) q`. Which of them stay rotated is decided by what un-rotating each would cost. Knows no latent.

use faer::{Mat, c64};

use super::source::Sizes;
use crate::math::linalg::{Eigen, LinalgError, eigh};

/// A component across heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Component {
    /// Its frequency.
    pub(super) pair: usize,
    /// Its place among the components of that frequency.
    pub(super) index: usize,
}

/// The components of every frequency.
#[derive(Debug)]
pub(super) struct Shared {
    pairs: Vec<Pair>,
}

/// Those of one frequency.
#[derive(Debug)]
struct Pair {
    /// `Eᴴ D^½` [components, kv heads].
    down: Mat<c64>,
    /// `D^−½ E` [kv heads, components].
    up: Mat<c64>,
    /// What un-rotating each component costs.
    costs: Vec<f64>,
}

/// What matters at one frequency.
pub(super) struct Frequency {
    /// `E[k kᴴ]` over the key/value heads.
    pub(super) keys: Mat<c64>,
    /// How much an error of the key counts, by query head.
    pub(super) weights: Vec<f64>,
    /// The share of that error that is left when the static multiplier stands in for the rotation, by query head.
    pub(super) misses: Vec<f64>,
}

impl Shared {
    /// Decomposes every frequency.
    pub(super) fn new(frequencies: &[Frequency]) -> Result<Self, LinalgError> {
        Ok(Self { pairs: frequencies.iter().map(Pair::new).collect::<Result<_, _>>()? })
    }

    /// All components, ascending.
    pub(super) fn all(&self) -> Vec<Component> {
        let of = |(pair, at): (usize, &Pair)| (0..at.costs.len()).map(move |index| Component { pair, index });
        self.pairs.iter().enumerate().flat_map(of).collect()
    }

    /// All components, those first whose rotation matters most.
    pub(super) fn ranking(&self) -> Vec<Component> {
        let mut all = self.all();
        all.sort_by(|&a, &b| self.cost(b).total_cmp(&self.cost(a)).then(a.cmp(&b)));
        all
    }

    /// What un-rotating a component costs.
    pub(super) fn cost(&self, at: Component) -> f64 {
        self.pairs[at.pair].costs[at.index]
    }

    /// The factors of the key/value heads of which a component is made.
    pub(super) fn down(&self, at: Component) -> Vec<c64> {
        let down = &self.pairs[at.pair].down;
        (0..down.ncols()).map(|g| down[(at.index, g)]).collect()
    }

    /// The factor with which a component enters the key of head `g`.
    pub(super) fn up(&self, at: Component, g: usize) -> c64 {
        self.pairs[at.pair].up[(g, at.index)]
    }

    /// What is left of all keys [kv heads · d, kv heads · d] without the components `rotated`, as a real map.
    pub(super) fn rest(&self, rotated: &[Component], sizes: Sizes) -> Mat<f64> {
        let Sizes { kv_heads, d, .. } = sizes;
        let half = sizes.pairs();
        let mut rest = Mat::identity(kv_heads * d, kv_heads * d);
        for &at in rotated {
            let down = self.down(at);
            for g in 0..kv_heads {
                for (other, down) in down.iter().enumerate() {
                    let kept = self.up(at, g) * down;
                    let (row, col) = (g * d + at.pair, other * d + at.pair);
                    rest[(row, col)] -= kept.re;
                    rest[(row + half, col + half)] -= kept.re;
                    rest[(row, col + half)] += kept.im;
                    rest[(row + half, col)] -= kept.im;
                }
            }
        }
        rest
    }
}

impl Pair {
    fn new(frequency: &Frequency) -> Result<Self, LinalgError> {
        let Frequency { keys, weights, misses } = frequency;
        let (n, per) = (keys.nrows(), weights.len() / keys.nrows());
        let own: Vec<f64> = weights.chunks_exact(per).map(|heads| heads.iter().sum()).collect();
        // A head whose errors cost nothing needs a weight too: its components must be found back.
        let floor = (1e-6 * own.iter().sum::<f64>() / n as f64).max(f64::MIN_POSITIVE);
        let roots: Vec<f64> = own.iter().map(|own| own.max(floor).sqrt()).collect();
        let weighted = Mat::from_fn(n, n, |i, j| keys[(i, j)] * (roots[i] * roots[j]));
        let Eigen { values, vectors } = eigh(weighted.as_ref())?;
        let up = Mat::from_fn(n, n, |g, c| vectors[(g, c)] / roots[g]);
        let cost = |c: usize| {
            let head = |h: usize| weights[h] * misses[h] * up[(h / per, c)].norm_sqr();
            values[c].max(0.0) * (0..weights.len()).map(head).sum::<f64>()
        };
        let costs = (0..n).map(cost).collect();
        // A component's scale is free. With rows of length 1 it is as large as keys are, which training relies on.
        let down = Mat::from_fn(n, n, |c, g| vectors[(g, c)].conj() * roots[g]);
        let length = |c: usize| (0..n).map(|g| down[(c, g)].norm_sqr()).sum::<f64>().sqrt();
        let lengths: Vec<f64> = (0..n).map(length).collect();
        let up = Mat::from_fn(n, n, |g, c| up[(g, c)] * lengths[c]);
        Ok(Self { down: Mat::from_fn(n, n, |c, g| down[(c, g)] / lengths[c]), up, costs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::{
        linalg::product,
        testing::{distance, random},
    };

    const SIZES: Sizes = Sizes { hidden: 8, heads: 6, kv_heads: 3, d: 4, concentration: 1.0 };

    /// `Σ_t k kᴴ` of random complex keys, the heads' weights and misses.
    fn frequency(seed: u64) -> Frequency {
        let (re, im, weights) = (random(seed, 3, 9), random(seed + 1, 3, 9), random(seed + 2, 6, 2));
        let k = Mat::from_fn(3, 9, |i, t| c64::new(re[(i, t)], im[(i, t)]));
        Frequency {
            keys: Mat::from_fn(3, 3, |i, j| (0..9).map(|t| k[(i, t)] * k[(j, t)].conj()).sum()),
            weights: (0..6).map(|h| weights[(h, 0)].abs()).collect(),
            misses: (0..6).map(|h| weights[(h, 1)].abs().min(1.0)).collect(),
        }
    }

    #[test]
    fn all_components_make_the_keys_again_and_none_leaves_them() {
        let shared = Shared::new(&[frequency(1), frequency(4)]).unwrap();
        let all = shared.ranking();
        assert_eq!(all.len(), 6);
        let nothing = shared.rest(&all, SIZES);
        assert!(distance(&nothing, &Mat::zeros(12, 12)) < 1e-12);
        assert!(distance(&shared.rest(&[], SIZES), &Mat::identity(12, 12)) < 1e-15);
        // What is left is a projection, and it commutes with the rotation of its frequency by any angle.
        let rest = shared.rest(&all[..2], SIZES);
        assert!(distance(&product(rest.as_ref(), rest.as_ref()), &rest) < 1e-10);
        let angles = [0.7f64, -2.1];
        let turn = Mat::from_fn(12, 12, |i, j| {
            let (sin, cos) = angles[i % 2].sin_cos();
            match (i / 4 == j / 4 && i % 2 == j % 2, i % 4 / 2, j % 4 / 2) {
                (false, ..) => 0.0,
                (true, a, b) if a == b => cos,
                (true, 0, _) => -sin,
                _ => sin,
            }
        });
        let (one, other) = (product(rest.as_ref(), turn.as_ref()), product(turn.as_ref(), rest.as_ref()));
        assert!(distance(&one, &other) < 1e-10);
    }

    #[test]
    fn components_are_uncorrelated_and_costs_add_up() {
        let mut frequency = frequency(7);
        let keys = frequency.keys.clone();
        let weights = frequency.weights.clone();
        frequency.misses = vec![1.0; 6];
        let shared = Shared::new(&[frequency]).unwrap();
        let at = |index| Component { pair: 0, index };
        for (i, j) in [(0, 1), (0, 2), (1, 2)] {
            let (a, b) = (shared.down(at(i)), shared.down(at(j)));
            let cross: c64 = (0..3)
                .flat_map(|g| (0..3).map(move |o| (g, o)))
                .map(|(g, o)| a[g] * keys[(g, o)] * b[o].conj())
                .sum();
            assert!(cross.norm() < 1e-10, "{i} {j}: {cross}");
        }
        for c in 0..3 {
            let length: f64 = shared.down(at(c)).iter().map(c64::norm_sqr).sum();
            assert!((length - 1.0).abs() < 1e-12, "as large as keys are: {length}");
        }
        // Deleting every rotation costs what deleting the keys costs.
        let all: f64 = (0..3).map(|i| shared.cost(at(i))).sum();
        let deleted: f64 = (0..6).map(|h| weights[h] * keys[(h / 2, h / 2)].re).sum();
        assert!((all - deleted).abs() < 1e-10 * deleted, "{all} {deleted}");
    }

    #[test]
    fn heads_that_are_turned_copies_of_one_another_share_one_component() {
        // Real components across heads could not see this: the heads differ in phase.
        let factors = [c64::new(1.0, 0.0), c64::new(0.0, 2.0), c64::new(-0.6, 0.8)];
        let keys = Mat::from_fn(3, 3, |i, j| factors[i] * factors[j].conj());
        let frequency = Frequency { keys, weights: vec![1.0; 6], misses: vec![1.0; 6] };
        let shared = Shared::new(&[frequency]).unwrap();
        let costs = [0, 1, 2].map(|index| shared.cost(Component { pair: 0, index }));
        assert!(costs[0] > 1.0 && costs[1] < 1e-12 && costs[2] < 1e-12, "{costs:?}");
    }

    #[test]
    fn a_head_that_nobody_asks_is_no_obstacle() {
        let mut frequency = frequency(9);
        frequency.weights = vec![0.0, 0.0, 1.0, 1.0, 1.0, 1.0];
        let shared = Shared::new(&[frequency]).unwrap();
        assert!(shared.ranking().iter().all(|&at| shared.cost(at).is_finite()));
        let zero = Frequency { keys: Mat::zeros(3, 3), weights: vec![0.0; 6], misses: vec![0.0; 6] };
        assert!(Shared::new(&[zero]).unwrap().rest(&[], SIZES)[(0, 0)].is_finite());
    }
}
