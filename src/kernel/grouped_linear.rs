//! One linear map per group of rows (the experts of a mixture), forward and backward. Knows no router.
//!
//! Rows are sorted by group: group `e` owns rows `offsets[e]..offsets[e + 1]` and uses `weight[e]`, `bias[e]`. Empty groups cost nothing.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{
    f32s,
    gemm::{Mat, Threads, Write, gemm},
    host, tensor,
};

/// `x` [m, in], `weight` [groups, out, in], `bias` [groups, out] → [m, out]. Gradients of weight and bias exist only when `train`.
pub fn grouped_linear(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    offsets: &Arc<[usize]>,
    train: bool,
) -> Result<Tensor> {
    x.apply_op3(weight, bias, GroupedLinear { offsets: offsets.clone(), train })
}

struct GroupedLinear {
    offsets: Arc<[usize]>,
    train: bool,
}

impl GroupedLinear {
    /// Splits row-major `data` with `width` columns into the groups' rows.
    fn rows<'a>(&self, mut data: &'a mut [f32], width: usize) -> Vec<&'a mut [f32]> {
        let mut parts = Vec::with_capacity(self.offsets.len() - 1);
        for pair in self.offsets.windows(2) {
            let (head, tail) = data.split_at_mut((pair[1] - pair[0]) * width);
            parts.push(head);
            data = tail;
        }
        parts
    }

    fn group<'a>(&self, data: &'a [f32], e: usize, width: usize) -> Mat<'a> {
        let (from, to) = (self.offsets[e], self.offsets[e + 1]);
        Mat::dense(&data[from * width..to * width], to - from, width)
    }
}

