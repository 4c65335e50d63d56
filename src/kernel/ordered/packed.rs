//! Right-hand matrices in panels of sixteen columns. Knows no product.

use std::ops::Range;

use rayon::prelude::*;

use super::{Left, PANEL, left::transposed};

/// What a matrix is packed from.
pub trait Element: Copy + Sync {
    /// Its value, exactly.
    fn to_f32(self) -> f32;
    /// The values of several; what has to be converted is put into the room that is given.
    fn floats<'a>(elements: &'a [Self], room: &'a mut Vec<f32>) -> &'a [f32] {
        room.clear();
        room.extend(elements.iter().map(|element| element.to_f32()));
        room
    }
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    fn floats<'a>(elements: &'a [Self], _: &'a mut Vec<f32>) -> &'a [f32] {
        elements
    }
}

/// A BF16 number as a file has it, little-endian and at any address.
pub type Bf16Bytes = [u8; 2];

impl Element for Bf16Bytes {
    #[inline(always)]
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
        packed.panels().for_each(|(panel, to)| pack_columns(to, (columns, panel * PANEL), cols));
        packed
    }

    /// Packs a matrix whose rows lie in memory as rows: row `k` is `data[k * stride..][..cols]`.
    pub fn of_rows<E: Element>(rows: Left<'_, E>, inner: usize, cols: usize) -> Self {
        let mut packed = Self::zeros(inner, cols);
        packed.panels().for_each(|(panel, to)| pack_rows(to, (rows, panel * PANEL), cols));
        packed
    }

    /// [`Self::of_columns`] by the caller's thread alone, in the memory that is already there.
    pub fn fill_columns(&mut self, columns: Left<'_>, inner: usize, cols: usize) {
        self.resize(inner, cols);
        let panels = self.panels_mut().enumerate();
        panels.for_each(|(panel, to)| pack_columns(to, (columns, panel * PANEL), cols));
    }

    /// [`Self::of_rows`] by the caller's thread alone, in the memory that is already there.
    pub fn fill_rows(&mut self, rows: Left<'_>, inner: usize, cols: usize) {
        self.resize(inner, cols);
        let panels = self.panels_mut().enumerate();
        panels.for_each(|(panel, to)| pack_rows(to, (rows, panel * PANEL), cols));
    }

    /// What the last panel holds beyond the last column is never looked at.
    fn resize(&mut self, inner: usize, cols: usize) {
        (self.inner, self.cols) = (inner, cols);
        self.data.resize(cols.div_ceil(PANEL) * inner * PANEL, 0.0);
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
    fn panels(&mut self) -> impl IndexedParallelIterator<Item = (usize, &mut [[f32; PANEL]])> {
        let panels = self.data.par_chunks_exact_mut((self.inner * PANEL).max(1));
        panels.map(|panel| panel.as_chunks_mut().0).enumerate().with_min_len(8)
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

/// Fills a panel with the columns from `from` on, four of them and four terms at a time: one column after the other goes through all of the
/// panel sixteen times.
fn pack_columns<E: Element>(panel: &mut [[f32; PANEL]], (columns, from): (Left<'_, E>, usize), cols: usize) {
    let (inner, last) = (panel.len(), PANEL.min(cols - from) - 1);
    let line = |lane: usize| &columns.data[(from + lane.min(last)) * columns.stride..][..inner];
    let lines: [&[E]; PANEL] = std::array::from_fn(line);
    let fours: [&[[E; 4]]; PANEL] = std::array::from_fn(|lane| lines[lane].as_chunks().0);
    let (blocks, rest) = panel.as_chunks_mut::<4>();
    for (k, to) in blocks.iter_mut().enumerate() {
        for lane in (0..PANEL).step_by(4) {
            let row = |i: usize| {
                let [a, b, c, d] = fours[lane + i][k];
                [a.to_f32(), b.to_f32(), c.to_f32(), d.to_f32()]
            };
            for (to, turned) in to.iter_mut().zip(transposed([row(0), row(1), row(2), row(3)])) {
                to.as_chunks_mut().0[lane / 4] = turned;
            }
        }
    }
    for (k, row) in rest.iter_mut().enumerate() {
        for (x, line) in row.iter_mut().zip(lines) {
            *x = line[inner / 4 * 4 + k].to_f32();
        }
    }
}

/// The same of rows.
fn pack_rows<E: Element>(panel: &mut [[f32; PANEL]], (rows, from): (Left<'_, E>, usize), cols: usize) {
    let width = PANEL.min(cols - from);
    for (k, to) in panel.iter_mut().enumerate() {
        let row = &rows.data[k * rows.stride + from..][..width];
        match row.first_chunk::<PANEL>() {
            Some(whole) => *to = whole.map(E::to_f32),
            None => to.iter_mut().zip(row).for_each(|(to, x)| *to = x.to_f32()),
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
