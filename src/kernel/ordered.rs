//! Matrix products whose bits are the same on every machine: each output is one chain of fused multiply-adds over the inner
//! dimension, in its order. Knows no tensor.
//!
//! `out[i][j] = fma(a[i][K−1], b[K−1][j], … fma(a[i][0], b[0][j], out[i][j]))`, in f32. A fused multiply-add is rounded once, by
//! IEEE 754, so neither the width of the vectors (each lane is an output of its own), nor blocks, threads or the other rows of a
//! batch can change a bit. `pulp` picks the instruction set; without a fused instruction the library's exact form is used, slowly.

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::arch::arch;

/// Columns of a panel: the lanes of the widest vectors.
const PANEL: usize = 16;
/// Rows of a tile with the widest vectors.
const ROWS: usize = 12;
/// Rows that one task works on, and the part of the inner dimension that stays in its cache.
const BLOCK: usize = 8 * ROWS;
const DEPTH: usize = 768;

/// The right-hand matrix of a product, `inner` × `cols`, stored in panels of sixteen columns.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    inner: usize,
    cols: usize,
    data: Vec<f32>,
}

impl Packed {
    /// Packs `b[k][j]`, as `at(k, j)` gives it.
    pub fn new(inner: usize, cols: usize, at: impl Fn(usize, usize) -> f32) -> Self {
        let panels = cols.div_ceil(PANEL);
        let mut data = vec![0_f32; panels * inner * PANEL];
        for (panel, rows) in data.chunks_exact_mut((inner * PANEL).max(1)).enumerate() {
            for (k, row) in rows.chunks_exact_mut(PANEL).enumerate() {
                for (lane, x) in row.iter_mut().enumerate().take(cols - panel * PANEL) {
                    *x = at(k, panel * PANEL + lane);
                }
            }
        }
        Self { inner, cols, data }
    }

    /// Packs the weights of a linear layer, row-major `cols` × `inner` as checkpoints hold them.
    pub fn of_weights(weights: &[f32], inner: usize) -> Self {
        let cols = weights.len().checked_div(inner).unwrap_or(0);
        Self::new(inner, cols, |k, j| weights[j * inner + k])
    }

    /// Columns of the product.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Length of the sums.
    pub fn inner(&self) -> usize {
        self.inner
    }

    fn panel(&self, panel: usize) -> &[f32] {
        &self.data[panel * self.inner * PANEL..][..self.inner * PANEL]
    }
}

/// Rows of the left-hand matrix: row `i` is `data[i * stride..][..inner]`.
#[derive(Debug, Clone, Copy)]
pub struct Left<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// From one row to the next.
    pub stride: usize,
}

/// `out += a · b`; `out` is row-major with as many columns as `b`, and its rows say how many `a` has. Rows are shared among threads.
pub fn product(out: &mut [f32], a: Left<'_>, b: &Packed) {
    let arch = arch();
    let tasks = out.par_chunks_mut((BLOCK * b.cols).max(1)).enumerate();
    tasks.for_each(|(block, out)| {
        let a = Left { data: &a.data[block * BLOCK * a.stride..], ..a };
        arch.dispatch(Task { out, a, b });
    });
}

/// [`product`] by the caller's thread alone.
pub fn product_here(out: &mut [f32], a: Left<'_>, b: &Packed) {
    let arch = arch();
    for (block, out) in out.chunks_mut((BLOCK * b.cols).max(1)).enumerate() {
        let a = Left { data: &a.data[block * BLOCK * a.stride..], ..a };
        arch.dispatch(Task { out, a, b });
    }
}

/// The product of at most [`BLOCK`] rows.
struct Task<'a> {
    out: &'a mut [f32],
    a: Left<'a>,
    b: &'a Packed,
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::F32_LANES {
            16 => self.run::<S, ROWS, 2, 1>(simd),
            8 => self.run::<S, 6, 1, 2>(simd),
            4 => self.run::<S, 6, 1, 4>(simd),
            _ => self.run_scalar(),
        }
    }
}

