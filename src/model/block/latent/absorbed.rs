//! Absorbed latent attention: the latent is the one key and value of all heads, and no key or value is made (DeepSeek-V2, arXiv 2405.04434
//! §2.1.3). What a decoder computes for each new token, here for all tokens of a batch.
//!
//! Head `h` of key/value head `g` sees the logits `q_nopeᵀ W_K,g z = (W_K,gᵀ q_nope)ᵀ z`, and its output is `W_V,g Σ a z`. What a kernel
//! stores in between is rounded as activations are.

use candle_core::{Result, Tensor};

use super::LatentAttention;
use crate::model::batch::Batch;

impl LatentAttention {
    /// `q` [t, heads, nope + rope], the latent [t, rank], rotated parts → [t, hidden].
    pub(super) fn absorbed(
        &self,
        (q, latent, rotated): (&Tensor, &Tensor, Option<(Tensor, Tensor)>),
        batch: &Batch,
    ) -> Result<Tensor> {
        let (common, stored) = (&self.common, self.common.storage.activations);
        let rank = latent.dim(1)?;
        let maps = self.kv_b_proj.weight.tensor.reshape((common.kv_heads, self.nope + self.dv, rank))?;
        let latent = latent.unsqueeze(1)?;
        let mut q_full = self.by_head(&q.narrow(2, 0, self.nope)?, &maps.narrow(1, 0, self.nope)?)?;
        q_full = stored.round(&q_full)?;
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
        let mixed = stored.round(&common.sunk(&common.packed(seen, batch)?)?)?;
        let maps = maps.narrow(1, self.nope, self.dv)?.transpose(1, 2)?;
        common.output(&stored.round(&self.by_head(&mixed, &maps)?)?)
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
