//! Texts as tokens of the target model. Knows no strata.

use std::path::Path;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tiktoken_rs::CoreBPE;

use crate::artifact::{
    encoder::{Encoder, EncoderError},
    texts::Text,
};

/// A tokenizer that needs no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Encoding {
    /// The tokenizer of GPT-OSS.
    #[default]
    #[serde(rename = "o200k_harmony")]
    O200kHarmony,
}

/// Splits texts into tokens. Names of special tokens count as text, unless the text says that they are tokens; none are added.
pub(super) enum Counter {
    File(Box<Encoder>),
    Embedded(Box<CoreBPE>),
}

/// Why tokens could not be counted.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokensError {
    #[error(transparent)]
    File(#[from] EncoderError),
    #[error("the embedded tokenizer cannot be read: {0}")]
    Embedded(String),
    #[error("document {id} cannot be tokenized: {why}")]
    Document { id: String, why: String },
}

impl Counter {
    pub(super) fn from_file(path: &Path) -> Result<Self, TokensError> {
        Ok(Self::File(Box::new(Encoder::from_file(path)?)))
    }

    pub(super) fn embedded(encoding: Encoding) -> Result<Self, TokensError> {
        let Encoding::O200kHarmony = encoding;
        let bpe = tiktoken_rs::o200k_harmony().map_err(|e| TokensError::Embedded(e.to_string()))?;
        Ok(Self::Embedded(Box::new(bpe)))
    }

    /// What `of` says of the tokens of each document, in their order; it may stop.
    pub(super) fn map<T: Send, E: From<TokensError> + Send>(
        &self,
        documents: &[&Text],
        of: impl Fn(&[u32]) -> Result<T, E> + Sync,
    ) -> Result<Vec<T>, E> {
        let one = |&document: &&Text| {
            let ids = self.ids(document);
            of(&ids.map_err(|why| TokensError::Document { id: document.id.clone(), why })?)
        };
        documents.par_iter().map(one).collect()
    }

    fn ids(&self, Text { text, special_tokens, .. }: &Text) -> Result<Vec<u32>, String> {
        match self {
            Self::File(encoder) => encoder.ids_of(text, *special_tokens).map_err(|e| e.to_string()),
            Self::Embedded(bpe) if *special_tokens => Ok(bpe.encode_with_special_tokens(text)),
            Self::Embedded(bpe) => Ok(bpe.encode_ordinary(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::encoder::tests::WORDS;

    fn counts(counter: &Counter, texts: &[&str]) -> Vec<usize> {
        counts_of(counter, texts, false).unwrap()
    }

    fn counts_of(counter: &Counter, texts: &[&str], special_tokens: bool) -> Result<Vec<usize>, TokensError> {
        let text = |text: &&str| Text {
            id: "id".into(),
            source: "a".into(),
            licence: String::new(),
            text: (*text).to_owned(),
            special_tokens,
            marks: vec![],
        };
        let texts: Vec<Text> = texts.iter().map(text).collect();
        counter.map(&texts.iter().collect::<Vec<_>>(), |ids| Ok(ids.len()))
    }

    #[test]
    fn a_file_counts_whole_texts_without_special_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, WORDS).unwrap();
        let counter = Counter::from_file(&path).unwrap();
        assert_eq!(counts(&counter, &["one two three", "", "a b c d e f", "a<|end|>b"]), [3, 0, 6, 1]);
        assert_eq!(counts_of(&counter, &["a<|end|>b"], true).unwrap(), [3]);
        let error = counts_of(&counter, &["a b"], true).unwrap_err().to_string();
        assert!(
            error.starts_with("document id cannot be tokenized: the text holds special tokens"),
            "{error}"
        );
    }

    #[test]
    fn the_embedded_tokenizer_is_that_of_gpt_oss() {
        let counter = Counter::embedded(Encoding::O200kHarmony).unwrap();
        // "Hello, world!" is [13225, 11, 2375, 0] in o200k.
        assert_eq!(counts(&counter, &["Hello, world!", "", "<|end|>"])[..2], [4, 0]);
        assert!(counts(&counter, &["<|end|>"])[0] > 1, "a special token's name is text");
        let chat = ["<|start|>user<|message|>Hello, world!<|end|>"];
        assert_eq!(counts_of(&counter, &chat, true).unwrap(), [8], "unless the text says otherwise");
    }
}
