//! The shape of a text encoder, from its `config.json`. Knows no weights.

use serde::Deserialize;
use serde_json::Value;

use crate::math::elementary::{exp, ln};

/// A text encoder of the BERT family: blocks that normalise after each sum (post-norm), attention over the whole text.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// How its tensors are called and which network its blocks have.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads per block, `hidden_size / num_attention_heads` wide.
    pub num_attention_heads: usize,
    /// Width inside a block's network.
    pub intermediate_size: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// The longest text, special tokens included.
    pub max_position_embeddings: usize,
    /// Rows of the table of token types; row 0 is added to every token.
    pub type_vocab_size: usize,
    /// Added to variances.
    pub layer_norm_eps: f64,
    /// How tokens know where they are.
    pub positions: Positions,
}

/// The families that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `BertModel`: separate projections, a network with GELU.
    Bert,
    /// `NewModel` of gte-*-v1.5: one projection for queries, keys and values, a network gated by GELU.
    New,
}

/// How tokens know where they are.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// A learnt vector for each position.
    Learnt,
    /// Rotation of queries and keys, half-split, with these angular frequencies in radians per token.
    Rope(Vec<f64>),
}

/// Why a `config.json` is not that of a text encoder which can be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A field is missing or of the wrong type.
    #[error("config.json: {0}")]
    Form(String),
    /// Another architecture.
    #[error(
        "config.json: the architecture `{0}` is not known as a text encoder; `bert` and `new` (gte-*-v1.5) are"
    )]
    Architecture(String),
    /// A field has a value that changes the computation in a way that is not implemented.
    #[error("config.json: `{field}` is {found}, and only {expected} is known")]
    Unknown {
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
}

/// The fields as they are written.
#[derive(Deserialize)]
struct Fields {
    #[serde(default)]
    model_type: String,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default)]
    type_vocab_size: usize,
    layer_norm_eps: f64,
    #[serde(default)]
    hidden_act: String,
    position_embedding_type: Option<String>,
    layer_norm_type: Option<String>,
    #[serde(default)]
    logn_attention_scale: bool,
    rope_theta: Option<f64>,
    rope_scaling: Option<Scaling>,
}

#[derive(Deserialize)]
struct Scaling {
    #[serde(alias = "rope_type")]
    r#type: String,
    factor: f64,
    mixed_b: Option<f64>,
}

impl Config {
    /// Reads a `config.json`; a field that changes the computation in an unknown way is refused.
    pub fn parse(json: &Value) -> Result<Self, ConfigError> {
        let fields = Fields::deserialize(json).map_err(|error| ConfigError::Form(error.to_string()))?;
        let family = match fields.model_type.as_str() {
            "bert" => Family::Bert,
            "new" => Family::New,
            other => return Err(ConfigError::Architecture(other.to_owned())),
        };
        let only = |field, found: &str, expected: &'static str| {
            let unknown = || ConfigError::Unknown { field, found: format!("`{found}`"), expected };
            if format!("`{found}`") == expected { Ok(()) } else { Err(unknown()) }
        };
        only("hidden_act", &fields.hidden_act, "`gelu`")?;
        only("layer_norm_type", fields.layer_norm_type.as_deref().unwrap_or("layer_norm"), "`layer_norm`")?;
        only("logn_attention_scale", if fields.logn_attention_scale { "true" } else { "false" }, "`false`")?;
        let heads = fields.num_attention_heads;
        if heads == 0 || fields.hidden_size == 0 || !fields.hidden_size.is_multiple_of(2 * heads) {
            let why = format!("{} heads cannot share {} dimensions in pairs", heads, fields.hidden_size);
            return Err(ConfigError::Form(why));
        }
        let kind = fields.position_embedding_type.as_deref();
        let positions = match (family, kind) {
            (Family::Bert, None) | (_, Some("absolute")) => Positions::Learnt,
            (Family::New, Some("rope") | None) => Positions::Rope(fields.frequencies()?),
            (_, other) => {
                let found = format!("`{}`", other.unwrap_or_default());
                let expected = if family == Family::Bert { "`absolute`" } else { "`rope` or `absolute`" };
                return Err(ConfigError::Unknown { field: "position_embedding_type", found, expected });
            }
        };
        Ok(Self {
            family,
            hidden_size: fields.hidden_size,
            num_hidden_layers: fields.num_hidden_layers,
            num_attention_heads: heads,
            intermediate_size: fields.intermediate_size,
            vocab_size: fields.vocab_size,
            max_position_embeddings: fields.max_position_embeddings,
            type_vocab_size: fields.type_vocab_size,
            layer_norm_eps: fields.layer_norm_eps,
            positions,
        })
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}

