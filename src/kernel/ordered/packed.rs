//! Right-hand matrices in panels of sixteen columns. Knows no product.

use std::ops::Range;

use rayon::prelude::*;

use super::{Left, PANEL};

/// What a matrix is packed from.
pub trait Element: Copy + Sync {
    /// Its value, exactly.
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    fn to_f32(self) -> f32 {
        self
    }
}

/// A BF16 number as a file has it, little-endian and at any address.
pub type Bf16Bytes = [u8; 2];

impl Element for Bf16Bytes {
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(self)) << 16)
    }
}

/// The right-hand matrix of a product, `inner` × `cols`, stored in panels of sixteen columns.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    pub(super) inner: usize,
    pub(super) cols: usize,
    pub(super) data: Vec<f32>,
}

impl Packed {
    /// Packs the weights of a linear layer, row-major `cols` × `inner` as checkpoints hold them.
    pub fn of_weights(weights: &[f32], inner: usize) -> Self {
        let cols = weights.len().checked_div(inner).unwrap_or(0);
        Self::of_columns(Left { data: weights, stride: inner }, inner, cols)
    }

    /// Packs a matrix whose columns lie in memory as rows: column `j` is `data[j * stride..][..inner]`.
    pub fn of_columns<E: Element>(columns: Left<'_, E>, inner: usize, cols: usize) -> Self {
        let mut packed = Self::zeros(inner, cols);
        packed.panels().for_each(|(panel, rows)| {
            let rows = rows.as_chunks_mut::<PANEL>().0;
            for lane in 0..PANEL.min(cols - panel * PANEL) {
                let column = &columns.data[(panel * PANEL + lane) * columns.stride..][..inner];
                for (row, x) in rows.iter_mut().zip(column) {
                    row[lane] = x.to_f32();
                }
            }
        });
        packed
    }

    /// Packs a matrix whose rows lie in memory as rows: row `k` is `data[k * stride..][..cols]`.
    pub fn of_rows<E: Element>(rows: Left<'_, E>, inner: usize, cols: usize) -> Self {
        let mut packed = Self::zeros(inner, cols);
        packed.panels().for_each(|(panel, to)| {
            let width = PANEL.min(cols - panel * PANEL);
            for (k, to) in to.as_chunks_mut::<PANEL>().0.iter_mut().enumerate() {
                let from = &rows.data[k * rows.stride + panel * PANEL..][..width];
                match from.first_chunk::<PANEL>() {
                    Some(whole) => *to = whole.map(E::to_f32),
                    None => to.iter_mut().zip(from).for_each(|(to, x)| *to = x.to_f32()),
                }
            }
        });
        packed
    }

    /// Sixteen columns at a time, a row for each term.
    pub(in crate::kernel) fn panels_mut(&mut self) -> impl Iterator<Item = &mut [[f32; PANEL]]> {
        self.data.chunks_exact_mut((self.inner * PANEL).max(1)).map(|panel| panel.as_chunks_mut().0)
    }

    /// A matrix of zeros, to be filled.
    pub(in crate::kernel) fn zeros(inner: usize, cols: usize) -> Self {
        Self { inner, cols, data: vec![0_f32; cols.div_ceil(PANEL) * inner * PANEL] }
    }

    /// Every panel with its index, shared among threads.
    fn panels(&mut self) -> impl IndexedParallelIterator<Item = (usize, &mut [f32])> {
        let size = (self.inner * PANEL).max(1);
        self.data.par_chunks_exact_mut(size).enumerate().with_min_len(8)
    }

    /// Length of the sums.
    pub fn inner(&self) -> usize {
        self.inner
    }

    /// All of it.
    pub fn whole(&self) -> Part<'_> {
        self.part(0..self.cols, 0..self.inner)
    }

    /// Some columns, the first of them a multiple of sixteen, and some of their terms.
    pub fn part(&self, columns: Range<usize>, terms: Range<usize>) -> Part<'_> {
        assert!(columns.start.is_multiple_of(PANEL), "a part begins with a panel");
        assert!(columns.end <= self.cols && terms.end <= self.inner, "a part of what there is");
        Part {
            packed: self,
            first: columns.start / PANEL,
            cols: columns.len(),
            from: terms.start,
            inner: terms.len(),
        }
    }
}

/// A part of a packed matrix.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    packed: &'a Packed,
    first: usize,
    pub(super) cols: usize,
    from: usize,
    pub(super) inner: usize,
}

impl<'a> Part<'a> {
    /// Sixteen of its columns, term by term.
    pub(super) fn panel(self, panel: usize) -> &'a [f32] {
        let at = ((self.first + panel) * self.packed.inner + self.from) * PANEL;
        &self.packed.data[at..][..self.inner * PANEL]
    }
}
