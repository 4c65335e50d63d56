//! A linear map with or without bias. Its weight may be frozen.

use candle_core::{Result, Tensor};

use crate::{kernel, model::params::Param};

/// `y = x Wᵀ + b`.
#[derive(Clone)]
pub struct Linear {
    /// [out, in].
    pub weight: Param,
    /// `[out]`.
    pub bias: Option<Param>,
}

impl Linear {
    /// `x` [t, in] → [t, out].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let bias = self.bias.as_ref().map(|b| &b.tensor);
        kernel::linear::linear(x, &self.weight.tensor, bias, self.weight.train)
    }

    /// `x` [t, in] → [t, heads, d].
    pub fn heads(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let y = self.forward(x)?;
        let (t, out) = y.dims2()?;
        y.reshape((t, heads, out / heads))
    }
}