impl Fields {
    /// `ω_i = θ^(−2i/d) · s^(−2(i+1)/d)`. The second factor is what NTK scaling by `s` comes to in the reference, which applies it to
    /// texts of every length.
    fn frequencies(&self) -> Result<Vec<f64>, ConfigError> {
        let theta = self.rope_theta.unwrap_or(10_000.0);
        let factor = match &self.rope_scaling {
            None => 1.0,
            Some(Scaling { r#type, factor, mixed_b: None }) if r#type == "ntk" => *factor,
            Some(Scaling { r#type, mixed_b, .. }) => {
                let found = format!("`{type}`{}", if mixed_b.is_some() { " with `mixed_b`" } else { "" });
                return Err(ConfigError::Unknown { field: "rope_scaling", found, expected: "`ntk`" });
            }
        };
        if !(theta > 1.0 && theta < 1e12 && (1.0..1e6).contains(&factor)) {
            return Err(ConfigError::Form(format!("a rope of base {theta} scaled by {factor} is none")));
        }
        let head_dim = self.hidden_size / self.num_attention_heads;
        let (theta, factor, d) = (ln(theta), ln(factor), head_dim as f64);
        let frequency = |i: usize| exp(-(2.0 * i as f64 * theta + 2.0 * (i + 1) as f64 * factor) / d);
        Ok((0..head_dim / 2).map(frequency).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn gte() -> Value {
        json!({
            "model_type": "new", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
            "intermediate_size": 4096, "vocab_size": 30528, "max_position_embeddings": 8192, "type_vocab_size": 2,
            "layer_norm_eps": 1e-12, "hidden_act": "gelu", "position_embedding_type": "rope", "rope_theta": 160_000,
            "rope_scaling": { "type": "ntk", "factor": 2.0 }, "layer_norm_type": "layer_norm", "pack_qkv": true
        })
    }

    /// The published values for gte-large-en-v1.5.
    #[test]
    fn frequencies_are_scaled_for_every_length() {
        let Positions::Rope(found) = Config::parse(&gte()).unwrap().positions else {
            panic!("it has a rope")
        };
        assert_eq!(found.len(), 32);
        for (i, expected) in [
            (0, 0.978_572_062),
            (1, 0.658_501_663),
            (2, 0.443_119_578),
            (15, 2.570_713_99e-3),
            (16, 1.729_887_35e-3),
            (31, 4.544_423_23e-6),
        ] {
            let expected: f64 = expected;
            assert!((found[i] / expected - 1.0).abs() < 2e-9, "{i}: {}", found[i]);
        }
    }

    #[test]
    fn without_scaling_the_first_frequency_is_one() {
        let mut plain = gte();
        plain["rope_scaling"] = Value::Null;
        let Positions::Rope(found) = Config::parse(&plain).unwrap().positions else {
            panic!("it has a rope")
        };
        assert!((found[0] - 1.0).abs() < 1e-15);
        assert!((found[31] - 160_000_f64.powf(-62.0 / 64.0)).abs() < 1e-15);
    }

    #[test]
    fn what_changes_the_computation_unknown_is_refused() {
        let refused = |field: &str, value: Value| {
            let mut json = gte();
            json[field] = value;
            Config::parse(&json).unwrap_err().to_string()
        };
        assert_eq!(
            refused("hidden_act", json!("relu")),
            "config.json: `hidden_act` is `relu`, and only `gelu` is known"
        );
        assert!(
            refused("rope_scaling", json!({ "type": "yarn", "factor": 2 }))
                .contains("`rope_scaling` is `yarn`")
        );
        assert!(
            refused("rope_scaling", json!({ "type": "ntk", "factor": 2, "mixed_b": 0.5 }))
                .contains("mixed_b")
        );
        assert!(refused("layer_norm_type", json!("rms_norm")).contains("rms_norm"));
        assert!(refused("logn_attention_scale", json!(true)).contains("`true`"));
        assert!(refused("model_type", json!("t5")).contains("the architecture `t5`"));
        assert!(refused("position_embedding_type", json!("relative")).contains("`rope` or `absolute`"));
        assert!(refused("num_attention_heads", json!(7)).contains("7 heads cannot share 1024"));
        assert!(refused("num_attention_heads", json!(0)).contains("0 heads"));
        assert!(refused("hidden_size", json!("x")).starts_with("config.json: invalid type"));
        assert!(refused("rope_theta", json!(0)).contains("a rope of base 0"));
    }

    #[test]
    fn bert_has_learnt_positions() {
        let mut json = gte();
        json["model_type"] = json!("bert");
        assert!(Config::parse(&json).unwrap_err().to_string().contains("only `absolute`"));
        json["position_embedding_type"] = json!("absolute");
        let config = Config::parse(&json).unwrap();
        assert_eq!(
            (config.family, config.positions.clone(), config.head_dim()),
            (Family::Bert, Positions::Learnt, 64)
        );
    }
}
