//! Absorbed latent attention: the latent is the one key and value of all heads, and no key or value is made (DeepSeek-V2, arXiv 2405.04434
//! §2.1.3). What a decoder computes for each new token, here for all tokens of a batch.
//!
//! Head `h` of key/value head `g` sees the logits `q_nopeᵀ W_K,g z = (W_K,gᵀ q_nope)ᵀ z`, and its output is `W_V,g Σ a z`. What a kernel
//! stores in between is rounded as activations are.

use candle_core::{Result, Tensor};

use super::{LatentAttention, Parts};
use crate::model::{batch::Batch, cache::LayerCache};

impl LatentAttention {
    /// All tokens of a batch → [t, hidden].
    pub(super) fn absorbed(&self, parts: Parts, batch: &Batch) -> Result<Tensor> {
        let (common, Parts { q, latent, rotated }) = (&self.common, parts);
        let mut q_full = self.met(&q)?;
        let latent = latent.unsqueeze(1)?;
        let mut k_full = latent.clone();
        if let Some((q_rope, k_rope)) = rotated {
            let groups = common.heads / self.rope_heads;
            // Each head's rotated query meets the rotated keys of its own head alone.
            let slot = |g: usize| {
                let own = q_rope.narrow(1, g * groups, groups)?;
                let width = own.dim(2)?;
                own.pad_with_zeros(2, g * width, (self.rope_heads - 1 - g) * width)
            };
            let slots = (0..self.rope_heads).map(slot).collect::<Result<Vec<_>>>()?;
            q_full = Tensor::cat(&[&q_full, &Tensor::cat(&slots, 1)?], 2)?;
            k_full = Tensor::cat(&[&latent, &k_rope.flatten_from(1)?.unsqueeze(1)?], 2)?;
        }
        let seen = (&q_full.contiguous()?, &k_full.contiguous()?, &latent.contiguous()?);
        self.leave(&common.packed(seen, batch)?)
    }

    /// One token of each sequence against what is cached, itself included → [sequences, hidden].
    pub(super) fn against(&self, parts: Parts, cache: &LayerCache) -> Result<Tensor> {
        let mut q = self.met(&parts.q)?;
        if let Some((q_rope, _)) = parts.rotated {
            q = Tensor::cat(&[&q, &q_rope], 2)?;
        }
        self.leave(&self.common.cached(&q.contiguous()?, cache)?)
    }

    /// The part of each query that meets the latent [t, heads, rank].
    fn met(&self, q: &Tensor) -> Result<Tensor> {
        let keys = self.maps()?.narrow(1, 0, self.nope)?;
        self.common.storage.activations.round(&self.by_head(&q.narrow(2, 0, self.nope)?, &keys)?)
    }

    /// The block's output [t, hidden] from the mixed latents and log-sum-exps of its heads [t, heads, rank + 1].
    fn leave(&self, packed: &Tensor) -> Result<Tensor> {
        let (common, stored) = (&self.common, self.common.storage.activations);
        let mixed = stored.round(&common.sunk(packed)?)?;
        let values = self.maps()?.narrow(1, self.nope, self.dv)?.transpose(1, 2)?;
        common.output(&stored.round(&self.by_head(&mixed, &values)?)?)
    }

    /// `kv_b_proj` by key/value head [kv heads, nope + dv, rank].
    fn maps(&self) -> Result<Tensor> {
        let weight = &self.kv_b_proj.weight.tensor;
        weight.reshape((self.common.kv_heads, self.nope + self.dv, weight.dim(1)?))
    }

    /// Each head of `x` [t, heads, n] times the map of its key/value head, `maps` [kv heads, n, m] → [t, heads, m].
    fn by_head(&self, x: &Tensor, maps: &Tensor) -> Result<Tensor> {
        let (t, heads, n) = x.dims3()?;
        let (kv_heads, per) = (self.common.kv_heads, heads / self.common.kv_heads);
        let grouped = x.transpose(0, 1)?.contiguous()?.reshape((kv_heads, per * t, n))?;
        let mapped = grouped.matmul(&maps.contiguous()?)?;
        mapped.reshape((heads, t, maps.dim(2)?))?.transpose(0, 1)?.contiguous()
    }
}
