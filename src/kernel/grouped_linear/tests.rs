//! Grouped linear maps against their definition: sizes of groups, tiles and pieces, gradients, and bits.

use super::*;
use crate::kernel::{
    arch::testing::on_all,
    linear::linear,
    testing::{bits, check_gradients, close, flat, gradient, noise, on_threads, var},
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

/// Rows, inner dimension and columns around and beyond a tile and a piece.
const SIZES: [([usize; 2], &[usize]); 4] = [
    ([TILE + 1, 3], &[0, 2, 2, 15]),
    ([3, TILE + 17], &[0, 13]),
    ([20, 33], &[0, 5, ROWS + 6, ROWS + 6, ROWS + 19]),
    ([7, 5], &[0, 2 * ROWS + 3]),
];

fn case([out, inner]: [usize; 2], offsets: &[usize]) -> ([candle_core::Var; 3], Arc<[usize]>) {
    let groups = offsets.len() - 1;
    let x = var(1, &[offsets[groups], inner], 1.0);
    ([x, var(2, &[groups, out, inner], 1.0), var(3, &[groups, out], 1.0)], offsets.into())
}

#[test]
fn outputs_and_gradients_match_f64_at_many_sizes() {
    for ([out, inner], offsets) in SIZES {
        let ([x, w, b], offsets) = case([out, inner], offsets);
        let (y, [xs, ws, bs]) =
            (grouped_linear(&x, &w, &b, &offsets, true).unwrap(), [&x, &w, &b].map(|v| flat(v)));
        let g = noise(4, y.elem_count(), 1.0);
        let loss = (&y * tensor(g.clone(), y.shape()).unwrap()).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let mut want = [vec![], vec![0f64; xs.len()], vec![0f64; ws.len()], vec![0f64; bs.len()]];
        for row in 0..offsets[offsets.len() - 1] {
            let e = offsets.partition_point(|&at| at <= row) - 1;
            for o in 0..out {
                let (w, g) = ((e * out + o) * inner, f64::from(g[row * out + o]));
                let term = |i: usize| f64::from(xs[row * inner + i]) * f64::from(ws[w + i]);
                want[0].push(f64::from(bs[e * out + o]) + (0..inner).map(term).sum::<f64>());
                want[3][e * out + o] += g;
                for i in 0..inner {
                    want[1][row * inner + i] += g * f64::from(ws[w + i]);
                    want[2][w + i] += g * f64::from(xs[row * inner + i]);
                }
            }
        }
        close(&flat(&y), &want[0], 2e-5);
        for (v, want) in [&x, &w, &b].into_iter().zip(&want[1..]) {
            close(&flat(grads.get(v.as_tensor()).unwrap()), want, 1e-4);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_on_every_machine_and_in_every_batch() {
    let ([x, w, b], offsets) = case([70, 20], &[0, 11, 20 + ROWS]);
    let run = || {
        let y = grouped_linear(&x, &w, &b, &offsets, true).unwrap();
        let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        [&x, &w, &b].map(|v| bits(grads.get(v.as_tensor()).unwrap())).into_iter().chain([bits(&y)]).collect()
    };
    let made: Vec<Vec<Vec<u32>>> = on_all(run);
    assert!(made.iter().chain(&on_threads(run)).all(|other| *other == made[0]));
    let row = x.narrow(0, 14, 1).unwrap().contiguous().unwrap();
    let alone = grouped_linear(&row, &w, &b, &[0, 0, 1].into(), false).unwrap();
    assert_eq!(bits(&alone), made[0][3][14 * 70..15 * 70]);
}

#[test]
fn pieces_are_all_rows_once_and_of_about_one_size() {
    for offsets in [&[0, 0][..], &[0, 1], &[0, 4, 4, 14, 15], &[0, 9], &[0, 8, 17]] {
        let m = offsets[offsets.len() - 1];
        let (mut out, x): (Vec<f32>, Vec<f32>) = (vec![0.0; m * 2], (0..m).map(|i| i as f32).collect());
        for Piece { group, out, x } in pieces(offsets, 4, (&mut out, 2), (&x, 1)) {
            assert!(x.len() <= 4 && 2 * x.len() == out.len(), "{x:?}");
            let (from, to) = (offsets[group], offsets[group + 1]);
            assert!(x.iter().all(|&row| (from..to).contains(&(row as usize))), "{x:?} in {group}");
            assert!(x.len() >= (to - from).min(2), "{x:?} of {from}..{to}");
            for (out, x) in out.chunks_mut(2).zip(x) {
                out[0] += x + 1.0;
                out[1] += x + 1.0;
            }
        }
        let want: Vec<f32> = (0..2 * m).map(|i| (i / 2 + 1) as f32).collect();
        assert_eq!(out, want, "{offsets:?}");
    }
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
