//! The MLP of the Llama family: two maps to the inner width, one gating the other, and one back.

use candle_core::{Result, Tensor};

use super::linear::Linear;
use crate::kernel::{gated_mlp::gated_mlp, ordered::FEW, silu_mul::silu_mul};

/// `down(silu(gate(x)) · up(x))`.
#[derive(Clone)]
pub struct GatedMlp {
    /// [inner, hidden].
    pub gate_proj: Linear,
    /// [inner, hidden].
    pub up_proj: Linear,
    /// [hidden, inner].
    pub down_proj: Linear,
}

impl GatedMlp {
    /// Normalised input `x` [t, hidden] → [t, hidden].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let maps = [&self.gate_proj, &self.up_proj, &self.down_proj];
        let plain = |map: &Linear| map.bias.is_none() && !map.weight.tensor.track_op();
        // Of a few tokens the inner activations are small, and the maps one by one write no packed copy of their weights.
        if x.dim(0)? > FEW && !x.track_op() && maps.into_iter().all(plain) {
            return gated_mlp(&x.contiguous()?, maps.map(|map| &map.weight.tensor));
        }
        self.down_proj.forward(&silu_mul(&self.gate_proj.forward(x)?, &self.up_proj.forward(x)?)?)
    }
}
