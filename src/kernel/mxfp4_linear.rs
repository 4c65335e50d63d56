//! One linear map per group of rows whose weights stay in MXFP4, forward and the gradient of the input. Knows no router.
//!
//! A tile of weights is unpacked into a thread's cache, multiplied with all rows of its group, and forgotten: no unpacked copy of an
//! expert ever lies in memory. The weights are frozen.

use std::sync::Arc;

use bytes::Bytes;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{
    f32s,
    grouped_linear::{Piece, pieces},
    host,
    mxfp4::{BLOCK, NanScale, decode_block, dequantize},
    ordered::{Left, PANEL, Packed, product_columns_here},
    tensor,
};

/// Columns of the right-hand matrix that are unpacked at one time.
const TILE: usize = 2 * BLOCK;
/// Rows that a task multiplies with what it unpacked.
const ROWS: usize = 960;

/// Packed matrices [groups, out, inner], their blocks along `inner`.
#[derive(Debug, Clone)]
pub struct Mxfp4 {
    blocks: Bytes,
    scales: Bytes,
    shape: [usize; 3],
}

impl Mxfp4 {
    /// Blocks [groups, out, inner / 32, 16] and scales [groups, out, inner / 32].
    pub fn new(blocks: Bytes, scales: Bytes, shape: [usize; 3]) -> std::result::Result<Self, NanScale> {
        let n: usize = shape.iter().product();
        assert!(
            shape[2].is_multiple_of(BLOCK) && blocks.len() == n / 2 && scales.len() == n / BLOCK,
            "sizes of an MXFP4 tensor"
        );
        match scales.iter().position(|&scale| scale == 255) {
            Some(index) => Err(NanScale { index }),
            None => Ok(Self { blocks, scales, shape }),
        }
    }

    /// [groups, out, inner].
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// All values, row-major.
    pub fn dequantized(&self) -> Vec<f32> {
        let mut values = vec![0f32; self.shape.iter().product()];
        dequantize(&self.blocks, &self.scales, &mut values).expect("checked when it was made");
        values
    }

    /// Unpacks block `i` of row `row` of group `e`.
    fn block(&self, e: usize, row: usize, i: usize) -> [f32; BLOCK] {
        let [_, out, inner] = self.shape;
        let at = (e * out + row) * (inner / BLOCK) + i;
        let bytes = self.blocks[at * BLOCK / 2..].first_chunk().expect("a block has 16 bytes");
        decode_block(bytes, self.scales[at])
    }

    /// Rows `from..` of group `e` as columns of a right-hand matrix with `inner` terms.
    fn unpack_rows(&self, e: usize, from: usize, to: &mut Packed) {
        let last = self.shape[1];
        for (panel, terms) in to.panels_mut().enumerate() {
            let first = from + panel * PANEL;
            for (i, terms) in terms.chunks_exact_mut(BLOCK).enumerate() {
                for lane in 0..PANEL.min(last.saturating_sub(first)) {
                    let values = self.block(e, first + lane, i);
                    for (term, value) in terms.iter_mut().zip(values) {
                        term[lane] = value;
                    }
                }
            }
        }
    }

    /// Columns `from..` of group `e` as columns of a right-hand matrix with `out` terms.
    fn unpack_columns(&self, e: usize, from: usize, to: &mut Packed) {
        for (panel, terms) in to.panels_mut().enumerate() {
            let at = from + panel * PANEL;
            if at >= self.shape[2] {
                break; // the last tile may be narrower
            }
            for (row, term) in terms.iter_mut().enumerate() {
                let values = self.block(e, row, at / BLOCK);
                term.copy_from_slice(&values[at % BLOCK..][..PANEL]);
            }
        }
    }

    /// Adds to the rows of a piece's output the product of its input with its group's matrix, or with the transpose.
    fn multiply(&self, transposed: bool, Piece { group: e, out, x }: Piece<'_>) {
        let [_, rows, columns] = self.shape;
        let (terms, width) = if transposed { (rows, columns) } else { (columns, rows) };
        let left = Left { data: x, stride: terms };
        let mut tile = Packed::zeros(terms, TILE);
        for from in (0..width).step_by(TILE) {
            if transposed {
                self.unpack_columns(e, from, &mut tile);
            } else {
                self.unpack_rows(e, from, &mut tile);
            }
            let part = tile.part(0..TILE.min(width - from), 0..terms);
            product_columns_here((out, width, from), left, part);
        }
    }
}

/// `x` [m, inner], sorted by group: group `e` owns rows `offsets[e]..offsets[e + 1]`; `bias` [groups, out] → [m, out].
pub fn mxfp4_linear(x: &Tensor, weights: &Mxfp4, bias: &Tensor, offsets: &Arc<[usize]>) -> Result<Tensor> {
    x.apply_op1(Op { weights: weights.clone(), bias: bias.detach(), offsets: offsets.clone() })
}

