//! `config.json` of GPT-OSS and of its converted form, in both spellings of the rope parameters. Knows no tensor.

use serde::Deserialize;
use serde_json::Value;

/// The hyper-parameters that the forward pass needs.
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
    /// Width of a head; not `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Inner width of an expert.
    pub intermediate_size: usize,
    /// Experts per layer.
    pub num_local_experts: usize,
    /// Experts that a token uses.
    pub num_experts_per_tok: usize,
    /// Added to the mean square before the root.
    pub rms_norm_eps: f32,
    /// Bound of SwiGLU's inputs.
    pub swiglu_limit: f32,
    /// Slope of SwiGLU's sigmoid.
    pub swiglu_alpha: f32,
    /// Tokens that a sliding layer sees, itself included.
    pub sliding_window: usize,
    /// Rotary frequencies.
    pub rope: Rope,
    /// One entry per layer.
    pub layers: Vec<LayerKind>,
}

/// What a layer's attention is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerKind {
    /// Grouped-query attention over the last `sliding_window` tokens.
    Sliding,
    /// Grouped-query attention over all tokens before.
    Full,
    /// Latent attention over all tokens before.
    Latent(Latent),
}

/// Sizes of a latent attention layer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct Latent {
    /// Width of the cached latent.
    pub kv_lora_rank: usize,
    /// Rotary pairs (indices into the head's frequencies) that stay rotated, per key/value head; ascending.
    pub rope_pairs: Vec<usize>,
}

/// Rotary embedding with YaRN scaling (arXiv 2309.00071), or plain when `factor` is 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Context extension factor.
    pub factor: f64,
    /// Turns within the original context above which a frequency stays as it is.
    pub beta_fast: f64,
    /// Turns below which a frequency is divided by `factor`.
    pub beta_slow: f64,
    /// Context of the pre-trained model.
    pub original_context: f64,
    /// Whether the ramp's ends are rounded to whole dimensions.
    pub truncate: bool,
    /// Factor on cosines and sines.
    pub concentration: f64,
}

