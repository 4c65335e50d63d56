//! Sums over attention weights: sinks, distances, and what a conversion needs to weigh errors of keys and values.
//!
//! Scores are computed again, a block of query rows at a time; nothing of size tokens² is kept. Products inside a block are f32,
//! sums over blocks are f64, in the order of the blocks whatever the number of threads. Knows no model file.

mod fisher;
mod part;

use rayon::prelude::*;

pub(super) use self::fisher::{Fisher, Gradients};
use self::part::{Block, Part};
use crate::artifact::moments::BUCKETS;

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
    /// Attention that went to the sink, by the query's position [heads, BUCKETS].
    pub(super) sink: Vec<f64>,
    /// Attention that went to the sequence's first token, by the query's position [heads, BUCKETS].
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

impl Sums {
    /// Nothing seen yet.
    pub(super) fn new(shape: &Shape) -> Self {
        let (n, d) = (shape.heads, shape.d);
        Self {
            sink: vec![0.0; n * BUCKETS],
            first: vec![0.0; n * BUCKETS],
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

#[cfg(test)]
mod tests;
