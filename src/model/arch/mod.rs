//! The architectures that are built in: what each one's `config.json` says, with the defaults that transformers has for it.
//!
//! An architecture is a choice among shared parts ([`Config`]); its file names the fields and knows no tensor.

mod gpt_oss;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use serde::Deserialize;
use serde_json::Value;

use super::{
    config::{Config, ConfigError, Latent, LayerKind, Parts, Storage},
    rope,
};

type Read = fn(&Value) -> Result<Config, ConfigError>;

/// `model_type` of each, and how it is read.
const ALL: [(&str, Read); 5] = [
    ("gpt_oss", gpt_oss::read),
    ("llama", llama::read),
    ("mistral", mistral::read),
    ("qwen2", qwen2::read),
    ("qwen3", qwen3::read),
];

/// What is behind the `model_type` of a converted model.
const CONVERTED: &str = "_mla";

/// The `model_type` of a model that is converted, perhaps once more.
pub(super) fn converted(kind: &str) -> String {
    base(kind).to_owned() + CONVERTED
}

fn base(kind: &str) -> &str {
    kind.strip_suffix(CONVERTED).unwrap_or(kind)
}

/// Reads a `config.json`.
pub(super) fn read(json: &Value) -> Result<Config, ConfigError> {
    let kind = json.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let Some((_, read)) = ALL.iter().find(|(name, _)| *name == base(kind)) else {
        let supported = ALL.map(|(name, _)| name).join(", ");
        return Err(ConfigError::Architecture { kind: kind.to_owned(), supported });
    };
    read(json)
}

/// The fields that all architectures share.
#[derive(Deserialize)]
struct Common {
    hidden_size: usize,
    vocab_size: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    num_hidden_layers: usize,
    rms_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    #[serde(default)]
    tie_word_embeddings: bool,
    layer_types: Option<Vec<String>>,
    mla: Option<Vec<Option<Latent>>>,
    #[serde(flatten)]
    rope: rope::Written,
}

/// The base of the rotary frequencies where a file of the Llama family names none.
const THETA: f64 = 10_000.0;

impl Common {
    /// A dense model of the Llama family. Layers are full ones unless `sliding` or the file says otherwise.
    fn dense(
        &self,
        sliding_window: usize,
        sliding: &dyn Fn(usize) -> bool,
        parts: Parts,
    ) -> Result<Config, ConfigError> {
        if let Some(act) = self.hidden_act.as_ref().filter(|act| *act != "silu") {
            return Err(ConfigError::Value(format!("hidden_act `{act}` is not supported; supported: silu")));
        }
        let usual = |i: usize| if sliding(i) { "sliding_attention" } else { "full_attention" };
        self.config(sliding_window, &usual, (Some(THETA), parts))
    }

    /// A model without experts; `theta` is the base of the frequencies where the file names none.
    fn config(
        &self,
        sliding_window: usize,
        usual: &dyn Fn(usize) -> &'static str,
        (theta, parts): (Option<f64>, Parts),
    ) -> Result<Config, ConfigError> {
        let heads = self.num_attention_heads;
        Ok(Config {
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            num_attention_heads: heads,
            num_key_value_heads: self.num_key_value_heads.unwrap_or(heads),
            head_dim: self.head_dim.unwrap_or_else(|| self.hidden_size.checked_div(heads).unwrap_or(0)),
            intermediate_size: self.intermediate_size,
            rms_norm_eps: self.rms_norm_eps.unwrap_or(1e-6) as f32,
            sliding_window,
            rope: self.rope.rope(theta)?,
            layers: self.layers(usual)?,
            tie_word_embeddings: self.tie_word_embeddings,
            parts,
            experts: None,
            storage: Storage::default(),
        })
    }

    /// The layers; `usual` names a layer's type where the file does not.
    fn layers(&self, usual: &dyn Fn(usize) -> &'static str) -> Result<Vec<LayerKind>, ConfigError> {
        let n = self.num_hidden_layers;
        let types = self.layer_types.clone().unwrap_or_else(|| (0..n).map(|i| usual(i).to_owned()).collect());
        let latents = self.mla.clone().unwrap_or_else(|| vec![None; n]);
        if types.len() != n || latents.len() != n {
            return Err(ConfigError::Value(format!("layer_types and mla must have {n} entries")));
        }
        let kind = |(i, (name, latent)): (usize, (String, Option<Latent>))| match (name.as_str(), latent) {
            ("sliding_attention", None) => Ok(LayerKind::Sliding),
            ("full_attention", None) => Ok(LayerKind::Full),
            ("sliding_attention", Some(latent)) => Ok(LayerKind::Latent(Latent { sliding: true, ..latent })),
            // transformers knows no such type and saves a latent layer as full attention.
            ("latent_attention" | "full_attention", Some(latent)) => Ok(LayerKind::Latent(latent)),
            (name, latent) => {
                let with = if latent.is_some() { "with" } else { "without" };
                Err(ConfigError::Value(format!("layer {i}: type `{name}` {with} an entry in `mla`")))
            }
        };
        types.into_iter().zip(latents).enumerate().map(kind).collect()
    }
}

