//! Texts as the token sequences that a model is calibrated and trained on. Knows no model weights.

use rayon::prelude::*;
use serde_json::Value;

use crate::{
    artifact::{checkpoint::Checkpoint, encoder::Encoder},
    engine::action::{Cx, Failure},
};

/// Encodes texts with the checkpoint's tokenizer, in their order, each with the model's end token behind it.
pub(super) fn encode(
    cx: &Cx<'_>,
    checkpoint: &Checkpoint,
    texts: &[String],
) -> Result<Vec<Vec<u32>>, Failure> {
    let path = checkpoint.file("tokenizer.json").map_err(Failure::stage)?;
    let encoder = Encoder::from_file(path).map_err(Failure::stage)?;
    let end = end_token(&checkpoint.config);
    cx.progress.phase("tokenising", Some(texts.len() as u64), "docs");
    let encode = |text: &String| {
        cx.check_stop()?;
        let mut ids = encoder.ids(text).map_err(Failure::stage)?;
        ids.extend(end);
        cx.progress.advance(1);
        Ok(ids)
    };
    texts.par_iter().map(encode).collect()
}

/// The end token of a `config.json`: one id, or the first of several.
fn end_token(config: &Value) -> Option<u32> {
    let id = config.get("eos_token_id")?;
    id.as_array().map_or(Some(id), |ids| ids.first())?.as_u64().and_then(|id| u32::try_from(id).ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_end_token_is_one_or_the_first_of_several() {
        let check = |id: Value, expected| assert_eq!(end_token(&json!({ "eos_token_id": id })), expected);
        check(json!(7), Some(7));
        check(json!([200_002, 199_999]), Some(200_002));
        check(json!([]), None);
        check(json!(null), None);
        check(json!(-1), None);
        assert_eq!(end_token(&json!({})), None);
    }
}
