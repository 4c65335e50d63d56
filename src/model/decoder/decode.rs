//! Decoding with a cache: only new tokens go through the layers. Knows no sampling.

use candle_core::Tensor;

use super::{Attention, Layer, Model};
use crate::model::{
    batch::Batch,
    cache::{KvCache, LayerCache},
    params::ModelError,
    probe::NoProbe,
};

impl Model {
    /// Logits of what follows the last of the next tokens of each sequence [sequences, vocab]. The first call of a cache may hold any number
    /// of tokens of each sequence, at least one; each later one holds one, in `batch` at the position that comes next.
    ///
    /// # Panics
    /// If the batch has another number of sequences than the cache, or a sequence of it does not have that many tokens.
    pub fn decode(&self, batch: &Batch, cache: &mut KvCache) -> Result<Tensor, ModelError> {
        cache.check(batch);
        let mut x = self.shell.embed(&batch.ids)?;
        for (layer, cache) in self.layers.iter().zip(&mut cache.layers) {
            x = layer.decode(&x, batch, cache)?;
        }
        let last: Vec<u32> = batch.offsets.iter().skip(1).map(|&end| end as u32 - 1).collect();
        let last = x.index_select(&Tensor::new(last, x.device())?, 0)?;
        Ok(self.shell.lm_head.forward(&self.shell.normed(&last)?)?)
    }
}

impl Layer {
    /// The residual stream of the next tokens of each sequence through the whole layer; they are added to `cache`.
    fn decode(&self, x: &Tensor, batch: &Batch, cache: &mut LayerCache) -> Result<Tensor, ModelError> {
        let normed = self.activations.round(&self.input_layernorm.forward(x)?)?;
        let attended = match &self.attention {
            Attention::Grouped(attention) => attention.decode(&normed, batch, cache)?,
            Attention::Latent(attention) => attention.decode(&normed, batch, cache)?,
        };
        self.finish(x, &self.activations.round(&attended)?, &mut NoProbe)
    }
}

#[cfg(test)]
mod tests;