impl Task<'_> {
    /// Tiles of `R` rows and `P` panels of `V` vectors each.
    #[inline(always)]
    fn run<S: Simd, const R: usize, const P: usize, const V: usize>(self, simd: S) {
        let Task { out, a, b } = self;
        let (inner, cols) = (b.inner, b.cols);
        let rows = out.len() / cols;
        let panels = cols.div_ceil(PANEL);
        let mut left = vec![0_f32; rows.div_ceil(R) * R * DEPTH.min(inner)];
        for start in (0..inner).step_by(DEPTH) {
            let depth = DEPTH.min(inner - start);
            pack_left::<R>(&mut left, a, (rows, start, depth));
            let mut panel = 0;
            while panel < panels {
                let many = P.min(panels - panel);
                for (tile, left) in left.chunks_exact(R * depth).enumerate().take(rows.div_ceil(R)) {
                    let height = R.min(rows - tile * R);
                    let right = |p: usize| &b.panel(panel + p)[start * PANEL..][..depth * PANEL];
                    let place = Place { first: tile * R, height, panel, cols };
                    if many == P {
                        tile_product::<S, R, P, V>(simd, out, place, left, std::array::from_fn(right));
                    } else {
                        for p in 0..many {
                            let place = Place { panel: panel + p, ..place };
                            tile_product::<S, R, 1, V>(simd, out, place, left, [right(p)]);
                        }
                    }
                }
                panel += many;
            }
        }
    }

    /// One output after the other, as the definition says.
    fn run_scalar(self) {
        let Task { out, a, b } = self;
        for (i, row) in out.chunks_exact_mut(b.cols).enumerate() {
            let left = &a.data[i * a.stride..][..b.inner];
            for (j, x) in row.iter_mut().enumerate() {
                let panel = b.panel(j / PANEL);
                let terms = left.iter().zip(panel.iter().skip(j % PANEL).step_by(PANEL));
                *x = terms.fold(*x, |sum, (a, b)| a.mul_add(*b, sum));
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
}

/// Copies a part of the rows into tiles of `R` rows, inner dimension first, so that a tile is read in order.
#[inline(always)]
fn pack_left<const R: usize>(left: &mut [f32], a: Left<'_>, (rows, start, depth): (usize, usize, usize)) {
    for (tile, part) in left.chunks_exact_mut(R * depth).enumerate().take(rows.div_ceil(R)) {
        for r in 0..R.min(rows - tile * R) {
            let row = &a.data[(tile * R + r) * a.stride + start..][..depth];
            for (to, x) in part.iter_mut().skip(r).step_by(R).zip(row) {
                *to = *x;
            }
        }
    }
}

/// One tile: loads the sums so far, adds every term in order, stores them.
#[inline(always)]
fn tile_product<S: Simd, const R: usize, const P: usize, const V: usize>(
    simd: S,
    out: &mut [f32],
    place: Place,
    left: &[f32],
    right: [&[f32]; P],
) {
    let zero = [[[simd.splat_f32s(0.0); V]; P]; R];
    let mut sums = zero;
    let mut buffer = [[[0_f32; PANEL]; P]; R];
    for r in 0..place.height {
        for p in 0..P {
            let (at, width) = place.of(r, p);
            buffer[r][p][..width].copy_from_slice(&out[at..at + width]);
        }
    }
    for r in 0..R {
        for p in 0..P {
            sums[r][p] = vectors::<S, V>(&buffer[r][p]);
        }
    }
    let right: [&[[f32; PANEL]]; P] = right.map(|panel| panel.as_chunks().0);
    let depth = left.len() / R;
    let right = right.map(|panel| &panel[..depth]);
    for (k, left) in left.as_chunks::<R>().0.iter().enumerate() {
        let b: [[S::f32s; V]; P] = std::array::from_fn(|p| vectors::<S, V>(&right[p][k]));
        for r in 0..R {
            let x = simd.splat_f32s(left[r]);
            for p in 0..P {
                for v in 0..V {
                    sums[r][p][v] = simd.mul_add_f32s(x, b[p][v], sums[r][p][v]);
                }
            }
        }
    }
    for r in 0..place.height {
        for p in 0..P {
            let (at, width) = place.of(r, p);
            let (vectors, rest) = S::as_mut_simd_f32s(&mut buffer[r][p]);
            debug_assert!(rest.is_empty());
            vectors.copy_from_slice(&sums[r][p]);
            out[at..at + width].copy_from_slice(&buffer[r][p][..width]);
        }
    }
}

impl Place {
    /// The first output of a row of the tile in one of its panels, and how many there are.
    #[inline(always)]
    fn of(self, row: usize, panel: usize) -> (usize, usize) {
        let col = (self.panel + panel) * PANEL;
        ((self.first + row) * self.cols + col, PANEL.min(self.cols - col))
    }
}

#[inline(always)]
fn vectors<S: Simd, const V: usize>(lanes: &[f32; PANEL]) -> [S::f32s; V] {
    let (vectors, _) = S::as_simd_f32s(lanes);
    std::array::from_fn(|v| vectors[v])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{arch::testing::on_all, testing::noise};

    /// The definition, element by element.
    fn definition(out: &mut [f32], a: &[f32], weights: &[f32], inner: usize) {
        let cols = weights.len() / inner;
        for (i, row) in out.chunks_exact_mut(cols).enumerate() {
            for (j, x) in row.iter_mut().enumerate() {
                for k in 0..inner {
                    *x = a[i * inner + k].mul_add(weights[j * inner + k], *x);
                }
            }
        }
    }

    fn same(got: &[f32], want: &[f32]) -> bool {
        got.iter().map(|x| x.to_bits()).eq(want.iter().map(|x| x.to_bits()))
    }

    /// Shapes at the edges of tiles, panels, blocks and depths.
    const SHAPES: [[usize; 3]; 9] = [
        [1, 1, 1],
        [1, 5, 17],
        [7, 16, 33],
        [12, 32, 16],
        [13, 48, 64],
        [96, 20, 40],
        [97, 33, 1537],
        [200, 100, 768],
        [3, 64, 4096],
    ];

    /// What a run of the kernel makes of a shape, with the definition's result.
    fn both(shape: [usize; 3], run: impl Fn(&mut [f32], Left<'_>, &Packed)) -> (Vec<f32>, Vec<f32>) {
        let [rows, cols, inner] = shape;
        let (a, w) = (noise(1, rows * inner, 2.0), noise(2, cols * inner, 1.0));
        let start = noise(3, rows * cols, 1.0);
        let (mut got, mut want) = (start.clone(), start);
        run(&mut got, Left { data: &a, stride: inner }, &Packed::of_weights(&w, inner));
        definition(&mut want, &a, &w, inner);
        (got, want)
    }

    #[test]
    fn every_bit_is_that_of_the_definition() {
        for shape in SHAPES {
            let (got, want) = both(shape, product);
            assert!(same(&got, &want), "{shape:?}");
            let (here, _) = both(shape, product_here);
            assert!(same(&here, &want), "{shape:?} by one thread");
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for shape in SHAPES {
            for (got, want) in on_all(|| both(shape, product)) {
                assert!(same(&got, &want), "{shape:?}");
            }
        }
    }

    #[test]
    fn a_row_does_not_know_its_batch() {
        let (inner, cols) = (100, 40);
        let (a, w) = (noise(4, 150 * inner, 1.0), noise(5, cols * inner, 1.0));
        let packed = Packed::of_weights(&w, inner);
        let mut all = vec![0.0; 150 * cols];
        product(&mut all, Left { data: &a, stride: inner }, &packed);
        for row in [0, 11, 12, 95, 96, 149] {
            let mut one = vec![0.0; cols];
            product(&mut one, Left { data: &a[row * inner..], stride: inner }, &packed);
            assert!(same(&one, &all[row * cols..][..cols]), "row {row}");
        }
    }

    #[test]
    fn threads_change_nothing_and_a_stride_skips() {
        let (rows, inner, cols) = (300, 24, 8);
        let (a, w) = (noise(6, rows * 30, 1.0), noise(7, cols * inner, 1.0));
        let packed = Packed::of_weights(&w, inner);
        let run = || {
            let mut out = vec![1.0; rows * cols];
            product(&mut out, Left { data: &a, stride: 30 }, &packed);
            out
        };
        let [one, two, seven] = crate::kernel::testing::on_threads(run);
        assert!(same(&one, &two) && same(&one, &seven));
        let dense: Vec<f32> = a.chunks(30).flat_map(|row| row[..inner].to_vec()).collect();
        let mut want = vec![1.0; rows * cols];
        definition(&mut want, &dense, &w, inner);
        assert!(same(&one, &want));
    }

    #[test]
    fn nothing_times_anything_is_nothing() {
        product(&mut [], Left { data: &[], stride: 4 }, &Packed::of_weights(&[1.0; 8], 4));
        let mut out = [3.0];
        product(&mut out, Left { data: &[], stride: 0 }, &Packed::new(0, 1, |_, _| 0.0));
        assert_eq!(out, [3.0], "an empty sum adds nothing");
    }

    /// `cargo test --release ordered -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        for [rows, cols, inner] in
            [[2048, 1152, 384], [2048, 1536, 384], [2048, 384, 1536], [2048, 1024, 1024]]
        {
            let (a, w) = (noise(1, rows * inner, 1.0), noise(2, cols * inner, 1.0));
            let packed = Packed::of_weights(&w, inner);
            let mut out = vec![0.0; rows * cols];
            let flops = 2.0 * (rows * cols * inner) as f64;
            let best = |run: &mut dyn FnMut()| {
                let time = |_| {
                    let start = std::time::Instant::now();
                    run();
                    start.elapsed().as_secs_f64()
                };
                (0..20).map(time).fold(f64::INFINITY, f64::min)
            };
            let ours = best(&mut || product(&mut out, Left { data: &a, stride: inner }, &packed));
            use crate::kernel::gemm::{Mat, Threads, Write, gemm};
            let theirs = best(&mut || {
                gemm(
                    (&mut out, cols),
                    Write::Set,
                    1.0,
                    (Mat::dense(&a, rows, inner), Mat::dense(&w, cols, inner).t()),
                    Threads::All,
                );
            });
            println!(
                "{rows} × {cols} × {inner}: {:.1} GFLOP/s, gemm {:.1}, ratio {:.2}",
                flops / ours / 1e9,
                flops / theirs / 1e9,
                theirs / ours
            );
        }
    }
}
