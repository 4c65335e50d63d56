//! Masked cross-entropy over a row-major block of logits, forward and backward. Knows no model.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{
    exp::{exp_in_place, exp_sum, max},
    f32s, host, tensor,
};

/// `Σ weight_i · −log softmax(logits_i)[target_i] / norm` over the rows of `logits` [n, vocab]; a scalar `[1]`.
///
/// `norm` is the number of counted tokens of the whole batch, so that losses of parts add up.
pub fn cross_entropy(
    logits: &Tensor,
    targets: &Arc<[u32]>,
    weights: &Arc<[f32]>,
    norm: f32,
) -> Result<Tensor> {
    logits.apply_op1(CrossEntropy { targets: targets.clone(), weights: weights.clone(), norm })
}

struct CrossEntropy {
    targets: Arc<[u32]>,
    weights: Arc<[f32]>,
    norm: f32,
}

/// Natural log of the sum of exponentials of a row, without overflow.
pub fn log_sum_exp(row: &[f32]) -> f32 {
    let top = max(row);
    top + exp_sum(row, top).ln()
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, vocab) = layout.shape().dims2()?;
        if self.targets.len() != n || self.weights.len() != n {
            bail!(
                "cross_entropy: {n} rows but {} targets and {} weights",
                self.targets.len(),
                self.weights.len()
            );
        }
        if let Some(target) = self.targets.iter().find(|&&target| target as usize >= vocab) {
            bail!("cross_entropy: target {target} of {vocab} logits");
        }
        let x = f32s(x, layout, "cross_entropy")?;
        let row = |(i, row): (usize, &[f32])| match self.weights[i] {
            0.0 => 0.0,
            w => f64::from(w) * f64::from(log_sum_exp(row) - row[self.targets[i] as usize]),
        };
        let terms: Vec<f64> = x.par_chunks_exact(vocab).enumerate().map(row).collect();
        let loss = terms.iter().sum::<f64>() / f64::from(self.norm);
        Ok((CpuStorage::F32(vec![loss as f32]), 1.into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let factor = host(grad)?[0] / self.norm;
        let xs = host(x)?;
        let vocab = x.dim(1)?;
        let mut dx = vec![0f32; xs.len()];
        dx.par_chunks_exact_mut(vocab).zip(xs.par_chunks_exact(vocab)).enumerate().for_each(
            |(i, (dx, x))| {
                let w = self.weights[i] * factor;
                if w == 0.0 {
                    return;
                }
                let lse = log_sum_exp(x);
                dx.copy_from_slice(x);
                exp_in_place(dx, lse);
                for dx in dx.iter_mut() {
                    *dx *= w;
                }
                dx[self.targets[i] as usize] -= w;
            },
        );
        Ok(Some(tensor(dx, x.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{check_gradients, close, flat, gradient, noise, var};

    #[test]
    fn uniform_logits_cost_log_vocab_and_masked_rows_nothing() {
        let x = tensor(vec![1.0; 12], (3, 4)).unwrap();
        let loss = cross_entropy(&x, &[0, 3, 1].into(), &[1.0, 0.0, 1.0].into(), 2.0).unwrap();
        assert!((loss.to_vec1::<f32>().unwrap()[0] - 4f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn gradients() {
        let x = var(1, &[5, 7], 2.0);
        let (targets, weights): (Arc<[u32]>, Arc<[f32]>) =
            ([3, 0, 6, 1, 1].into(), [1.0, 1.0, 0.0, 1.0, 0.5].into());
        check_gradients(&[&x], 1e-3, || cross_entropy(&x, &targets, &weights, 3.5));
    }

    fn reference(x: &[f32], targets: &[u32], weights: &[f32], norm: f64) -> f64 {
        let vocab = x.len() / targets.len();
        let one = |(i, row): (usize, &[f32])| {
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|&x| (f64::from(x) - f64::from(top)).exp()).sum();
            f64::from(weights[i]) * (f64::from(top) + sum.ln() - f64::from(row[targets[i] as usize]))
        };
        x.chunks(vocab).enumerate().map(one).sum::<f64>() / norm
    }

    fn loss(x: &[f32], targets: &[u32], weights: &[f32], norm: f32) -> f32 {
        let x = tensor(x.to_vec(), (targets.len(), x.len() / targets.len())).unwrap();
        flat(&cross_entropy(&x, &targets.into(), &weights.into(), norm).unwrap())[0]
    }

    #[test]
    fn matches_f64_at_every_vocabulary_and_magnitude() {
        for vocab in [1, 2, 15, 16, 17, 33, 1000] {
            for scale in [1e-6, 1.0, 30.0, 1e4] {
                let x = noise(vocab as u64, 3 * vocab, scale);
                let targets = [0, (vocab - 1) as u32, (vocab / 2) as u32];
                let weights = [1.0, 0.25, 3.0];
                let want = reference(&x, &targets, &weights, 2.5);
                close(&[loss(&x, &targets, &weights, 2.5)], &[want], 1e-5);
            }
        }
    }

    #[test]
    fn losses_of_parts_add_up_and_a_shift_of_a_row_changes_nothing() {
        let (x, targets, weights) = (noise(3, 40, 2.0), [1, 0, 7, 3, 3], [1.0, 0.0, 1.0, 1.0, 0.5]);
        let whole = loss(&x, &targets, &weights, 3.5);
        let parts = loss(&x[..16], &targets[..2], &weights[..2], 3.5)
            + loss(&x[16..], &targets[2..], &weights[2..], 3.5);
        assert!((whole - parts).abs() < 1e-6);
        let shifted: Vec<f32> = x.iter().enumerate().map(|(i, x)| x + (i / 8) as f32 * 8.0).collect();
        assert!((whole - loss(&shifted, &targets, &weights, 3.5)).abs() < 1e-5);
    }

    #[test]
    fn the_gradient_of_a_row_sums_to_nothing_and_of_a_masked_row_is_nothing() {
        let x = var(1, &[5, 19], 3.0);
        let out =
            cross_entropy(&x, &[3, 0, 6, 18, 1].into(), &[1.0, 1.0, 0.0, 2.0, 0.5].into(), 3.5).unwrap();
        for (i, row) in gradient(&out, &x).chunks(19).enumerate() {
            assert!(row.iter().sum::<f32>().abs() < 1e-6, "row {i}");
            assert_eq!(row.iter().all(|g| g.abs() > 0.0), i != 2, "row {i}");
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        for (targets, weights) in
            [(&[0, 1][..], &[1.0, 1.0, 1.0][..]), (&[0, 1, 2], &[1.0, 1.0]), (&[0, 1, 4], &[1.0; 3])]
        {
            let x = var(1, &[3, 4], 1.0);
            assert!(cross_entropy(&x, &targets.into(), &weights.into(), 1.0).is_err(), "{targets:?}");
        }
    }
}
