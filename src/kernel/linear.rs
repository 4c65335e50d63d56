//! `y = x Wᵀ + b`, with a backward pass that gives a frozen weight no gradient. Knows no model.
//!
//! Needed because a plain `matmul` of candle 0.11 computes and keeps the gradient of a frozen operand too.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use super::{
    f32s,
    gemm::{Mat, Threads, Write, gemm},
    host, tensor,
};

/// `x` [n, in] · `weight` [out, in]ᵀ + `bias` `[out]` → [n, out], all `f32`. Gradients of weight and bias exist only when `train`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, train: bool) -> Result<Tensor> {
    let op = Linear { train };
    match bias {
        Some(bias) => x.apply_op3(weight, bias, op),
        None => x.apply_op2(weight, op),
    }
}

struct Linear {
    train: bool,
}

impl Linear {
    fn forward(
        x: &[f32],
        w: &[f32],
        bias: Option<&[f32]>,
        (x_shape, w_shape): (&Shape, &Shape),
    ) -> Result<(CpuStorage, Shape)> {
        let ((n, inner), (out, _)) = (x_shape.dims2()?, w_shape.dims2()?);
        let mut y = vec![0f32; n * out];
        if let Some(bias) = bias {
            y.chunks_exact_mut(out).for_each(|row| row.copy_from_slice(bias));
        }
        gemm(
            (&mut y, out),
            Write::Add,
            1.0,
            (Mat::dense(x, n, inner), Mat::dense(w, out, inner).t()),
            Threads::All,
        );
        Ok((CpuStorage::F32(y), (n, out).into()))
    }

    fn backward(&self, x: &Tensor, w: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((n, inner), (out, _)) = (x.dims2()?, w.dims2()?);
        let grad = grad.contiguous()?;
        let g = host(&grad)?;
        let dx = if x.track_op() {
            let mut dx = vec![0f32; n * inner];
            gemm(
                (&mut dx, inner),
                Write::Set,
                1.0,
                (Mat::dense(&g, n, out), Mat::dense(&host(w)?, out, inner)),
                Threads::All,
            );
            Some(tensor(dx, (n, inner))?)
        } else {
            None
        };
        let dw = if self.train {
            let mut dw = vec![0f32; out * inner];
            gemm(
                (&mut dw, inner),
                Write::Set,
                1.0,
                (Mat::dense(&g, n, out).t(), Mat::dense(&host(x)?, n, inner)),
                Threads::All,
            );
            Some(tensor(dw, (out, inner))?)
        } else {
            None
        };
        Ok((dx, dw))
    }
}

/// The sum of each column of `x` [n, d], rows in order: `[d]`.
fn column_sums(x: &Tensor) -> Result<Tensor> {
    let (values, d) = (host(x)?, x.dim(1)?);
    let mut sums = vec![0f32; d];
    for row in values.chunks_exact(d) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    tensor(sums, d)
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Self::forward(f32s(x, xl, "linear")?, f32s(w, wl, "linear")?, None, (xl.shape(), wl.shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, w, grad)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear with bias"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let bias = f32s(b, bl, "linear")?;
        Self::forward(f32s(x, xl, "linear")?, f32s(w, wl, "linear")?, Some(bias), (xl.shape(), wl.shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = self.backward(x, w, grad)?;
        let db = if self.train { Some(column_sums(&grad.contiguous()?)?) } else { None };
        Ok((dx, dw, db))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{check_gradients, var};

    #[test]
    fn forward_matches_candle() {
        let (x, w, b) = (var(1, &[7, 5], 1.0), var(2, &[3, 5], 1.0), var(3, &[3], 1.0));
        let want = x.matmul(&w.t().unwrap()).unwrap().broadcast_add(&b).unwrap();
        let got = linear(&x, &w, Some(&b), true).unwrap();
        let diff = (want - got).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(diff < 1e-6, "{diff}");
    }

    #[test]
    fn gradients() {
        let (x, w, b) = (var(1, &[7, 5], 1.0), var(2, &[3, 5], 1.0), var(3, &[3], 1.0));
        check_gradients(&[&x, &w, &b], 1e-3, || linear(&x, &w, Some(&b), true));
        check_gradients(&[&x, &w], 1e-3, || linear(&x, &w, None, true));
    }

    #[test]
    fn a_frozen_weight_gets_no_gradient() {
        let (x, w) = (var(1, &[7, 5], 1.0), var(2, &[3, 5], 1.0));
        let grads = linear(&x, &w, None, false).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(x.as_tensor()).is_some());
        assert!(grads.get(w.as_tensor()).is_none());
    }
}
