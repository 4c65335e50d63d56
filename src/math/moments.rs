//! Second moments of activations, accumulated in f64 in a fixed order. Knows rows of numbers, no model.

use faer::{Accum, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

/// Columns of the sum that one thread computes at a time; fixed, so that the number of threads does not matter.
const TILE: usize = 64;

/// `Σ w · x̃ x̃ᵀ` with `x̃ = [x; 1]`: the mean and the bias of any linear map of `x` come out exactly.
#[derive(Debug, Clone, PartialEq)]
pub struct SecondMoment {
    /// Width of `x̃`.
    pub dim: usize,
    /// Row-major [dim, dim], symmetric.
    pub sum: Vec<f64>,
}

impl SecondMoment {
    /// No observation yet, for rows of `width` values.
    pub fn new(width: usize) -> Self {
        let dim = width + 1;
        Self { dim, sum: vec![0.0; dim * dim] }
    }

    /// Adds the rows of `x` [n, dim − 1], each with its weight; `None` gives each row the weight 1.
    pub fn add(&mut self, x: &[f32], weights: Option<&[f64]>) {
        let (dim, width) = (self.dim, self.dim - 1);
        let n = x.len() / width;
        if n == 0 {
            return;
        }
        let augmented = |scale: &(dyn Fn(usize) -> f64 + Sync)| {
            let mut out = vec![0f64; n * dim];
            out.par_chunks_exact_mut(dim).zip(x.par_chunks_exact(width)).enumerate().for_each(
                |(i, (out, x))| {
                    let scale = scale(i);
                    out.iter_mut().zip(x).for_each(|(out, &x)| *out = scale * f64::from(x));
                    out[width] = scale;
                },
            );
            out
        };
        let left = augmented(&|i| weights.map_or(1.0, |w| w[i]));
        let right = augmented(&|_| 1.0);
        let right = MatRef::from_row_major_slice(&right, n, dim);
        let left = MatRef::from_row_major_slice(&left, n, dim);
        self.sum.par_chunks_mut(TILE * dim).enumerate().for_each(|(tile, out)| {
            let rows = out.len() / dim;
            let out = faer::MatMut::from_row_major_slice_mut(out, rows, dim);
            let left = left.subcols(tile * TILE, rows).transpose();
            matmul(out, Accum::Add, left, right, 1.0, Par::Seq);
        });
    }

    /// The sum of the weights.
    pub fn total(&self) -> f64 {
        self.sum[self.dim * self.dim - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::noise;

    fn reference(x: &[f32], weights: &[f64], width: usize) -> Vec<f64> {
        let dim = width + 1;
        let mut sum = vec![0.0; dim * dim];
        for (row, w) in x.chunks_exact(width).zip(weights) {
            let row: Vec<f64> = row.iter().map(|&x| f64::from(x)).chain([1.0]).collect();
            for i in 0..dim {
                for j in 0..dim {
                    sum[i * dim + j] += w * row[i] * row[j];
                }
            }
        }
        sum
    }

    #[test]
    fn matches_the_definition_and_adds_up() {
        for width in [1, 5, 130] {
            let (n, x) = (37_u8, noise(width as u64, 37 * width, 2.0));
            let weights: Vec<f64> = (0..n).map(|i| 0.1 + f64::from(i)).collect();
            let mut moment = SecondMoment::new(width);
            moment.add(&x[..20 * width], Some(&weights[..20]));
            moment.add(&x[20 * width..], Some(&weights[20..]));
            moment.add(&[], None);
            let want = reference(&x, &weights, width);
            for (got, want) in moment.sum.iter().zip(&want) {
                assert!((got - want).abs() < 1e-10 * (1.0 + want.abs()), "{got} {want}");
            }
            assert!((moment.total() - weights.iter().sum::<f64>()).abs() < 1e-9);
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let x = noise(4, 300 * 150, 1.0);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut moment = SecondMoment::new(150);
            pool.install(|| moment.add(&x, None));
            moment.sum.into_iter().map(f64::to_bits).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(2));
        assert_eq!(run(1), run(7));
    }
}
