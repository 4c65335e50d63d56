//! GPT-OSS's clamped SwiGLU over interleaved gate and up columns, forward and backward. Knows no model.
//!
//! Columns 2i and 2i+1 are gate and up: `g = min(gate, limit)`, `u = clamp(up, −limit, limit)`,
//! `y = (u + 1) · g · sigmoid(alpha · g)`. At the limit the gradient passes, as in PyTorch's `clamp`.
#![expect(clippy::inline_always, reason = "it becomes part of what is compiled for several instruction sets")]

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{arch::vectorised, exp::exp, f32s, host, tensor};

/// Values that a thread makes at a time.
const CHUNK: usize = 4096;

/// `x` [n, 2·i] → [n, i].
pub fn swiglu(x: &Tensor, alpha: f32, limit: f32) -> Result<Tensor> {
    x.apply_op1(Swiglu { alpha, limit })
}

#[derive(Clone, Copy)]
struct Swiglu {
    alpha: f32,
    limit: f32,
}

/// Gate and up within their limits.
#[inline(always)]
fn clamped([gate, up]: [f32; 2], limit: f32) -> (f32, f32) {
    // Plain comparisons keep a NaN, and unlike `clamp` they never panic, so that loops with them become vectors.
    let below = |x: f32| if x > limit { limit } else { x };
    let up = if up < -limit { -limit } else { up };
    (below(gate), below(up))
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
        let (mut y, Self { alpha, limit }) = (vec![0f32; n * width / 2], *self);
        y.par_chunks_mut(CHUNK).zip(x.par_chunks(2 * CHUNK)).for_each(|(y, x)| {
            vectorised(
                #[inline(always)]
                || {
                    for (y, pair) in y.iter_mut().zip(x.as_chunks::<2>().0) {
                        let (g, u) = clamped(*pair, limit);
                        *y = (u + 1.0) * g / (1.0 + exp(-alpha * g));
                    }
                },
            );
        });
        Ok((CpuStorage::F32(y), (n, width / 2).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let (xs, gs) = (host(x)?, host(&grad)?);
        let (mut dx, Self { alpha, limit }) = (vec![0f32; xs.len()], *self);
        let inputs = xs.par_chunks(2 * CHUNK).zip(gs.par_chunks(CHUNK));
        dx.par_chunks_mut(2 * CHUNK).zip(inputs).for_each(|(dx, (x, dy))| {
            vectorised(
                #[inline(always)]
                || {
                    let pairs = dx.as_chunks_mut::<2>().0.iter_mut().zip(x.as_chunks::<2>().0);
                    for ((dx, pair), &dy) in pairs.zip(dy) {
                        let (g, u) = clamped(*pair, limit);
                        let sigma = 1.0 / (1.0 + exp(-alpha * g));
                        let dg = (u + 1.0) * sigma * (1.0 + alpha * g * (1.0 - sigma));
                        dx[0] = if pair[0] <= limit { dy * dg } else { 0.0 };
                        dx[1] = if pair[1].abs() <= limit { dy * g * sigma } else { 0.0 };
                    }
                },
            );
        });
        Ok(Some(tensor(dx, x.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{
        arch::testing::on_all,
        testing::{bits, check_gradients, close, flat, gradient, var},
    };

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
    fn every_instruction_set_gives_the_same_bits_beyond_a_chunk_too() {
        let x = var(3, &[3, CHUNK + 10], 9.0);
        let made = on_all(|| {
            let y = swiglu(&x, 1.702, 7.0).unwrap();
            [bits(&y), gradient(&y, &x).into_iter().map(f32::to_bits).collect()]
        });
        assert!(made.iter().all(|other| *other == made[0]));
        for row in 0..3 {
            let one = x.narrow(0, row, 1).unwrap().contiguous().unwrap();
            let n = usize::midpoint(CHUNK, 10);
            assert_eq!(bits(&swiglu(&one, 1.702, 7.0).unwrap()), made[0][0][row * n..][..n]);
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        for pair in [[f32::NAN, 1.0], [1.0, f32::NAN]] {
            assert!(flat(&swiglu(&tensor(pair.to_vec(), (1, 2)).unwrap(), 1.702, 7.0).unwrap())[0].is_nan());
        }
    }

    #[test]
    fn an_odd_number_of_columns_is_refused() {
        assert!(swiglu(&var(1, &[2, 5], 1.0), 1.702, 7.0).is_err());
    }
}
