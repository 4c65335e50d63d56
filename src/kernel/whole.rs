//! Exact products of grid vectors: integers below 2²⁴, which f32 holds. Knows no document and no clustering.
//!
//! Where the machine multiplies pairs of 16-bit integers and adds them to a 32-bit sum in one instruction (AVX-512 VNNI), that is
//! used, because it does twice as many products at once as f32. Elsewhere products are summed in f32, which is exact too.
#![expect(
    clippy::inline_always,
    reason = "it becomes part of the loops that are compiled for several instruction sets"
)]

use pulp::{Simd, WithSimd};

use super::{
    arch::arch,
    nearest::Rows,
    ordered::{self, Left},
};

/// The right-hand side of products: grid vectors, arranged for the machine.
pub(super) struct Packed {
    count: usize,
    dim: usize,
    form: Form,
}

enum Form {
    Reals(ordered::Packed),
    #[cfg(target_arch = "x86_64")]
    Pairs(pairs::Packed),
}

impl Packed {
    pub(super) fn of(vectors: Rows<'_>) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(pairs) = pairs::Packed::of(vectors) {
            return Self { count: vectors.len(), dim: vectors.dim, form: Form::Pairs(pairs) };
        }
        Self::of_reals(vectors)
    }

    fn of_reals(vectors: Rows<'_>) -> Self {
        let form = Form::Reals(ordered::Packed::of_weights(&reals(vectors.data), vectors.dim));
        Self { count: vectors.len(), dim: vectors.dim, form }
    }

    /// The product of each row of `left` with each vector, row-major, by the caller's thread. Meant for some hundred rows at once.
    pub(super) fn products(&self, left: &[i16]) -> Vec<f32> {
        let mut out = vec![0.0; left.len() / self.dim * self.count];
        match &self.form {
            Form::Reals(right) => {
                ordered::product_here(&mut out, Left { data: &reals(left), stride: self.dim }, right.whole());
            }
            #[cfg(target_arch = "x86_64")]
            Form::Pairs(right) => right.products(&mut out, left, self.count),
        }
        out
    }
}

/// The same numbers as floats.
fn reals(data: &[i16]) -> Vec<f32> {
    arch().dispatch(Reals(data))
}

struct Reals<'a>(&'a [i16]);

impl WithSimd for Reals<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<f32> {
        self.0.iter().map(|&q| f32::from(q)).collect()
    }
}

#[cfg(target_arch = "x86_64")]
mod pairs {
    //! Two coordinates at a time, as the two 16-bit halves of a lane.

    use std::arch::x86_64::{
        __m512i, _mm512_cvtepi32_ps, _mm512_dpwssd_epi32, _mm512_set1_epi32, _mm512_setzero_si512,
    };

    use pulp::{Arch, cast};

    use crate::kernel::{arch::arch, nearest::Rows};

    /// Vectors of a panel: the 32-bit lanes of the widest vector.
    const PANEL: usize = 16;
    /// Rows of a tile, which is two panels wide: 24 sums of 32 registers.
    const ROWS: usize = 12;

    /// Panels of sixteen vectors; the last one is filled up with zeros, and so is an odd coordinate at the end.
    pub(super) struct Packed {
        dim: usize,
        panels: Vec<Vec<[i32; PANEL]>>,
    }

    impl Packed {
        /// `None` where the machine has not the instructions.
        pub(super) fn of(vectors: Rows<'_>) -> Option<Self> {
            if !matches!(arch(), Arch::V4(_)) || !std::is_x86_feature_detected!("avx512vnni") {
                return None;
            }
            let dim = vectors.dim;
            let panels = vectors.data.chunks(PANEL * dim).map(|part| transposed(part, dim)).collect();
            Some(Self { dim, panels })
        }

        pub(super) fn products(&self, out: &mut [f32], left: &[i16], count: usize) {
            let tiles = left.chunks(ROWS * self.dim).map(|rows| transposed::<ROWS>(rows, self.dim));
            let tiles: Vec<_> = tiles.collect();
            for (two, panels) in self.panels.chunks(2).enumerate() {
                // Where the second panel is missing the first is worked on twice and kept once.
                let both = [&panels[0], panels.last().unwrap_or(&panels[0])];
                for (tile, out) in tiles.iter().zip(out.chunks_mut(ROWS * count)) {
                    #[expect(unsafe_code, reason = "a call of code for one instruction set")]
                    // SAFETY: the machine has the instructions, or these panels could not have been made.
                    let sums = unsafe { chains(tile, both) };
                    for (row, sums) in out.chunks_exact_mut(count).zip(&sums) {
                        for (p, sums) in sums.iter().enumerate().take(panels.len()) {
                            let at = (2 * two + p) * PANEL;
                            let width = PANEL.min(count - at);
                            row[at..at + width].copy_from_slice(&sums[..width]);
                        }
                    }
                }
            }
        }
    }

