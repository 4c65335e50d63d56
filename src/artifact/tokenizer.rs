//! A byte-level BPE tokenizer in the files that transformers reads. Knows no text and no training.

use std::path::Path;

use serde::Serialize;

use super::{
    Artifact, ArtifactError, Files,
    encoder::{Encoded, Encoder, EncoderError},
    file,
};

/// The token before a document.
pub const START: &str = "<|startoftext|>";
/// The token after a document.
pub const END: &str = "<|endoftext|>";
/// The token that fills up a batch.
pub const PAD: &str = "<|pad|>";
/// All of them; their ids are their places here.
pub const SPECIALS: [&str; 3] = [START, END, PAD];

const FILE: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";

/// A tokenizer: text to ids and back.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    encoder: Encoder,
    json: String,
    specials: [u32; 3],
}

/// Why a tokenizer could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The JSON is not a tokenizer.
    #[error("not a tokenizer: {0}")]
    Json(EncoderError),
    /// A text could not be encoded, or ids not decoded.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// A token that the models need is not in the vocabulary.
    #[error("the vocabulary lacks the special token `{0}`")]
    Special(&'static str),
    /// The library refused the text or the ids.
    #[error("{0}")]
    Refused(String),
}

impl Tokenizer {
    /// Reads the text of a `tokenizer.json` that has this project's special tokens.
    pub fn from_json(json: &str) -> Result<Self, TokenizerError> {
        let encoder = Encoder::from_json(json.as_bytes()).map_err(TokenizerError::Json)?;
        let mut specials = [0; 3];
        for (id, name) in specials.iter_mut().zip(SPECIALS) {
            *id = encoder.id(name).ok_or(TokenizerError::Special(name))?;
        }
        Ok(Self { encoder, json: json.to_owned(), specials })
    }

    /// The ids and the byte offsets of a text. No special token is added or recognised.
    pub fn encode_with_offsets(&self, text: &str) -> Result<Encoded, TokenizerError> {
        Ok(self.encoder.with_offsets(text, false)?)
    }

    /// The ids of a text. No special token is added or recognised.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.encoder.ids(text)?)
    }

    /// The text of ids, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        Ok(self.encoder.decode(ids)?)
    }

    /// The number of ids, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.encoder.vocab_size()
    }

    /// The id of [`START`].
    pub fn start(&self) -> u32 {
        self.specials[0]
    }

    /// The id of [`END`].
    pub fn end(&self) -> u32 {
        self.specials[1]
    }

    /// The id of [`PAD`].
    pub fn pad(&self) -> u32 {
        self.specials[2]
    }
}

#[derive(Serialize)]
struct Config {
    tokenizer_class: &'static str,
    bos_token: &'static str,
    eos_token: &'static str,
    pad_token: &'static str,
    clean_up_tokenization_spaces: bool,
}

#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "the names are the file's")]
struct Map {
    bos_token: &'static str,
    eos_token: &'static str,
    pad_token: &'static str,
}

impl Artifact for Tokenizer {
    const KIND: &'static str = "tokenizer";

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        let config = Config {
            tokenizer_class: "PreTrainedTokenizerFast",
            bos_token: START,
            eos_token: END,
            pad_token: PAD,
            clean_up_tokenization_spaces: false,
        };
        write(&dir.join(FILE), self.json.clone())?;
        write_json(&dir.join(CONFIG), &config)?;
        write_json(&dir.join(MAP), &Map { bos_token: START, eos_token: END, pad_token: PAD })
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        let path = file(Self::KIND, files, FILE)?;
        let json = std::fs::read_to_string(path).map_err(ArtifactError::io(path))?;
        Self::from_json(&json).map_err(|e| ArtifactError::Malformed {
            kind: Self::KIND,
            file: FILE.to_owned(),
            place: "whole file".to_owned(),
            why: e.to_string(),
        })
    }
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ArtifactError> {
    write(path, serde_json::to_string_pretty(value).map_err(|e| ArtifactError::io(path)(e.into()))?)
}