/// Biases that the file may ask for.
#[derive(Deserialize)]
struct Biases {
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

/// The window of the Qwen models, which is off unless `use_sliding_window`, and then holds from `max_window_layers` on.
#[derive(Deserialize)]
struct LateWindow {
    #[serde(default)]
    use_sliding_window: bool,
    sliding_window: Option<usize>,
    max_window_layers: Option<usize>,
}

impl LateWindow {
    fn read(json: &Value) -> Result<(usize, usize), ConfigError> {
        let window: Self = serde_json::from_value(json.clone())?;
        let size = if window.use_sliding_window { window.sliding_window.unwrap_or(4096) } else { 0 };
        Ok((size, if size > 0 { window.max_window_layers.unwrap_or(28) } else { usize::MAX }))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A file with the sizes that have no default, and more.
    fn config(kind: &str, more: &Value) -> Result<Config, ConfigError> {
        let mut json = json!({"model_type": kind, "hidden_size": 32, "vocab_size": 8, "num_attention_heads": 8,
            "intermediate_size": 16, "num_hidden_layers": 3});
        json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Config::parse(&json)
    }

    #[test]
    fn what_the_file_does_not_say_is_as_in_transformers() {
        for (kind, kv_heads, head_dim, window) in
            [("llama", 8, 4, 0), ("mistral", 8, 4, 4096), ("qwen2", 8, 4, 0), ("qwen3", 8, 128, 0)]
        {
            let found = config(kind, &json!({})).unwrap();
            assert_eq!(
                (found.num_key_value_heads, found.head_dim, found.sliding_window),
                (kv_heads, head_dim, window),
                "{kind}"
            );
            assert_eq!(found.rms_norm_eps.to_bits(), 1e-6f32.to_bits());
            assert_eq!(found.rope.theta.to_bits(), 1e4f64.to_bits());
            let layer = if kind == "mistral" { LayerKind::Sliding } else { LayerKind::Full };
            assert_eq!(found.layers, vec![layer; 3]);
            let parts = Parts { qkv_bias: kind == "qwen2", qk_norm: kind == "qwen3", ..Parts::default() };
            assert_eq!(
                (found.parts, found.tie_word_embeddings, found.experts),
                (parts, false, None),
                "{kind}"
            );
        }
    }

    #[test]
    fn a_late_window_holds_from_its_layer_on_and_only_where_it_is_used() {
        use LayerKind::{Full, Sliding};
        for kind in ["qwen2", "qwen3"] {
            let of = |more: Value| {
                let found = config(kind, &more).unwrap();
                (found.layers, found.sliding_window)
            };
            let window =
                |used: bool| json!({"use_sliding_window": used, "sliding_window": 5, "max_window_layers": 1});
            assert_eq!(of(window(true)), (vec![Full, Sliding, Sliding], 5));
            assert_eq!(of(window(false)), (vec![Full; 3], 0));
            assert_eq!(of(json!({"use_sliding_window": true})), (vec![Full; 3], 4096), "from layer 28 on");
        }
    }

    #[test]
    fn any_architecture_may_be_converted_but_not_where_keys_are_normalised() {
        let latent = json!({"mla": [null, {"kv_lora_rank": 6, "rope_pairs": [0]}, null], "head_dim": 4});
        for kind in ["llama_mla", "qwen2_mla"] {
            let found = config(kind, &latent).unwrap();
            assert_eq!((found.kv_elements(1), found.kv_elements(0)), (6 + 2 * 8, 64), "{kind}");
        }
        let error = config("qwen3_mla", &latent).unwrap_err().to_string();
        assert_eq!(
            error,
            "config.json: layer 1: keys that are normalised per head cannot come from a latent; all must be rotated"
        );
        let exact = json!({"mla": [null, {"kv_lora_rank": 6, "rope_pairs": [0, 1]}, null], "head_dim": 4});
        assert_eq!(config("qwen3_mla", &exact).unwrap().kv_elements(1), 6 + 4 * 8);
    }

    #[test]
    fn a_model_may_be_converted_once_more() {
        for kind in ["llama", "llama_mla"] {
            assert_eq!(Config::converted_type(kind), "llama_mla");
        }
    }

    #[test]
    fn another_activation_and_another_architecture_are_refused() {
        let error = config("llama", &json!({"hidden_act": "gelu"})).unwrap_err().to_string();
        assert_eq!(error, "config.json: hidden_act `gelu` is not supported; supported: silu");
        let error = config("gemma", &json!({})).unwrap_err().to_string();
        assert!(
            error.contains("`gemma` is not supported; supported: gpt_oss, llama, mistral, qwen2, qwen3"),
            "{error}"
        );
    }
}
