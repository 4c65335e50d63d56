//! Matrix products whose bits are the same on every machine: each output is one chain of fused multiply-adds over the inner
//! dimension, in its order. Knows no tensor.
//!
//! `out[i][j] = fma(a[i][K−1], b[K−1][j], … fma(a[i][0], b[0][j], out[i][j]))`, in f32. A fused multiply-add is rounded once, by
//! IEEE 754, so neither the width of the vectors (each lane is an output of its own), nor blocks, threads or the other rows of a
//! batch can change a bit. `pulp` picks the instruction set; without a fused instruction the library's exact form is used, slowly.
#![expect(
    clippy::inline_always,
    reason = "it becomes part of the loops that are compiled for several instruction sets"
)]

mod left;
mod packed;
mod turned;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use self::left::Factor;
pub use self::{
    left::Left,
    packed::{Bf16Bytes, Element, Packed, Part},
};
use super::arch::arch;

/// Columns of a panel: the lanes of the widest vectors.
pub(super) const PANEL: usize = 16;
/// Rows of a tile with the widest vectors.
const ROWS: usize = 12;
/// Rows that one task works on.
pub(super) const BLOCK: usize = 8 * ROWS;
/// Terms that a task goes through at one time: those of two panels stay in the first cache (32 of 48 kB), while one tile of rows after the
/// other passes by.
const DEPTH: usize = 256;
/// Rows up to which a product by weights is computed the other way round.
pub const FEW: usize = BLOCK;
/// Columns of the right-hand matrix that are packed at one time.
pub(super) const PART: usize = 64 * PANEL;

/// `out = bias + a · b`, where every row begins with the bias; `out` is row-major with as many columns as `b`, and its rows say how
/// many `a` has. Rows are shared among threads.
pub fn biased_product(out: &mut [f32], bias: &[f32], a: Left<'_>, b: &Packed) {
    assert_eq!(bias.len(), b.cols, "one bias a column");
    let arch = arch();
    out.par_chunks_mut((BLOCK * b.cols).max(1)).enumerate().for_each(|(block, out)| {
        for row in out.chunks_exact_mut(b.cols) {
            row.copy_from_slice(bias);
        }
        arch.dispatch(Task::of(
            block,
            Out { rows: out, stride: b.cols, from: 0, add: true },
            Factor::Rows(a),
            b.whole(),
        ));
    });
}

/// `out = a · b` by the caller's thread alone.
pub fn set_product_here(out: &mut [f32], a: Left<'_>, b: Part<'_>) {
    if b.inner == 0 {
        out.fill(0.0);
    }
    let stride = b.cols;
    here(Out { rows: out, stride, from: 0, add: false }, Factor::Rows(a), b);
}

/// `out += a · b` by the caller's thread alone.
pub fn product_here(out: &mut [f32], a: Left<'_>, b: Part<'_>) {
    product_columns_here((out, b.cols, 0), a, b);
}

/// [`product_here`] into the columns from `from` on of rows that are `stride` wide.
pub(super) fn product_columns_here(
    (rows, stride, from): (&mut [f32], usize, usize),
    a: Left<'_>,
    b: Part<'_>,
) {
    here(Out { rows, stride, from, add: true }, Factor::Rows(a), b);
}

/// The same with `aᵀ`: the rows of `a` are the terms, row `k` is `data[k * stride..]`, and its columns from the first on make the rows of
/// the output.
pub(super) fn transposed_product_here(
    (rows, stride, from): (&mut [f32], usize, usize),
    a: Left<'_>,
    b: Part<'_>,
) {
    here(Out { rows, stride, from, add: true }, Factor::Columns(a), b);
}

fn here(out: Out<'_>, a: Factor<'_>, b: Part<'_>) {
    let (Out { rows, stride, from, add }, arch) = (out, arch());
    for (block, rows) in rows.chunks_mut((BLOCK * stride).max(1)).enumerate() {
        arch.dispatch(Task::of(block, Out { rows, stride, from, add }, a, b));
    }
}

