//! The metadata of a GGUF file: typed access, and the `config.json` that a Llama's say. Knows no bytes of tensors.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;
use serde_json::json;

use super::{Gguf, GgufError, tensors::Tensors};
use crate::model::config::{Rope, Scaling};

/// The metadata by key.
#[derive(Clone, Copy)]
pub(super) struct Meta<'a>(pub(super) &'a HashMap<String, Value>);

/// What the metadata say of a Llama.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Llama {
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    hidden: usize,
    inner: usize,
    context: usize,
    eps: f64,
    theta: f64,
    scaling: serde_json::Value,
    special: Vec<(&'static str, usize)>,
}

/// What changes the model in a way that the forward pass here does not have, where it is there and not zero.
const FOREIGN: [&str; 5] = [
    "llama.expert_count",
    "llama.attention.sliding_window",
    "llama.logit_scale",
    "llama.embedding_scale",
    "llama.attention.scale",
];

/// Llama 3's frequencies, of which llama.cpp keeps the resulting divisors only: factors of low and high frequencies, and the original
/// context. All of Meta's models from 3.1 on have these.
const LLAMA3: (f64, f64, f64) = (1.0, 4.0, 8192.0);
const LLAMA3_TENSOR: &str = "rope_freqs.weight";

impl<'a> Meta<'a> {
    pub(super) fn text(self, key: &str) -> Option<&'a str> {
        match self.0.get(key)? {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn texts(self, key: &str) -> Option<Vec<&'a str>> {
        let Value::Array(values) = self.0.get(key)? else { return None };
        values.iter().map(|value| value.to_string().ok().map(String::as_str)).collect()
    }

    pub(super) fn integers(self, key: &str) -> Option<Vec<usize>> {
        let Value::Array(values) = self.0.get(key)? else { return None };
        values.iter().map(integer).collect()
    }

    pub(super) fn flag(self, key: &str) -> Option<bool> {
        self.0.get(key)?.to_bool().ok()
    }

    /// A whole number of any width; an array of equal ones counts as one, as files have it whose layers could differ.
    pub(super) fn integer(self, key: &str) -> Result<Option<usize>, GgufError> {
        let fault = || GgufError::Meta(format!("`{key}` is not one whole number"));
        let Some(value) = self.0.get(key) else { return Ok(None) };
        let first = match value {
            Value::Array(values) if values.windows(2).all(|pair| integer(&pair[0]) == integer(&pair[1])) => {
                values.first().and_then(integer)
            }
            value => integer(value),
        };
        first.map(Some).ok_or_else(fault)
    }

    fn needed(self, key: &str) -> Result<usize, GgufError> {
        self.integer(key)?.ok_or_else(|| GgufError::Meta(format!("`{key}` is missing")))
    }

    /// A number as it was meant: the shortest decimal that gives the `f32` of the file.
    fn number(self, key: &str) -> Option<f64> {
        match self.0.get(key)? {
            Value::F32(x) => x.to_string().parse().ok(),
            Value::F64(x) => Some(*x),
            value => integer(value).map(|x| x as f64),
        }
    }

