//! The backward pass: keys a tile at a time and, for each, blocks of query rows (FlashAttention-2, arXiv 2307.08691 §3.1.2).
//!
//! With `P = exp(S − lse)`, `D = Σ dO · O` of a row and `dlse` the gradient of its log-sum-exp: `dV = Pᵀ dO`,
//! `dS = P (dO Vᵀ − D + dlse)`, `dQ = scale · dS K`, `dK = scale · dSᵀ Q`. One task owns a key/value head of a sequence, so every sum
//! has one order whatever the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use super::{Dims, Pattern};
use crate::kernel::{
    arch::vectorised,
    exp::exp,
    ordered::{Left, PANEL, Packed, product_here, set_product_here, transposed_product_here},
};

/// Keys of a tile; a multiple of a panel's width.
pub(super) const TILE: usize = 480;
/// Rows of a block, one for each query head of each of its tokens: two matrices of a block and a tile stay in a core's cache.
pub(super) const ROWS: usize = 96;

/// What the backward pass reads.
#[derive(Clone, Copy)]
pub(super) struct Saved<'a> {
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
    /// Output and log-sum-exp of the forward pass.
    pub(super) out: &'a [f32],
    /// The gradient of both.
    pub(super) grad: &'a [f32],
}

/// The gradients of `q`, `k` and `v`.
pub(super) fn backward(pattern: &Pattern, dims: Dims, saved: Saved<'_>) -> [Vec<f32>; 3] {
    let Dims { hq, hk, dk, dv } = dims;
    let mut grads = [saved.q, saved.k, saved.v].map(|x| vec![0f32; x.len()]);
    let [dq, dkeys, dvalues] = &mut grads;
    let mut pieces =
        [dq.chunks_exact_mut(hq / hk * dk), dkeys.chunks_exact_mut(dk), dvalues.chunks_exact_mut(dv)];
    let mut work = Vec::new();
    for sequence in pattern.sequences() {
        let new = |g| Work { sequence: sequence.clone(), g, grads: [const { Vec::new() }; 3] };
        let mut heads: Vec<Work<'_>> = (0..hk).map(new).collect();
        for head in 0..sequence.len() * hk {
            for (grads, pieces) in heads[head % hk].grads.iter_mut().zip(&mut pieces) {
                grads.extend(pieces.next());
            }
        }
        work.append(&mut heads);
    }
    work.into_par_iter().for_each(|work| work.run(pattern, dims, saved));
    grads
}

/// A key/value head over one sequence, and where its gradients go: for each token its part of a row of `dq`, `dk` and `dv`.
struct Work<'a> {
    sequence: Range<usize>,
    g: usize,
    grads: [Vec<&'a mut [f32]>; 3],
}

impl Work<'_> {
    fn run(mut self, pattern: &Pattern, dims: Dims, saved: Saved<'_>) {
        let Range { start, end } = self.sequence;
        let tokens = (ROWS * dims.hk / dims.hq).max(1);
        let mut tile = Tile::default();
        for from in (start..end).step_by(TILE) {
            tile.load(from..(from + TILE).min(end), (self.g, dims), saved);
            // The last key is seen by itself and `window − 1` rows after it.
            let last = pattern.window.map_or(end, |window| window.saturating_add(tile.keys.end - 1).min(end));
            for first in (from..last).step_by(tokens) {
                let rows = first..(first + tokens).min(last);
                let block = Block::new(rows.clone(), (self.g, dims, pattern.scale), saved);
                let sees = |row: usize| pattern.first_key(row, start)..row + 1;
                tile.add(block, sees, &mut self.grads[0][rows.start - start..rows.end - start]);
            }
            let tokens = tile.keys.start - start..tile.keys.end - start;
            for (to, sums) in self.grads[1..].iter_mut().zip([&tile.dk, &tile.dv]) {
                let width = sums.len() / tokens.len();
                to[tokens.clone()]
                    .iter_mut()
                    .zip(sums.chunks_exact(width))
                    .for_each(|(to, x)| to.copy_from_slice(x));
            }
        }
        self.grads[0].iter_mut().flat_map(|row| row.iter_mut()).for_each(|x| *x *= pattern.scale);
    }
}

/// Query rows of some tokens, the heads of a token one after the other.
struct Block {
    rows: Range<usize>,
    /// Scaled queries and the gradient of the output, dk and dv wide.
    q: Vec<f32>,
    dout: Vec<f32>,
    /// For each row its log-sum-exp, and what is added to `dO · v`.
    stats: Vec<[f32; 2]>,
}

