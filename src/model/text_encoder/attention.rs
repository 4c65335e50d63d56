//! Attention of every token of a text to all of it, one text and one head at a time. Knows no weights.

use rayon::prelude::*;

use crate::{
    kernel::{
        exp,
        ordered::{Left, Packed, product_here},
    },
    math::elementary::sin_cos,
};

/// Queries whose scores are held at once.
const QUERIES: usize = 96;

/// The sizes of one attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) heads: usize,
    pub(super) head_dim: usize,
}

/// `softmax(q kᵀ / √d) v` for texts that lie one after the other in `qkv` `[tokens, 3 · hidden]`; fills `out` `[tokens, hidden]`.
pub(super) fn attention(out: &mut [f32], qkv: &[f32], lengths: &[usize], shape: Shape) {
    let hidden = shape.heads * shape.head_dim;
    let (mut texts, mut rest) = (Vec::new(), (qkv, out));
    for &length in lengths {
        let (qkv, after) = rest.0.split_at(length * 3 * hidden);
        let (out, after_out) = rest.1.split_at_mut(length * hidden);
        texts.push((qkv, out, length));
        rest = (after, after_out);
    }
    texts.into_par_iter().for_each(|(qkv, out, length)| {
        let heads: Vec<Vec<f32>> =
            (0..shape.heads).into_par_iter().map(|head| one(qkv, length, head, shape)).collect();
        for (i, row) in out.chunks_exact_mut(hidden).enumerate() {
            for (to, head) in row.chunks_exact_mut(shape.head_dim).zip(&heads) {
                to.copy_from_slice(&head[i * shape.head_dim..][..shape.head_dim]);
            }
        }
    });
}

/// One head of one text, `[length, head_dim]`.
fn one(qkv: &[f32], length: usize, head: usize, shape: Shape) -> Vec<f32> {
    let Shape { heads, head_dim } = shape;
    let hidden = heads * head_dim;
    let part = |part: usize| Left { data: &qkv[part * hidden + head * head_dim..], stride: 3 * hidden };
    let keys = Packed::of_columns(part(1), head_dim, length);
    let values = Packed::of_rows(part(2), length, head_dim);
    let scale = (1.0 / (head_dim as f64).sqrt()) as f32;
    let mut out = vec![0.0; length * head_dim];
    let mut scores = vec![0.0; QUERIES.min(length) * length];
    for (block, out) in out.chunks_mut(QUERIES * head_dim).enumerate() {
        let rows = out.len() / head_dim;
        let scores = &mut scores[..rows * length];
        scores.fill(0.0);
        let queries = &qkv[block * QUERIES * 3 * hidden + head * head_dim..];
        product_here(scores, Left { data: queries, stride: 3 * hidden }, keys.whole());
        let sums: Vec<f32> = scores
            .chunks_exact_mut(length)
            .map(|row| {
                for x in row.iter_mut() {
                    *x *= scale;
                }
                let largest = exp::max(row);
                exp::exp_in_place(row, largest)
            })
            .collect();
        product_here(out, Left { data: scores, stride: length }, values.whole());
        for (row, sum) in out.chunks_exact_mut(head_dim).zip(sums) {
            for x in row {
                *x /= sum;
            }
        }
    }
    out
}

