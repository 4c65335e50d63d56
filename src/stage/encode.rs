//! Texts as the token sequences that a model is calibrated and trained on. Knows no model weights.

use rayon::prelude::*;
use serde_json::Value;

use crate::{
    artifact::{
        checkpoint::Checkpoint,
        encoder::{Encoder, EncoderError},
        splits::{Chosen, Split},
        texts::{Text, Texts},
    },
    engine::action::{Cx, Failure},
    stage::Input,
};

/// A text that is to be encoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Document {
    text: String,
    /// As in [`Text::special_tokens`].
    special_tokens: bool,
}

impl From<Text> for Document {
    fn from(Text { text, special_tokens, .. }: Text) -> Self {
        Self { text, special_tokens }
    }
}

impl From<Chosen> for Document {
    fn from(Chosen { text, special_tokens, .. }: Chosen) -> Self {
        Self { text, special_tokens }
    }
}

/// The documents of splits, of a corpus and of what a model wrote, in the order of their inputs `splits.0`, `splits.1`, ..., `texts` and
/// `samples`.
pub(super) fn gather(
    cx: &Cx<'_>,
    splits: &[Input<Split>],
    [corpus, samples]: [Option<&Input<Texts>>; 2],
) -> Result<Vec<Document>, Failure> {
    let mut texts: Vec<Document> = Vec::new();
    for (i, split) in splits.iter().enumerate() {
        texts.extend(split.load(cx, &format!("splits.{i}"))?.0.into_iter().map(Document::from));
    }
    for (port, input) in [("texts", corpus), ("samples", samples)] {
        if let Some(input) = input {
            texts.extend(input.load(cx, port)?.0.into_iter().map(Document::from));
        }
    }
    Ok(texts)
}

/// Cuts documents after `most` tokens, tells what is lost, and drops those with fewer than two tokens, which predict nothing.
pub(super) fn cut(cx: &Cx<'_>, documents: &mut Vec<Vec<u32>>, most: usize) {
    let (n, mut cut, mut lost) = (documents.len(), 0, 0);
    for ids in documents.iter_mut() {
        let beyond = ids.len().saturating_sub(most);
        cut += usize::from(beyond > 0);
        lost += beyond;
        ids.truncate(most);
    }
    if cut > 0 {
        cx.progress.say(&format!("{cut} of {n} documents have more than {most} tokens; {lost} are not seen"));
    }
    documents.retain(|ids| ids.len() > 1);
}

/// Encodes texts with the checkpoint's tokenizer, in their order, each with the model's end token behind it. A text with special
/// tokens has its own end.
pub(super) fn encode(
    cx: &Cx<'_>,
    checkpoint: &Checkpoint,
    texts: &[Document],
) -> Result<Vec<Vec<u32>>, Failure> {
    let path = checkpoint.file("tokenizer.json").map_err(Failure::stage)?;
    let encoder = Encoder::from_file(path).map_err(Failure::stage)?;
    let end = end_token(&checkpoint.config);
    cx.progress.phase("tokenising", Some(texts.len() as u64), "docs");
    let encode = |document: &Document| {
        cx.check_stop()?;
        let ids = document.ids(&encoder, end).map_err(Failure::stage)?;
        cx.progress.advance(1);
        Ok(ids)
    };
    texts.par_iter().map(encode).collect()
}

impl Document {
    fn ids(&self, encoder: &Encoder, end: Option<u32>) -> Result<Vec<u32>, EncoderError> {
        let mut ids = encoder.ids_of(&self.text, self.special_tokens)?;
        ids.extend(end.filter(|_| !self.special_tokens));
        Ok(ids)
    }
}

/// The end token of a `config.json`: one id, or the first of several.
fn end_token(config: &Value) -> Option<u32> {
    token_ids(config, "eos_token_id").first().copied()
}

/// The ids that stand under a name in a `config.json`: one, several or none.
pub(super) fn token_ids(config: &Value, name: &str) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match config.get(name) {
        Some(Value::Array(ids)) => ids.iter().map_while(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::artifact::encoder::tests::WORDS;

    #[test]
    fn a_text_gets_an_end_and_a_conversation_has_one() {
        let encoder = Encoder::from_json(WORDS.as_bytes()).unwrap();
        let ids = |text: &str, special_tokens| {
            let document = Document { text: text.to_owned(), special_tokens };
            document.ids(&encoder, Some(9)).unwrap()
        };
        assert_eq!(ids("one two<|end|>", false), [1, 0, 9]);
        assert_eq!(ids("one two<|end|>", true), [1, 2, 3]);
    }

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
