//! Mistral: no bias, and one window in all layers unless it is `null`.

use serde::Deserialize;
use serde_json::Value;

use super::Common;
use crate::model::config::{Config, ConfigError, Parts};

#[derive(Deserialize)]
struct Written {
    #[serde(flatten)]
    common: Common,
    /// A `null` turns it off, and only its absence is the default.
    #[serde(default = "window")]
    sliding_window: Option<usize>,
}

#[expect(clippy::unnecessary_wraps, reason = "serde wants the field's type")]
fn window() -> Option<usize> {
    Some(4096)
}

pub(super) fn read(json: &Value) -> Result<Config, ConfigError> {
    let Written { mut common, sliding_window } = serde_json::from_value(json.clone())?;
    common.num_key_value_heads = common.num_key_value_heads.or(Some(8));
    common.dense(sliding_window.unwrap_or(0), &|_| sliding_window.is_some(), Parts::default())
}
