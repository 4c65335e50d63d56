//! GPT-OSS's clamped SwiGLU over interleaved gate and up columns, forward and backward. Knows no model.
//!
//! Columns 2i and 2i+1 are gate and up: `g = min(gate, limit)`, `u = clamp(up, −limit, limit)`,
//! `y = (u + 1) · g · sigmoid(alpha · g)`. At the limit the gradient passes, as in PyTorch's `clamp`.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{exp::exp, f32s, host, tensor};

/// `x` [n, 2·i] → [n, i].
pub fn swiglu(x: &Tensor, alpha: f32, limit: f32) -> Result<Tensor> {
    x.apply_op1(Swiglu { alpha, limit })
}

struct Swiglu {
    alpha: f32,
    limit: f32,
}

impl CustomOp1 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (n, width) = layout.shape().dims2()?;
        let x = f32s(x, layout, "swiglu")?;
        let mut y = vec![0f32; n * width / 2];
        y.par_iter_mut().zip(x.par_chunks_exact(2)).with_min_len(4096).for_each(|(y, pair)| {
            let (g, u) = (pair[0].min(self.limit), pair[1].clamp(-self.limit, self.limit));
            *y = (u + 1.0) * g / (1.0 + exp(-self.alpha * g));
        });
        Ok((CpuStorage::F32(y), (n, width / 2).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (xs, gs) = (host(x)?, host(&grad)?);
        let mut dx = vec![0f32; xs.len()];
        dx.par_chunks_exact_mut(2)
            .zip(xs.par_chunks_exact(2))
            .zip(gs.par_iter())
            .with_min_len(4096)
            .for_each(|((dx, pair), &dy)| {
                let (g, u) = (pair[0].min(self.limit), pair[1].clamp(-self.limit, self.limit));
                let sigma = 1.0 / (1.0 + exp(-self.alpha * g));
                let dg = (u + 1.0) * sigma * (1.0 + self.alpha * g * (1.0 - sigma));
                dx[0] = if pair[0] <= self.limit { dy * dg } else { 0.0 };
                dx[1] = if pair[1].abs() <= self.limit { dy * g * sigma } else { 0.0 };
            });
        Ok(Some(tensor(dx, x.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{check_gradients, var};

    #[test]
    fn values_by_hand() {
        let x = tensor(vec![1.0, 2.0, 9.0, -9.0], (1, 4)).unwrap();
        let y = swiglu(&x, 1.702, 7.0).unwrap().to_vec2::<f32>().unwrap();
        let silu = |g: f32| g / (1.0 + (-1.702 * g).exp());
        assert!((y[0][0] - 3.0 * silu(1.0)).abs() < 1e-5);
        assert!((y[0][1] - -6.0 * silu(7.0)).abs() < 1e-4);
    }

    #[test]
    fn gradients() {
        let x = var(8, &[6, 8], 3.0);
        check_gradients(&[&x], 2e-3, || swiglu(&x, 1.702, 2.0));
    }
}