    /// Reads what a Llama has.
    pub(super) fn llama(self) -> Result<Llama, GgufError> {
        let fault = |text: String| Err(GgufError::Meta(text));
        let architecture = self.text("general.architecture").unwrap_or_default();
        if architecture != "llama" {
            return fault(format!(
                "general.architecture is `{architecture}`; only `llama` is imported (take the model's safetensors)"
            ));
        }
        if self.integer("split.count")?.is_some_and(|count| count > 1) {
            return fault("the file is one of several; join them with `llama-gguf-split --merge`".to_owned());
        }
        if let Some(key) = FOREIGN.iter().find(|key| self.number(key).is_some_and(|x| x.abs() > 0.0)) {
            return fault(format!("`{key}` is not supported"));
        }
        let hidden = self.needed("llama.embedding_length")?;
        let heads = self.needed("llama.attention.head_count")?;
        let head_dim = match self.integer("llama.attention.key_length")? {
            Some(width) => width,
            None => hidden.checked_div(heads).unwrap_or(0),
        };
        for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
            if let Some(width) = self.integer(key)?.filter(|&width| width != head_dim) {
                return fault(format!(
                    "`{key}` is {width} where a head has {head_dim}, which is not supported"
                ));
            }
        }
        let ids = [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")];
        let id = |(to, from): (&'static str, &str)| {
            let id = self.integer(&format!("tokenizer.ggml.{from}_token_id")).ok().flatten();
            id.map(|id| (to, id))
        };
        Ok(Llama {
            layers: self.needed("llama.block_count")?,
            heads,
            kv_heads: self.integer("llama.attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            hidden,
            inner: self.needed("llama.feed_forward_length")?,
            context: self.needed("llama.context_length")?,
            eps: self.number("llama.attention.layer_norm_rms_epsilon").ok_or_else(|| {
                GgufError::Meta("`llama.attention.layer_norm_rms_epsilon` is missing".to_owned())
            })?,
            theta: self.number("llama.rope.freq_base").unwrap_or(10_000.0),
            scaling: self.scaling()?,
            special: ids.into_iter().filter_map(id).collect(),
        })
    }

    /// `rope_scaling` as `config.json` has it; `null` for none.
    fn scaling(self) -> Result<serde_json::Value, GgufError> {
        let key = |part: &str| format!("llama.rope.scaling.{part}");
        let needed = |part: &str| {
            let fault = || GgufError::Meta(format!("`{}` is missing", key(part)));
            self.number(&key(part)).ok_or_else(fault)
        };
        // The key of files from before there were several ways to scale.
        let old = self.number("llama.rope.scale_linear").filter(|x| (x - 1.0).abs() > 0.0);
        match self.text(&key("type")).unwrap_or("none") {
            "none" => Ok(old
                .map_or(serde_json::Value::Null, |factor| json!({"rope_type": "linear", "factor": factor}))),
            "linear" => Ok(json!({"rope_type": "linear", "factor": needed("factor")?})),
            "yarn" if self.number(&key("attn_factor")).is_none_or(|x| (x - 1.0).abs() < 1e-6) => Ok(json!({
                "rope_type": "yarn",
                "factor": needed("factor")?,
                "original_max_position_embeddings": needed("original_context_length")?,
                "beta_fast": self.number(&key("yarn_beta_fast")).unwrap_or(32.0),
                "beta_slow": self.number(&key("yarn_beta_slow")).unwrap_or(1.0),
            })),
            other => Err(GgufError::Meta(format!(
                "`{}` is `{other}` with parameters that are not supported; supported: none, linear, yarn",
                key("type")
            ))),
        }
    }
}

fn integer(value: &Value) -> Option<usize> {
    match value {
        Value::I8(x) => usize::try_from(*x).ok(),
        Value::I16(x) => usize::try_from(*x).ok(),
        Value::I32(x) => usize::try_from(*x).ok(),
        Value::I64(x) => usize::try_from(*x).ok(),
        Value::Bool(_) => None,
        value => value.to_u64().ok()?.try_into().ok(),
    }
}

impl Llama {
    /// `config.json`; what only the tensors tell is taken from them.
    pub(super) fn config(&self, tensors: &Tensors, gguf: &Gguf) -> Result<serde_json::Value, GgufError> {
        let mut scaling = self.scaling.clone();
        if let Some(divisors) = tensors.values(gguf, LLAMA3_TENSOR)? {
            if !scaling.is_null() {
                return Err(GgufError::Meta(format!("`{LLAMA3_TENSOR}` stands beside another scaling")));
            }
            scaling = self.llama3(&divisors)?;
        }
        let embedding = tensors.shape("model.embed_tokens.weight");
        let mut config = json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": tensors.has("model.layers.0.self_attn.q_proj.bias"),
            "dtype": tensors.dtype("model.embed_tokens.weight"),
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "max_position_embeddings": self.context,
            "mlp_bias": tensors.has("model.layers.0.mlp.gate_proj.bias"),
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": self.eps,
            "rope_theta": self.theta,
            "tie_word_embeddings": !tensors.has("lm_head.weight"),
            "vocab_size": embedding.and_then(|shape| shape.first()).copied().unwrap_or(0),
        });
        if !scaling.is_null() {
            config["rope_scaling"] = scaling;
        }
        for (key, id) in &self.special {
            config[*key] = (*id).into();
        }
        Ok(config)
    }

    /// The scaling whose divisors of the frequencies these are.
    fn llama3(&self, divisors: &[f32]) -> Result<serde_json::Value, GgufError> {
        let factor = divisors.iter().fold(1.0, |most: f64, &x| most.max(f64::from(x)));
        let (low_freq_factor, high_freq_factor, original_context) = LLAMA3;
        let scaling = Scaling::Llama3 { factor, low_freq_factor, high_freq_factor };
        let plain = Rope { theta: self.theta, scaling: Scaling::Plain, original_context, concentration: 1.0 };
        let [plain, scaled] = [plain, Rope { scaling, ..plain }].map(|rope| rope.inv_freq(self.head_dim));
        let close = |((a, b), x): ((&f64, &f64), &f32)| (a / b - f64::from(*x)).abs() <= 1e-4 * f64::from(*x);
        if divisors.len() != plain.len() || !plain.iter().zip(&scaled).zip(divisors).all(close) {
            return Err(GgufError::Meta(format!(
                "`{LLAMA3_TENSOR}` does not hold the divisors of Llama 3's frequencies, and others are not supported"
            )));
        }
        Ok(json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_context,
        }))
    }
}