struct Op {
    weights: Mxfp4,
    bias: Tensor,
    offsets: Arc<[usize]>,
}

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        "mxfp4_linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((m, width), [groups, out, inner]) = (layout.shape().dims2()?, self.weights.shape);
        let fits = self.offsets.len() == groups + 1 && self.offsets[groups] == m;
        if width != inner || self.bias.dims() != [groups, out] || !fits {
            bail!(
                "mxfp4_linear: x {:?}, weight {:?}, bias {:?} and offsets up to {:?} do not fit",
                layout.shape(),
                self.weights.shape,
                self.bias.dims(),
                self.offsets.last()
            );
        }
        let (x, bias) = (f32s(x, layout, "mxfp4_linear")?, host(&self.bias)?);
        let mut y = vec![0f32; m * out];
        pieces(&self.offsets, ROWS, (&mut y, out), (x, inner)).into_par_iter().for_each(|piece| {
            let bias = &bias[piece.group * out..][..out];
            piece.out.chunks_exact_mut(out).for_each(|row| row.copy_from_slice(bias));
            self.weights.multiply(false, piece);
        });
        Ok((CpuStorage::F32(y), (m, out).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [_, out, inner] = self.weights.shape;
        let grad = grad.contiguous()?;
        let g = host(&grad)?;
        let mut dx = vec![0f32; x.elem_count()];
        pieces(&self.offsets, ROWS, (&mut dx, inner), (&g, out))
            .into_par_iter()
            .for_each(|piece| self.weights.multiply(true, piece));
        Ok(Some(tensor(dx, x.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{
        arch::testing::on_all,
        grouped_linear::grouped_linear,
        mxfp4::quantize,
        testing::{bits, check_gradients, gradient, noise, on_threads, var},
    };

    fn packed(shape: [usize; 3]) -> Mxfp4 {
        let n = shape.iter().product::<usize>();
        let (mut blocks, mut scales) = (vec![0; n / 2], vec![0; n / BLOCK]);
        quantize(&noise(7, n, 0.4), &mut blocks, &mut scales);
        Mxfp4::new(blocks.into(), scales.into(), shape).unwrap()
    }

    /// Weights, bias, and rows of which no group, some groups and more than a piece have some.
    fn case(
        shape: [usize; 3],
        counts: &[usize],
    ) -> (Mxfp4, candle_core::Var, candle_core::Var, Arc<[usize]>) {
        let mut offsets = vec![0];
        offsets.extend(counts.iter().scan(0, |at, n| {
            *at += n;
            Some(*at)
        }));
        let m = offsets[counts.len()];
        (packed(shape), var(1, &[m, shape[2]], 1.0), var(2, &[shape[0], shape[1]], 1.0), offsets.into())
    }

    #[test]
    fn it_is_the_linear_map_of_the_unpacked_weights() {
        for (shape, counts) in [
            ([3, 5, 32], &[4, 0, 7][..]),
            ([2, 64, 64], &[13, 1]),
            ([2, 65, 96], &[0, 30]),
            ([1, 200, 160], &[ROWS + 3]),
        ] {
            let (weights, x, bias, offsets) = case(shape, counts);
            let dense = tensor(weights.dequantized(), &shape[..]).unwrap();
            let want = grouped_linear(&x, &dense, &bias, &offsets, false).unwrap();
            let got = mxfp4_linear(&x, &weights, &bias, &offsets).unwrap();
            let most = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let flat = crate::kernel::testing::flat;
            assert!(most(&flat(&got), &flat(&want)) < 2e-5, "{shape:?}");
            assert!(most(&gradient(&got, &x), &gradient(&want, &x)) < 2e-4, "{shape:?}");
        }
    }

    #[test]
    fn gradients_of_the_input() {
        let (weights, x, bias, offsets) = case([2, 40, 64], &[3, 4]);
        check_gradients(&[&x], 2e-3, || mxfp4_linear(&x, &weights, &bias, &offsets));
    }

    #[test]
    fn a_row_has_the_same_bits_on_every_machine_and_in_every_batch() {
        let (weights, x, bias, offsets) = case([2, 70, 64], &[20, 9]);
        let run = || bits(&mxfp4_linear(&x, &weights, &bias, &offsets).unwrap());
        let made = on_all(run);
        assert!(made.iter().all(|other| *other == made[0]));
        assert!(on_threads(run).iter().all(|other| *other == made[0]));
        let row = x.narrow(0, 22, 1).unwrap().contiguous().unwrap();
        let alone = mxfp4_linear(&row, &weights, &bias, &[0, 0, 1].into()).unwrap();
        assert_eq!(bits(&alone), made[0][22 * 70..23 * 70]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (weights, x, bias, _) = case([2, 8, 32], &[3, 4]);
        for offsets in [&[0, 3, 6][..], &[0, 7], &[0, 3, 7, 7]] {
            assert!(mxfp4_linear(&x, &weights, &bias, &offsets.into()).is_err(), "{offsets:?}");
        }
        assert!(mxfp4_linear(&x, &weights, &var(2, &[8, 2], 1.0), &[0, 3, 7].into()).is_err());
        assert!(mxfp4_linear(&var(1, &[7, 64], 1.0), &weights, &bias, &[0, 3, 7].into()).is_err());
        let nan = Mxfp4::new(vec![0; 32].into(), vec![127, 255].into(), [1, 2, 32]);
        assert_eq!(nan.unwrap_err(), NanScale { index: 1 });
    }
}
