//! The same sums weighed by gradients: what a change of keys and values does to the model's prediction, not to the block's output. Knows no
//! model file and no loss.
//!
//! With `u_h,t = W_O,hᵀ g_t` of the gradient `g_t` of the block's output, the gradient for a logit is `a_h(t,s) u_h,t · (v_s − o_h,t)` and
//! that for a value `∂v_s = Σ_h,t a_h(t,s) u_h,t`; a key gets `d^(−1/2) Σ_h,t q_h,t` times those of its logits. Products inside a block of
//! query rows are f32, sums over blocks of what is squared are f64, in the order of the blocks whatever the number of threads.

use rayon::prelude::*;

use super::{Activations, Shape, WAVE, part::Block};
use crate::{
    kernel::gemm::{Mat, Threads, Write, gemm},
    math::moments::SecondMoment,
};

/// The sums of a layer over all calls.
pub(in super::super) struct Fisher {
    /// `Σ F_h q qᵀ` [heads, d, d].
    pub(in super::super) query: Vec<f64>,
    /// `Σ F_h` by distance `[heads][distance]`.
    pub(in super::super) gauss: Vec<Vec<f64>>,
    /// `Σ ∂v ∂vᵀ`, with a 1 behind the gradient.
    pub(in super::super) values: SecondMoment,
}

/// Gradients of one call.
pub(in super::super) struct Gradients {
    /// Of rotated keys [t, kv heads, d].
    pub(in super::super) keys: Vec<f32>,
    /// Of values [t, kv heads, d].
    pub(in super::super) values: Vec<f32>,
}

/// One block's share.
struct Part {
    query: Vec<f32>,
    /// [heads, keys], by distance.
    gauss: Vec<f32>,
    /// Gradients of the keys [kv heads, keys, d].
    k: Vec<f32>,
    /// Gradients of the values [kv heads, keys, d].
    values: Vec<f32>,
}

impl Fisher {
    /// Nothing seen yet.
    pub(in super::super) fn new(shape: &Shape) -> Self {
        let (n, d) = (shape.heads, shape.d);
        Self {
            query: vec![0.0; n * d * d],
            gauss: vec![Vec::new(); n],
            values: SecondMoment::new(shape.kv_heads * d),
        }
    }

    /// Adds one call, with the gradient of its heads' outputs [t, heads, d].
    pub(in super::super) fn add(
        &mut self,
        shape: &Shape,
        seen: &Activations<'_>,
        heads: &[f32],
    ) -> Gradients {
        let blocks: Vec<Block> = seen.offsets.windows(2).flat_map(|w| shape.blocks(w[0]..w[1])).collect();
        let mut sums = Gradients { keys: vec![0f32; seen.k.len()], values: vec![0f32; seen.v.len()] };
        for wave in blocks.chunks(WAVE) {
            let part = |block| shape.fisher(seen, block, heads);
            let parts: Vec<Part> = wave.par_iter().map(part).collect();
            for (block, part) in wave.iter().zip(parts) {
                self.fold(&part, block.keys.len());
                scatter(shape, block, &part.k, &mut sums.keys);
                scatter(shape, block, &part.values, &mut sums.values);
            }
        }
        self.values.add(&sums.values, None);
        sums
    }

    fn fold(&mut self, part: &Part, keys: usize) {
        self.query.iter_mut().zip(&part.query).for_each(|(into, &x)| *into += f64::from(x));
        for (sum, part) in self.gauss.iter_mut().zip(part.gauss.chunks_exact(keys)) {
            sum.resize(sum.len().max(keys), 0.0);
            sum.iter_mut().zip(part).for_each(|(into, &x)| *into += f64::from(x));
        }
    }
}

impl Shape {
    fn fisher(&self, seen: &Activations<'_>, block: &Block, gradient: &[f32]) -> Part {
        let (n, d, rows, keys) = (self.heads, self.d, block.rows.len(), block.keys.len());
        let mut part = Part {
            query: vec![0.0; n * d * d],
            gauss: vec![0.0; n * keys],
            k: vec![0.0; self.kv_heads * keys * d],
            values: vec![0.0; self.kv_heads * keys * d],
        };
        let mut a = vec![0f32; rows * keys];
        for h in 0..n {
            let g = h / (n / self.kv_heads);
            self.weights(seen, block, (h, &mut a));
            let u = self.view(gradient, block.rows.clone(), (h, n));
            let weights = Mat::dense(&a, rows, keys);
            let values = &mut part.values[g * keys * d..][..keys * d];
            gemm((values, d), Write::Add, 1.0, (weights.t(), u), Threads::One);
            self.logits(seen, block, (h, &a, gradient), &mut part);
        }
        part
    }

    /// Adds `F` of head `h`, and what it gives the keys.
    fn logits(
        &self,
        seen: &Activations<'_>,
        block: &Block,
        (h, a, gradient): (usize, &[f32], &[f32]),
        part: &mut Part,
    ) {
        let (n, d, rows, keys) = (self.heads, self.d, block.rows.len(), block.keys.len());
        let g = h / (n / self.kv_heads);
        let v = self.view(seen.v, block.keys.clone(), (g, self.kv_heads));
        let u = self.view(gradient, block.rows.clone(), (h, n));
        let mut along = vec![0f32; rows * keys];
        gemm((&mut along, keys), Write::Set, 1.0, (u, v.t()), Threads::One);
        for (along, a) in along.chunks_exact_mut(keys).zip(a.chunks_exact(keys)) {
            let own: f32 = along.iter().zip(a).map(|(along, a)| along * a).sum();
            along.iter_mut().zip(a).for_each(|(along, a)| *along = a * (*along - own));
        }
        let (q, k) = (self.view(seen.q, block.rows.clone(), (h, n)), &mut part.k[g * keys * d..][..keys * d]);
        let of_logits = Mat::dense(&along, rows, keys).t();
        gemm((k, d), Write::Add, (d as f32).powf(-0.5), (of_logits, q), Threads::One);
        for gradient in &mut along {
            *gradient = gradient.powi(2);
        }
        self.weigh(seen, block, (h, &along), (&mut part.query, &mut part.gauss));
    }
}

/// Adds the rows of a block [kv heads, keys, d] to those of all tokens [t, kv heads, d].
fn scatter(shape: &Shape, block: &Block, part: &[f32], sums: &mut [f32]) {
    let (g, d, keys) = (shape.kv_heads, shape.d, block.keys.len());
    for (at, part) in part.chunks_exact(d).enumerate() {
        let (head, key) = (at / keys, block.keys.start + at % keys);
        let sum = &mut sums[(key * g + head) * d..][..d];
        sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
}
