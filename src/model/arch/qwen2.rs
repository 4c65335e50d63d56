//! Qwen2 and Qwen2.5: biases on queries, keys and values, none on the output.

use serde_json::Value;

use super::{Common, LateWindow};
use crate::model::config::{Config, ConfigError, Parts};

pub(super) fn read(json: &Value) -> Result<Config, ConfigError> {
    let common: Common = serde_json::from_value(json.clone())?;
    let (window, from) = LateWindow::read(json)?;
    common.dense(window, &|i| i >= from, Parts { qkv_bias: true, ..Parts::default() })
}