impl CustomOp3 for GroupedLinear {
    fn name(&self) -> &'static str {
        "grouped_linear"
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
        let ((m, inner), (groups, out, width)) = (xl.shape().dims2()?, wl.shape().dims3()?);
        if width != inner || bl.dims() != [groups, out] {
            bail!("grouped_linear: x {xl:?}, weight {wl:?} and bias {bl:?} do not fit");
        }
        if self.offsets.len() != groups + 1 || self.offsets[groups] != m {
            bail!(
                "grouped_linear: {} offsets up to {:?} for {groups} groups and {m} rows",
                self.offsets.len(),
                self.offsets.last()
            );
        }
        let (x, w, b) =
            (f32s(x, xl, "grouped_linear")?, f32s(w, wl, "grouped_linear")?, f32s(b, bl, "grouped_linear")?);
        let mut y = vec![0f32; m * out];
        self.rows(&mut y, out).into_par_iter().enumerate().for_each(|(e, y)| {
            y.chunks_exact_mut(out).for_each(|row| row.copy_from_slice(&b[e * out..][..out]));
            let weight = Mat::dense(&w[e * out * inner..][..out * inner], out, inner);
            gemm((y, out), Write::Add, 1.0, (self.group(x, e, inner), weight.t()), Threads::One);
        });
        Ok((CpuStorage::F32(y), (m, out).into()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let ((m, inner), (groups, out, _)) = (x.dims2()?, w.dims3()?);
        let grad = grad.contiguous()?;
        let (xs, ws, gs) = (host(x)?, host(w)?, host(&grad)?);
        let mut dx = vec![0f32; m * inner];
        self.rows(&mut dx, inner).into_par_iter().enumerate().for_each(|(e, dx)| {
            let weight = Mat::dense(&ws[e * out * inner..][..out * inner], out, inner);
            gemm((dx, inner), Write::Set, 1.0, (self.group(&gs, e, out), weight), Threads::One);
        });
        let dx = tensor(dx, (m, inner))?;
        if !self.train {
            return Ok((Some(dx), None, None));
        }
        let mut dw = vec![0f32; groups * out * inner];
        let mut db = vec![0f32; groups * out];
        dw.par_chunks_exact_mut(out * inner).zip(db.par_chunks_exact_mut(out)).enumerate().for_each(
            |(e, (dw, db))| {
                let g = self.group(&gs, e, out);
                gemm((dw, inner), Write::Set, 1.0, (g.t(), self.group(&xs, e, inner)), Threads::One);
                for row in gs[self.offsets[e] * out..self.offsets[e + 1] * out].chunks_exact(out) {
                    db.iter_mut().zip(row).for_each(|(db, g)| *db += g);
                }
            },
        );
        Ok((Some(dx), Some(tensor(dw, w.shape())?), Some(tensor(db, b.shape())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{
        linear::linear,
        testing::{check_gradients, gradient, var},
    };

    #[test]
    fn each_group_is_its_own_linear_map() {
        let (x, w, b) = (var(1, &[9, 4], 1.0), var(2, &[4, 3, 4], 1.0), var(3, &[4, 3], 1.0));
        let offsets: Arc<[usize]> = [0, 4, 4, 8, 9].into();
        let got = grouped_linear(&x, &w, &b, &offsets, false).unwrap();
        for e in 0..4 {
            let (from, n) = (offsets[e], offsets[e + 1] - offsets[e]);
            if n == 0 {
                continue;
            }
            let rows = x.narrow(0, from, n).unwrap().contiguous().unwrap();
            let want = linear(&rows, &w.get(e).unwrap(), Some(&b.get(e).unwrap()), false).unwrap();
            let diff = (want - got.narrow(0, from, n).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
            assert!(diff.to_scalar::<f32>().unwrap() < 1e-6);
        }
    }

    #[test]
    fn gradients() {
        let (x, w, b) = (var(1, &[6, 4], 1.0), var(2, &[3, 5, 4], 1.0), var(3, &[3, 5], 1.0));
        let offsets: Arc<[usize]> = [0, 2, 2, 6].into();
        check_gradients(&[&x, &w, &b], 1e-3, || grouped_linear(&x, &w, &b, &offsets, true));
    }

    #[test]
    fn wrong_offsets_are_refused() {
        let (x, w, b) = (var(1, &[6, 4], 1.0), var(2, &[3, 5, 4], 1.0), var(3, &[3, 5], 1.0));
        assert!(grouped_linear(&x, &w, &b, &[0, 2, 2, 5].into(), true).is_err());
    }

    #[test]
    fn groups_may_be_empty_or_have_everything() {
        let (x, w, b) = (var(1, &[6, 4], 1.0), var(2, &[3, 5, 4], 1.0), var(3, &[3, 5], 1.0));
        for offsets in [[0, 6, 6, 6], [0, 0, 6, 6], [0, 0, 0, 6], [0, 1, 6, 6]] {
            let offsets: Arc<[usize]> = offsets.into();
            check_gradients(&[&x, &w, &b], 2e-3, || grouped_linear(&x, &w, &b, &offsets, true));
            let out = grouped_linear(&x, &w, &b, &offsets, true).unwrap();
            let (dw, db) = (gradient(&out, &w), gradient(&out, &b));
            for e in 0..3 {
                let rows = offsets[e + 1] - offsets[e];
                assert!(db[e * 5..][..5].iter().all(|g| (g - rows as f32).abs() < 1e-6), "{db:?}");
                assert_eq!(
                    dw[e * 20..][..20].iter().all(|g| g.abs() > 0.0),
                    rows > 0,
                    "an empty group has zeros"
                );
            }
        }
    }

    #[test]
    fn no_rows_at_all_give_no_rows() {
        let x = tensor(vec![], (0, 4)).unwrap();
        let (w, b) = (var(2, &[2, 5, 4], 1.0), var(3, &[2, 5], 1.0));
        assert_eq!(grouped_linear(&x, &w, &b, &[0, 0, 0].into(), false).unwrap().dims(), [0, 5]);
    }

    #[test]
    fn frozen_experts_get_no_gradient() {
        let (x, w, b) = (var(1, &[6, 4], 1.0), var(2, &[3, 5, 4], 1.0), var(3, &[3, 5], 1.0));
        let out = grouped_linear(&x, &w, &b, &[0, 2, 2, 6].into(), false).unwrap();
        let grads = out.sum_all().unwrap().backward().unwrap();
        assert!(grads.get(x.as_tensor()).is_some());
        assert!(grads.get(w.as_tensor()).is_none() && grads.get(b.as_tensor()).is_none());
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let check = |x: [usize; 2], w: [usize; 3], b: [usize; 2]| {
            let (x, w, b) = (var(1, &x, 1.0), var(2, &w, 1.0), var(3, &b, 1.0));
            assert!(grouped_linear(&x, &w, &b, &[0, 2, 2, 6].into(), true).is_err());
        };
        check([6, 4], [3, 5, 6], [3, 5]); // a wider weight, whose data would suffice
        check([6, 4], [3, 5, 4], [3, 6]);
        check([6, 4], [3, 5, 4], [5, 3]);
        check([6, 4], [4, 5, 4], [4, 5]);
        check([7, 4], [3, 5, 4], [3, 5]);
    }
}
