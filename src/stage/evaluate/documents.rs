//! Held-out documents as tokens, with the places of their marked answers. Knows no model.

use std::{ops::Range, path::Path};

use crate::artifact::{
    encoder::{self, EncoderError},
    texts::Mark,
};

/// A document as the models see it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Document {
    /// The tokens, at least two.
    pub(super) ids: Vec<u32>,
    /// The marked answers that are tokens of their own.
    pub(super) answers: Vec<Marked>,
    /// Marks that are not: a token reaches over an end of the answer.
    pub(super) skipped: usize,
}

/// A marked answer in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Marked {
    /// Its tokens in the document; the first is never token 0.
    pub(super) tokens: Range<usize>,
    /// Tokens from the statement to the answer.
    pub(super) distance: usize,
    /// How many answers were possible.
    pub(super) choices: u32,
}

/// How documents become tokens.
pub(super) struct Encoder {
    tokens: encoder::Encoder,
    bos: Option<u32>,
    max_length: usize,
}

/// Why a document could not be encoded.
#[derive(Debug, thiserror::Error)]
pub(super) enum EncodeError {
    #[error("the original model: {0}")]
    Tokens(#[from] EncoderError),
    #[error("`bos` is `{0}`, which is not in the model's vocabulary")]
    Bos(String),
}

impl Encoder {
    /// Reads a `tokenizer.json`.
    pub(super) fn new(path: &Path, bos: Option<&str>, max_length: usize) -> Result<Self, EncodeError> {
        let tokens = encoder::Encoder::from_file(path)?;
        let id = |name: &str| tokens.id(name).ok_or_else(|| EncodeError::Bos(name.to_owned()));
        let bos = bos.map(id).transpose()?;
        Ok(Self { tokens, bos, max_length })
    }

