//! The parts that architectures are composed of, each with its own test. They know tensors and sizes, no checkpoint layout.

pub mod attention;
pub mod gated;
pub mod latent;
pub mod linear;
pub mod moe;
pub mod table;

use candle_core::{Result, Tensor};

use super::params::Param;
use crate::kernel;

/// Root-mean-square norm.
pub struct RmsNorm {
    /// Weight `[hidden]`.
    pub weight: Param,
    /// Added to the mean square.
    pub eps: f32,
}

impl RmsNorm {
    /// `x` [t, hidden] → [t, hidden].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        kernel::rms_norm::rms_norm(x, &self.weight.tensor, self.eps, self.weight.train)
    }

    /// Each head of `x` [t, heads, d] by itself.
    pub fn of_heads(&self, x: &Tensor) -> Result<Tensor> {
        self.forward(&x.flatten_to(1)?)?.reshape(x.shape())
    }
}