    /// Vectors as columns of pairs: lane `v` of row `t` holds the coordinates `2t` and `2t + 1` of vector `v`.
    fn transposed<const N: usize>(vectors: &[i16], dim: usize) -> Vec<[i32; N]> {
        let mut pairs = vec![[0_i32; N]; dim.div_ceil(2)];
        for (lane, vector) in vectors.chunks_exact(dim).enumerate() {
            for (pair, to) in vector.chunks(2).zip(&mut pairs) {
                let high = pair.get(1).copied().unwrap_or(0);
                to[lane] = i32::from(high) << 16 | i32::from(pair[0].cast_unsigned());
            }
        }
        pairs
    }

    /// The loop over the pairs with the sums of every row in a variable of its own: an array of them would be kept in memory.
    macro_rules! chains {
        ($($r:literal $sum:ident),*) => {
            #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
            fn chains(left: &[[i32; ROWS]], [one, two]: [&Vec<[i32; PANEL]>; 2]) -> [[[f32; PANEL]; 2]; ROWS] {
                $(let mut $sum = [_mm512_setzero_si512(); 2];)*
                for ((x, one), two) in left.iter().zip(one).zip(two) {
                    let (one, two): (__m512i, __m512i) = (cast(*one), cast(*two));
                    $(
                        let pair = _mm512_set1_epi32(x[$r]);
                        $sum = [_mm512_dpwssd_epi32($sum[0], pair, one), _mm512_dpwssd_epi32($sum[1], pair, two)];
                    )*
                }
                [$([cast(_mm512_cvtepi32_ps($sum[0])), cast(_mm512_cvtepi32_ps($sum[1]))]),*]
            }
        };
    }

    chains!(0 a, 1 b, 2 c, 3 d, 4 e, 5 f, 6 g, 7 h, 8 i, 9 j, 10 k, 11 l);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        kernel::{
            arch::testing::on_all,
            testing::{fastest, grid_vectors},
        },
        math::grid,
    };

    fn vectors(n: usize, dim: usize, seed: u64) -> Vec<i16> {
        grid_vectors(n, dim, 2001, seed)
    }

    fn definition(a: &[i16], b: &[i16], dim: usize) -> Vec<f32> {
        let product =
            |a: &[i16], b: &[i16]| a.iter().zip(b).map(|(&a, &b)| i64::from(a) * i64::from(b)).sum::<i64>();
        a.chunks_exact(dim).flat_map(|a| b.chunks_exact(dim).map(move |b| product(a, b) as f32)).collect()
    }

    fn check(a: &[i16], b: &[i16], dim: usize) {
        // Adding zero takes the sign from a zero, which alone is left open.
        let bits = |x: Vec<f32>| x.iter().map(|x| (x + 0.0).to_bits()).collect::<Vec<_>>();
        let (want, b) = (bits(definition(a, b, dim)), Rows::new(dim, b).unwrap());
        let made = on_all(|| [Packed::of(b), Packed::of_reals(b)].map(|packed| packed.products(a)));
        for got in made.into_iter().flatten() {
            assert_eq!(bits(got), want, "{} × {} × {dim}", a.len() / dim, b.len());
        }
    }

    #[test]
    fn every_instruction_set_gives_the_products_of_the_definition() {
        for dim in [1, 2, 3, 31, 64, 385, grid::MAX_DIM] {
            for (n, count) in [(1, 1), (11, 15), (12, 16), (13, 17), (24, 32), (97, 33), (5, 48), (3, 70)] {
                check(&vectors(n, dim, 1), &vectors(count, dim, 2), dim);
            }
        }
        check(&[], &vectors(3, 4, 1), 4);
    }

    #[test]
    fn the_longest_vectors_are_exact() {
        // Norms just below 2¹²: the largest products, of either sign, in the first and the second half of a pair.
        let ends = [4095, 0, -4095, 0, 0, 4095, 0, -4095, 2895, 2895, -2895, 2895, -1, 4094];
        check(&ends, &ends, 2);
    }

    /// `cargo test --release whole -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        for (count, dim) in [(512, 256), (512, 384), (512, 1024)] {
            let (a, b) = (vectors(960, dim, 1), vectors(count, dim, 2));
            let b = Rows::new(dim, &b).unwrap();
            let time = |packed: &Packed| {
                fastest(40, || {
                    a.chunks(96 * dim).for_each(|a| drop(std::hint::black_box(packed.products(a))));
                })
            };
            let (whole, reals) = (time(&Packed::of(b)), time(&Packed::of_reals(b)));
            let rate = 2.0 * (960 * count * dim) as f64 / whole / 1e9;
            println!(
                "{count} × {dim}: {rate:.0} billion operations a second on one thread, {:.2} times f32",
                reals / whole
            );
        }
    }
}