/// A right-hand matrix as it lies in memory.
#[derive(Debug, Clone, Copy)]
pub enum Right<'a> {
    /// Column `j` is `data[j * inner..][..inner]`: the weights of a linear layer.
    Columns(&'a [f32]),
    /// Row `k` is `data[k * cols..][..cols]`.
    Rows(&'a [f32]),
    /// As [`Self::Columns`], in BF16.
    Bf16Columns(&'a [Bf16Bytes]),
    /// As [`Self::Rows`], in BF16.
    Bf16Rows(&'a [Bf16Bytes]),
}

/// `out += a · b` with `inner` terms in a sum; `out` is row-major with `cols` columns. Rows are shared among threads. The right-hand matrix
/// is packed a part at a time, so that no copy of it lies in memory.
pub fn product(out: &mut [f32], a: Left<'_>, b: Right<'_>, sizes: [usize; 2]) {
    parts(out, true, a, b, sizes);
}

/// The same into an output of zeros, which is not read.
pub fn product_of_zeros(out: &mut [f32], a: Left<'_>, b: Right<'_>, sizes: [usize; 2]) {
    parts(out, false, a, b, sizes);
}

fn parts(out: &mut [f32], add: bool, a: Left<'_>, b: Right<'_>, [inner, cols]: [usize; 2]) {
    if out.len() <= FEW * cols && turned::product(out, add, a, b, [inner, cols]) {
        return;
    }
    let arch = arch();
    for from in (0..cols).step_by(PART) {
        let width = PART.min(cols - from);
        let part = match b {
            Right::Columns(data) => packed_columns(data, from, [inner, width]),
            Right::Bf16Columns(data) => packed_columns(data, from, [inner, width]),
            Right::Rows(data) => packed_rows((data, cols), from, [inner, width]),
            Right::Bf16Rows(data) => packed_rows((data, cols), from, [inner, width]),
        };
        out.par_chunks_mut((BLOCK * cols).max(1)).enumerate().for_each(|(block, rows)| {
            arch.dispatch(Task::of(
                block,
                Out { rows, stride: cols, from, add },
                Factor::Rows(a),
                part.whole(),
            ));
        });
    }
}

fn packed_columns<E: Element>(data: &[E], from: usize, [inner, width]: [usize; 2]) -> Packed {
    Packed::of_columns(Left { data: &data[from * inner..], stride: inner }, inner, width)
}

fn packed_rows<E: Element>((data, stride): (&[E], usize), from: usize, [inner, width]: [usize; 2]) -> Packed {
    Packed::of_rows(Left { data: &data[from.min(data.len())..], stride }, inner, width)
}

/// Columns of an output, from `from` on, in whole rows.
struct Out<'a> {
    rows: &'a mut [f32],
    stride: usize,
    from: usize,
    /// Whether sums begin with what is there, or with zero.
    add: bool,
}

/// The product of at most [`BLOCK`] rows.
struct Task<'a> {
    out: Out<'a>,
    a: Factor<'a>,
    b: Part<'a>,
}

impl<'a> Task<'a> {
    /// The work on a block of the output.
    fn of(block: usize, out: Out<'a>, a: Factor<'a>, b: Part<'a>) -> Self {
        Self { out, a: a.rows_from(block * BLOCK), b }
    }
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.run(simd, |simd, left: &[[f32; 12]], [one, two]: [&[[f32; PANEL]]; 2], sums| {
                let right =
                    one.iter().zip(two).map(|(one, two)| [vector(simd, one, 0), vector(simd, two, 0)]);
                chains12(simd, left, right, sums)
            }),
            8 => self.run(simd, |simd, left: &[[f32; 6]], [one]: [&[[f32; PANEL]]; 1], sums| {
                let right = one.iter().map(|one| [vector(simd, one, 0), vector(simd, one, 1)]);
                chains6(simd, left, right, sums)
            }),
            4 => self.run(simd, |simd, left: &[[f32; 6]], [one]: [&[[f32; PANEL]]; 1], sums| {
                let of = |one, v| vector(simd, one, v);
                let right = one.iter().map(|one| [of(one, 0), of(one, 1), of(one, 2), of(one, 3)]);
                chains6_of_4(simd, left, right, sums)
            }),
            _ => self.run_scalar(),
        }
    }
}

