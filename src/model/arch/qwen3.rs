//! Qwen3: queries and keys are normalised per head before they are rotated.

use serde_json::Value;

use super::{Biases, Common, LateWindow};
use crate::model::config::{Config, ConfigError, Parts};

pub(super) fn read(json: &Value) -> Result<Config, ConfigError> {
    let mut common: Common = serde_json::from_value(json.clone())?;
    let Biases { attention_bias, .. } = serde_json::from_value(json.clone())?;
    common.head_dim = common.head_dim.or(Some(128));
    let (window, from) = LateWindow::read(json)?;
    let parts = Parts { qkv_bias: attention_bias, o_bias: attention_bias, qk_norm: true, ..Parts::default() };
    common.dense(window, &|i| i >= from, parts)
}
