//! Grouped-query attention with rotary positions, sinks and an optional window.

use candle_core::{Result, Tensor};

use crate::{
    kernel::{
        attention::{Pattern, attention},
        cached::cached_attention,
        host,
        rope::{RopeTable, rope},
        sink::sink,
        tensor,
    },
    model::{
        batch::Batch,
        cache::LayerCache,
        config::Storage,
        params::Param,
        probe::{AttentionSeen, Probe},
    },
};

use super::{RmsNorm, linear::Linear};

/// What all attention blocks share: the sizes, the sinks, the way out.
pub struct Common {
    /// The layer's index, for probes.
    pub layer: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Factor on `q · k`.
    pub scale: f32,
    /// Keys that a query sees at most.
    pub window: Option<usize>,
    /// Radians per token of the rotated pairs.
    pub inv_freq: Vec<f64>,
    /// Factor on cosines and sines.
    pub concentration: f64,
    /// Sink logits `[heads]`; −∞ where the architecture has none.
    pub sinks: Param,
    /// [hidden, heads · dv].
    pub o_proj: Linear,
    /// How what is cached, and what is computed, is stored.
    pub storage: Storage,
}

impl Common {
    /// Cosines and sines of the tokens' positions, for queries and keys alike.
    pub fn rotations(&self, batch: &Batch) -> RopeTable {
        RopeTable::new(&batch.positions, &self.inv_freq, self.concentration)
    }

    /// Attention without sinks: outputs and the log-sum-exp [t, heads, dv + 1].
    pub fn packed(&self, (q, k, v): (&Tensor, &Tensor, &Tensor), batch: &Batch) -> Result<Tensor> {
        let pattern = Pattern { offsets: batch.offsets.clone(), window: self.window, scale: self.scale };
        attention(q, k, v, &pattern)
    }

    /// The same of one new query per sequence `q` [sequences, heads, d], and of everything that is cached [sequences, heads, dv + 1].
    pub fn cached(&self, q: &Tensor, cache: &LayerCache) -> Result<Tensor> {
        let packed = cached_attention(&host(q)?, cache.widths, self.scale, &cache.sequences);
        tensor(packed, (cache.sequences.len(), self.heads, cache.widths.output() + 1))
    }

    /// What the sinks leave of the outputs [t, heads, dv].
    pub fn sunk(&self, packed: &Tensor) -> Result<Tensor> {
        sink(packed, &self.sinks.tensor, self.sinks.train)
    }

    /// The block's output [t, hidden] from those of its heads [t, heads, dv].
    pub fn output(&self, heads: &Tensor) -> Result<Tensor> {
        self.o_proj.forward(&heads.flatten_from(1)?)
    }

    /// Attention, sinks and output projection. `input` is only shown to the probe.
    pub fn attend(
        &self,
        input: &Tensor,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        batch: &Batch,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let packed = self.packed((q, k, v), batch)?;
        let heads = self.sunk(&packed)?;
        let output = self.output(&heads)?;
        let (packed, heads) = (&packed, &heads);
        let seen = AttentionSeen { layer: self.layer, input, q, k, v, packed, heads, output: &output };
        probe.attention(&seen)?;
        Ok(output)
    }
}

/// Grouped-query attention.
pub struct GroupedQuery {
    /// Sizes, sinks, output projection.
    pub common: Common,
    /// [heads · d, hidden].
    pub q_proj: Linear,
    /// [kv heads · d, hidden].
    pub k_proj: Linear,
    /// [kv heads · d, hidden].
    pub v_proj: Linear,
    /// Norms of a query and of a key `[d]`, before they are rotated.
    pub qk_norm: Option<[RmsNorm; 2]>,
}

impl GroupedQuery {
    /// Normalised input `x` [t, hidden] → [t, hidden].
    pub fn forward(&self, x: &Tensor, batch: &Batch, probe: &mut dyn Probe) -> Result<Tensor> {
        let (q, k, v) = self.parts(x, batch)?;
        self.common.attend(x, (&q, &k, &v), batch, probe)
    }

    /// The same of the next tokens of each sequence, whose keys and values are added to `cache`: any number of them where nothing is
    /// cached yet, one of each sequence later.
    pub fn decode(&self, x: &Tensor, batch: &Batch, cache: &mut LayerCache) -> Result<Tensor> {
        let (common, begins) = (&self.common, cache.is_empty());
        let (q, k, v) = self.parts(x, batch)?;
        cache.append(&host(&k)?, &host(&v)?, &batch.offsets);
        let packed = if begins { common.packed((&q, &k, &v), batch)? } else { common.cached(&q, cache)? };
        common.output(&common.sunk(&packed)?)
    }

    /// Rotated queries [t, heads, d], and what is cached: rotated keys and values [t, kv heads, d].
    fn parts(&self, x: &Tensor, batch: &Batch) -> Result<(Tensor, Tensor, Tensor)> {
        let common = &self.common;
        let table = common.rotations(batch);
        let (mut q, mut k) = (self.q_proj.heads(x, common.heads)?, self.k_proj.heads(x, common.kv_heads)?);
        if let Some([q_norm, k_norm]) = &self.qk_norm {
            (q, k) = (q_norm.of_heads(&q)?, k_norm.of_heads(&k)?);
        }
        let (q, k) = (rope(&q, &table)?, rope(&k, &table)?);
        let v = self.v_proj.heads(x, common.kv_heads)?;
        let (k, v) = (common.storage.cache.round(&k)?, common.storage.cache.round(&v)?);
        Ok((q, k, v))
    }
}