/// A vector's worth of a panel's row.
#[inline(always)]
fn vector<S: Simd>(_: S, lanes: &[f32; PANEL], which: usize) -> S::f32s {
    S::as_simd_f32s(lanes).0[which]
}

#[inline(always)]
fn add2<S: Simd>(simd: S, x: f32, b: [S::f32s; 2], sums: [S::f32s; 2]) -> [S::f32s; 2] {
    let x = simd.splat_f32s(x);
    [simd.mul_add_f32s(x, b[0], sums[0]), simd.mul_add_f32s(x, b[1], sums[1])]
}

#[inline(always)]
fn add4<S: Simd>(simd: S, x: f32, b: [S::f32s; 4], sums: [S::f32s; 4]) -> [S::f32s; 4] {
    let x = simd.splat_f32s(x);
    let term = |v: usize| simd.mul_add_f32s(x, b[v], sums[v]);
    [term(0), term(1), term(2), term(3)]
}

/// The loop over the inner dimension with the sums of every row in a variable of its own: an array of them is kept in memory by the
/// compiler, which halves the speed.
macro_rules! chains {
    ($name:ident, $rows:literal of $width:literal by $add:ident: $($r:literal $sum:ident),*) => {
        #[inline(always)]
        fn $name<S: Simd>(
            simd: S,
            left: &[[f32; $rows]],
            right: impl Iterator<Item = [S::f32s; $width]>,
            sums: [[S::f32s; $width]; $rows],
        ) -> [[S::f32s; $width]; $rows] {
            let [$(mut $sum),*] = sums;
            for (x, b) in left.iter().zip(right) {
                $($sum = $add(simd, x[$r], b, $sum);)*
            }
            [$($sum),*]
        }
    };
}

chains!(chains12, 12 of 2 by add2: 0 a, 1 b0, 2 c, 3 d, 4 e, 5 f, 6 g, 7 h, 8 i, 9 j, 10 k, 11 l);
chains!(chains6, 6 of 2 by add2: 0 a, 1 b0, 2 c, 3 d, 4 e, 5 f);
chains!(chains6_of_4, 6 of 4 by add4: 0 a, 1 b0, 2 c, 3 d, 4 e, 5 f);

impl Task<'_> {
    /// Tiles of `R` rows and `P` panels, each row `C` vectors wide.
    #[inline(always)]
    fn run<S: Simd, const R: usize, const P: usize, const C: usize>(
        self,
        simd: S,
        chains: impl Fn(S, &[[f32; R]], [&[[f32; PANEL]]; P], [[S::f32s; C]; R]) -> [[S::f32s; C]; R],
    ) {
        let Task { out, a, b } = self;
        let (inner, cols) = (b.inner, b.cols);
        let rows = out.rows.len() / out.stride;
        let panels = cols.div_ceil(PANEL);
        let mut left = vec![[0_f32; R]; rows.div_ceil(R) * DEPTH.min(inner)];
        for start in (0..inner).step_by(DEPTH) {
            let depth = DEPTH.min(inner - start);
            a.pack(&mut left, rows, start..start + depth);
            for panel in (0..panels).step_by(P) {
                // Where a panel is missing at the end the last one is worked on twice and kept once.
                let right = std::array::from_fn(|p| {
                    let panel = b.panel((panel + p).min(panels - 1));
                    &panel.as_chunks().0[start..start + depth]
                });
                for (tile, left) in left.chunks_exact(depth).enumerate().take(rows.div_ceil(R)) {
                    let height = R.min(rows - tile * R);
                    let place =
                        Place { first: tile * R, height, panel, cols, stride: out.stride, from: out.from };
                    let zero = [[simd.splat_f32s(0.0); C]; R];
                    let known = out.add || start > 0;
                    let sums = if known { place.load::<S, R, P, C>(simd, out.rows) } else { zero };
                    place.store::<S, R, P, C>(chains(simd, left, right, sums), out.rows);
                }
            }
        }
    }

    /// One output after the other, as the definition says.
    fn run_scalar(self) {
        let Task { out, a, b } = self;
        for (i, row) in out.rows.chunks_exact_mut(out.stride).enumerate() {
            for (j, x) in row[out.from..][..b.cols].iter_mut().enumerate() {
                let begin = if out.add { *x } else { 0.0 };
                let panel = b.panel(j / PANEL);
                let terms = panel.iter().skip(j % PANEL).step_by(PANEL).enumerate();
                *x = terms.fold(begin, |sum, (k, b)| a.at(i, k).mul_add(*b, sum));
            }
        }
    }
}

