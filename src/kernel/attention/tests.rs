//! Attention against its definition: blocks, windows, packed sequences, and gradients.

mod gradients;

use super::{forward::BLOCK, *};
use crate::kernel::testing::{bits, check_gradients, close, fastest, flat, gradient, noise, on_threads, var};

fn pattern(offsets: &[usize], window: Option<usize>) -> Pattern {
    Pattern { offsets: offsets.into(), window, scale: 0.4 }
}

/// The definition, in f64: one query, one key at a time.
fn reference([q, k, v]: [&[f64]; 3], dims: Dims, pattern: &Pattern) -> Vec<f64> {
    let Dims { hq, hk, dk, dv } = dims;
    let mut out = Vec::new();
    for sequence in pattern.sequences() {
        for t in sequence.clone() {
            for h in 0..hq {
                let g = h / (hq / hk);
                let sees = |s: &usize| pattern.window.is_none_or(|w| t - s < w);
                let weight = |s: usize| {
                    let (q, k) = (&q[(t * hq + h) * dk..][..dk], &k[(s * hk + g) * dk..]);
                    let score: f64 = q.iter().zip(k).map(|(q, k)| q * k).sum();
                    (score * f64::from(pattern.scale)).exp()
                };
                let keys: Vec<(usize, f64)> =
                    (sequence.start..=t).filter(sees).map(|s| (s, weight(s))).collect();
                let total: f64 = keys.iter().map(|(_, weight)| weight).sum();
                for d in 0..dv {
                    out.push(keys.iter().map(|(s, weight)| weight / total * v[(s * hk + g) * dv + d]).sum());
                }
                out.push(total.ln());
            }
        }
    }
    out
}

/// The same numbers in f64.
fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

#[test]
fn matches_the_definition() {
    let check = |offsets: &[usize], window: Option<usize>, hq: usize, hk: usize| {
        let (dims, t) = (Dims { hq, hk, dk: 6, dv: 5 }, offsets[offsets.len() - 1]);
        let (q, k, v) = (noise(1, t * hq * 6, 2.0), noise(2, t * hk * 6, 2.0), noise(3, t * hk * 5, 1.0));
        let pattern = pattern(offsets, window);
        let want = reference([&wide(&q), &wide(&k), &wide(&v)], dims, &pattern);
        let (q, k) = (tensor(q, (t, hq, 6)).unwrap(), tensor(k, (t, hk, 6)).unwrap());
        let got = attention(&q, &k, &tensor(v, (t, hk, 5)).unwrap(), &pattern).unwrap();
        close(&flat(&got), &want, 2e-5);
    };
    check(&[0, 1], None, 4, 2);
    check(&[0, 70, 200], None, 4, 2);
    check(&[0, 63, 64, 130], Some(9), 4, 2);
    check(&[0, 129], Some(128), 4, 2);
    // One key/value head for all queries, and one for each.
    check(&[0, 65], Some(7), 3, 1);
    check(&[0, 65], None, 3, 3);
    // Lengths and windows around one and two blocks of rows.
    for t in [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK] {
        for window in [None, Some(1), Some(BLOCK - 1), Some(BLOCK), Some(BLOCK + 1), Some(10 * BLOCK)] {
            check(&[0, t], window, 2, 1);
        }
    }
    // Tiles of keys: a whole one, one begun, and windows that reach into the one before.
    for t in [512, 530, 1100] {
        for window in [None, Some(100), Some(600)] {
            check(&[0, 40, 40 + t], window, 4, 2);
        }
    }
    // Sequences without a token.
    check(&[0, 0, 3, 3, 7, 7], Some(2), 2, 2);
}

/// Queries, keys and values of `t` tokens with two query heads over one key/value head.
fn qkv(seed: u64, t: usize) -> [Tensor; 3] {
    let make = |i: u64, heads: usize, d: usize| {
        tensor(noise(10 * seed + i, t * heads * d, 1.5), (t, heads, d)).unwrap()
    };
    [make(1, 2, 4), make(2, 1, 4), make(3, 1, 3)]
}

fn attend([q, k, v]: &[Tensor; 3], offsets: &[usize], window: Option<usize>) -> Tensor {
    attention(q, k, v, &pattern(offsets, window)).unwrap()
}

fn rows(x: &Tensor, range: Range<usize>) -> Tensor {
    x.narrow(0, range.start, range.len()).unwrap().contiguous().unwrap()
}