/// Cosines and sines of positions, `[length, head_dim / 2]` each.
pub(super) struct Rope {
    pairs: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Rope {
    /// Angles are computed in f64: positions are exact, and only the results are rounded.
    pub(super) fn new(length: usize, frequencies: &[f64]) -> Self {
        let angle = |position: usize| frequencies.iter().map(move |f| sin_cos(position as f64 * f));
        let (sin, cos) = (0..length).flat_map(angle).map(|(sin, cos)| (sin as f32, cos as f32)).unzip();
        Self { pairs: frequencies.len(), cos, sin }
    }

    /// Turns the queries and keys of `qkv` `[tokens, 3 · hidden]`; positions begin anew with every text.
    pub(super) fn turn(&self, qkv: &mut [f32], lengths: &[usize], shape: Shape) {
        let hidden = shape.heads * shape.head_dim;
        let positions: Vec<usize> = lengths.iter().flat_map(|&length| 0..length).collect();
        qkv.par_chunks_mut(3 * hidden).zip(positions).for_each(|(row, position)| {
            let (cos, sin) = (&self.cos[position * self.pairs..], &self.sin[position * self.pairs..]);
            for head in row[..2 * hidden].chunks_exact_mut(shape.head_dim) {
                let (low, high) = head.split_at_mut(self.pairs);
                for (((x, y), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                    (*x, *y) = (*x * c - *y * s, *y * c + *x * s);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::noise;

    const SHAPE: Shape = Shape { heads: 3, head_dim: 4 };

    /// The definition in f64, for the tokens of one text.
    fn definition(qkv: &[f32], length: usize) -> Vec<f64> {
        let hidden = SHAPE.heads * SHAPE.head_dim;
        let at = |t: usize, part: usize, j: usize| f64::from(qkv[t * 3 * hidden + part * hidden + j]);
        let mut out = vec![0.0; length * hidden];
        for query in 0..length {
            for head in 0..SHAPE.heads {
                let dims = head * SHAPE.head_dim..(head + 1) * SHAPE.head_dim;
                let score =
                    |key: usize| dims.clone().map(|j| at(query, 0, j) * at(key, 1, j)).sum::<f64>() / 2.0;
                let weights: Vec<f64> = (0..length).map(|key| score(key).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for j in dims.clone() {
                    out[query * hidden + j] =
                        (0..length).map(|key| weights[key] * at(key, 2, j)).sum::<f64>() / sum;
                }
            }
        }
        out
    }

    #[test]
    fn texts_see_themselves_and_no_other() {
        let lengths = [1, 5, 130, 2];
        let width = 3 * SHAPE.heads * SHAPE.head_dim;
        let qkv = noise(5, lengths.iter().sum::<usize>() * width, 2.0);
        let attention = |qkv: &[f32], lengths: &[usize]| {
            let mut out = vec![f32::NAN; qkv.len() / 3];
            attention(&mut out, qkv, lengths, SHAPE);
            out
        };
        let got = attention(&qkv, &lengths);
        let mut start = 0;
        for length in lengths {
            let want = definition(&qkv[start * width..], length);
            let got = &got[start * width / 3..][..want.len()];
            assert!(got.iter().zip(&want).all(|(a, b)| (f64::from(*a) - b).abs() < 2e-6), "length {length}");
            // And bit for bit what the text alone gives.
            assert_eq!(got, attention(&qkv[start * width..][..length * width], &[length]));
            start += length;
        }
    }

    #[test]
    fn a_rope_turns_queries_and_keys_and_begins_anew() {
        let width = 3 * SHAPE.heads * SHAPE.head_dim;
        let before = noise(6, 5 * width, 1.0);
        let mut after = before.clone();
        let rope = Rope::new(3, &[1.0, 0.25]);
        rope.turn(&mut after, &[3, 2], SHAPE);
        let third = width / 3;
        for (token, position) in [0_usize, 1, 2, 0, 1].into_iter().enumerate() {
            let (old, new) = (&before[token * width..][..width], &after[token * width..][..width]);
            assert_eq!(old[2 * third..], new[2 * third..], "values stay");
            for head in 0..2 * SHAPE.heads {
                for (pair, frequency) in [1.0, 0.25].into_iter().enumerate() {
                    let (sin, cos) = (position as f64 * frequency).sin_cos();
                    let (i, j) = (head * 4 + pair, head * 4 + pair + 2);
                    let (x, y) = (f64::from(old[i]), f64::from(old[j]));
                    assert!((f64::from(new[i]) - (x * cos - y * sin)).abs() < 1e-6);
                    assert!((f64::from(new[j]) - (y * cos + x * sin)).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn late_positions_keep_their_angle() {
        // In f16 or bf16 these positions could not be told apart.
        let rope = Rope::new(8192, &[0.978_572_062]);
        for position in [257, 2049, 8190, 8191] {
            let angle = position as f64 * 0.978_572_062;
            assert!((f64::from(rope.cos[position]) - angle.cos()).abs() < 1e-7);
            assert!((f64::from(rope.sin[position]) - angle.sin()).abs() < 1e-7);
        }
    }
}
