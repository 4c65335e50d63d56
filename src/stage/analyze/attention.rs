//! Sums over attention weights: sinks, distances, and what a conversion needs to weigh errors of keys and values.
//!
//! Scores are computed again, a block of query rows at a time; nothing of size tokens² is kept. Products inside a block are f32,
//! sums over blocks are f64, in the order of the blocks whatever the number of threads. Knows no model file.

use std::ops::Range;

use rayon::prelude::*;

use crate::kernel::{
    exp::exp,
    gemm::{Mat, Threads, Write, gemm},
};

/// Query rows scored at a time.
const ROWS: usize = 32;
/// Blocks in flight; bounds the memory of their parts.
const WAVE: usize = 32;

/// Sizes and constants of a layer.
pub(super) struct Shape {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    /// Width of a query, key or value head.
    pub(super) d: usize,
    pub(super) window: Option<usize>,
    /// Learned sink logits `[heads]`.
    pub(super) sinks: Vec<f32>,
    /// `W_O,hᵀ W_O,h` of each head [heads][d · d]; `None` leaves out what only a conversion needs.
    pub(super) metric: Option<Vec<Vec<f32>>>,
}

/// What one call of the layer computed; rows are tokens.
pub(super) struct Activations<'a> {
    /// Rotated queries [t, heads, d].
    pub(super) q: &'a [f32],
    /// Queries before rotation [t, heads, d]; read only with a metric.
    pub(super) q_plain: &'a [f32],
    /// Rotated keys [t, kv heads, d].
    pub(super) k: &'a [f32],
    /// Values [t, kv heads, d].
    pub(super) v: &'a [f32],
    /// Outputs before the sink, and the log-sum-exp [t, heads, d + 1].
    pub(super) packed: &'a [f32],
    /// Sequence `i` is rows `offsets[i]..offsets[i + 1]`.
    pub(super) offsets: &'a [usize],
}

/// The sums of a layer over all calls.
pub(super) struct Sums {
    /// Attention that went to the sink `[heads]`.
    pub(super) sink: Vec<f64>,
    /// Attention that went to the sequence's first token `[heads]`.
    pub(super) first: Vec<f64>,
    /// Attention by distance `[heads][distance]`.
    pub(super) mass: Vec<Vec<f64>>,
    /// `Σ a_h a_h'` [heads, heads].
    pub(super) overlap: Vec<f64>,
    /// `Σ G_h q qᵀ` [heads, d, d].
    pub(super) query: Vec<f64>,
    /// `Σ G_h` by distance `[heads][distance]`.
    pub(super) gauss: Vec<Vec<f64>>,
}

/// A block of query rows of one sequence with the keys that any of them sees, as absolute rows.
struct Block {
    rows: Range<usize>,
    keys: Range<usize>,
    start: usize,
}

/// One block's share of the sums.
struct Part {
    sink: Vec<f64>,
    first: Vec<f64>,
    /// [heads, keys], by distance.
    mass: Vec<f32>,
    /// `Σ_h,t a²` of each key.
    weights: Vec<f64>,
    overlap: Vec<f32>,
    query: Vec<f32>,
    /// [heads, keys], by distance.
    gauss: Vec<f32>,
}

impl Sums {
    /// Nothing seen yet.
    pub(super) fn new(shape: &Shape) -> Self {
        let (n, d) = (shape.heads, shape.d);
        Self {
            sink: vec![0.0; n],
            first: vec![0.0; n],
            mass: vec![Vec::new(); n],
            overlap: vec![0.0; n * n],
            query: vec![0.0; n * d * d],
            gauss: vec![Vec::new(); n],
        }
    }

    /// Adds one call; returns `Σ_h,t a_h(t,s)²` of each token `s`.
    pub(super) fn add(&mut self, shape: &Shape, seen: &Activations<'_>) -> Vec<f64> {
        let blocks: Vec<Block> = seen.offsets.windows(2).flat_map(|w| shape.blocks(w[0]..w[1])).collect();
        let mut weights = vec![0f64; seen.k.len() / (shape.kv_heads * shape.d)];
        let square = |h| shape.values_square(seen, h);
        let squares: Vec<Vec<f32>> = if shape.metric.is_some() {
            (0..shape.heads).into_par_iter().map(square).collect()
        } else {
            vec![]
        };
        for wave in blocks.chunks(WAVE) {
            let parts: Vec<Part> = wave.par_iter().map(|block| shape.part(seen, block, &squares)).collect();
            for (block, part) in wave.iter().zip(parts) {
                self.fold(&part, block.keys.len());
                weights[block.keys.clone()].iter_mut().zip(&part.weights).for_each(|(w, x)| *w += x);
            }
        }
        weights
    }

