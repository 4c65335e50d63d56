//! Root-mean-square normalisation with a weight, forward and backward. Knows no model.
//!
//! `y = w · x / √(mean(x²) + eps)`, all in `f32`; the weight multiplies before any cast, as in GPT-OSS.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
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
    use crate::kernel::testing::{check_gradients, var};

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
}
