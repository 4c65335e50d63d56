//! Llama 1 to 3.3 and what has their form, such as SmolLM2: full layers, biases only where the file asks for them.

use serde_json::Value;

use super::{Biases, Common};
use crate::model::config::{Config, ConfigError, Parts};

pub(super) fn read(json: &Value) -> Result<Config, ConfigError> {
    let common: Common = serde_json::from_value(json.clone())?;
    let Biases { attention_bias, mlp_bias } = serde_json::from_value(json.clone())?;
    let parts = Parts { qkv_bias: attention_bias, o_bias: attention_bias, mlp_bias, ..Parts::default() };
    common.dense(0, &|_| false, parts)
}
