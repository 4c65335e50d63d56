//! Texts as tokens of the target model. Knows no strata.

use std::path::Path;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tiktoken_rs::CoreBPE;

use crate::artifact::encoder::{Encoder, EncoderError};

/// A tokenizer that needs no file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Encoding {
    /// The tokenizer of GPT-OSS.
    #[default]
    #[serde(rename = "o200k_harmony")]
    O200kHarmony,
}

/// Splits texts into tokens. Names of special tokens in a text count as text, and none are added.
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

    /// What `of` says of the tokens of each document `(id, text)`, in their order; it may stop.
    pub(super) fn map<T: Send, E: From<TokensError> + Send>(
        &self,
        documents: &[(&str, &str)],
        of: impl Fn(&[u32]) -> Result<T, E> + Sync,
    ) -> Result<Vec<T>, E> {
        let one = |&(id, text): &(&str, &str)| {
            let ids = self.ids(text);
            of(&ids.map_err(|why| TokensError::Document { id: id.to_owned(), why })?)
        };
        documents.par_iter().map(one).collect()
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, String> {
        match self {
            Self::File(encoder) => encoder.ids(text).map_err(|e| e.to_string()),
            Self::Embedded(bpe) => Ok(bpe.encode_ordinary(text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::encoder::tests::WORDS;

    fn counts(counter: &Counter, texts: &[&str]) -> Vec<usize> {
        let documents: Vec<_> = texts.iter().map(|text| ("id", *text)).collect();
        counter.map(&documents, |ids| Ok::<_, TokensError>(ids.len())).unwrap()
    }

    #[test]
    fn a_file_counts_whole_texts_without_special_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, WORDS).unwrap();
        let counter = Counter::from_file(&path).unwrap();
        assert_eq!(counts(&counter, &["one two three", "", "a b c d e f", "a<|end|>b"]), [3, 0, 6, 1]);
    }

    #[test]
    fn the_embedded_tokenizer_is_that_of_gpt_oss() {
        let counter = Counter::embedded(Encoding::O200kHarmony).unwrap();
        // "Hello, world!" is [13225, 11, 2375, 0] in o200k.
        assert_eq!(counts(&counter, &["Hello, world!", "", "<|end|>"])[..2], [4, 0]);
        assert!(counts(&counter, &["<|end|>"])[0] > 1, "a special token's name is text");
    }
}
