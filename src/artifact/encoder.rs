//! A `tokenizer.json` as every stage uses it: whole texts to ids, nothing added, cut or filled. Knows no model and no corpus.
//!
//! The names of special tokens inside a text are text, not commands: a document that mentions `<|end|>` must not end there. Only in
//! a text that says so (`Text::special_tokens`) are they the tokens.

use std::{path::Path, sync::OnceLock};

use tokenizers::Tokenizer;

/// Turns texts into ids.
#[derive(Debug, Clone)]
pub struct Encoder {
    tokenizer: Tokenizer,
    /// The same with special tokens recognised, made when it is first needed: it takes as much memory again.
    special: OnceLock<Tokenizer>,
}

/// A text as tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoded {
    /// The ids.
    pub ids: Vec<u32>,
    /// First byte and one past the last byte of each token in the text. A leading space belongs to its token; the parts of a
    /// character that was split all have the character's bytes.
    pub offsets: Vec<(usize, usize)>,
}

/// Why a text could not become tokens.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// The file is not there, or not a tokenizer.
    #[error("the tokenizer in `{file}` cannot be read: {why}")]
    File {
        /// Its path.
        file: String,
        /// What is wrong.
        why: String,
    },
    /// A text with special tokens, of which the tokenizer knows none.
    #[error(
        "the text holds special tokens, as a rendered conversation does, and the tokenizer knows none of them; use the tokenizer of the \
         model that the format is for"
    )]
    NoSpecialTokens,
    /// The library refused the text or the ids.
    #[error("{0}")]
    Refused(tokenizers::Error),
}

impl Encoder {
    /// Reads a `tokenizer.json`.
    pub fn from_file(path: &Path) -> Result<Self, EncoderError> {
        let fault = |why: String| EncoderError::File { file: path.display().to_string(), why };
        let json = std::fs::read(path).map_err(|e| fault(e.to_string()))?;
        Self::from_json(&json).map_err(|e| fault(e.to_string()))
    }

    /// Reads the text of a `tokenizer.json`.
    pub fn from_json(json: &[u8]) -> Result<Self, EncoderError> {
        let mut tokenizer = Tokenizer::from_bytes(json).map_err(EncoderError::Refused)?;
        tokenizer.set_encode_special_tokens(true);
        // A file may ask to cut or fill texts; every stage wants the whole text and cuts by itself.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(EncoderError::Refused)?;
        Ok(Self { tokenizer, special: OnceLock::new() })
    }

