//! Tests of the sums over attention weights against their definitions.

use super::*;
use crate::artifact::moments::bucket;
use crate::kernel::testing::noise;

const HEADS: usize = 4;
const KV: usize = 2;
const D: usize = 6;

struct Data {
    q: Vec<f32>,
    plain: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    packed: Vec<f32>,
    offsets: Vec<usize>,
}

fn shape(window: Option<usize>) -> Shape {
    let metric = |h: usize| {
        let w = noise(20 + h as u64, 10 * D, 1.0);
        let cell = |i: usize, j: usize| (0..10).map(|l| w[l * D + i] * w[l * D + j]).sum();
        (0..D * D).map(|at| cell(at / D, at % D)).collect()
    };
    let metric = Some((0..HEADS).map(metric).collect());
    Shape { heads: HEADS, kv_heads: KV, d: D, window, sinks: vec![0.5, -1.0, 2.0, 0.0], metric }
}

/// Attention weights in f64, one query and key at a time.
fn weight(data: &Data, shape: &Shape, h: usize, t: usize, s: usize) -> f64 {
    let start = data.offsets.iter().rev().find(|&&o| o <= t).copied().unwrap();
    let visible = |s: usize| s >= start && s <= t && shape.window.is_none_or(|w| t - s < w);
    let score = |s: usize| {
        let (q, k) = (&data.q[(t * HEADS + h) * D..][..D], &data.k[(s * KV + h / 2) * D..][..D]);
        q.iter().zip(k).map(|(a, b)| f64::from(a * b)).sum::<f64>() / (D as f64).sqrt()
    };
    if !visible(s) {
        return 0.0;
    }
    let keys = (start..=t).filter(|&s| visible(s));
    score(s).exp() / (keys.map(|s| score(s).exp()).sum::<f64>() + f64::from(shape.sinks[h]).exp())
}

fn data(offsets: &[usize], shape: &Shape) -> Data {
    let t = offsets[offsets.len() - 1];
    let part = |seed, heads: usize| noise(seed, t * heads * D, 1.5);
    let mut data = Data {
        q: part(1, HEADS),
        plain: part(2, HEADS),
        k: part(3, KV),
        v: part(4, KV),
        packed: vec![0.0; t * HEADS * (D + 1)],
        offsets: offsets.to_vec(),
    };
    for t in 0..t {
        for h in 0..HEADS {
            let kept: f64 = (0..=t).map(|s| weight(&data, shape, h, t, s)).sum();
            // Σ a = sigmoid(lse − sink)
            let lse = (kept / (1.0 - kept)).ln() + f64::from(shape.sinks[h]);
            data.packed[(t * HEADS + h) * (D + 1) + D] = lse as f32;
        }
    }
    data
}

fn run(data: &Data, shape: &Shape) -> (Sums, Vec<f64>) {
    let mut sums = Sums::new(shape);
    let Data { q, plain, k, v, packed, offsets } = data;
    let weights = sums.add(shape, &Activations { q, q_plain: plain, k, v, packed, offsets });
    (sums, weights)
}

fn close(got: f64, want: f64, what: &str) {
    assert!((got - want).abs() < 2e-4 * (1.0 + want.abs()), "{what}: {got} {want}");
}

