//! Left-hand matrices: how they lie in memory, and the tiles of rows that they are copied into. Knows no product.

use std::ops::Range;

/// Rows of a matrix, such as the left-hand one: row `i` is `data[i * stride..][..inner]`.
#[derive(Debug, Clone, Copy)]
pub struct Left<'a, E = f32> {
    /// The elements.
    pub data: &'a [E],
    /// From one row to the next.
    pub stride: usize,
}

/// The left-hand matrix as it lies in memory.
#[derive(Clone, Copy)]
pub(super) enum Factor<'a> {
    /// Row `i` is `data[i * stride..]`.
    Rows(Left<'a>),
    /// Term `k` of row `i` is `data[k * stride + i]`.
    Columns(Left<'a>),
}

impl Factor<'_> {
    /// The matrix from row `row` on.
    pub(super) fn rows_from(self, row: usize) -> Self {
        match self {
            Self::Rows(a) => Self::Rows(Left { data: &a.data[row * a.stride..], ..a }),
            // Empty where there are no terms.
            Self::Columns(a) => Self::Columns(Left { data: a.data.get(row..).unwrap_or_default(), ..a }),
        }
    }

    pub(super) fn at(self, row: usize, term: usize) -> f32 {
        match self {
            Self::Rows(a) => a.data[row * a.stride + term],
            Self::Columns(a) => a.data[term * a.stride + row],
        }
    }
    /// Copies some terms of the first `rows` rows into tiles of `R` rows, term by term, so that a tile is read in order. What a tile holds
    /// beyond the last row is never looked at.
    #[inline(always)]
    pub(super) fn pack<const R: usize>(self, left: &mut [[f32; R]], rows: usize, terms: Range<usize>) {
        match self {
            Self::Rows(a) => pack_rows(left, a, rows, terms),
            Self::Columns(a) => pack_columns(left, a, rows, terms),
        }
    }
}

#[inline(always)]
fn pack_rows<const R: usize>(left: &mut [[f32; R]], a: Left<'_>, rows: usize, terms: Range<usize>) {
    let depth = terms.len();
    for (tile, to) in left.chunks_exact_mut(depth).enumerate().take(rows.div_ceil(R)) {
        let row = |r: usize| &a.data[(tile * R + r).min(rows - 1) * a.stride + terms.start..][..depth];
        let lines: [&[f32]; R] = std::array::from_fn(row);
        // Four rows and four terms at a time: one term of one row after the other takes three times as long.
        let (blocks, rest) = to.as_chunks_mut::<4>();
        for r in (0..R / 4 * 4).step_by(4) {
            let four: [&[[f32; 4]]; 4] = std::array::from_fn(|i| lines[r + i].as_chunks().0);
            for (k, to) in blocks.iter_mut().enumerate() {
                let turned = transposed([four[0][k], four[1][k], four[2][k], four[3][k]]);
                for (to, turned) in to.iter_mut().zip(turned) {
                    to[r..r + 4].copy_from_slice(&turned);
                }
            }
        }
        let whole = blocks.len() * 4;
        for r in 0..R {
            let from = if r < R / 4 * 4 { whole } else { 0 };
            let to = blocks.as_flattened_mut().iter_mut().chain(&mut *rest).skip(from);
            for (to, x) in to.zip(&lines[r][from..]) {
                to[r] = *x;
            }
        }
    }
}

/// What lies beside each other goes to one term of every tile.
#[inline(always)]
fn pack_columns<const R: usize>(left: &mut [[f32; R]], a: Left<'_>, rows: usize, terms: Range<usize>) {
    let depth = terms.len();
    for (k, term) in terms.enumerate() {
        for (tile, first) in (0..rows).step_by(R).enumerate() {
            let (to, from) = (&mut left[tile * depth + k], &a.data[term * a.stride + first..]);
            // Beyond the last row, mostly, something lies too.
            match from.first_chunk() {
                Some(whole) => *to = *whole,
                None => to[..from.len()].copy_from_slice(from),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn transposed(rows: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
    use std::arch::x86_64::{__m128, _mm_movehl_ps, _mm_movelh_ps, _mm_unpackhi_ps, _mm_unpacklo_ps};
    // One by one: `array::map` takes a function that may stay a call.
    let cast = |row: [f32; 4]| -> __m128 { pulp::cast(row) };
    let [a, b, c, d] = [cast(rows[0]), cast(rows[1]), cast(rows[2]), cast(rows[3])];
    #[expect(unsafe_code, reason = "calls of code for one instruction set")]
    // SAFETY: every x86-64 machine has SSE.
    let turned = unsafe {
        let (ab, cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
        let (ab_high, cd_high) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
        [
            _mm_movelh_ps(ab, cd),
            _mm_movehl_ps(cd, ab),
            _mm_movelh_ps(ab_high, cd_high),
            _mm_movehl_ps(cd_high, ab_high),
        ]
    };
    let cast = |row: __m128| -> [f32; 4] { pulp::cast(row) };
    [cast(turned[0]), cast(turned[1]), cast(turned[2]), cast(turned[3])]
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(super) fn transposed(rows: [[f32; 4]; 4]) -> [[f32; 4]; 4] {
    std::array::from_fn(|k| std::array::from_fn(|r| rows[r][k]))
}
