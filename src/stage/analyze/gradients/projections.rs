//! Squares of the gradients of a layer's key and value projections, by element: what Palu divides ranks by (arXiv 2407.21118, §3.3). Knows
//! no attention.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::{
    kernel::{
        gemm::{Mat, Threads, Write, gemm},
        host,
    },
    model::{Batch, Config},
    stage::analyze::{attention::Gradients, observe::turned_back},
};

/// The sums of a layer over sequences; each sequence has one gradient.
pub(super) struct Projections {
    /// `Σ (∂W)²` of `k_proj` and, below it, of `v_proj` [2 · kv heads · d, hidden].
    pub(super) squares: Vec<f64>,
    hidden: usize,
}

impl Projections {
    /// Nothing seen yet.
    pub(super) fn new(config: &Config) -> Self {
        let (hidden, width) = (config.hidden_size, config.num_key_value_heads * config.head_dim);
        Self { squares: vec![0.0; 2 * width * hidden], hidden }
    }

    /// Adds the sequences of a batch, from the block's normalised input [t, hidden] and the gradients of rotated keys and of values.
    pub(super) fn add(
        &mut self,
        config: &Config,
        batch: &Batch,
        input: &[f32],
        gradients: &Gradients,
    ) -> candle_core::Result<()> {
        let (heads, d) = (config.num_key_value_heads, config.head_dim);
        let keys = Tensor::from_slice(&gradients.keys, (batch.len(), heads, d), &Device::Cpu)?;
        // The rotation has YaRN's factor, and so has what goes back through it.
        let keys = turned_back(config, &batch.positions, &keys, config.rope.concentration)?;
        let (keys, width) = (host(&keys)?, heads * d);
        for pair in batch.offsets.windows(2) {
            let (from, t) = (pair[0], pair[1] - pair[0]);
            let x = Mat::dense(&input[from * self.hidden..][..t * self.hidden], t, self.hidden);
            for (sums, of) in
                self.squares.chunks_exact_mut(width * self.hidden).zip([&keys[..], &gradients.values])
            {
                let of = Mat::dense(&of[from * width..][..t * width], t, width);
                let mut gradient = vec![0f32; width * self.hidden];
                gemm((&mut gradient, self.hidden), Write::Set, 1.0, (of.t(), x), Threads::All);
                let both = sums.par_iter_mut().zip(&gradient);
                both.for_each(|(sum, &x)| *sum += f64::from(x).powi(2));
            }
        }
        Ok(())
    }
}
