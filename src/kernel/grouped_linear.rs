//! One linear map per group of rows (the experts of a mixture), forward and backward. Knows no router.
//!
//! Rows are sorted by group: group `e` owns rows `offsets[e]..offsets[e + 1]` and uses `weight[e]`, `bias[e]`. Empty groups cost nothing.
//! Sums have the order of `ordered`, so neither threads nor the other rows of a group change a bit of a row.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{
    f32s, host,
    ordered::{Left, Packed, product_columns_here, transposed_product_here},
    tensor,
};

/// Columns of the right-hand matrix that are packed at one time.
const TILE: usize = 512;
/// Rows that a task multiplies with what it packed, at most.
const ROWS: usize = 960;

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

/// Rows of one group: of the output, [n, width], and of the input, [n, terms].
pub(super) struct Piece<'a> {
    pub(super) group: usize,
    pub(super) out: &'a mut [f32],
    pub(super) x: &'a [f32],
}

/// The rows of every group in pieces of about the same size that have at most `most` rows.
pub(super) fn pieces<'a>(
    offsets: &[usize],
    most: usize,
    (mut out, width): (&'a mut [f32], usize),
    (x, terms): (&'a [f32], usize),
) -> Vec<Piece<'a>> {
    let mut pieces = Vec::new();
    for (group, pair) in offsets.windows(2).enumerate() {
        let n = pair[1] - pair[0];
        let size = n.div_ceil(n.div_ceil(most).max(1)).max(1);
        for from in (pair[0]..pair[1]).step_by(size) {
            let to = (from + size).min(pair[1]);
            let (rows, rest) = out.split_at_mut((to - from) * width);
            out = rest;
            pieces.push(Piece { group, out: rows, x: &x[from * terms..to * terms] });
        }
    }
    pieces
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
        pieces(&self.offsets, ROWS, (&mut y, out), (x, inner)).into_par_iter().for_each(|piece| {
            let Piece { group, out: y, x } = piece;
            y.chunks_exact_mut(out).for_each(|row| row.copy_from_slice(&b[group * out..][..out]));
            let (weight, mut tile) = (&w[group * out * inner..][..out * inner], Packed::default());
            for from in (0..out).step_by(TILE) {
                let rows = Left { data: &weight[from * inner..], stride: inner };
                tile.fill_columns(rows, inner, TILE.min(out - from));
                product_columns_here((y, out, from), Left { data: x, stride: inner }, tile.whole());
            }
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
        pieces(&self.offsets, ROWS, (&mut dx, inner), (&gs, out)).into_par_iter().for_each(|piece| {
            let weight = &ws[piece.group * out * inner..][..out * inner];
            let mut tile = Packed::default();
            for from in (0..inner).step_by(TILE) {
                let columns = Left { data: &weight[from..], stride: inner };
                tile.fill_rows(columns, out, TILE.min(inner - from));
                product_columns_here(
                    (piece.out, inner, from),
                    Left { data: piece.x, stride: out },
                    tile.whole(),
                );
            }
        });
        let dx = tensor(dx, (m, inner))?;
        if !self.train {
            return Ok((Some(dx), None, None));
        }
        let mut dw = vec![0f32; groups * out * inner];
        let mut db = vec![0f32; groups * out];
        dw.par_chunks_exact_mut(out * inner).zip(db.par_chunks_exact_mut(out)).enumerate().for_each(
            |(e, (dw, db))| {
                let rows = self.offsets[e]..self.offsets[e + 1];
                let (g, mut tile) = (&gs[rows.start * out..rows.end * out], Packed::default());
                for from in (0..inner).step_by(TILE) {
                    let columns =
                        Left { data: xs.get(rows.start * inner + from..).unwrap_or_default(), stride: inner };
                    tile.fill_rows(columns, rows.len(), TILE.min(inner - from));
                    transposed_product_here((dw, inner, from), Left { data: g, stride: out }, tile.whole());
                }
                for row in g.chunks_exact(out) {
                    db.iter_mut().zip(row).for_each(|(db, g)| *db += g);
                }
            },
        );
        Ok((Some(dx), Some(tensor(dw, w.shape())?), Some(tensor(db, b.shape())?)))
    }
}

#[cfg(test)]
mod tests;
