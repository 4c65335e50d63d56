//! The MLP of the Llama family: two maps to the inner width, one gating the other, and one back.

use candle_core::{Result, Tensor};

use super::linear::Linear;
use crate::kernel::silu_mul::silu_mul;

/// `down(silu(gate(x)) · up(x))`.
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
        self.down_proj.forward(&silu_mul(&self.gate_proj.forward(x)?, &self.up_proj.forward(x)?)?)
    }
}