#[test]
fn equal_scores_give_the_mean_of_what_is_seen() {
    let t = BLOCK + 6;
    let zeros = Tensor::zeros((t, 1, 4), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    let v: Vec<f32> = (0..t).map(|i| i as f32).collect();
    let got = attention(&zeros, &zeros, &tensor(v, (t, 1, 1)).unwrap(), &pattern(&[0, t], Some(8))).unwrap();
    for (i, row) in flat(&got).chunks(2).enumerate() {
        let (first, n) = ((i + 1).saturating_sub(8), (i + 1).min(8));
        assert!((row[0] - (first + i) as f32 / 2.0).abs() < 1e-4, "{i}: {row:?}");
        assert!((row[1] - (n as f32).ln()).abs() < 1e-6, "{i}: {row:?}");
    }
}

#[test]
fn a_window_of_one_shows_a_token_itself_only() {
    let inputs = qkv(1, 70);
    let got = flat(&attend(&inputs, &[0, 70], Some(1)));
    let (q, k, v) = (flat(&inputs[0]), flat(&inputs[1]), flat(&inputs[2]));
    for (row, got) in got.chunks(4).enumerate() {
        let t = row / 2;
        let score: f32 = (0..4).map(|d| q[row * 4 + d] * k[t * 4 + d]).sum::<f32>() * 0.4;
        assert_eq!(got[..3], v[t * 3..][..3]);
        assert!((got[3] - score).abs() < 1e-6);
    }
}

#[test]
fn a_window_as_long_as_the_text_is_none() {
    let inputs = qkv(2, 150);
    let open = bits(&attend(&inputs, &[0, 80, 150], None));
    for window in [80, 81, usize::MAX] {
        assert_eq!(bits(&attend(&inputs, &[0, 80, 150], Some(window))), open, "{window}");
    }
    assert_ne!(bits(&attend(&inputs, &[0, 80, 150], Some(79))), open);
}

#[test]
fn packed_sequences_do_not_see_each_other() {
    let (inputs, offsets) = (qkv(3, 140), [0, 5, 70, 70, 140]);
    let packed = attend(&inputs, &offsets, Some(33));
    for pair in offsets.windows(2).filter(|pair| pair[0] < pair[1]) {
        let alone = inputs.clone().map(|x| rows(&x, pair[0]..pair[1]));
        let alone = attend(&alone, &[0, pair[1] - pair[0]], Some(33));
        assert_eq!(bits(&alone), bits(&rows(&packed, pair[0]..pair[1])), "{pair:?}");
    }
}

#[test]
fn a_later_token_changes_nothing_before_it() {
    let (t, at) = (130, 67);
    let before = qkv(4, t);
    let other = qkv(5, t);
    let after =
        [0, 1, 2].map(|i| Tensor::cat(&[rows(&before[i], 0..at), rows(&other[i], at..t)], 0).unwrap());
    let (a, b) = (attend(&before, &[0, t], None), attend(&after, &[0, t], None));
    assert_eq!(bits(&rows(&a, 0..at)), bits(&rows(&b, 0..at)));
    assert_ne!(bits(&rows(&a, at..at + 1)), bits(&rows(&b, at..at + 1)));
}

#[test]
fn huge_scores_pick_one_key_and_stay_finite() {
    let t = 40;
    // Key `s` scores `1000 · s` · 0.4 with every query, so each token attends to itself alone.
    let q = tensor(vec![1000.0; t], (t, 1, 1)).unwrap();
    let k = tensor((0..t).map(|s| s as f32).collect(), (t, 1, 1)).unwrap();
    let v = tensor((0..t).map(|s| s as f32 * 0.5).collect(), (t, 1, 1)).unwrap();
    for sign in [1.0, -1.0] {
        let got = flat(&attention(&(&q * sign).unwrap(), &k, &v, &pattern(&[0, t], None)).unwrap());
        for (i, row) in got.chunks(2).enumerate() {
            // Turned round, the first key is the best for all.
            let seen = if sign > 0.0 { i as f32 } else { 0.0 };
            assert!((row[0] - seen * 0.5).abs() < 1e-6, "{i}: {row:?}");
            assert!((row[1] - 400.0 * seen).abs() < 1e-2, "{i}: {row:?}");
        }
    }
    let q = candle_core::Var::from_tensor(&q).unwrap();
    let out = attention(&q, &k, &v, &pattern(&[0, t], None)).unwrap();
    assert!(gradient(&out, &q).iter().all(|g| g.is_finite()));
}

#[test]
fn threads_change_no_bit_of_output_or_gradient() {
    let (q, k, v) = (var(1, &[150, 4, 8], 1.0), var(2, &[150, 2, 8], 1.0), var(3, &[150, 2, 8], 1.0));
    let run = || {
        let out = attention(&q, &k, &v, &pattern(&[0, 90, 150], Some(50))).unwrap();
        let grads = out.sum_all().unwrap().backward().unwrap();
        let mut all = bits(&out);
        for var in [&q, &k, &v] {
            all.extend(bits(grads.get(var.as_tensor()).unwrap()));
        }
        all
    };
    let [one, two, five] = on_threads(run);
    assert!(one == two && one == five);
}

#[test]
fn gradients_where_heads_are_not_shared_and_sequences_are_empty() {
    for (heads, offsets, window) in [
        (3, &[0, 7][..], None),
        (1, &[0, 0, 4, 4, 7], None),
        (1, &[0, 7], Some(1)),
        (3, &[0, 3, 7], Some(99)),
    ] {
        let make = |seed, d| var(seed, &[7, heads, d], 1.0);
        let (q, k, v) = (make(1, 5), make(2, 5), make(3, 2));
        check_gradients(&[&q, &k, &v], 2e-3, || attention(&q, &k, &v, &pattern(offsets, window)));
    }
}

#[test]
fn a_key_that_nobody_sees_gets_no_gradient() {
    let (q, k, v) = (var(1, &[9, 1, 4], 1.0), var(2, &[9, 1, 4], 1.0), var(3, &[9, 1, 3], 1.0));
    // Only the last row's output counts, and it sees the last two keys.
    let out = attention(&q, &k, &v, &pattern(&[0, 9], Some(2))).unwrap();
    let last = rows(&out, 8..9);
    for (var, d) in [(&k, 4), (&v, 3)] {
        let grad = gradient(&last, var);
        assert!(grad[..7 * d].iter().all(|g| g.to_bits() << 1 == 0), "{grad:?}");
        assert!(grad[7 * d..].iter().all(|g| g.abs() > 0.0), "{grad:?}");
    }
}

#[test]
fn gradients_of_output_and_log_sum_exp() {
    for window in [None, Some(3)] {
        let (q, k, v) = (var(1, &[9, 4, 4], 1.0), var(2, &[9, 2, 4], 1.0), var(3, &[9, 2, 3], 1.0));
        check_gradients(&[&q, &k, &v], 2e-3, || attention(&q, &k, &v, &pattern(&[0, 5, 9], window)));
    }
}

#[test]
fn gradients_across_blocks() {
    let (q, k, v) = (var(1, &[140, 2, 4], 1.0), var(2, &[140, 1, 4], 1.0), var(3, &[140, 1, 4], 1.0));
    check_gradients(&[&q, &k, &v], 4e-3, || attention(&q, &k, &v, &pattern(&[0, 140], Some(70))));
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let check = |q: [usize; 3], k: [usize; 3], v: [usize; 3], offsets: &[usize]| {
        let (q, k, v) = (var(1, &q, 1.0), var(2, &k, 1.0), var(3, &v, 1.0));
        let error = attention(&q, &k, &v, &pattern(offsets, None)).unwrap_err().to_string();
        assert!(error.contains("do not fit"), "{error}");
    };
    check([9, 4, 4], [9, 3, 4], [9, 3, 3], &[0, 9]); // four query heads over three
    check([9, 4, 4], [9, 2, 5], [9, 2, 3], &[0, 9]); // widths of q and k
    check([9, 4, 4], [8, 2, 4], [9, 2, 3], &[0, 9]); // tokens of k
    check([9, 4, 4], [9, 2, 4], [8, 2, 3], &[0, 9]); // tokens of v
    check([9, 4, 4], [9, 2, 4], [9, 4, 3], &[0, 9]); // heads of k and v
    check([9, 4, 4], [9, 2, 4], [9, 2, 3], &[0, 8]); // a token of no sequence
    check([9, 4, 4], [9, 2, 4], [9, 2, 3], &[]);
    let (q, kv) = (var(1, &[4, 9, 4], 1.0), var(2, &[9, 2, 4], 1.0));
    let turned = q.transpose(0, 1).unwrap();
    let error = attention(&turned, &kv, &kv, &pattern(&[0, 9], None)).unwrap_err().to_string();
    assert!(error.contains("must be contiguous"), "{error}");
}

/// `cargo test --release --lib attention -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn speed() {
    for (t, hq, hk, d, window) in [
        (2048, 64, 8, 64, None),
        (2048, 64, 8, 64, Some(128)),
        (2048, 16, 16, 64, None),
        (2048, 16, 16, 64, Some(128)),
    ] {
        let (q, k, v) = (var(1, &[t, hq, d], 1.0), var(2, &[t, hk, d], 1.0), var(3, &[t, hk, d], 1.0));
        let forward = || attention(&q, &k, &v, &pattern(&[0, t], window)).unwrap();
        let once = fastest(3, forward);
        let both = fastest(3, || forward().sum_all().unwrap().backward().unwrap());
        println!(
            "{t} tokens, {hq} heads over {hk}, window {window:?}: forward {once:.3} s, with backward {both:.3} s"
        );
    }
}
