//! Qwen3: queries and keys are normalised per head before they are rotated.

use serde::Deserialize;
use serde_json::Value;

use super::{Common, LateWindow};
use crate::model::config::{Config, ConfigError, Parts};

#[derive(Deserialize)]
struct Written {
    #[serde(flatten)]
    common: Common,
    #[serde(default)]
    attention_bias: bool,
}

pub(super) fn read(json: &Value) -> Result<Config, ConfigError> {
    let Written { mut common, attention_bias } = serde_json::from_value(json.clone())?;
    common.head_dim = common.head_dim.or(Some(128));
    let (window, from) = LateWindow::read(json)?;
    let parts = Parts { qkv_bias: attention_bias, o_bias: attention_bias, qk_norm: true, ..Parts::default() };
    common.dense(window, &|i| i >= from, parts)
}