    /// The tokens of a text, cut to `max_length`; `None` where fewer than two are left, so that nothing is predicted.
    pub(super) fn encode(
        &self,
        text: &str,
        special_tokens: bool,
        marks: &[Mark],
    ) -> Result<Option<Document>, EncodeError> {
        let encoded = self.tokens.with_offsets(text, special_tokens)?;
        let mut ids: Vec<u32> = self.bos.into_iter().chain(encoded.ids).collect();
        let mut bytes: Vec<(usize, usize)> =
            self.bos.map(|_| (0, 0)).into_iter().chain(encoded.offsets).collect();
        ids.truncate(self.max_length);
        bytes.truncate(self.max_length);
        if ids.len() < 2 {
            return Ok(None);
        }
        let mut document = Document { ids, ..Document::default() };
        let end = bytes.last().map_or(0, |b| b.1);
        for mark in marks.iter().filter(|mark| mark.end <= end) {
            match locate(text, &bytes, mark) {
                Some(marked) => document.answers.push(marked),
                None => document.skipped += 1,
            }
        }
        Ok(Some(document))
    }
}

/// The tokens that make up the answer and nothing else but white space before it.
fn locate(text: &str, bytes: &[(usize, usize)], mark: &Mark) -> Option<Marked> {
    // Token ends never descend, so the first that ends behind a byte is the one that holds it.
    let holding = |byte: usize| bytes.partition_point(|&(_, end)| end <= byte);
    let first = holding(mark.start);
    let last = bytes.partition_point(|&(start, _)| start < mark.end);
    let before = text.get(bytes.get(first)?.0.min(mark.start)..mark.start)?;
    let alone = before.trim().is_empty() && last > first && bytes[last - 1].1 <= mark.end;
    let distance = first.checked_sub(holding(mark.stated))?;
    (alone && first > 0).then_some(Marked { tokens: first..last, distance, choices: mark.choices })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words with the space before them, and full stops; ` la` is two tokens, ` ab` is one.
    const JSON: &str = r#"{"version":"1.0","added_tokens":[{"id":0,"content":"<s>","special":true,"single_word":false,
        "lstrip":false,"rstrip":false,"normalized":false}],
        "pre_tokenizer":{"type":"Split","pattern":{"Regex":" ?[a-z]+|\\."},"behavior":"Isolated","invert":false},
        "model":{"type":"BPE","vocab":{"<s>":0,"a":1," ":2,"b":3," a":4," b":5,".":6,"l":7," l":8,"ab":9," ab":10},
        "merges":[[" ","a"],[" ","b"],[" ","l"],["a","b"],[" a","b"]]}}"#;

    fn new(json: &str, bos: Option<&str>, max_length: usize) -> Result<Encoder, EncodeError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        std::fs::write(&path, json).unwrap();
        Encoder::new(&path, bos, max_length)
    }

    fn encoder(bos: Option<&str>, max_length: usize) -> Encoder {
        new(JSON, bos, max_length).unwrap()
    }

    fn mark(text: &str, answer: &str, stated: usize) -> Mark {
        let start = text.rfind(answer).unwrap();
        Mark { start, end: start + answer.len(), stated, choices: 4 }
    }

    fn marked(tokens: Range<usize>, distance: usize) -> Marked {
        Marked { tokens, distance, choices: 4 }
    }

    #[test]
    fn an_answer_is_found_with_the_space_before_it() {
        let text = "a b. a a b."; // tokens: a| b|.| a| a| b|.
        let document = encoder(None, 100).encode(text, false, &[mark(text, "b", 2)]).unwrap().unwrap();
        assert_eq!(document.ids, [1, 5, 6, 4, 4, 5, 6]);
        assert_eq!(document.answers, [marked(5..6, 4)]);
        let with_bos = encoder(Some("<s>"), 100).encode(text, false, &[mark(text, "b", 2)]).unwrap().unwrap();
        assert_eq!(with_bos.ids[..3], [0, 1, 5]);
        assert_eq!(with_bos.answers, [marked(6..7, 4)]);
    }

    #[test]
    fn a_special_token_is_one_where_the_text_says_so() {
        let ids = |special| encoder(None, 100).encode("a<s>b", special, &[]).map(|d| d.unwrap().ids);
        assert_eq!(ids(true).unwrap(), [1, 0, 3]);
        assert_ne!(ids(false).unwrap()[1], 0);
        let error = encoder(None, 100).encode("a b", true, &[]).unwrap_err().to_string();
        assert!(error.starts_with("the original model: the text holds special tokens"), "{error}");
    }

    #[test]
    fn an_answer_of_several_tokens() {
        let text = "a. la."; // tokens: a|.| l|a|.
        let document = encoder(None, 100).encode(text, false, &[mark(text, "la", 0)]).unwrap().unwrap();
        assert_eq!(document.answers, [marked(2..4, 2)]);
    }

    #[test]
    fn an_answer_that_shares_a_token_is_skipped() {
        let text = "a. ab"; // tokens: a|.| ab
        let part = |start, end| Mark { start, end, stated: 0, choices: 4 };
        let document =
            encoder(None, 100).encode(text, false, &[part(4, 5), part(3, 4), part(3, 5)]).unwrap().unwrap();
        assert_eq!((document.answers, document.skipped), (vec![marked(2..3, 2)], 2));
    }

    #[test]
    fn a_cut_takes_its_answers_along() {
        let text = "a b. a a b.";
        let marks = [mark(text, "b", 2)];
        let cut = encoder(None, 5).encode(text, false, &marks).unwrap().unwrap();
        assert_eq!((cut.ids.len(), cut.answers.len(), cut.skipped), (5, 0, 0));
        assert_eq!(encoder(None, 6).encode(text, false, &marks).unwrap().unwrap().answers.len(), 1);
        assert_eq!(encoder(None, 1).encode(text, false, &marks).unwrap(), None);
        assert_eq!(encoder(None, 9).encode("", false, &[]).unwrap(), None);
    }

    #[test]
    fn an_answer_at_the_very_start_cannot_be_predicted() {
        let document =
            encoder(None, 9).encode("a b", false, &[Mark { start: 0, end: 1, stated: 0, choices: 2 }]);
        assert_eq!(document.unwrap().unwrap().skipped, 1);
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let error = |json: &str, bos| new(json, bos, 9).err().unwrap().to_string();
        assert!(error("{", None).starts_with("the original model: the tokenizer in `"));
        assert_eq!(error(JSON, Some("<x>")), "`bos` is `<x>`, which is not in the model's vocabulary");
    }
}