fn write(path: &Path, mut text: String) -> Result<(), ArtifactError> {
    if !text.ends_with('\n') {
        text.push('\n');
    }
    std::fs::write(path, text).map_err(ArtifactError::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::testing::{each_file_is_needed, edited, saved};

    /// Three special tokens, `a`, `b`, `ab` and nothing else.
    fn json(pad: &str) -> String {
        let special = |id: usize, name: &str| {
            format!(
                r#"{{"id":{id},"content":"{name}","special":true,"single_word":false,"lstrip":false,"rstrip":false,"normalized":false}}"#
            )
        };
        format!(
            r#"{{"version":"1.0","added_tokens":[{},{},{}],"model":{{"type":"BPE","vocab":{{"{START}":0,"{END}":1,"{pad}":2,"a":3,"b":4,"ab":5}},"merges":[["a","b"]]}}}}"#,
            special(0, START),
            special(1, END),
            special(2, pad),
        )
    }

    #[test]
    fn saved_and_loaded_it_is_the_same() {
        let tokenizer = Tokenizer::from_json(&json(PAD)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        tokenizer.save(dir.path()).unwrap();
        let files: Files =
            [FILE, CONFIG, MAP].map(|name| (name.to_owned(), dir.path().join(name))).into_iter().collect();
        let loaded = Tokenizer::load(&files).unwrap();
        assert_eq!(loaded.vocab_size(), 6);
        assert_eq!((loaded.start(), loaded.end(), loaded.pad()), (0, 1, 2));
        let encoded = loaded.encode_with_offsets("aba").unwrap();
        assert_eq!(encoded, Encoded { ids: vec![5, 3], offsets: vec![(0, 2), (2, 3)] });
        assert_eq!(loaded.encode("aba").unwrap(), encoded.ids);
        loaded.save(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&files[FILE]).unwrap(), json(PAD) + "\n");
    }

    #[test]
    fn special_tokens_in_a_text_are_text() {
        let tokenizer = Tokenizer::from_json(&json(PAD)).unwrap();
        assert!(!tokenizer.encode(&format!("a{END}b")).unwrap().contains(&1));
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let error = |json: &str| Tokenizer::from_json(json).unwrap_err().to_string();
        assert_eq!(error(&json("<|fill|>")), "the vocabulary lacks the special token `<|pad|>`");
        assert!(error("{").starts_with("not a tokenizer: "));
        let missing = Tokenizer::load(&Files::new()).unwrap_err().to_string();
        assert_eq!(missing, "artifact `tokenizer` lacks its file `tokenizer.json`");
    }

    #[test]
    fn each_special_token_is_needed_by_name() {
        for name in SPECIALS {
            let error = Tokenizer::from_json(&json(PAD).replace(name, "<|other|>")).unwrap_err().to_string();
            assert_eq!(error, format!("the vocabulary lacks the special token `{name}`"));
        }
    }

    #[test]
    fn transformers_finds_the_special_tokens_in_the_files_beside() {
        let (_dir, files) = saved(&Tokenizer::from_json(&json(PAD)).unwrap());
        let read = |name: &str| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(&files[name]).unwrap()).unwrap()
        };
        for file in [CONFIG, MAP] {
            let values = read(file);
            for (key, token) in [("bos_token", START), ("eos_token", END), ("pad_token", PAD)] {
                assert_eq!(values[key], token, "{file}");
            }
        }
        assert_eq!(read(CONFIG)["tokenizer_class"], "PreTrainedTokenizerFast");
        assert_eq!(read(CONFIG)["clean_up_tokenization_spaces"], false, "a text must come back as it was");
    }

    #[test]
    fn a_damaged_file_is_named() {
        let tokenizer = Tokenizer::from_json(&json(PAD)).unwrap();
        let error = edited(&tokenizer, FILE, "\"BPE\"", "\"XYZ\"");
        assert!(
            error.starts_with("artifact `tokenizer`, file `tokenizer.json`, whole file: not a tokenizer: "),
            "{error}"
        );
        each_file_is_needed(&tokenizer, &[FILE]);
    }
}
