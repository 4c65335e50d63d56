//! One rotated key for all heads: at each frequency, components across the key/value heads as complex numbers.
//!
//! A rotary pair `(a, b)` of a key is the complex number `k = a + i b`, and the rotation multiplies it by `e^{iθt}`. A complex-linear map
//! across heads therefore commutes with it. With `Σ = E[k kᴴ]` over heads at one frequency and the weights `D` of their queries, the
//! components are the eigenvectors `E` of `D^½ Σ D^½`: `z = Eᴴ D^½ k` on the side of keys, `k = U z` with `U = D^−½ E`, so queries see
//! `q̃ = conj(u) q`. Which of them stay rotated is decided by what un-rotating each would cost.
//!
//! FreqFold (TransMLA, arXiv 2502.07864) takes adjacent frequencies together as if they were one; a component then turns with one of them.
//! Knows no latent.

use std::{ops::Range, sync::Arc};

use faer::{Mat, c64};

use super::{pieces::RotaryBasis, source::Sizes};
use crate::math::linalg::{Eigen, LinalgError, eigh};

/// A component across heads.
#[derive(Debug, Clone)]
pub(super) struct Component {
    /// The rotary pair whose frequency it turns with.
    pub(super) pair: usize,
    /// Its place among the components of its group, largest energy first.
    pub(super) index: usize,
    /// Predicted error of not rotating it.
    pub(super) cost: f64,
    /// The first pair of its group.
    pub(super) first: usize,
    /// Predicted error of rotating it with each frequency of its group: 0 for a single one.
    pub(super) turned: Arc<[f64]>,
    /// What it is made of.
    pub(super) terms: Arc<[Term]>,
}

/// What one pair of one key/value head has to do with a component: `z = Σ down k`, `k = Σ up z`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Term {
    pub(super) head: usize,
    pub(super) pair: usize,
    pub(super) down: c64,
    pub(super) up: c64,
}

/// What matters at the frequencies of one group. Rows are pairs, and within each the key/value heads.
pub(super) struct Group {
    /// Its frequencies.
    pub(super) pairs: Range<usize>,
    /// `E[k kᴴ]` [pairs · kv heads, pairs · kv heads].
    pub(super) keys: Mat<c64>,
    /// How much an error of the key counts, by pair and query head.
    pub(super) weights: Vec<Vec<f64>>,
    /// The share of that error that is left when the static multiplier stands in for the rotation, by pair and query head.
    pub(super) misses: Vec<Vec<f64>>,
    /// The share that is left when pair `i` turns with the frequency of pair `j`, by `i`, `j` and query head; empty for a single pair.
    pub(super) drifts: Vec<Vec<Vec<f64>>>,
}

/// How components are made.
#[derive(Debug, Clone, Copy)]
pub(super) struct How {
    pub(super) basis: RotaryBasis,
    /// Whether queries weight them.
    pub(super) query_weights: bool,
    pub(super) kv_heads: usize,
}

impl Group {
    /// All components, largest energy first.
    pub(super) fn components(&self, how: How) -> Result<Vec<Component>, LinalgError> {
        let n = self.keys.nrows();
        let roots = self.roots(how);
        let keys = Mat::from_fn(n, n, |i, j| match how.basis {
            RotaryBasis::Complex => self.keys[(i, j)],
            RotaryBasis::Real => c64::new(self.keys[(i, j)].re, 0.0),
            RotaryBasis::Heads if i == j => self.keys[(i, j)],
            RotaryBasis::Heads => c64::new(0.0, 0.0),
        });
        let weighted = Mat::from_fn(n, n, |i, j| keys[(i, j)] * (roots[i] * roots[j]));
        let Eigen { values, vectors } = eigh(weighted.as_ref())?;
        Ok((0..n).map(|c| self.component(how, (c, values[c]), &vectors, &roots)).collect())
    }

