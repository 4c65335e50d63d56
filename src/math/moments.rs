//! Second moments of activations, accumulated in f64 in a fixed order. Knows rows of numbers, no model.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
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
        add_products(&mut self.sum, left, right);
    }

    /// The sum of the weights.
    pub fn total(&self) -> f64 {
        self.sum[self.dim * self.dim - 1]
    }
}

/// Adds `leftᵀ · right` to the row-major `sum`, in the same order whatever the number of threads.
pub(super) fn add_products(sum: &mut [f64], left: MatRef<'_, f64>, right: MatRef<'_, f64>) {
    let width = right.ncols();
    sum.par_chunks_mut(TILE * width).enumerate().for_each(|(tile, out)| {
        let rows = out.len() / width;
        let out = MatMut::from_row_major_slice_mut(out, rows, width);
        let left = left.subcols(tile * TILE, rows).transpose();
        matmul(out, Accum::Add, left, right, 1.0, Par::Seq);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kernel::testing::noise, math::linalg::congruence};

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

    #[test]
    fn every_width_around_a_tile_is_summed_whole() {
        for width in [TILE - 2, TILE - 1, TILE, TILE + 1, 2 * TILE - 1, 2 * TILE] {
            let x = noise(width as u64, 3 * width, 1.0);
            let mut moment = SecondMoment::new(width);
            moment.add(&x, None);
            let want = reference(&x, &[1.0; 3], width);
            assert!(moment.sum.iter().zip(&want).all(|(got, want)| (got - want).abs() < 1e-12), "{width}");
            let dim = moment.dim;
            for i in 0..dim {
                for j in 0..i {
                    assert!((moment.sum[i * dim + j] - moment.sum[j * dim + i]).abs() < 1e-12);
                }
            }
        }
    }

    #[test]
    fn a_weight_is_a_repetition_and_none_is_one() {
        let x = noise(3, 4 * 6, 1.0);
        let sum = |x: &[f32], weights: Option<&[f64]>| {
            let mut moment = SecondMoment::new(6);
            moment.add(x, weights);
            moment
        };
        let close = |a: &SecondMoment, b: &SecondMoment| {
            assert!(a.sum.iter().zip(&b.sum).all(|(a, b)| (a - b).abs() < 1e-12));
        };
        close(&sum(&x, None), &sum(&x, Some(&[1.0; 4])));
        let repeated = [&x[..6], &x[12..18], &x[12..18], &x[12..18]].concat();
        close(&sum(&x, Some(&[1.0, 0.0, 3.0, 0.0])), &sum(&repeated, None));
        assert_eq!(sum(&x, Some(&[0.0; 4])), SecondMoment::new(6));
    }

    #[test]
    fn the_moment_of_a_linear_map_with_bias_comes_out_exactly() {
        let (width, out, n) = (5, 3, 40);
        let (x, w) = (noise(1, n * width, 1.0), noise(2, out * (width + 1), 1.0));
        let mut moment = SecondMoment::new(width);
        moment.add(&x, None);
        let map = faer::Mat::from_fn(out, width + 1, |i, j| f64::from(w[i * (width + 1) + j]));
        let sum = MatRef::from_row_major_slice(&moment.sum, moment.dim, moment.dim);
        let got = congruence(map.as_ref(), sum);
        let y = |row: &[f32], i: usize| {
            (0..width).map(|j| map[(i, j)] * f64::from(row[j])).sum::<f64>() + map[(i, width)]
        };
        for i in 0..out {
            for j in 0..out {
                let want: f64 = x.chunks(width).map(|row| y(row, i) * y(row, j)).sum();
                assert!((got[(i, j)] - want).abs() < 1e-9, "{} {want}", got[(i, j)]);
            }
        }
    }
}