impl Block {
    fn new(rows: Range<usize>, (g, dims, scale): (usize, Dims, f32), saved: Saved<'_>) -> Self {
        let Dims { hq, hk, dk, dv } = dims;
        let (per, n) = (hq / hk, rows.len() * hq / hk);
        let mut block = Self {
            rows: rows.clone(),
            q: Vec::with_capacity(n * dk),
            dout: Vec::with_capacity(n * dv),
            stats: Vec::with_capacity(n),
        };
        for row in rows {
            let head = row * hq + g * per;
            block.q.extend(saved.q[head * dk..][..per * dk].iter().map(|x| x * scale));
            let [out, grad] = [saved.out, saved.grad].map(|x| x[head * (dv + 1)..].chunks_exact(dv + 1));
            for (out, grad) in out.zip(grad).take(per) {
                let through_out: f32 = out[..dv].iter().zip(&grad[..dv]).map(|(o, g)| o * g).sum();
                block.dout.extend_from_slice(&grad[..dv]);
                block.stats.push([out[dv], grad[dv] - through_out]);
            }
        }
        block
    }
}

/// Some keys with their values, packed as the right-hand sides of products, and the sums of their gradients.
#[derive(Default)]
struct Tile {
    keys: Range<usize>,
    /// dk and dv terms, a column for each key.
    k: Packed,
    v: Packed,
    /// A term for each key, dk columns.
    k_rows: Packed,
    dk: Vec<f32>,
    dv: Vec<f32>,
    /// Probabilities and gradients of the scores of one block, and its queries or gradients as a right-hand side.
    p: Vec<f32>,
    ds: Vec<f32>,
    right: Packed,
}

impl Tile {
    fn load(&mut self, keys: Range<usize>, (g, dims): (usize, Dims), saved: Saved<'_>) {
        let Dims { hk, dk, dv, .. } = dims;
        let (n, head) = (keys.len(), keys.start * hk + g);
        let k = Left { data: &saved.k[head * dk..], stride: hk * dk };
        let v = Left { data: &saved.v[head * dv..], stride: hk * dv };
        self.k.fill_columns(k, dk, n);
        self.v.fill_columns(v, dv, n);
        self.k_rows.fill_rows(k, n, dk);
        for (sums, d) in [(&mut self.dk, dk), (&mut self.dv, dv)] {
            sums.clear();
            sums.resize(n * d, 0.0);
        }
        self.keys = keys;
    }

    /// Adds what a block has to the gradients of the keys and the values, and to that of the block's queries, still without the scale.
    fn add(&mut self, block: Block, sees: impl Fn(usize) -> Range<usize>, dq: &mut [&mut [f32]]) {
        let rows = block.stats.len();
        let (per, dk, dv) = (rows / block.rows.len(), block.q.len() / rows, block.dout.len() / rows);
        let start = self.keys.start;
        // The keys that any row sees, from a whole panel on.
        let first = sees(block.rows.start).start.max(start) - start;
        let part = first / PANEL * PANEL..block.rows.end.min(self.keys.end) - start;
        let width = part.len();
        for (to, left, right) in [(&mut self.p, &block.q, &self.k), (&mut self.ds, &block.dout, &self.v)] {
            to.resize(rows * width, 0.0);
            let terms = right.inner();
            set_product_here(to, Left { data: left, stride: terms }, right.part(part.clone(), 0..terms));
        }
        let lines = self.p.chunks_exact_mut(width).zip(self.ds.chunks_exact_mut(width));
        for (i, ((p, ds), stats)) in lines.zip(&block.stats).enumerate() {
            let place = |key: usize| key.saturating_sub(start + part.start).min(width);
            let seen = sees(block.rows.start + i / per);
            score_gradient(p, ds, place(seen.start)..place(seen.end), *stats);
        }
        let [p, ds] = [&self.p, &self.ds].map(|data| Left { data, stride: width });
        for (to, left, right, d) in [(&mut self.dv, p, &block.dout, dv), (&mut self.dk, ds, &block.q, dk)] {
            self.right.fill_rows(Left { data: right, stride: d }, rows, d);
            let sums = (&mut to[part.start * d..part.end * d], d, 0);
            transposed_product_here(sums, left, self.right.whole());
        }
        let mut sums = block.q; // its room
        sums.clear();
        sums.extend(dq.iter().flat_map(|row| row.iter()));
        product_here(&mut sums, ds, self.k_rows.part(0..dk, part));
        dq.iter_mut().zip(sums.chunks_exact(per * dk)).for_each(|(row, sums)| row.copy_from_slice(sums));
    }
}

/// `p` holds scores and becomes probabilities; `ds` holds `dO · v` and becomes the gradient of the scores. Zero outside what is seen.
fn score_gradient(p: &mut [f32], ds: &mut [f32], seen: Range<usize>, [log_sum_exp, shift]: [f32; 2]) {
    for x in [&mut *p, &mut *ds] {
        x[..seen.start].fill(0.0);
        x[seen.end..].fill(0.0);
    }
    let (p, ds) = (&mut p[seen.clone()], &mut ds[seen]);
    vectorised(
        #[inline(always)]
        || {
            for (p, ds) in p.iter_mut().zip(&mut *ds) {
                *p = exp(*p - log_sum_exp);
                *ds = *p * (*ds + shift);
            }
        },
    );
}
