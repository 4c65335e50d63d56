//! Probes watch a forward pass; they never change it.

use candle_core::{Result, Tensor};

/// What one attention block computed. Token rows are those of the batch.
pub struct AttentionSeen<'a> {
    /// The layer's index.
    pub layer: usize,
    /// The block's normalised input [t, hidden].
    pub input: &'a Tensor,
    /// Rotated queries [t, heads, d].
    pub q: &'a Tensor,
    /// Rotated keys [t, kv heads, d].
    pub k: &'a Tensor,
    /// Values [t, kv heads, dv].
    pub v: &'a Tensor,
    /// Output before the sink and the log-sum-exp, [t, heads, dv + 1].
    pub packed: &'a Tensor,
    /// Outputs of the heads, sinks counted [t, heads, dv].
    pub heads: &'a Tensor,
    /// The block's output after `o_proj` [t, hidden].
    pub output: &'a Tensor,
}

/// Receives observations. Every method may be left out.
pub trait Probe {
    /// After an attention block.
    fn attention(&mut self, _seen: &AttentionSeen<'_>) -> Result<()> {
        Ok(())
    }
    /// After a router: `logits` [t, experts].
    fn router(&mut self, _layer: usize, _logits: &Tensor) -> Result<()> {
        Ok(())
    }
    /// After a whole layer: the residual stream [t, hidden].
    fn layer(&mut self, _layer: usize, _hidden: &Tensor) -> Result<()> {
        Ok(())
    }
}

/// The probe that looks away.
pub struct NoProbe;

impl Probe for NoProbe {}
