//! Root-mean-square normalisation with a weight, forward and backward. Knows no model.
//!
//! `y = w · x / √(mean(x²) + eps)`, all in `f32`; the weight multiplies before any cast, as in GPT-OSS.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{f32s, host, tensor};

/// Normalises each row of `x` [n, d] and multiplies by `weight` `[d]`. The weight gets a gradient only when `train`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32, train: bool) -> Result<Tensor> {
    x.apply_op2(weight, RmsNorm { eps, train })
}

struct RmsNorm {
    eps: f32,
    train: bool,
}

impl RmsNorm {
    fn scale(&self, row: &[f32]) -> f32 {
        let square: f64 = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        (1.0 / (square / row.len() as f64 + f64::from(self.eps)).sqrt()) as f32
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (f32s(x, xl, "rms_norm")?, f32s(w, wl, "rms_norm")?);
        if xl.dims().last() != Some(&w.len()) {
            bail!("rms_norm: x {:?} and weight {:?} do not fit", xl.shape(), wl.shape());
        }
        let mut y = vec![0f32; x.len()];
        y.par_chunks_exact_mut(w.len()).zip(x.par_chunks_exact(w.len())).with_min_len(64).for_each(
            |(y, x)| {
                let scale = self.scale(x);
                for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                    *y = x * scale * w;
                }
            },
        );
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (xs, ws, gs) = (host(x)?, host(w)?, host(&grad)?);
        let d = ws.len();
        let mut dx = vec![0f32; xs.len()];
        dx.par_chunks_exact_mut(d)
            .zip(xs.par_chunks_exact(d))
            .zip(gs.par_chunks_exact(d))
            .with_min_len(64)
            .for_each(|((dx, x), g)| {
                let scale = self.scale(x);
                let dot: f32 = x.iter().zip(g).zip(&*ws).map(|((x, g), w)| x * g * w).sum();
                let along = dot * scale * scale * scale / d as f32;
                for (((dx, x), g), w) in dx.iter_mut().zip(x).zip(g).zip(&*ws) {
                    *dx = g * w * scale - x * along;
                }
            });
        let dw = if self.train {
            let mut dw = vec![0f64; d];
            for (x, g) in xs.chunks_exact(d).zip(gs.chunks_exact(d)) {
                let scale = self.scale(x);
                for ((dw, x), g) in dw.iter_mut().zip(x).zip(g) {
                    *dw += f64::from(x * scale * g);
                }
            }
            Some(tensor(dw.into_iter().map(|x| x as f32).collect(), d)?)
        } else {
            None
        };
        Ok((Some(tensor(dx, x.shape())?), dw))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{check_gradients, close, flat, gradient, noise, var};

    #[test]
    fn a_row_by_hand() {
        let (x, w) = (tensor(vec![3.0, 4.0], (1, 2)).unwrap(), tensor(vec![1.0, 2.0], 2).unwrap());
        let y = rms_norm(&x, &w, 0.0, false).unwrap().to_vec2::<f32>().unwrap();
        let rms = 12.5f32.sqrt();
        assert!((y[0][0] - 3.0 / rms).abs() < 1e-6 && (y[0][1] - 8.0 / rms).abs() < 1e-6, "{y:?}");
    }

    #[test]
    fn gradients() {
        let (x, w) = (var(4, &[5, 8], 2.0), var(5, &[8], 1.0));
        check_gradients(&[&x, &w], 1e-3, || rms_norm(&x, &w, 1e-5, true));
    }

    fn reference(x: &[f32], w: &[f32], eps: f64) -> Vec<f64> {
        let row = |x: &[f32]| {
            let square = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
            let scale = 1.0 / (square + eps).sqrt();
            x.iter().zip(w).map(|(x, w)| f64::from(*x) * scale * f64::from(*w)).collect::<Vec<_>>()
        };
        x.chunks(w.len()).flat_map(row).collect()
    }

    #[test]
    fn matches_f64_at_every_width_and_magnitude() {
        for d in [1, 7, 64, 65, 1000] {
            for scale in [1e-12, 1.0, 1e15] {
                let (x, w) = (noise(d as u64, 3 * d, scale), noise(9, d, 1.0));
                let want = reference(&x, &w, f64::from(1e-5f32));
                let y = rms_norm(&tensor(x, (3, d)).unwrap(), &tensor(w, d).unwrap(), 1e-5, false).unwrap();
                close(&flat(&y), &want, 1e-6);
            }
        }
    }

    #[test]
    fn a_row_of_zeros_stays_zero_and_its_gradient_is_finite() {
        let x = candle_core::Var::from_tensor(&tensor(vec![0.0; 8], (2, 4)).unwrap()).unwrap();
        let w = var(5, &[4], 1.0);
        let y = rms_norm(&x, &w, 1e-5, true).unwrap();
        assert_eq!(flat(&y), [0.0; 8]);
        // Around zero the norm is linear with slope w / √eps.
        let want: Vec<f64> =
            flat(&w).iter().cycle().take(8).map(|w| f64::from(*w) / 1e-5f64.sqrt()).collect();
        close(&gradient(&y, &x), &want, 1e-5);
    }

    #[test]
    fn gradients_at_other_widths_and_a_frozen_weight() {
        for [n, d] in [[1, 1], [3, 17], [70, 4]] {
            let (x, w) = (var(4, &[n, d], 2.0), var(5, &[d], 1.0));
            check_gradients(&[&x, &w], 4e-3, || rms_norm(&x, &w, 1e-2, true));
            let grads = rms_norm(&x, &w, 1e-2, false).unwrap().sum_all().unwrap().backward().unwrap();
            assert!(grads.get(w.as_tensor()).is_none() && grads.get(x.as_tensor()).is_some());
        }
    }

    #[test]
    fn a_weight_of_another_width_is_refused() {
        for width in [2, 5, 8] {
            assert!(rms_norm(&var(4, &[5, 4], 1.0), &var(5, &[width], 1.0), 1e-5, true).is_err(), "{width}");
        }
    }
}