impl Rope {
    /// Radians per token of each of the `head_dim / 2` pairs.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f64> {
        let dim = head_dim as f64;
        let corner = |turns: f64| {
            dim * (self.original_context / (turns * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (corner(self.beta_fast), corner(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
        if (high - low).abs() < f64::EPSILON {
            high += 0.001; // as in the published code: avoids a division by zero
        }
        let frequency = |i: usize| {
            let base = self.theta.powf(-2.0 * i as f64 / dim);
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            base * (1.0 - ramp) + base / self.factor * ramp
        };
        (0..head_dim / 2).map(frequency).collect()
    }
}

/// A `config.json` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not the expected JSON.
    #[error("config.json: {0}")]
    Json(#[from] serde_json::Error),
    /// An architecture that is not built in.
    #[error("config.json: model_type `{0}` is not supported; supported: gpt_oss, gpt_oss_mla")]
    Architecture(String),
    /// A value that the forward pass cannot honour.
    #[error("config.json: {0}")]
    Value(String),
}

#[derive(Deserialize)]
struct Written {
    hidden_size: usize,
    vocab_size: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_local_experts: usize,
    #[serde(alias = "experts_per_token")]
    num_experts_per_tok: usize,
    rms_norm_eps: f64,
    #[serde(default = "swiglu_limit")]
    swiglu_limit: f64,
    #[serde(default = "swiglu_alpha")]
    swiglu_alpha: f64,
    #[serde(default = "sliding_window")]
    sliding_window: usize,
    rope_theta: Option<f64>,
    rope_scaling: Option<Scaling>,
    rope_parameters: Option<Scaling>,
    layer_types: Option<Vec<String>>,
    mla: Option<Vec<Option<Latent>>>,
}

#[derive(Deserialize)]
struct Scaling {
    #[serde(alias = "type", default = "plain")]
    rope_type: String,
    rope_theta: Option<f64>,
    #[serde(default = "one")]
    factor: f64,
    #[serde(default = "beta_fast")]
    beta_fast: f64,
    #[serde(default = "one")]
    beta_slow: f64,
    original_max_position_embeddings: Option<f64>,
    #[serde(default = "yes")]
    truncate: bool,
    attention_factor: Option<f64>,
}

// Values that transformers uses when the file is silent.
fn swiglu_limit() -> f64 {
    7.0
}
fn swiglu_alpha() -> f64 {
    1.702
}
fn sliding_window() -> usize {
    128
}
fn plain() -> String {
    "default".to_owned()
}
fn one() -> f64 {
    1.0
}
fn beta_fast() -> f64 {
    32.0
}
fn yes() -> bool {
    true
}

impl Config {
    /// Reads a `config.json`.
    pub fn parse(json: &Value) -> Result<Self, ConfigError> {
        // `num_experts_per_tok` and `experts_per_token` may both be there; serde would call that a duplicate.
        let mut json = json.clone();
        if let Some(map) = json.as_object_mut()
            && map.contains_key("num_experts_per_tok")
        {
            map.remove("experts_per_token");
        }
        let kind = json.get("model_type").and_then(Value::as_str).unwrap_or_default();
        if !matches!(kind, "gpt_oss" | "gpt_oss_mla") {
            return Err(ConfigError::Architecture(kind.to_owned()));
        }
        let written: Written = serde_json::from_value(json)?;
        let config = Self {
            hidden_size: written.hidden_size,
            vocab_size: written.vocab_size,
            num_attention_heads: written.num_attention_heads,
            num_key_value_heads: written.num_key_value_heads,
            head_dim: written.head_dim,
            intermediate_size: written.intermediate_size,
            num_local_experts: written.num_local_experts,
            num_experts_per_tok: written.num_experts_per_tok,
            rms_norm_eps: written.rms_norm_eps as f32,
            swiglu_limit: written.swiglu_limit as f32,
            swiglu_alpha: written.swiglu_alpha as f32,
            sliding_window: written.sliding_window,
            rope: written.rope()?,
            layers: written.layers()?,
        };
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
        if self.sliding_window == 0 && self.layers.contains(&LayerKind::Sliding) {
            return fault("sliding_window must be positive, for a token sees itself");
        }
        if self.num_experts_per_tok == 0 || self.num_experts_per_tok > self.num_local_experts {
            return fault("num_experts_per_tok must be between 1 and num_local_experts");
        }
        Ok(())
    }

    /// Cached KV elements per token of layer `i`.
    pub fn kv_elements(&self, i: usize) -> usize {
        match &self.layers[i] {
            LayerKind::Sliding | LayerKind::Full => 2 * self.num_key_value_heads * self.head_dim,
            LayerKind::Latent(latent) => {
                latent.kv_lora_rank + 2 * latent.rope_pairs.len() * self.num_key_value_heads
            }
        }
    }
}

impl Written {
    fn rope(&self) -> Result<Rope, ConfigError> {
        let scaling = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let theta = scaling.and_then(|s| s.rope_theta).or(self.rope_theta);
        let theta = theta.ok_or_else(|| ConfigError::Value("rope_theta is missing".to_owned()))?;
        let plain = Rope {
            theta,
            factor: 1.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            original_context: 4096.0,
            truncate: true,
            concentration: 1.0,
        };
        match scaling {
            None => Ok(plain),
            Some(s) if s.rope_type == "default" => Ok(plain),
            Some(s) if s.rope_type == "yarn" => {
                let original = s.original_max_position_embeddings;
                let missing = "rope: yarn needs original_max_position_embeddings";
                Ok(Rope {
                    theta,
                    factor: s.factor,
                    beta_fast: s.beta_fast,
                    beta_slow: s.beta_slow,
                    original_context: original.ok_or_else(|| ConfigError::Value(missing.to_owned()))?,
                    truncate: s.truncate,
                    concentration: s.attention_factor.unwrap_or(if s.factor > 1.0 {
                        0.1 * s.factor.ln() + 1.0
                    } else {
                        1.0
                    }),
                })
            }
            Some(s) => Err(ConfigError::Value(format!(
                "rope_type `{}` is not supported; supported: yarn, default",
                s.rope_type
            ))),
        }
    }

    fn layers(&self) -> Result<Vec<LayerKind>, ConfigError> {
        let n = self.num_hidden_layers;
        let alternate =
            |i: usize| if i.is_multiple_of(2) { "sliding_attention" } else { "full_attention" }.to_owned();
        let types = self.layer_types.clone().unwrap_or_else(|| (0..n).map(alternate).collect());
        let latents = self.mla.clone().unwrap_or_else(|| vec![None; n]);
        if types.len() != n || latents.len() != n {
            return Err(ConfigError::Value(format!("layer_types and mla must have {n} entries")));
        }
        let kind = |(i, (name, latent)): (usize, (String, Option<Latent>))| match (name.as_str(), latent) {
            ("sliding_attention", None) => Ok(LayerKind::Sliding),
            ("full_attention", None) => Ok(LayerKind::Full),
            // transformers knows no such type and saves a latent layer as full attention.
            ("latent_attention" | "full_attention", Some(latent)) => {
                self.latent(i, latent).map(LayerKind::Latent)
            }
            (name, latent) => {
                let with = if latent.is_some() { "with" } else { "without" };
                Err(ConfigError::Value(format!("layer {i}: type `{name}` {with} an entry in `mla`")))
            }
        };
        types.into_iter().zip(latents).enumerate().map(kind).collect()
    }

    fn latent(&self, i: usize, latent: Latent) -> Result<Latent, ConfigError> {
        let ascending = latent.rope_pairs.windows(2).all(|pair| pair[0] < pair[1]);
        if !ascending
            || latent.rope_pairs.last().is_some_and(|&p| p >= self.head_dim / 2)
            || latent.kv_lora_rank == 0
        {
            let text = "kv_lora_rank must be positive and rope_pairs ascending, below head_dim / 2";
            return Err(ConfigError::Value(format!("layer {i}: {text}")));
        }
        Ok(latent)
    }
}

#[cfg(test)]
mod tests;
