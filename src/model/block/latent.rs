//! Multi-head latent attention: rotated keys as they are, un-rotated keys and values from a shared latent.
//!
//! Cached per token: the rotated keys (2 · pairs for each key/value head, or once for all) and the latent (`kv_lora_rank`). The latent
//! carries the bias of keys and values, so `kv_b_proj` has none and can be absorbed into queries and outputs (DeepSeek-V2, arXiv 2405.04434
//! §2.1).
//! Query and key heads are laid out `[un-rotated; rotated]`.

mod absorbed;

use candle_core::{Result, Tensor};

use crate::{
    kernel::{host, rope::rope},
    model::{
        batch::Batch,
        cache::LayerCache,
        probe::{NoProbe, Probe},
    },
};

use super::{RmsNorm, attention::Common, linear::Linear};

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
    /// Norms of a query and of a key `[d]`, before they are rotated; only where nothing of them is un-rotated.
    pub qk_norm: Option<[RmsNorm; 2]>,
    /// Heads with rotated keys of their own: all key/value heads, or one that all share.
    pub rope_heads: usize,
    /// Un-rotated width of a query or key head.
    pub nope: usize,
    /// Width of a value head.
    pub dv: usize,
}

/// What attention is made of.
struct Parts {
    /// [t, heads, nope + rope], not rotated.
    q: Tensor,
    /// [t, rank], as it is cached.
    latent: Tensor,
    /// Rotated parts of queries [t, heads, rope] and keys [t, rope heads, rope], where anything is rotated.
    rotated: Option<(Tensor, Tensor)>,
}

impl LatentAttention {
    /// Normalised input `x` [t, hidden] → [t, hidden].
    pub fn forward(&self, x: &Tensor, batch: &Batch, probe: &mut dyn Probe) -> Result<Tensor> {
        self.whole(x, self.parts(x, batch)?, batch, probe)
    }

    /// The same of the next tokens of each sequence, whose latent and rotated keys are added to `cache`: any number of them where nothing is
    /// cached yet, one of each sequence later, which is computed on the latent itself.
    pub fn decode(&self, x: &Tensor, batch: &Batch, cache: &mut LayerCache) -> Result<Tensor> {
        let begins = cache.is_empty();
        let parts = self.parts(x, batch)?;
        let row = match &parts.rotated {
            None => parts.latent.clone(),
            Some((_, k_rope)) => Tensor::cat(&[&parts.latent, &k_rope.flatten_from(1)?], 1)?,
        };
        cache.append(&host(&row.contiguous()?)?, &[], &batch.offsets);
        if begins { self.whole(x, parts, batch, &mut NoProbe) } else { self.against(parts, cache) }
    }

    /// All tokens of a batch, in the form that the configuration says.
    fn whole(&self, x: &Tensor, parts: Parts, batch: &Batch, probe: &mut dyn Probe) -> Result<Tensor> {
        if self.common.storage.absorbed {
            self.absorbed(parts, batch)
        } else {
            self.expanded(x, parts, batch, probe)
        }
    }

    /// What is made of the input alone.
    fn parts(&self, x: &Tensor, batch: &Batch) -> Result<Parts> {
        let common = &self.common;
        let latent = common.storage.cache.round(&self.kv_a_proj.forward(x)?)?;
        let q = self.q_proj.heads(x, common.heads)?;
        let rotated = self.rotated(x, &q, batch)?;
        Ok(Parts { q, latent, rotated })
    }

    /// Keys and values are made of the latent, and attended to.
    fn expanded(&self, x: &Tensor, parts: Parts, batch: &Batch, probe: &mut dyn Probe) -> Result<Tensor> {
        let (common, Parts { q, latent, rotated }) = (&self.common, parts);
        let content = self.kv_b_proj.heads(&latent, common.kv_heads)?;
        let k_nope = content.narrow(2, 0, self.nope)?;
        let v = content.narrow(2, self.nope, self.dv)?.contiguous()?;
        let (q, k) = match rotated {
            None => (q, k_nope),
            Some((q_rope, k_rope)) => {
                let width = 2 * common.inv_freq.len();
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

    /// Rotated parts of queries [t, heads, rope] and keys [t, rope heads, rope], where anything is rotated.
    fn rotated(&self, x: &Tensor, q: &Tensor, batch: &Batch) -> Result<Option<(Tensor, Tensor)>> {
        let Some(k_rope_proj) = &self.k_rope_proj else { return Ok(None) };
        let common = &self.common;
        let width = 2 * common.inv_freq.len();
        let table = common.rotations(batch);
        let (mut q, mut k) =
            (q.narrow(2, self.nope, width)?.contiguous()?, k_rope_proj.heads(x, self.rope_heads)?);
        if let Some([q_norm, k_norm]) = &self.qk_norm {
            (q, k) = (q_norm.of_heads(&q)?, k_norm.of_heads(&k)?);
        }
        let (q, k) = (rope(&q, &table)?, rope(&k, &table)?);
        Ok(Some((q, common.storage.cache.round(&k)?)))
    }
}
