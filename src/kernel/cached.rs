//! Attention of one new token per sequence to the tokens that are cached of it, returning the log-sum-exp. Knows no cache and no model.
//!
//! A cached token is a row of keys: `shared` elements that all query heads meet, then `own` elements for each of the `slots`, which only the
//! query heads of that slot meet. Grouped queries have `shared = 0`; a latent is what is shared, and rotated keys may have slots
//! (DeepSeek-V2, arXiv 2405.04434 §2.1.3). Values are rows of their own with a part for each slot, or what is shared once more.
//!
//! The rows are cut into chunks of one size, each with a softmax of its own, and the chunks are joined in their order: the number of
//! threads changes no bit (Flash-Decoding).

use rayon::prelude::*;

use super::{
    exp::{exp_in_place, max},
    gemm::{Mat, Threads, Write, gemm},
};

/// Rows of a chunk.
const CHUNK: usize = 128;

/// Widths of a layer's cached rows and of the queries that meet them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Widths {
    /// Query heads.
    pub heads: usize,
    /// Parts of a row that belong to some of the heads: as many heads each.
    pub slots: usize,
    /// Elements of a key that all heads meet.
    pub shared: usize,
    /// Elements of a key in each slot.
    pub own: usize,
    /// Elements of a value in each slot; `None` where the shared elements are the value.
    pub value: Option<usize>,
}

impl Widths {
    /// Elements of a token's keys.
    pub fn key_row(self) -> usize {
        self.shared + self.slots * self.own
    }

    /// Elements of a token's values that are stored beside its keys.
    pub fn value_row(self) -> usize {
        self.slots * self.value.unwrap_or(0)
    }

    /// Elements of a query.
    pub fn query(self) -> usize {
        self.shared + self.own
    }

    /// Elements of a head's output.
    pub fn output(self) -> usize {
        self.value.unwrap_or(self.shared)
    }
}

/// What is cached of one sequence: rows of keys and, where there are any, as many rows of values, in any order.
pub trait Rows: Sync {
    /// How many there are.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Some of them as floats: keys, then values. What has to be converted is put into the room that is given.
    fn read<'a>(&'a self, rows: std::ops::Range<usize>, room: &'a mut [Vec<f32>; 2]) -> [&'a [f32]; 2];
}

/// `q` [sequences, heads, shared + own] → [sequences, heads, output + 1]: the output, and the log-sum-exp (natural) in the last column.
///
/// # Panics
/// If `q` has another size.
pub fn cached_attention<R: Rows>(q: &[f32], widths: Widths, scale: f32, sequences: &[R]) -> Vec<f32> {
    let (heads, output) = (widths.heads, widths.output());
    assert_eq!(q.len(), sequences.len() * heads * widths.query(), "a query for each head of each sequence");
    let q: Vec<f32> = q.iter().map(|x| x * scale).collect();
    let query = |i: usize| &q[i * heads * widths.query()..][..heads * widths.query()];
    let chunks: Vec<(usize, usize)> = sequences
        .iter()
        .enumerate()
        .flat_map(|(i, rows)| (0..rows.len()).step_by(CHUNK).map(move |from| (i, from)))
        .collect();
    let part = |&(i, from): &(usize, usize)| {
        let rows = from..(from + CHUNK).min(sequences[i].len());
        (i, widths.chunk(query(i), &sequences[i], rows))
    };
    let parts: Vec<(usize, Part)> = chunks.par_iter().map(part).collect();
    let mut joined = vec![Part::new(heads, output); sequences.len()];
    for (i, part) in &parts {
        joined[*i].join(part, output);
    }
    joined.iter().flat_map(|part| part.finish(output)).collect()
}

/// The softmax of each head over some rows: outputs before they are divided by the sums.
#[derive(Clone)]
struct Part {
    out: Vec<f32>,
    top: Vec<f32>,
    sum: Vec<f32>,
}

impl Part {
    fn new(heads: usize, output: usize) -> Self {
        Self { out: vec![0.0; heads * output], top: vec![f32::NEG_INFINITY; heads], sum: vec![0.0; heads] }
    }

    fn join(&mut self, next: &Self, output: usize) {
        for h in 0..self.top.len() {
            let top = self.top[h].max(next.top[h]);
            let (before, after) = ((self.top[h] - top).exp(), (next.top[h] - top).exp());
            let out = self.out[h * output..].iter_mut().zip(&next.out[h * output..]).take(output);
            out.for_each(|(out, next)| *out = *out * before + next * after);
            self.sum[h] = self.sum[h] * before + next.sum[h] * after;
            self.top[h] = top;
        }
    }

    fn finish(&self, output: usize) -> Vec<f32> {
        let mut packed = Vec::with_capacity(self.top.len() * (output + 1));
        for (h, (top, sum)) in self.top.iter().zip(&self.sum).enumerate() {
            packed.extend(self.out[h * output..][..output].iter().map(|x| x / sum));
            packed.push(top + sum.ln());
        }
        packed
    }
}

impl Widths {
    fn chunk<R: Rows>(self, q: &[f32], of: &R, rows: std::ops::Range<usize>) -> Part {
        let (n, per) = (rows.len(), self.heads / self.slots);
        let mut room = [Vec::new(), Vec::new()];
        let [keys, values] = of.read(rows, &mut room);
        let (key_row, query) = (self.key_row(), self.query());
        let mut scores = vec![0f32; self.heads * n];
        if self.shared > 0 {
            let pair = (Mat::new(q, self.heads, self.shared, query), Mat::new(keys, n, self.shared, key_row));
            gemm((&mut scores, n), Write::Set, 1.0, (pair.0, pair.1.t()), Threads::One);
        }
        for slot in (0..self.slots).filter(|_| self.own > 0) {
            let q = &q[slot * per * query + self.shared..];
            let keys = &keys[self.shared + slot * self.own..];
            let pair = (Mat::new(q, per, self.own, query), Mat::new(keys, n, self.own, key_row));
            let scores = &mut scores[slot * per * n..][..per * n];
            gemm((scores, n), Write::Add, 1.0, (pair.0, pair.1.t()), Threads::One);
        }
        let output = self.output();
        let mut part = Part::new(self.heads, output);
        for (h, scores) in scores.chunks_exact_mut(n).enumerate() {
            part.top[h] = max(scores);
            part.sum[h] = exp_in_place(scores, part.top[h]);
        }
        let Some(width) = self.value else {
            let pair = (Mat::dense(&scores, self.heads, n), Mat::new(keys, n, output, key_row));
            gemm((&mut part.out, output), Write::Set, 1.0, pair, Threads::One);
            return part;
        };
        for slot in 0..self.slots {
            let scores = Mat::dense(&scores[slot * per * n..], per, n);
            let values = Mat::new(&values[slot * width..], n, width, self.value_row());
            let out = &mut part.out[slot * per * width..][..per * width];
            gemm((out, width), Write::Set, 1.0, (scores, values), Threads::One);
        }
        part
    }
}

#[cfg(test)]
mod tests;
