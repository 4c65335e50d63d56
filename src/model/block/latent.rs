//! Multi-head latent attention, expanded form: rotated keys as they are, un-rotated keys and values from a shared latent.
//!
//! Cached per token: the rotated keys (2 · pairs for each key/value head, or once for all) and the latent (`kv_lora_rank`). The latent
//! carries the bias of keys and values, so `kv_b_proj` has none and can be absorbed into queries and outputs (DeepSeek-V2, arXiv 2405.04434
//! §2.1).
//! Query and key heads are laid out `[un-rotated; rotated]`.

use candle_core::{Result, Tensor};

use crate::{
    kernel::rope::rope,
    model::{batch::Batch, probe::Probe},
};

use super::{attention::Common, linear::Linear};

/// Latent attention over `kv_heads` expanded key/value heads.
pub struct LatentAttention {
    /// Sizes, sinks, output projection; `inv_freq` holds the rotated pairs only.
    pub common: Common,
    /// [heads · (nope + rope), hidden].
    pub q_proj: Linear,
    /// Rotated keys [rope heads · rope, hidden]; `None` when nothing is rotated.
    pub k_rope_proj: Option<Linear>,
    /// Latent [kv_lora_rank, hidden], with bias.
    pub kv_a_proj: Linear,
    /// [kv heads · (nope + dv), kv_lora_rank]: per head the key rows, then the value rows.
    pub kv_b_proj: Linear,
    /// Heads with rotated keys of their own: all key/value heads, or one that all share.
    pub rope_heads: usize,
    /// Un-rotated width of a query or key head.
    pub nope: usize,
    /// Width of a value head.
    pub dv: usize,
}

impl LatentAttention {
    /// Normalised input `x` [t, hidden] → [t, hidden].
    pub fn forward(&self, x: &Tensor, batch: &Batch, probe: &mut dyn Probe) -> Result<Tensor> {
        let common = &self.common;
        let latent = common.cache.round(&self.kv_a_proj.forward(x)?)?;
        let content = self.kv_b_proj.heads(&latent, common.kv_heads)?;
        let k_nope = content.narrow(2, 0, self.nope)?;
        let v = content.narrow(2, self.nope, self.dv)?.contiguous()?;
        let q = self.q_proj.heads(x, common.heads)?;
        let (q, k) = match &self.k_rope_proj {
            None => (q, k_nope),
            Some(k_rope_proj) => {
                let width = 2 * common.inv_freq.len();
                let table = common.rotations(batch);
                let q_rope = rope(&q.narrow(2, self.nope, width)?.contiguous()?, &table)?;
                let k_rope = common.cache.round(&rope(&k_rope_proj.heads(x, self.rope_heads)?, &table)?)?;
                let k_rope = k_rope.broadcast_as((x.dim(0)?, common.kv_heads, width))?;
                if self.nope == 0 {
                    (q_rope, k_rope)
                } else {
                    let q_nope = q.narrow(2, 0, self.nope)?;
                    (Tensor::cat(&[&q_nope, &q_rope], 2)?, Tensor::cat(&[&k_nope, &k_rope], 2)?)
                }
            }
        };
        common.attend(x, (&q.contiguous()?, &k.contiguous()?, &v), batch, probe)
    }
}
