//! The forward pass: all query heads of a key/value head at once, keys a tile at a time (FlashAttention, arXiv 2205.14135 §3.1).

use std::ops::Range;

use rayon::prelude::*;

use super::{Dims, Pattern};
use crate::kernel::{
    exp::{exp_in_place, max},
    ordered::{Left, PANEL, Packed, product_here, set_product_here},
};

/// Query rows scored at a time.
pub(super) const BLOCK: usize = 64;
/// Keys of a tile; a multiple of a panel's width.
const TILE: usize = 512;

/// A block of query rows of one sequence and the keys that any of them sees, as absolute token ranges.
struct Block {
    rows: Range<usize>,
    keys: Range<usize>,
}

impl Block {
    fn all(pattern: &Pattern, sequence: Range<usize>) -> impl Iterator<Item = Self> + '_ {
        sequence.clone().step_by(BLOCK).map(move |from| {
            let rows = from..(from + BLOCK).min(sequence.end);
            Self { keys: pattern.first_key(from, sequence.start)..rows.end, rows }
        })
    }
}

/// The keys and values of one key/value head over one sequence, packed for products.
struct Head {
    /// dk terms, a column for each token.
    keys: Packed,
    /// A term for each token, dv columns.
    values: Packed,
}

/// A block of query rows with what it needs, and where its results go.
struct Work<'a> {
    block: Block,
    start: usize,
    heads: &'a [Head],
    out: &'a mut [f32],
}

/// Output and log-sum-exp [t, hq, dv + 1].
pub(super) fn forward(pattern: &Pattern, dims: Dims, (q, k, v): (&[f32], &[f32], &[f32])) -> Vec<f32> {
    let Dims { hq, hk, dk, dv } = dims;
    let width = hq * (dv + 1);
    let mut out = vec![0f32; q.len() / (hq * dk).max(1) * width];
    let sequences: Vec<Range<usize>> = pattern.sequences().filter(|sequence| !sequence.is_empty()).collect();
    let pack = |i: usize| {
        let (sequence, g) = (sequences[i / hk].clone(), i % hk);
        let (start, columns) = (sequence.start * hk + g, sequence.len());
        Head {
            keys: Packed::of_columns(Left { data: &k[start * dk..], stride: hk * dk }, dk, columns),
            values: Packed::of_rows(Left { data: &v[start * dv..], stride: hk * dv }, columns, dv),
        }
    };
    let heads: Vec<Head> = (0..sequences.len() * hk).into_par_iter().map(pack).collect();
    let (mut rest, mut work) = (out.as_mut_slice(), Vec::new());
    for (i, sequence) in sequences.iter().enumerate() {
        for block in Block::all(pattern, sequence.clone()) {
            let (rows, tail) = rest.split_at_mut(block.rows.len() * width);
            rest = tail;
            work.push(Work { block, start: sequence.start, heads: &heads[i * hk..(i + 1) * hk], out: rows });
        }
    }
    work.into_par_iter().for_each(|work| work.run(pattern, dims, q));
    out
}

/// The softmax of some rows so far: outputs before they are divided by the sums.
struct Running {
    out: Vec<f32>,
    top: Vec<f32>,
    sum: Vec<f32>,
}

impl Work<'_> {
    fn run(self, pattern: &Pattern, dims: Dims, q: &[f32]) {
        let Dims { hq, hk, dk, dv } = dims;
        let per = hq / hk;
        let rows = self.block.rows.len() * per;
        let mut queries = Vec::with_capacity(rows * dk);
        let mut scores = vec![0f32; rows * TILE];
        for (g, head) in self.heads.iter().enumerate() {
            queries.clear();
            for row in self.block.rows.clone() {
                let heads = &q[(row * hq + g * per) * dk..][..per * dk];
                queries.extend(heads.iter().map(|x| x * pattern.scale));
            }
            let mut running = Running {
                out: vec![0f32; rows * dv],
                top: vec![f32::NEG_INFINITY; rows],
                sum: vec![0f32; rows],
            };
            let (first, last) = (self.block.keys.start - self.start, self.block.keys.end - self.start);
            // A tile begins with a panel.
            for from in (first / PANEL * PANEL..last).step_by(TILE) {
                let tile = from..(from + TILE).min(last);
                let scores = &mut scores[..rows * tile.len()];
                set_product_here(
                    scores,
                    Left { data: &queries, stride: dk },
                    head.keys.part(tile.clone(), 0..dk),
                );
                running.softmax(scores, tile.len(), |i| {
                    let row = self.block.rows.start + i / per;
                    let seen = pattern.first_key(row, self.start) - self.start..row + 1 - self.start;
                    seen.start.clamp(tile.start, tile.end) - tile.start
                        ..seen.end.clamp(tile.start, tile.end) - tile.start
                });
                let left = Left { data: scores, stride: tile.len() };
                product_here(&mut running.out, left, head.values.part(0..dv, tile));
            }
            for i in 0..rows {
                let to = &mut self.out[(i / per * hq + g * per + i % per) * (dv + 1)..][..=dv];
                let share = 1.0 / running.sum[i];
                to.iter_mut().zip(&running.out[i * dv..][..dv]).for_each(|(to, x)| *to = x * share);
                to[dv] = running.top[i] + running.sum[i].ln();
            }
        }
    }
}

impl Running {
    /// Turns rows of scores into weights relative to the largest score so far, zero outside what a row sees.
    fn softmax(&mut self, scores: &mut [f32], width: usize, seen: impl Fn(usize) -> Range<usize>) {
        let dv = self.out.len() / self.top.len();
        for (i, row) in scores.chunks_exact_mut(width).enumerate() {
            let seen = seen(i);
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            if seen.is_empty() {
                continue;
            }
            let row = &mut row[seen];
            let top = max(row).max(self.top[i]);
            if top > self.top[i] {
                let shrink = (self.top[i] - top).exp();
                self.out[i * dv..][..dv].iter_mut().for_each(|x| *x *= shrink);
                self.sum[i] *= shrink;
                self.top[i] = top;
            }
            self.sum[i] += exp_in_place(row, top);
        }
    }
}
