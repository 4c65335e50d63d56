//! `y = x Wᵀ + b`, with a backward pass that gives what is frozen no gradient. Knows no model.
//!
//! Needed because a plain `matmul` of candle 0.11 computes and keeps the gradient of a frozen operand too.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::{
    f32s, host,
    ordered::{Left, Right, product, product_of_zeros},
    tensor,
    transpose::transposed,
};

/// `x` [n, in] · `weight` [out, in]ᵀ + `bias` `[out]` → [n, out], all `f32`. A gradient of the weight exists only
/// when `train`, one of the bias only if that is a variable.
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
        let ((n, inner), (out, width)) = (x_shape.dims2()?, w_shape.dims2()?);
        if width != inner || bias.is_some_and(|bias| bias.len() != out) {
            bail!(
                "linear: x {x_shape:?}, weight {w_shape:?} and bias {:?} do not fit",
                bias.map(<[f32]>::len)
            );
        }
        let mut y = vec![0f32; n * out];
        let (x, w) = (Left { data: x, stride: inner }, Right::Columns(w));
        if let Some(bias) = bias {
            y.chunks_exact_mut(out).for_each(|row| row.copy_from_slice(bias));
            product(&mut y, x, w, [inner, out]);
        } else {
            product_of_zeros(&mut y, x, w, [inner, out]);
        }
        Ok((CpuStorage::F32(y), (n, out).into()))
    }

    fn backward(&self, x: &Tensor, w: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((n, inner), (out, _)) = (x.dims2()?, w.dims2()?);
        let grad = grad.contiguous()?;
        let g = host(&grad)?;
        let dx = if x.track_op() {
            let mut dx = vec![0f32; n * inner];
            product_of_zeros(&mut dx, Left { data: &g, stride: out }, Right::Rows(&host(w)?), [out, inner]);
            Some(tensor(dx, (n, inner))?)
        } else {
            None
        };
        let dw = if self.train {
            let mut dw = vec![0f32; out * inner];
            let columns = transposed(&g, out);
            product_of_zeros(&mut dw, Left { data: &columns, stride: n }, Right::Rows(&host(x)?), [n, inner]);
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
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = self.backward(x, w, grad)?;
        let db = if b.track_op() { Some(column_sums(&grad.contiguous()?)?) } else { None };
        Ok((dx, dw, db))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{bits, check_gradients, close, flat, on_threads, var};

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

    /// The definition in f64: `y[i, o] = b[o] + Σ x[i, l] w[o, l]`.
    fn reference(x: &[f32], w: &[f32], b: Option<&[f32]>, inner: usize) -> Vec<f64> {
        let dot =
            |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
        let one = |x: &[f32], o: usize, w: &[f32]| dot(x, w) + b.map_or(0.0, |b| f64::from(b[o]));
        let row = |x| w.chunks(inner).enumerate().map(move |(o, w)| (x, o, w));
        x.chunks(inner).flat_map(row).map(|(x, o, w)| one(x, o, w)).collect()
    }

    #[test]
    fn matches_f64_and_its_gradients_the_differences_at_many_sizes() {
        for [n, inner, out] in [[1, 1, 1], [1, 64, 3], [65, 33, 17], [2, 1, 9], [130, 8, 1]] {
            let (x, w, b) = (var(1, &[n, inner], 1.0), var(2, &[out, inner], 1.0), var(3, &[out], 1.0));
            let want = |b| reference(&flat(&x), &flat(&w), b, inner);
            close(&flat(&linear(&x, &w, None, true).unwrap()), &want(None), 2e-6);
            close(&flat(&linear(&x, &w, Some(&b), true).unwrap()), &want(Some(&flat(&b))), 2e-6);
            check_gradients(&[&x, &w, &b], 2e-3, || linear(&x, &w, Some(&b), true));
        }
    }

    #[test]
    fn only_what_trains_gets_a_gradient() {
        let (x, w, b) = (var(1, &[7, 5], 1.0), var(2, &[3, 5], 1.0), var(3, &[3], 1.0));
        let frozen = b.detach();
        let grads = linear(&x, &w, Some(&frozen), true).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&frozen).is_none());
        let grads = linear(&x, &w, Some(&b), false).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(w.as_tensor()).is_none());
        close(&flat(grads.get(b.as_tensor()).expect("a bias trains alone")), &[7.0; 3], 1e-6);
        // An input that nobody tracks, such as embeddings that do not train.
        let grads = linear(&x.detach(), &w, Some(&b), true).unwrap().sum_all().unwrap().backward().unwrap();
        assert!(grads.get(x.as_tensor()).is_none());
        let want: Vec<f64> =
            (0..15).map(|i| flat(&x).chunks(5).map(|row| f64::from(row[i % 5])).sum()).collect();
        close(&flat(grads.get(w.as_tensor()).unwrap()), &want, 1e-6);
        close(&flat(grads.get(b.as_tensor()).unwrap()), &[7.0; 3], 1e-6);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let check = |x: &[usize], w: &[usize], b: &[usize]| {
            let (x, w, b) = (var(1, x, 1.0), var(2, w, 1.0), var(3, b, 1.0));
            assert!(linear(&x, &w, Some(&b), true).is_err(), "{:?} {:?} {:?}", x.dims(), w.dims(), b.dims());
        };
        check(&[7, 5], &[3, 6], &[3]); // a wider weight, whose data would suffice
        check(&[7, 5], &[3, 4], &[3]);
        check(&[7, 5], &[3, 5], &[4]);
        check(&[7, 5], &[3, 5], &[2]);
        check(&[35], &[3, 5], &[3]);
    }

    #[test]
    fn threads_change_no_bit() {
        let (x, w) = (var(1, &[200, 150], 1.0), var(2, &[90, 150], 1.0));
        let [one, two, five] = on_threads(|| {
            let y = linear(&x, &w, None, true).unwrap();
            let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let grad = |v: &candle_core::Var| bits(grads.get(v.as_tensor()).unwrap());
            (bits(&y), grad(&x), grad(&w))
        });
        assert!(one == two && one == five);
    }
}
