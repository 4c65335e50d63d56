//! What a forward pass must know of a model, whatever its architecture. Knows no tensor and no spelling of a file.

use serde::Deserialize;
use serde_json::Value;

pub use super::rope::{Rope, Scaling};
use super::{arch, quantization, storage::Stored};

/// The hyper-parameters of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Vocabulary rows of embedding and head.
    pub vocab_size: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads.
    pub num_key_value_heads: usize,
    /// Width of a head; need not be `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Inner width of the MLP or of an expert.
    pub intermediate_size: usize,
    /// Added to the mean square before the root.
    pub rms_norm_eps: f32,
    /// Tokens that a sliding layer sees, itself included; 0 where no layer slides.
    pub sliding_window: usize,
    /// Rotary frequencies.
    pub rope: Rope,
    /// One entry per layer.
    pub layers: Vec<LayerKind>,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Which optional parts there are.
    pub parts: Parts,
    /// The experts; `None` for one dense MLP a layer.
    pub experts: Option<Experts>,
    /// How the KV cache and activations are stored between computations; no file says so, an evaluation does.
    pub storage: Storage,
}

/// What is rounded while a model runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Storage {
    /// What is cached of a token: keys as they are rotated and values, or the latent.
    pub cache: Stored,
    /// What passes between the parts of a layer.
    pub activations: Stored,
    /// Whether latent attention is computed as a decoder does: on the latent itself, with `kv_b_proj` absorbed into queries and outputs.
    pub absorbed: bool,
}

/// Parts that some architectures have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a part that is there or not")]
pub struct Parts {
    /// Biases of queries, keys and values.
    pub qkv_bias: bool,
    /// A bias of attention's output.
    pub o_bias: bool,
    /// Biases of the MLP or of the experts and the router.
    pub mlp_bias: bool,
    /// Learned sink logits.
    pub sinks: bool,
    /// Norms of each head's queries and keys before they are rotated.
    pub qk_norm: bool,
}

/// A mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Experts {
    /// Experts per layer.
    pub num_local_experts: usize,
    /// Experts that a token uses.
    pub num_experts_per_tok: usize,
    /// Bound of SwiGLU's inputs.
    pub swiglu_limit: f32,
    /// Slope of SwiGLU's sigmoid.
    pub swiglu_alpha: f32,
}

/// What a layer's attention is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerKind {
    /// Grouped-query attention over the last `sliding_window` tokens.
    Sliding,
    /// Grouped-query attention over all tokens before.
    Full,
    /// Latent attention, over all tokens before unless [`Latent::sliding`].
    Latent(Latent),
}

impl LayerKind {
    /// Whether a token sees the last `sliding_window` tokens only.
    pub fn slides(&self) -> bool {
        match self {
            Self::Sliding => true,
            Self::Full => false,
            Self::Latent(latent) => latent.sliding,
        }
    }

    /// Whether it is grouped-query attention over all tokens before or, with `windows`, over any.
    pub fn is_grouped(&self, windows: bool) -> bool {
        match self {
            Self::Sliding => windows,
            Self::Full => true,
            Self::Latent(_) => false,
        }
    }
}

/// Sizes of a latent attention layer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct Latent {
    /// Width of the cached latent.
    pub kv_lora_rank: usize,
    /// Rotary pairs (indices into the head's frequencies) that stay rotated, per key/value head; ascending. Where heads share them, one
    /// entry for each shared component, so that a frequency may come more than once.
    pub rope_pairs: Vec<usize>,
    /// Whether all heads share one rotated key, beside un-rotated keys of the whole head width.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared_rope: bool,
    /// Whether a token sees the last `sliding_window` tokens only; the file says so by the layer's type.
    #[serde(skip)]
    pub sliding: bool,
}

impl Latent {
    /// Cached elements of rotated keys for each of the heads that have their own.
    pub fn qk_rope_head_dim(&self) -> usize {
        2 * self.rope_pairs.len()
    }

