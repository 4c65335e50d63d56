//! Attention sinks from the log-sum-exp: `out · sigmoid(lse − s)`, forward and backward. Knows no attention pattern.
//!
//! Equal to one extra softmax column with logit `s` and no value. The sink logit is not scaled by the attention's factor.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{f32s, host, tensor};

/// `packed` [t, h, dv + 1] from [`super::attention::attention`], `sinks` `[h]` → [t, h, dv]. Sinks get a gradient only when `train`.
pub fn sink(packed: &Tensor, sinks: &Tensor, train: bool) -> Result<Tensor> {
    packed.apply_op2(sinks, Sink { train })
}

struct Sink {
    train: bool,
}

/// `1 / (1 + e^−x)` without overflow.
fn sigmoid(x: f32) -> f32 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

impl CustomOp2 for Sink {
    fn name(&self) -> &'static str {
        "sink"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        s: &CpuStorage,
        sl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (t, heads, width) = xl.shape().dims3()?;
        if sl.shape().dims1()? != heads {
            bail!("sink: {heads} heads but {:?} sinks", sl.shape());
        }
        let (x, s) = (f32s(x, xl, "sink")?, f32s(s, sl, "sink")?);
        let dv = width - 1;
        let mut out = vec![0f32; t * heads * dv];
        out.par_chunks_exact_mut(dv).zip(x.par_chunks_exact(width)).enumerate().with_min_len(512).for_each(
            |(i, (out, x))| {
                let keep = sigmoid(x[dv] - s[i % heads]);
                out.iter_mut().zip(x).for_each(|(out, x)| *out = x * keep);
            },
        );
        Ok((CpuStorage::F32(out), (t, heads, dv).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        s: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (xs, ss, gs) = (host(x)?, host(s)?, host(&grad)?);
        let (heads, width) = (ss.len(), x.dim(2)?);
        let dv = width - 1;
        let mut dx = vec![0f32; xs.len()];
        dx.par_chunks_exact_mut(width)
            .zip(xs.par_chunks_exact(width))
            .zip(gs.par_chunks_exact(dv))
            .enumerate()
            .with_min_len(512)
            .for_each(|(i, ((dx, x), g))| {
                let keep = sigmoid(x[dv] - ss[i % heads]);
                let mut dot = 0f32;
                for d in 0..dv {
                    dx[d] = g[d] * keep;
                    dot += g[d] * x[d];
                }
                dx[dv] = dot * keep * (1.0 - keep);
            });
        let ds = if self.train {
            let mut ds = vec![0f64; heads];
            for (i, dx) in dx.chunks_exact(width).enumerate() {
                ds[i % heads] -= f64::from(dx[dv]);
            }
            Some(tensor(ds.into_iter().map(|x| x as f32).collect(), heads)?)
        } else {
            None
        };
        Ok((Some(tensor(dx, x.shape())?), ds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{check_gradients, var};

    #[test]
    fn equals_one_more_softmax_column() {
        // Scores 0.3 and -1.1 with values 2 and 5, sink 0.7.
        let e = |x: f32| x.exp();
        let lse = (e(0.3) + e(-1.1)).ln();
        let out = (e(0.3) * 2.0 + e(-1.1) * 5.0) / (e(0.3) + e(-1.1));
        let want = (e(0.3) * 2.0 + e(-1.1) * 5.0) / (e(0.3) + e(-1.1) + e(0.7));
        let packed = tensor(vec![out, lse], (1, 1, 2)).unwrap();
        let got = sink(&packed, &tensor(vec![0.7], 1).unwrap(), false).unwrap();
        assert!((got.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0] - want).abs() < 1e-6);
    }

    #[test]
    fn extreme_sinks() {
        let packed = tensor(vec![2.0, 1.0], (1, 1, 2)).unwrap();
        for (s, want) in [(-1e9, 2.0), (1e9, 0.0), (200.0, 0.0)] {
            let got = sink(&packed, &tensor(vec![s], 1).unwrap(), false).unwrap();
            assert!((got.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0] - want).abs() < 1e-12);
        }
    }

    #[test]
    fn gradients() {
        let (x, s) = (var(1, &[5, 3, 4], 2.0), var(2, &[3], 2.0));
        check_gradients(&[&x, &s], 1e-3, || sink(&x, &s, true));
    }
}
