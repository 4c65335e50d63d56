//! GPT-OSS: biases everywhere, sinks, sliding and full layers in turn, experts with clamped SwiGLU, YaRN.

use serde::Deserialize;
use serde_json::Value;

use super::Common;
use crate::model::config::{Config, ConfigError, Experts, Parts};

#[derive(Deserialize)]
struct Written {
    #[serde(flatten)]
    common: Common,
    num_local_experts: usize,
    #[serde(alias = "experts_per_token")]
    num_experts_per_tok: usize,
    swiglu_limit: Option<f64>,
    swiglu_alpha: Option<f64>,
    sliding_window: Option<usize>,
}

pub(super) fn read(json: &Value) -> Result<Config, ConfigError> {
    // `num_experts_per_tok` and `experts_per_token` may both be there; serde would call that a duplicate.
    let mut json = json.clone();
    if let Some(map) = json.as_object_mut()
        && map.contains_key("num_experts_per_tok")
    {
        map.remove("experts_per_token");
    }
    let Written {
        common,
        num_local_experts,
        num_experts_per_tok,
        swiglu_limit,
        swiglu_alpha,
        sliding_window,
    } = serde_json::from_value(json)?;
    for (name, there) in [
        ("num_key_value_heads", common.num_key_value_heads.is_some()),
        ("head_dim", common.head_dim.is_some()),
        ("rms_norm_eps", common.rms_norm_eps.is_some()),
    ] {
        if !there {
            return Err(ConfigError::Value(format!("missing field `{name}`")));
        }
    }
    let usual = |i: usize| if i.is_multiple_of(2) { "sliding_attention" } else { "full_attention" };
    let parts = Parts { qkv_bias: true, o_bias: true, mlp_bias: true, sinks: true, qk_norm: false };
    let experts = Experts {
        num_local_experts,
        num_experts_per_tok,
        swiglu_limit: swiglu_limit.unwrap_or(7.0) as f32,
        swiglu_alpha: swiglu_alpha.unwrap_or(1.702) as f32,
    };
    let config = common.config(sliding_window.unwrap_or(128), &usual, (None, parts))?;
    Ok(Config { experts: Some(experts), ..config })
}