#[test]
fn sums_match_their_definitions() {
    for window in [None, Some(7)] {
        let shape = shape(window);
        let data = data(&[0, 45, 50], &shape);
        let (sums, weights) = run(&data, &shape);
        let cell = |at: usize| weight(&data, &shape, at / 2500, at / 50 % 50, at % 50);
        let table: Vec<f64> = (0..HEADS * 2500).map(cell).collect();
        let a = |h: usize, t: usize, s: usize| table[(h * 50 + t) * 50 + s];
        let pairs: Vec<(usize, usize)> = (0..50).flat_map(|t| (0..=t).map(move |s| (t, s))).collect();
        let output = |h: usize, x: &dyn Fn(usize) -> f64| {
            let metric = &shape.metric.as_ref().unwrap()[h];
            (0..D * D).map(|at| f64::from(metric[at]) * x(at / D) * x(at % D)).sum::<f64>()
        };
        let v = |s: usize, h: usize, i: usize| f64::from(data.v[(s * KV + h / 2) * D + i]);
        for h in 0..HEADS {
            for i in 0..7 {
                let start = |t: usize| if t < 45 { 0 } else { 45 };
                let of = |x: &dyn Fn(usize) -> f64| -> f64 {
                    (0..50).filter(|&t| bucket(t - start(t)) == i).map(x).sum()
                };
                let sink = of(&|t| 1.0 - (start(t)..=t).map(|s| a(h, t, s)).sum::<f64>());
                close(sums.sink[h * BUCKETS + i], sink, "sink");
                close(sums.first[h * BUCKETS + i], of(&|t| a(h, t, start(t))), "first");
            }
            let far = pairs.iter().filter(|(t, s)| t - s == 3).map(|&(t, s)| a(h, t, s)).sum();
            close(sums.mass[h][3], far, "mass");
            let both = pairs.iter().map(|&(t, s)| a(h, t, s) * a(1, t, s)).sum();
            close(sums.overlap[h * HEADS + 1], both, "overlap");
            let mix = |t: usize, i: usize| (0..=t).map(|s| a(h, t, s) * v(s, h, i)).sum::<f64>();
            let outs: Vec<f64> = (0..50 * D).map(|at| mix(at / D, at % D)).collect();
            let gauss =
                |t: usize, s: usize| a(h, t, s).powi(2) * output(h, &|i| v(s, h, i) - outs[t * D + i]);
            let far = pairs.iter().filter(|(t, s)| t - s == 2).map(|&(t, s)| gauss(t, s)).sum();
            close(sums.gauss[h][2], far, "gauss");
            let q = |t: usize, i: usize| f64::from(data.plain[(t * HEADS + h) * D + i]);
            let moment = pairs.iter().map(|&(t, s)| gauss(t, s) * q(t, 1) * q(t, 4)).sum();
            close(sums.query[(h * D + 1) * D + 4], moment, "query");
        }
        for s in [0, 3, 44, 45, 49] {
            let of = |h| (s..50).map(|t| a(h, t, s).powi(2)).sum::<f64>();
            let want = (0..HEADS).map(of).sum();
            close(weights[s], want, "weights");
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let shape = shape(None);
    let data = data(&[0, 70, 180], &shape);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (sums, weights) = pool.install(|| run(&data, &shape));
        let mut fisher = fisher::Fisher::new(&shape);
        let Data { q, plain, k, v, packed, offsets } = &data;
        let seen = Activations { q, q_plain: plain, k, v, packed, offsets };
        let found = pool.install(|| fisher.add(&shape, &seen, q));
        let fisher = (fisher.query, fisher.gauss, fisher.values, found.keys);
        (sums.query, sums.overlap, sums.mass, sums.gauss, weights, fisher)
    };
    assert_eq!(run(1), run(2));
    assert_eq!(run(1), run(5));
}

/// What the outputs of head `h` cost along the gradient `u`, with one of its logits moved.
fn cost(
    (data, shape): (&Data, &Shape),
    (h, t): (usize, usize),
    moved: (usize, f64),
    u: &dyn Fn(usize) -> f64,
) -> f64 {
    let weights: Vec<f64> = (0..=t).map(|s| weight(data, shape, h, t, s)).collect();
    let rest = 1.0 - weights.iter().sum::<f64>();
    let shares: Vec<f64> =
        weights.iter().enumerate().map(|(s, a)| if s == moved.0 { a * moved.1.exp() } else { *a }).collect();
    let total = rest + shares.iter().sum::<f64>();
    let v = |s: usize, i: usize| f64::from(data.v[(s * KV + h / 2) * D + i]);
    shares.iter().enumerate().map(|(s, a)| a / total * (0..D).map(|i| u(i) * v(s, i)).sum::<f64>()).sum()
}

#[test]
fn fisher_sums_match_derivatives_of_the_outputs() {
    for window in [None, Some(7)] {
        let shape = shape(window);
        let data = data(&[0, 40, 45], &shape);
        let gradient = noise(9, 45 * HEADS * D, 1.0);
        let mut sums = fisher::Fisher::new(&shape);
        let Data { q, plain, k, v, packed, offsets } = &data;
        let found = sums.add(&shape, &Activations { q, q_plain: plain, k, v, packed, offsets }, &gradient);
        let u = |h: usize, t: usize, i: usize| f64::from(gradient[(t * HEADS + h) * D + i]);
        let logit = |h: usize, t: usize, s: usize| {
            let at = |by: f64| cost((&data, &shape), (h, t), (s, by), &|i| u(h, t, i));
            (at(1e-5) - at(-1e-5)) / 2e-5
        };
        let squares = |h: usize, t: usize, s: usize| logit(h, t, s).powi(2);
        for (s, g, i) in [(3, 0, 1), (42, 1, 5)] {
            let heads = [2 * g, 2 * g + 1].into_iter().flat_map(|h| (s..45).map(move |t| (h, t)));
            let of = |(h, t)| logit(h, t, s) * f64::from(data.q[(t * HEADS + h) * D + i]);
            let want: f64 = heads.filter(|(_, t)| *t < 40 || s >= 40).map(of).sum();
            close(f64::from(found.keys[(s * KV + g) * D + i]), want / (D as f64).sqrt(), "keys");
        }
        for h in [0, 3] {
            let pairs = (0..45).flat_map(|t| (0..=t).map(move |s| (t, s)));
            let all: Vec<(usize, usize, f64)> = pairs.map(|(t, s)| (t, s, squares(h, t, s))).collect();
            let far: f64 = all.iter().filter(|(t, s, _)| t - s == 2).map(|x| x.2).sum();
            close(sums.gauss[h][2], far, "gauss");
            let q = |t: usize, i: usize| f64::from(data.plain[(t * HEADS + h) * D + i]);
            let moment = all.iter().map(|&(t, _, f)| f * q(t, 1) * q(t, 4)).sum();
            close(sums.query[(h * D + 1) * D + 4], moment, "query");
        }
        // The outputs are linear in values.
        let value = |s: usize, at: usize| -> f64 {
            let (g, i) = (at / D, at % D);
            let heads = [2 * g, 2 * g + 1].into_iter().flat_map(|h| (s..45).map(move |t| (h, t)));
            heads.map(|(h, t)| weight(&data, &shape, h, t, s) * u(h, t, i)).sum()
        };
        let dim = KV * D + 1;
        for (i, j) in [(0, 0), (1, 8), (11, 2)] {
            close(sums.values.sum[i * dim + j], (0..45).map(|s| value(s, i) * value(s, j)).sum(), "values");
            close(sums.values.sum[i * dim + dim - 1], (0..45).map(|s| value(s, i)).sum(), "mean");
        }
    }
}