    fn fold(&mut self, part: &Part, keys: usize) {
        let add = |into: &mut [f64], from: &[f32]| {
            into.iter_mut().zip(from).for_each(|(into, &x)| *into += f64::from(x));
        };
        self.sink.iter_mut().zip(&part.sink).for_each(|(into, x)| *into += x);
        self.first.iter_mut().zip(&part.first).for_each(|(into, x)| *into += x);
        for (sums, parts) in [(&mut self.mass, &part.mass), (&mut self.gauss, &part.gauss)] {
            for (sum, part) in sums.iter_mut().zip(parts.chunks_exact(keys)) {
                sum.resize(sum.len().max(keys), 0.0);
                add(sum, part);
            }
        }
        add(&mut self.overlap, &part.overlap);
        add(&mut self.query, &part.query);
    }
}

impl Shape {
    fn blocks(&self, sequence: Range<usize>) -> impl Iterator<Item = Block> + '_ {
        sequence.clone().step_by(ROWS).map(move |from| {
            let end = (from + ROWS).min(sequence.end);
            Block { keys: self.first_key(from, sequence.start)..end, rows: from..end, start: sequence.start }
        })
    }

    fn first_key(&self, row: usize, start: usize) -> usize {
        self.window.map_or(start, |window| (row + 1).saturating_sub(window).max(start))
    }

    /// `v_sᵀ W_OᵀW_O v_s` of head `h` for every token.
    fn values_square(&self, seen: &Activations<'_>, h: usize) -> Vec<f32> {
        let (d, metric) = (self.d, &self.metric.as_ref().expect("called with a metric")[h]);
        let t = seen.k.len() / (self.kv_heads * d);
        let mut mapped = vec![0f32; t * d];
        let v = self.view(seen.v, 0..t, (h / (self.heads / self.kv_heads), self.kv_heads));
        gemm((&mut mapped, d), Write::Set, 1.0, (v, Mat::dense(metric, d, d)), Threads::One);
        let width = self.kv_heads * d;
        let at = h / (self.heads / self.kv_heads) * d;
        let dot = |s: usize| {
            seen.v[s * width + at..][..d].iter().zip(&mapped[s * d..][..d]).map(|(a, b)| a * b).sum()
        };
        (0..t).map(dot).collect()
    }

    /// Head `h` of rows `range` in a [t, heads, d] array.
    fn view<'a>(&self, data: &'a [f32], range: Range<usize>, (h, heads): (usize, usize)) -> Mat<'a> {
        let d = self.d;
        let from = (range.start * heads + h) * d;
        Mat::new(&data[from..from + (range.len() - 1) * heads * d + d], range.len(), d, heads * d)
    }

    fn part(&self, seen: &Activations<'_>, block: &Block, squares: &[Vec<f32>]) -> Part {
        let (n, d, rows, keys) = (self.heads, self.d, block.rows.len(), block.keys.len());
        let full = self.metric.is_some();
        let mut part = Part {
            sink: vec![0.0; n],
            first: vec![0.0; n],
            mass: vec![0.0; n * keys],
            weights: vec![0.0; keys],
            overlap: vec![0.0; if full { n * n } else { 0 }],
            query: vec![0.0; if full { n * d * d } else { 0 }],
            gauss: vec![0.0; if full { n * keys } else { 0 }],
        };
        let mut all = vec![0f32; n * rows * keys];
        for (h, a) in all.chunks_exact_mut(rows * keys).enumerate() {
            self.weights(seen, block, (h, a), &mut part);
            if full {
                self.errors(seen, block, (h, a, &squares[h]), &mut part);
            }
        }
        for row in all.chunks_exact(keys) {
            part.weights.iter_mut().zip(row).for_each(|(w, a)| *w += f64::from(a * a));
        }
        if full {
            let a = Mat::dense(&all, n, rows * keys);
            gemm((&mut part.overlap, n), Write::Set, 1.0, (a, a.t()), Threads::One);
        }
        part
    }

    /// Fills `a` [rows, keys] with the attention weights of head `h`, and what follows from them alone.
    fn weights(&self, seen: &Activations<'_>, block: &Block, (h, a): (usize, &mut [f32]), part: &mut Part) {
        let (n, keys) = (self.heads, block.keys.len());
        let g = h / (n / self.kv_heads);
        let q = self.view(seen.q, block.rows.clone(), (h, n));
        let k = self.view(seen.k, block.keys.clone(), (g, self.kv_heads));
        gemm((a, keys), Write::Set, (self.d as f32).powf(-0.5), (q, k.t()), Threads::One);
        for (row, a) in block.rows.clone().zip(a.chunks_exact_mut(keys)) {
            let lse = seen.packed[(row * n + h) * (self.d + 1) + self.d];
            let total = log_add(lse, self.sinks[h]);
            let visible = self.first_key(row, block.start) - block.keys.start..row + 1 - block.keys.start;
            a[..visible.start].fill(0.0);
            a[visible.end..].fill(0.0);
            a[visible.clone()].iter_mut().for_each(|a| *a = exp(*a - total));
            part.sink[h] += f64::from((self.sinks[h] - total).exp());
            if block.keys.start == block.start {
                part.first[h] += f64::from(a[0]);
            }
            let mass = &mut part.mass[h * keys..][..keys];
            a[visible].iter().rev().zip(mass).for_each(|(a, mass)| *mass += a);
        }
    }

    /// Adds `G` of head `h`: `a² ‖W_O (v_s − o_t)‖²` with the sink's zero value in `o`.
    fn errors(
        &self,
        seen: &Activations<'_>,
        block: &Block,
        (h, a, squares): (usize, &[f32], &[f32]),
        part: &mut Part,
    ) {
        let (n, d, keys) = (self.heads, self.d, block.keys.len());
        let rows = block.rows.len();
        let metric = &self.metric.as_ref().expect("called with a metric")[h];
        let v = self.view(seen.v, block.keys.clone(), (h / (n / self.kv_heads), self.kv_heads));
        let mut out = vec![0f32; rows * d];
        gemm((&mut out, d), Write::Set, 1.0, (Mat::dense(a, rows, keys), v), Threads::One);
        let mut mapped = vec![0f32; rows * d];
        let outs = Mat::dense(&out, rows, d);
        gemm((&mut mapped, d), Write::Set, 1.0, (outs, Mat::dense(metric, d, d)), Threads::One);
        let mut cross = vec![0f32; rows * keys];
        gemm((&mut cross, keys), Write::Set, -2.0, (Mat::dense(&mapped, rows, d), v.t()), Threads::One);
        let squares = &squares[block.keys.clone()];
        let mut scaled = vec![0f32; rows * d];
        for (i, row) in block.rows.clone().enumerate() {
            let (o, m) = (&out[i * d..][..d], &mapped[i * d..][..d]);
            let own: f32 = o.iter().zip(m).map(|(a, b)| a * b).sum();
            let visible = self.first_key(row, block.start) - block.keys.start..row + 1 - block.keys.start;
            let (a, cross) = (&a[i * keys..][..keys], &mut cross[i * keys..][..keys]);
            for ((cross, a), square) in cross.iter_mut().zip(a).zip(squares) {
                *cross = a * a * (*cross + square + own).max(0.0);
            }
            let gauss = &mut part.gauss[h * keys..][..keys];
            cross[visible].iter().rev().zip(gauss).for_each(|(g, gauss)| *gauss += g);
            let total = cross.iter().map(|&g| f64::from(g)).sum::<f64>() as f32;
            let q = &seen.q_plain[(row * n + h) * d..][..d];
            scaled[i * d..][..d].iter_mut().zip(q).for_each(|(s, q)| *s = total * q);
        }
        let q = self.view(seen.q_plain, block.rows.clone(), (h, n));
        let query = &mut part.query[h * d * d..][..d * d];
        gemm((query, d), Write::Set, 1.0, (Mat::dense(&scaled, rows, d).t(), q), Threads::One);
    }
}

/// `ln(e^a + e^b)`.
fn log_add(a: f32, b: f32) -> f32 {
    let (high, low) = if a > b { (a, b) } else { (b, a) };
    high + (low - high).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;
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
                close(sums.sink[h], 50.0 - pairs.iter().map(|&(t, s)| a(h, t, s)).sum::<f64>(), "sink");
                let first = (0..45).map(|t| a(h, t, 0)).chain((45..50).map(|t| a(h, t, 45))).sum();
                close(sums.first[h], first, "first");
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
            (sums.query, sums.overlap, sums.mass, sums.gauss, weights)
        };
        assert_eq!(run(1), run(2));
        assert_eq!(run(1), run(5));
    }
}