/// Where a tile lies in the output.
#[derive(Clone, Copy)]
struct Place {
    first: usize,
    height: usize,
    panel: usize,
    cols: usize,
    stride: usize,
    from: usize,
}

impl Place {
    /// Whether all of a tile lies inside the output: the usual case, which needs no copy of it.
    #[inline(always)]
    fn is_whole<const R: usize, const P: usize>(self) -> bool {
        self.height == R && (self.panel + P) * PANEL <= self.cols
    }

    /// The sums so far; zeros beyond the last row and column. In loops, for the closures of `array::from_fn` are compiled for the smallest
    /// instruction set and called.
    #[inline(always)]
    fn load<S: Simd, const R: usize, const P: usize, const C: usize>(
        self,
        simd: S,
        out: &[f32],
    ) -> [[S::f32s; C]; R] {
        let each = C / P;
        let mut sums = [[simd.splat_f32s(0.0); C]; R];
        if self.is_whole::<R, P>() {
            let (first, _) = self.of(0);
            for (r, sums) in sums.iter_mut().enumerate() {
                let panels: &[[f32; PANEL]] = out[first + r * self.stride..][..P * PANEL].as_chunks().0;
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum = vector(simd, &panels[c / each], c % each);
                }
            }
            return sums;
        }
        let mut lanes = [[[0_f32; PANEL]; P]; R];
        for p in 0..P {
            let (first, width) = self.of(p);
            for (r, row) in lanes.iter_mut().enumerate().take(self.height) {
                let from = &out[first + r * self.stride..][..width];
                row[p][..width].copy_from_slice(from);
            }
        }
        for (sums, lanes) in sums.iter_mut().zip(&lanes) {
            for (c, sum) in sums.iter_mut().enumerate() {
                *sum = vector(simd, &lanes[c / each], c % each);
            }
        }
        sums
    }

    #[inline(always)]
    fn store<S: Simd, const R: usize, const P: usize, const C: usize>(
        self,
        sums: [[S::f32s; C]; R],
        out: &mut [f32],
    ) {
        if self.is_whole::<R, P>() {
            let (first, _) = self.of(0);
            for (r, sums) in sums.iter().enumerate() {
                let row = &mut out[first + r * self.stride..][..P * PANEL];
                S::as_mut_simd_f32s(row).0.copy_from_slice(sums);
            }
            return;
        }
        let mut lanes = [[[0_f32; PANEL]; P]; R];
        for (row, sums) in lanes.iter_mut().zip(&sums) {
            for (p, lanes) in row.iter_mut().enumerate() {
                S::as_mut_simd_f32s(lanes).0.copy_from_slice(&sums[p * (C / P)..(p + 1) * (C / P)]);
            }
        }
        for p in 0..P {
            let (first, width) = self.of(p);
            for (r, row) in lanes.iter().enumerate().take(self.height) {
                let to = &mut out[first + r * self.stride..][..width];
                to.copy_from_slice(&row[p][..width]);
            }
        }
    }

    /// The first output of the tile in one of its panels, and how many columns the panel has.
    #[inline(always)]
    fn of(self, panel: usize) -> (usize, usize) {
        let col = (self.panel + panel) * PANEL;
        let width = self.cols.saturating_sub(col).min(PANEL);
        (self.first * self.stride + self.from + col.min(self.cols), width)
    }
}

#[cfg(test)]
mod tests;
