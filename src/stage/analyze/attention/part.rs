//! What one block of query rows adds to the sums: its scores, the weights they give, and the errors they let through. Knows no order
//! of blocks.

use std::ops::Range;

use super::{Activations, Shape};
use crate::{
    artifact::moments::{BUCKETS, bucket},
    kernel::{
        exp::exp,
        gemm::{Mat, Threads, Write, gemm},
    },
};

/// Query rows scored at a time.
const ROWS: usize = 32;

/// A block of query rows of one sequence with the keys that any of them sees, as absolute rows.
pub(super) struct Block {
    pub(super) rows: Range<usize>,
    pub(super) keys: Range<usize>,
    pub(super) start: usize,
}

/// One block's share of the sums.
pub(super) struct Part {
    /// [heads, BUCKETS].
    pub(super) sink: Vec<f64>,
    /// [heads, BUCKETS].
    pub(super) first: Vec<f64>,
    /// [heads, keys], by distance.
    pub(super) mass: Vec<f32>,
    /// `Σ_h,t a²` of each key.
    pub(super) weights: Vec<f64>,
    pub(super) overlap: Vec<f32>,
    pub(super) query: Vec<f32>,
    /// [heads, keys], by distance.
    pub(super) gauss: Vec<f32>,
}

impl Shape {
    pub(super) fn blocks(&self, sequence: Range<usize>) -> impl Iterator<Item = Block> + '_ {
        sequence.clone().step_by(ROWS).map(move |from| {
            let end = (from + ROWS).min(sequence.end);
            Block { keys: self.first_key(from, sequence.start)..end, rows: from..end, start: sequence.start }
        })
    }

    fn first_key(&self, row: usize, start: usize) -> usize {
        self.window.map_or(start, |window| (row + 1).saturating_sub(window).max(start))
    }

    /// `v_sᵀ W_OᵀW_O v_s` of head `h` for every token.
    pub(super) fn values_square(&self, seen: &Activations<'_>, h: usize) -> Vec<f32> {
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
    pub(super) fn view<'a>(
        &self,
        data: &'a [f32],
        range: Range<usize>,
        (h, heads): (usize, usize),
    ) -> Mat<'a> {
        let d = self.d;
        let from = (range.start * heads + h) * d;
        Mat::new(&data[from..from + (range.len() - 1) * heads * d + d], range.len(), d, heads * d)
    }

    pub(super) fn part(&self, seen: &Activations<'_>, block: &Block, squares: &[Vec<f32>]) -> Part {
        let (n, d, rows, keys) = (self.heads, self.d, block.rows.len(), block.keys.len());
        let full = self.metric.is_some();
        let mut part = Part {
            sink: vec![0.0; n * BUCKETS],
            first: vec![0.0; n * BUCKETS],
            mass: vec![0.0; n * keys],
            weights: vec![0.0; keys],
            overlap: vec![0.0; if full { n * n } else { 0 }],
            query: vec![0.0; if full { n * d * d } else { 0 }],
            gauss: vec![0.0; if full { n * keys } else { 0 }],
        };
        let mut all = vec![0f32; n * rows * keys];
        for (h, a) in all.chunks_exact_mut(rows * keys).enumerate() {
            self.weights(seen, block, (h, a));
            self.shares(seen, block, (h, a), &mut part);
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

    /// Fills `a` [rows, keys] with the attention weights of head `h`.
    pub(super) fn weights(&self, seen: &Activations<'_>, block: &Block, (h, a): (usize, &mut [f32])) {
        let (n, keys) = (self.heads, block.keys.len());
        let g = h / (n / self.kv_heads);
        let q = self.view(seen.q, block.rows.clone(), (h, n));
        let k = self.view(seen.k, block.keys.clone(), (g, self.kv_heads));
        gemm((a, keys), Write::Set, (self.d as f32).powf(-0.5), (q, k.t()), Threads::One);
        for (row, a) in block.rows.clone().zip(a.chunks_exact_mut(keys)) {
            let total = self.log_sum(seen, row, h);
            let visible = self.visible(block, row);
            a[..visible.start].fill(0.0);
            a[visible.end..].fill(0.0);
            a[visible].iter_mut().for_each(|a| *a = exp(*a - total));
        }
    }

    /// The log-sum-exp of a row with the sink.
    fn log_sum(&self, seen: &Activations<'_>, row: usize, h: usize) -> f32 {
        log_add(seen.packed[(row * self.heads + h) * (self.d + 1) + self.d], self.sinks[h])
    }

    /// The keys of the block that `row` sees.
    pub(super) fn visible(&self, block: &Block, row: usize) -> Range<usize> {
        self.first_key(row, block.start) - block.keys.start..row + 1 - block.keys.start
    }

    /// Adds what follows from the attention weights `a` of head `h` alone.
    fn shares(&self, seen: &Activations<'_>, block: &Block, (h, a): (usize, &[f32]), part: &mut Part) {
        let keys = block.keys.len();
        for (row, a) in block.rows.clone().zip(a.chunks_exact(keys)) {
            let at = h * BUCKETS + bucket(row - block.start);
            part.sink[at] += f64::from((self.sinks[h] - self.log_sum(seen, row, h)).exp());
            if block.keys.start == block.start {
                part.first[at] += f64::from(a[0]);
            }
            let mass = &mut part.mass[h * keys..][..keys];
            a[self.visible(block, row)].iter().rev().zip(mass).for_each(|(a, mass)| *mass += a);
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
        for i in 0..rows {
            let (o, m) = (&out[i * d..][..d], &mapped[i * d..][..d]);
            let own: f32 = o.iter().zip(m).map(|(a, b)| a * b).sum();
            let (a, cross) = (&a[i * keys..][..keys], &mut cross[i * keys..][..keys]);
            for ((cross, a), square) in cross.iter_mut().zip(a).zip(squares) {
                *cross = a * a * (*cross + square + own).max(0.0);
            }
        }
        self.weigh(seen, block, (h, &cross), (&mut part.query, &mut part.gauss));
    }

    /// Adds what the squares `costs` [rows, keys] of the logits of head `h` say of queries, `Σ cost q qᵀ`, and of distances.
    pub(super) fn weigh(
        &self,
        seen: &Activations<'_>,
        block: &Block,
        (h, costs): (usize, &[f32]),
        (query, gauss): (&mut [f32], &mut [f32]),
    ) {
        let (n, d, rows, keys) = (self.heads, self.d, block.rows.len(), block.keys.len());
        let gauss = &mut gauss[h * keys..][..keys];
        let mut scaled = vec![0f32; rows * d];
        for (i, row) in block.rows.clone().enumerate() {
            let costs = &costs[i * keys..][..keys];
            let far_last = costs[self.visible(block, row)].iter().rev();
            far_last.zip(gauss.iter_mut()).for_each(|(cost, gauss)| *gauss += cost);
            let total = costs.iter().map(|&cost| f64::from(cost)).sum::<f64>() as f32;
            let q = &seen.q_plain[(row * n + h) * d..][..d];
            scaled[i * d..][..d].iter_mut().zip(q).for_each(|(s, q)| *s = total * q);
        }
        let q = self.view(seen.q_plain, block.rows.clone(), (h, n));
        let query = &mut query[h * d * d..][..d * d];
        gemm((query, d), Write::Set, 1.0, (Mat::dense(&scaled, rows, d).t(), q), Threads::One);
    }
}

/// `ln(e^a + e^b)`.
fn log_add(a: f32, b: f32) -> f32 {
    let (high, low) = if a > b { (a, b) } else { (b, a) };
    high + (low - high).exp().ln_1p()
}
