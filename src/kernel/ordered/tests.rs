//! Ordered products against their definition: shapes at every edge, instruction sets, threads and batches.

use super::*;
use crate::kernel::{
    arch::testing::on_all,
    gemm::{Mat, Threads, Write, gemm},
    testing::{fastest, noise},
};

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

fn bias(cols: usize) -> Vec<f32> {
    noise(3, cols, 1.0)
}

/// The product by all threads, from the same bias that [`both`] begins with.
fn shared(out: &mut [f32], a: Left<'_>, b: &Packed) {
    biased_product(out, &bias(b.cols), a, b);
}

/// What a run of the kernel makes of a shape, with the definition's result.
fn both(shape: [usize; 3], run: impl Fn(&mut [f32], Left<'_>, &Packed)) -> (Vec<f32>, Vec<f32>) {
    let [rows, cols, inner] = shape;
    let (a, w) = (noise(1, rows * inner, 2.0), noise(2, cols * inner, 1.0));
    let start = bias(cols).repeat(rows);
    let (mut got, mut want) = (start.clone(), start);
    run(&mut got, Left { data: &a, stride: inner }, &Packed::of_weights(&w, inner));
    definition(&mut want, &a, &w, inner);
    (got, want)
}

#[test]
fn every_bit_is_that_of_the_definition() {
    for shape in SHAPES {
        let (got, want) = both(shape, shared);
        assert!(same(&got, &want), "{shape:?}");
        let (here, _) = both(shape, |out, a, b| product_here(out, a, b.whole()));
        assert!(same(&here, &want), "{shape:?} by one thread");
    }
}

#[test]
fn a_product_may_take_the_place_of_what_was_there() {
    for shape in SHAPES {
        let [rows, cols, inner] = shape;
        let (a, w) = (noise(1, rows * inner, 2.0), noise(2, cols * inner, 1.0));
        let mut want = vec![0.0; rows * cols];
        definition(&mut want, &a, &w, inner);
        let made = on_all(|| {
            let mut out = vec![f32::NAN; rows * cols];
            let left = Left { data: &a, stride: inner };
            set_product_here(&mut out, left, Packed::of_weights(&w, inner).whole());
            out
        });
        assert!(made.iter().all(|out| same(out, &want)), "{shape:?}");
    }
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    for shape in SHAPES {
        for (got, want) in on_all(|| both(shape, shared)) {
            assert!(same(&got, &want), "{shape:?}");
        }
    }
}

#[test]
fn a_left_hand_matrix_may_lie_as_columns() {
    for [rows, cols, inner] in SHAPES.into_iter().chain([[BLOCK + 5, 3, DEPTH + 1], [2 * BLOCK, 17, 0]]) {
        // More columns than are asked for.
        let stride = rows + 3;
        let (a, w) = (noise(1, inner * stride, 2.0), noise(2, cols * inner, 1.0));
        let turned: Vec<f32> = (0..rows * inner).map(|i| a[i % inner * stride + i / inner]).collect();
        let start = bias(cols).repeat(rows);
        let mut want = start.clone();
        if inner > 0 {
            definition(&mut want, &turned, &w, inner);
        }
        let packed = Packed::of_columns(Left { data: &w, stride: inner }, inner, cols);
        let made = on_all(|| {
            let mut out = start.clone();
            transposed_product_here((&mut out, cols, 0), Left { data: &a, stride }, packed.whole());
            out
        });
        assert!(made.iter().all(|out| same(out, &want)), "{rows} × {cols} × {inner}");
    }
}

#[test]
fn a_matrix_is_packed_from_its_rows_and_from_its_columns() {
    for (inner, cols) in [(1, 1), (5, 16), (7, 33), (16, 15)] {
        let rows = noise(8, inner * (cols + 3), 1.0);
        let columns: Vec<f32> = (0..cols)
            .flat_map(|j| (0..inner).map(move |k| (j, k)))
            .map(|(j, k)| rows[k * (cols + 3) + j])
            .collect();
        let one = Packed::of_rows(Left { data: &rows, stride: cols + 3 }, inner, cols);
        let two = Packed::of_weights(&columns, inner);
        let real = |packed: &Packed| -> Vec<f32> {
            let lane = |(i, x): (usize, &f32)| (i / (inner * PANEL) * PANEL + i % PANEL < cols).then_some(*x);
            packed.data.iter().enumerate().filter_map(lane).collect()
        };
        assert!(same(&real(&one), &real(&two)) && real(&one).len() == inner * cols, "{inner} × {cols}");
        // In memory that was another matrix before.
        for (was, by_rows) in [(&[9.0; 1000][..], true), (&[9.0; 1000], false), (&[], true)] {
            let mut packed = Packed { data: was.to_vec(), ..Packed::default() };
            if by_rows {
                packed.fill_rows(Left { data: &rows, stride: cols + 3 }, inner, cols);
            } else {
                packed.fill_columns(Left { data: &columns, stride: inner }, inner, cols);
            }
            let row = Left { data: &[1.0; 16], stride: inner };
            let [mut got, mut want] = [vec![0.0; cols], vec![0.0; cols]];
            product_here(&mut got, row, packed.whole());
            product_here(&mut want, row, one.whole());
            assert!(same(&got, &want), "{inner} × {cols}");
        }
    }
}

#[test]
fn a_bias_is_where_every_sum_begins() {
    let (inner, cols, rows) = (20, 18, 100);
    let (a, w, bias) = (noise(1, rows * inner, 1.0), noise(2, cols * inner, 1.0), noise(3, cols, 1.0));
    let packed = Packed::of_weights(&w, inner);
    let mut got = vec![9.0; rows * cols];
    biased_product(&mut got, &bias, Left { data: &a, stride: inner }, &packed);
    let mut want: Vec<f32> = bias.iter().copied().cycle().take(rows * cols).collect();
    definition(&mut want, &a, &w, inner);
    assert!(same(&got, &want));
}

#[test]
fn a_row_does_not_know_its_batch() {
    let (inner, cols) = (100, 40);
    let (a, w) = (noise(4, 150 * inner, 1.0), noise(5, cols * inner, 1.0));
    let packed = Packed::of_weights(&w, inner);
    let mut all = vec![0.0; 150 * cols];
    biased_product(&mut all, &[0.0; 40], Left { data: &a, stride: inner }, &packed);
    for row in [0, 11, 12, 95, 96, 149] {
        let mut one = vec![0.0; cols];
        biased_product(&mut one, &[0.0; 40], Left { data: &a[row * inner..], stride: inner }, &packed);
        assert!(same(&one, &all[row * cols..][..cols]), "row {row}");
    }
}

#[test]
fn threads_change_nothing_and_a_stride_skips() {
    let (rows, inner, cols) = (300, 24, 8);
    let (a, w) = (noise(6, rows * 30, 1.0), noise(7, cols * inner, 1.0));
    let packed = Packed::of_weights(&w, inner);
    let run = || {
        let mut out = vec![9.0; rows * cols];
        biased_product(&mut out, &[1.0; 8], Left { data: &a, stride: 30 }, &packed);
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
    biased_product(&mut [], &[0.0; 2], Left { data: &[], stride: 4 }, &Packed::of_weights(&[1.0; 8], 4));
    let mut out = [3.0];
    product_here(
        &mut out,
        Left { data: &[], stride: 0 },
        Packed::of_rows(Left::<f32> { data: &[], stride: 1 }, 0, 1).whole(),
    );
    assert_eq!(out.map(f32::to_bits), [3.0_f32.to_bits()], "an empty sum adds nothing");
    let nothing = Packed::of_rows(Left::<f32> { data: &[], stride: 1 }, 0, 1);
    set_product_here(&mut out, Left { data: &[], stride: 0 }, nothing.whole());
    assert_eq!(out.map(f32::to_bits), [0], "an empty sum is zero");
}

#[test]
fn a_matrix_that_is_packed_in_parts_gives_the_same_bits() {
    for [rows, cols, inner] in [
        [1, 1, 1],
        [5, PART + 1, 3],
        [13, 2 * PART + 17, 7],
        [BLOCK + 1, 40, DEPTH + 3],
        [1, BLOCK + 1, DEPTH + 2],
        [17, 3 * BLOCK - 5, DEPTH + 3],
        [BLOCK, 2 * BLOCK, 19],
        [3, 5, 0],
        [0, 4, 2],
    ] {
        let (a, w) = (noise(1, rows * inner, 1.0), noise(2, cols * inner, 1.0));
        let mut want = noise(3, rows * cols, 1.0);
        let start = want.clone();
        if inner > 0 {
            definition(&mut want, &a, &w, inner);
        }
        let left = Left { data: &a, stride: inner };
        let as_rows: Vec<f32> = (0..w.len()).map(|i| w[i % cols * inner + i / cols]).collect();
        for right in [Right::Columns(&w), Right::Rows(&as_rows)] {
            let made = on_all(|| {
                let mut out = start.clone();
                product(&mut out, left, right, [inner, cols]);
                out
            });
            for out in made {
                assert!(same(&out, &want), "{rows} × {cols} × {inner}");
            }
        }
    }
}

#[test]
fn a_few_rows_by_weights_in_bf16_give_the_bits_of_their_floats() {
    for [rows, cols, inner] in
        [[1, BLOCK + 3, 21], [5, 2 * BLOCK, DEPTH + 1], [BLOCK, 7, 16], [BLOCK + 1, 7, 16]]
    {
        let a = noise(1, rows * inner, 2.0);
        let w: Vec<Bf16Bytes> =
            noise(2, cols * inner, 1.0).iter().map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
        let floats: Vec<f32> = w.iter().map(|x| x.to_f32()).collect();
        let start = noise(3, rows * cols, 1.0);
        let mut want = start.clone();
        definition(&mut want, &a, &floats, inner);
        let mut got = start;
        product(&mut got, Left { data: &a, stride: inner }, Right::Bf16Columns(&w), [inner, cols]);
        assert!(same(&got, &want), "{rows} × {cols} × {inner}");
    }
}

/// `cargo test --release ordered -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn speed() {
    for [rows, cols, inner] in [[2048, 1152, 384], [2048, 1536, 384], [2048, 384, 1536], [2048, 1024, 1024]] {
        let (a, w) = (noise(1, rows * inner, 1.0), noise(2, cols * inner, 1.0));
        let packed = Packed::of_weights(&w, inner);
        let mut out = vec![0.0; rows * cols];
        let flops = 2.0 * (rows * cols * inner) as f64;
        let ours =
            fastest(20, || biased_product(&mut out, &bias(cols), Left { data: &a, stride: inner }, &packed));
        let theirs = fastest(20, || {
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