    /// Un-rotated elements of a query or key head whose original width is `head_dim`.
    pub fn qk_nope_head_dim(&self, head_dim: usize) -> usize {
        if self.shared_rope { head_dim } else { head_dim - self.qk_rope_head_dim() }
    }

    /// Heads with rotated keys of their own.
    pub fn rope_heads(&self, kv_heads: usize) -> usize {
        if self.shared_rope { 1 } else { kv_heads }
    }

    /// Cached elements of rotated keys, over all of these heads.
    pub fn rope_elements(&self, kv_heads: usize) -> usize {
        self.rope_heads(kv_heads) * self.qk_rope_head_dim()
    }
}

/// A `config.json` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not the expected JSON.
    #[error("config.json: {0}")]
    Json(#[from] serde_json::Error),
    /// An architecture that is not built in.
    #[error(
        "config.json: model_type `{kind}` is not supported; supported: {supported}, each also converted (`gpt_oss_mla`)"
    )]
    Architecture {
        /// What the file says.
        kind: String,
        /// What it may say.
        supported: String,
    },
    /// A value that the forward pass cannot honour.
    #[error("config.json: {0}")]
    Value(String),
}

impl Config {
    /// The `model_type` that a converted model has, from the one that it had.
    pub fn converted_type(model_type: &str) -> String {
        arch::converted(model_type)
    }

    /// Reads a `config.json`.
    pub fn parse(json: &Value) -> Result<Self, ConfigError> {
        let config = arch::read(json)?;
        quantization::check(json)?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let fault = |text: &str| Err(ConfigError::Value(text.to_owned()));
        if self.num_key_value_heads == 0 || !self.num_attention_heads.is_multiple_of(self.num_key_value_heads)
        {
            return fault("num_attention_heads must be a multiple of num_key_value_heads");
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return fault("head_dim must be even and positive");
        }
        if self.sliding_window == 0 && self.layers.iter().any(LayerKind::slides) {
            return fault("sliding_window must be positive, for a token sees itself");
        }
        if let Some(Experts { num_local_experts, num_experts_per_tok, .. }) = self.experts
            && (num_experts_per_tok == 0 || num_experts_per_tok > num_local_experts)
        {
            return fault("num_experts_per_tok must be between 1 and num_local_experts");
        }
        self.layers.iter().enumerate().try_for_each(|(i, kind)| self.check_latent(i, kind))
    }

    fn check_latent(&self, i: usize, kind: &LayerKind) -> Result<(), ConfigError> {
        let LayerKind::Latent(latent) = kind else { return Ok(()) };
        let again = latent.shared_rope;
        let ascending =
            latent.rope_pairs.windows(2).all(|pair| pair[0] < pair[1] || again && pair[0] == pair[1]);
        if !ascending
            || latent.rope_pairs.last().is_some_and(|&p| p >= self.head_dim / 2)
            || latent.kv_lora_rank == 0
        {
            let text = "kv_lora_rank must be positive and rope_pairs ascending, below head_dim / 2";
            return Err(ConfigError::Value(format!("layer {i}: {text}")));
        }
        if self.parts.qk_norm && latent.qk_nope_head_dim(self.head_dim) > 0 {
            let text = "keys that are normalised per head cannot come from a latent; all must be rotated";
            return Err(ConfigError::Value(format!("layer {i}: {text}")));
        }
        Ok(())
    }

    /// The lowest converted layer.
    pub fn first_latent(&self) -> Option<usize> {
        self.layers.iter().position(|kind| matches!(kind, LayerKind::Latent(_)))
    }

    /// Cached KV elements per token of layer `i`.
    pub fn kv_elements(&self, i: usize) -> usize {
        match &self.layers[i] {
            LayerKind::Sliding | LayerKind::Full => 2 * self.num_key_value_heads * self.head_dim,
            LayerKind::Latent(latent) => latent.kv_lora_rank + latent.rope_elements(self.num_key_value_heads),
        }
    }
}

#[cfg(test)]
mod tests;
