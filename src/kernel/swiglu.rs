//! GPT-OSS's clamped SwiGLU over interleaved gate and up columns, forward and backward. Knows no model.
//!
//! Columns 2i and 2i+1 are gate and up: `g = min(gate, limit)`, `u = clamp(up, −limit, limit)`,
//! `y = (u + 1) · g · sigmoid(alpha · g)`. At the limit the gradient passes, as in PyTorch's `clamp`.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
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
        if !width.is_multiple_of(2) {
            bail!("swiglu: columns come in pairs, got {:?}", layout.shape());
        }
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
    use crate::kernel::testing::{check_gradients, close, flat, gradient, var};

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

    #[test]
    fn matches_f64_inside_at_and_beyond_the_limits() {
        let axis = [-1e30, -90.0, -7.5, -7.0, -1.0, -1e-20, 0.0, 1e-20, 0.3, 6.999, 7.0, 7.001, 90.0, 1e30];
        let pairs: Vec<f32> = axis.iter().flat_map(|&g| axis.iter().flat_map(move |&u| [g, u])).collect();
        let one = |pair: &[f32]| {
            let (g, u) = (f64::from(pair[0]).min(7.0), f64::from(pair[1]).clamp(-7.0, 7.0));
            (u + 1.0) * g / (1.0 + (-1.702 * g).exp())
        };
        let want: Vec<f64> = pairs.chunks(2).map(one).collect();
        let y = swiglu(&tensor(pairs, (14, 28)).unwrap(), 1.702, 7.0).unwrap();
        close(&flat(&y), &want, 2e-5);
    }

    #[test]
    fn at_a_limit_the_gradient_passes_and_beyond_it_stops() {
        for (gate, up, passes) in [
            (2.0, 1.0, [true, true]),
            (2.001, 1.0, [false, true]),
            (-9.0, 1.0, [true, true]), // a gate has no lower bound
            (1.0, 2.0, [true, true]),
            (1.0, -2.0, [true, true]),
            (1.0, 2.001, [true, false]),
            (1.0, -2.001, [true, false]),
        ] {
            let x = candle_core::Var::from_tensor(&tensor(vec![gate, up], (1, 2)).unwrap()).unwrap();
            let grad = gradient(&swiglu(&x, 1.702, 2.0).unwrap(), &x);
            assert_eq!([grad[0].abs() > 0.0, grad[1].abs() > 0.0], passes, "{gate} {up}");
        }
    }

    #[test]
    fn an_odd_number_of_columns_is_refused() {
        assert!(swiglu(&var(1, &[2, 5], 1.0), 1.702, 7.0).is_err());
    }
}