    /// `D^½` of each row.
    fn roots(&self, how: How) -> Vec<f64> {
        let n = self.keys.nrows();
        if !how.query_weights {
            return vec![1.0; n];
        }
        let per = self.weights[0].len() / how.kv_heads;
        let of_pair =
            |pair: &Vec<f64>| -> Vec<f64> { pair.chunks_exact(per).map(|h| h.iter().sum()).collect() };
        let own: Vec<f64> = self.weights.iter().flat_map(of_pair).collect();
        // A head whose errors cost nothing needs a weight too: its components must be found back.
        let floor = (1e-6 * own.iter().sum::<f64>() / n as f64).max(f64::MIN_POSITIVE);
        own.iter().map(|own| own.max(floor).sqrt()).collect()
    }

    fn component(
        &self,
        how: How,
        (index, value): (usize, f64),
        vectors: &Mat<c64>,
        roots: &[f64],
    ) -> Component {
        let up = |row: usize| vectors[(row, index)] / roots[row];
        let per = self.weights[0].len() / how.kv_heads;
        let energy = |pair: usize, h: usize| {
            self.weights[pair][h] * up(pair * how.kv_heads + h / per).norm_sqr() * value.max(0.0)
        };
        let sum = |shares: &dyn Fn(usize, usize) -> f64| -> f64 {
            let each = |pair: usize| (0..self.weights[pair].len()).map(move |h| (pair, h));
            (0..self.pairs.len()).flat_map(each).map(|(pair, h)| energy(pair, h) * shares(pair, h)).sum()
        };
        let drift = |to: usize| sum(&|pair, h| self.drifts[pair][to][h]);
        let turned = |to: usize| if self.drifts.is_empty() { 0.0 } else { drift(to) };
        let turned: Vec<f64> = (0..self.pairs.len()).map(turned).collect();
        let best = (0..turned.len()).min_by(|&a, &b| turned[a].total_cmp(&turned[b]));
        // A component's scale is free. With rows of length 1 it is as large as keys are, which training relies on.
        let down = |row: usize| vectors[(row, index)].conj() * roots[row];
        let length = (0..roots.len()).map(|row| down(row).norm_sqr()).sum::<f64>().sqrt();
        let term = |row: usize| Term {
            head: row % how.kv_heads,
            pair: self.pairs.start + row / how.kv_heads,
            down: down(row) / length,
            up: up(row) * length,
        };
        Component {
            pair: self.pairs.start + best.expect("a group has a pair"),
            index,
            cost: sum(&|pair, h| self.misses[pair][h]),
            first: self.pairs.start,
            turned: turned.into(),
            terms: (0..roots.len()).map(term).collect(),
        }
    }
}

impl Component {
    /// The same, turning with frequency `to` of its group.
    pub(super) fn with_frequency(&self, to: usize) -> Self {
        Self { pair: self.first + to, ..self.clone() }
    }

    /// What rotating it spares.
    pub(super) fn gain(&self) -> f64 {
        self.cost - self.error()
    }

    /// Predicted error of rotating it as it does.
    pub(super) fn error(&self) -> f64 {
        self.turned[self.pair - self.first]
    }
}

/// What is left of all keys [kv heads · d, kv heads · d] without the components `rotated`, as a real map.
pub(super) fn rest(rotated: &[Component], sizes: Sizes) -> Mat<f64> {
    let Sizes { kv_heads, d, .. } = sizes;
    let half = sizes.pairs();
    let mut rest = Mat::identity(kv_heads * d, kv_heads * d);
    for component in rotated {
        for to in component.terms.iter() {
            for from in component.terms.iter() {
                let kept = to.up * from.down;
                let (row, col) = (to.head * d + to.pair, from.head * d + from.pair);
                rest[(row, col)] -= kept.re;
                rest[(row + half, col + half)] -= kept.re;
                rest[(row, col + half)] += kept.im;
                rest[(row + half, col)] -= kept.im;
            }
        }
    }
    rest
}

/// A component's real and its imaginary part as rows over all keys [2, kv heads · d].
pub(super) fn rows(component: &Component, sizes: Sizes) -> Mat<f64> {
    let Sizes { kv_heads, d, .. } = sizes;
    let mut rows = Mat::zeros(2, kv_heads * d);
    for term in component.terms.iter() {
        let at = term.head * d + term.pair;
        rows[(0, at)] += term.down.re;
        rows[(0, at + d / 2)] -= term.down.im;
        rows[(1, at)] += term.down.im;
        rows[(1, at + d / 2)] += term.down.re;
    }
    rows
}

#[cfg(test)]
mod tests;
