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
    use crate::kernel::{
        attention::{Pattern, attention},
        testing::{check_gradients, close, flat, gradient, noise, var},
    };

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

    /// Scores, values and a sink to the output of softmax with one more column, in f64, and its derivative by the sink.
    fn column(scores: &[f64], values: &[f64], sink: f64) -> (f64, f64) {
        let top = scores.iter().copied().fold(sink, f64::max);
        let e: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
        let (own, rest) = ((sink - top).exp(), e.iter().sum::<f64>());
        let out = e.iter().zip(values).map(|(e, v)| e * v).sum::<f64>() / (rest + own);
        (out, -out * own / (rest + own))
    }

    #[test]
    fn attention_with_a_sink_is_softmax_with_one_more_column() {
        let (t, scale) = (5, 0.7f32);
        let (q, k, v) = (noise(1, t, 3.0), noise(2, t, 3.0), noise(3, t, 2.0));
        let row = |x: &[f32]| tensor(x.to_vec(), (t, 1, 1)).unwrap();
        let pattern = Pattern { offsets: [0, t].into(), window: None, scale };
        let packed = attention(&row(&q), &row(&k), &row(&v), &pattern).unwrap();
        for s in [-30.0f32, -1.0, 0.0, 0.5, 4.0, 30.0] {
            let sinks = candle_core::Var::from_tensor(&tensor(vec![s], 1).unwrap()).unwrap();
            let out = sink(&packed, &sinks, true).unwrap();
            let mut slope = 0.0;
            for (i, got) in flat(&out).into_iter().enumerate() {
                let score = |j: usize| f64::from(scale) * f64::from(q[i]) * f64::from(k[j]);
                let scores: Vec<f64> = (0..=i).map(score).collect();
                let values: Vec<f64> = v[..=i].iter().map(|&v| f64::from(v)).collect();
                let (want, by_sink) = column(&scores, &values, f64::from(s));
                close(&[got], &[want], 1e-6);
                slope += by_sink;
            }
            close(&gradient(&out, &sinks), &[slope], 1e-6);
        }
    }

    #[test]
    fn each_head_has_its_own_sink_and_a_frozen_one_no_gradient() {
        let packed = tensor([2.0f32, 0.0].repeat(6), (2, 3, 2)).unwrap();
        let sinks = candle_core::Var::from_tensor(&tensor(vec![-1e9, 0.0, 1e9], 3).unwrap()).unwrap();
        let out = sink(&packed, &sinks, false).unwrap();
        close(&flat(&out), &[2.0, 1.0, 0.0, 2.0, 1.0, 0.0], 1e-6);
        let grads =
            sink(&var(1, &[2, 3, 2], 1.0), &sinks, false).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(sinks.as_tensor()).is_none());
    }

    #[test]
    fn gradients_far_out_are_finite() {
        let packed =
            candle_core::Var::from_tensor(&tensor(vec![2.0, 80.0, 2.0, -80.0], (2, 1, 2)).unwrap()).unwrap();
        for s in [-1e9, -200.0, 200.0, 1e9] {
            let sinks = candle_core::Var::from_tensor(&tensor(vec![s], 1).unwrap()).unwrap();
            let out = sink(&packed, &sinks, true).unwrap();
            assert!(gradient(&out, &packed).iter().all(|g| g.is_finite()), "{s}");
            assert!(
                gradient(&out, &sinks)[0].abs() < 1e-6,
                "{s}: nothing moves where the sink takes all or nothing"
            );
        }
    }

    #[test]
    fn a_wrong_number_of_sinks_is_refused() {
        assert!(sink(&var(1, &[5, 3, 4], 1.0), &var(2, &[4], 1.0), true).is_err());
    }
}