    /// The ids of a text in which the names of special tokens are text.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>, EncoderError> {
        self.ids_of(text, false)
    }

    /// The ids of a text; with `special_tokens` the names of special tokens in it are those tokens.
    pub fn ids_of(&self, text: &str, special_tokens: bool) -> Result<Vec<u32>, EncoderError> {
        let encoding =
            self.tokenizer(special_tokens).encode_fast(text, false).map_err(EncoderError::Refused)?;
        self.check(encoding.get_ids(), special_tokens)?;
        Ok(encoding.get_ids().to_vec())
    }

    fn tokenizer(&self, special_tokens: bool) -> &Tokenizer {
        if !special_tokens {
            return &self.tokenizer;
        }
        self.special.get_or_init(|| {
            let mut tokenizer = self.tokenizer.clone();
            tokenizer.set_encode_special_tokens(false);
            tokenizer
        })
    }

    /// A text of another model's format would pass for plain text.
    fn check(&self, ids: &[u32], special_tokens: bool) -> Result<(), EncoderError> {
        let known = self.tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let found = !special_tokens || ids.iter().any(|id| known.get(id).is_some_and(|token| token.special));
        if found { Ok(()) } else { Err(EncoderError::NoSpecialTokens) }
    }

    /// What the tokenizer puts before and behind every text, such as `[CLS]` and `[SEP]`.
    pub fn around(&self) -> Result<(Vec<u32>, Vec<u32>), EncoderError> {
        let ids = |special| {
            let encoding = self.tokenizer.encode_fast("a", special).map_err(EncoderError::Refused)?;
            Ok::<_, EncoderError>(encoding.get_ids().to_vec())
        };
        let (bare, whole) = (ids(false)?, ids(true)?);
        let start = whole.windows(bare.len().max(1)).position(|part| part == bare).unwrap_or(0);
        Ok((whole[..start].to_vec(), whole[start + bare.len()..].to_vec()))
    }

    /// The ids and the byte offsets of a text, as [`Self::ids_of`] finds them.
    pub fn with_offsets(&self, text: &str, special_tokens: bool) -> Result<Encoded, EncoderError> {
        let encoding = self.tokenizer(special_tokens).encode(text, false).map_err(EncoderError::Refused)?;
        self.check(encoding.get_ids(), special_tokens)?;
        Ok(Encoded { ids: encoding.get_ids().to_vec(), offsets: encoding.get_offsets().to_vec() })
    }

    /// The number of tokens of a text.
    pub fn count(&self, text: &str) -> Result<usize, EncoderError> {
        Ok(self.tokenizer.encode_fast(text, false).map_err(EncoderError::Refused)?.len())
    }

    /// The text of ids, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, EncoderError> {
        self.tokenizer.decode(ids, true).map_err(EncoderError::Refused)
    }

    /// The id of a token by its name, special or not.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The number of ids, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One token a word; asks to be cut after four tokens and filled up to nine.
    pub(crate) const WORDS: &str = r#"{"version":"1.0","added_tokens":[{"id":3,"content":"<|end|>","special":true,"single_word":false,
        "lstrip":false,"rstrip":false,"normalized":false}],"pre_tokenizer":{"type":"WhitespaceSplit"},
        "truncation":{"direction":"Right","max_length":4,"strategy":"LongestFirst","stride":0},
        "padding":{"strategy":{"Fixed":9},"direction":"Right","pad_to_multiple_of":null,"pad_id":3,"pad_type_id":0,"pad_token":"<|end|>"},
        "model":{"type":"WordLevel","vocab":{"?":0,"one":1,"two":2},"unk_token":"?"}}"#;

    /// One token a letter from `a` to `e`, and a space.
    pub(crate) const LETTERS: &str = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
        "pre_tokenizer":null,"post_processor":null,"decoder":null,"model":{"type":"BPE","dropout":null,"unk_token":null,
        "continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":false,"byte_fallback":false,"ignore_merges":false,
        "merges":[],"vocab":{"a":0,"b":1,"c":2,"d":3,"e":4," ":5}}}"#;

    fn words() -> Encoder {
        Encoder::from_json(WORDS.as_bytes()).unwrap()
    }

    #[test]
    fn a_text_is_whole_whatever_the_file_asks_for() {
        let long = "one two ".repeat(30);
        assert_eq!(words().ids(&long).unwrap(), [1, 2].repeat(30));
        assert_eq!(words().count(&long).unwrap(), 60);
        assert_eq!(words().with_offsets(&long, false).unwrap().ids, words().ids(&long).unwrap());
        assert_eq!(words().count("one").unwrap(), 1, "nothing is filled up");
    }

    #[test]
    fn names_of_special_tokens_are_text() {
        assert_eq!(words().ids("one <|end|> two").unwrap(), [1, 0, 2]);
        assert_eq!(words().id("<|end|>"), Some(3), "but they have their ids");
        assert_eq!(words().decode(&[1, 3, 2]).unwrap(), "one two");
    }

    #[test]
    fn names_of_special_tokens_are_tokens_where_the_text_says_so() {
        let words = words();
        assert_eq!(words.ids_of("one <|end|>two", true).unwrap(), [1, 3, 2]);
        assert_eq!(words.with_offsets("one <|end|>two", true).unwrap().offsets, [(0, 3), (4, 11), (11, 14)]);
        assert_eq!(words.ids_of("one <|end|>two", false).unwrap(), [1, 0], "and the next text is text again");
        let long = "one<|end|>".repeat(30);
        assert_eq!(words.ids_of(&long, true).unwrap(), [1, 3].repeat(30), "nothing is cut");
        for text in ["one <|start|>", ""] {
            let error = words.ids_of(text, true).unwrap_err().to_string();
            assert!(
                error.contains("the tokenizer knows none of them; use the tokenizer of the model"),
                "{error}"
            );
            assert!(words.with_offsets(text, true).is_err());
        }
    }

    #[test]
    fn what_stands_around_a_text_is_known() {
        assert_eq!(words().around().unwrap(), (vec![], vec![]));
        let template = r#""post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<|end|>","type_id":0}},
            {"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"<|end|>","type_id":0}},{"SpecialToken":{"id":"<|end|>","type_id":0}}],
            "pair":[],"special_tokens":{"<|end|>":{"id":"<|end|>","ids":[3],"tokens":["<|end|>"]}}},"model":"#;
        let json = WORDS.replace("\"model\":", template);
        assert_eq!(Encoder::from_json(json.as_bytes()).unwrap().around().unwrap(), (vec![3], vec![3, 3]));
    }

    #[test]
    fn offsets_are_bytes_of_the_text() {
        let encoded = words().with_offsets("ähm one", false).unwrap();
        assert_eq!(encoded, Encoded { ids: vec![0, 1], offsets: vec![(0, 4), (5, 8)] });
    }

    #[test]
    fn unknown_names_have_no_id() {
        assert_eq!((words().id("three"), words().vocab_size()), (None, 4));
    }

    #[test]
    fn a_broken_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        for content in [None, Some("{}")] {
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let error = Encoder::from_file(&path).unwrap_err().to_string();
            assert!(error.contains("tokenizer.json` cannot be read: "), "{error}");
        }
    }
}
