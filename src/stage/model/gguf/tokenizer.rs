//! The tokenizer in a GGUF file as the files that transformers reads. Knows byte-level BPE and how some families cut a text before it.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::{Value, json};
use tokenizers::Tokenizer;

use super::{GgufError, meta::Meta};

/// How a text is cut before its pieces are merged, by llama.cpp's name of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// GPT-2's pattern.
    Gpt2,
    /// The same behind single digits.
    Digits,
    /// Llama 3's pattern, digits by threes.
    Llama3,
    /// Qwen2's pattern, single digits, in normal form C.
    Qwen2,
}

const CUTS: [(&str, Cut); 10] = [
    ("gpt-2", Cut::Gpt2),
    ("gpt2", Cut::Gpt2),
    ("smollm", Cut::Digits),
    ("starcoder", Cut::Digits),
    ("refact", Cut::Digits),
    ("llama-bpe", Cut::Llama3),
    ("llama3", Cut::Llama3),
    ("llama-v3", Cut::Llama3),
    ("smaug-bpe", Cut::Llama3),
    ("qwen2", Cut::Qwen2),
];

/// Kinds of tokens, as `tokenizer.ggml.token_type` has them.
const CONTROL: usize = 3;
const USER_DEFINED: usize = 4;
const UNUSED: usize = 5;

/// `tokenizer.json`, and what stands beside it, by name.
pub(super) fn files(meta: Meta<'_>) -> Result<Vec<(&'static str, Vec<u8>)>, GgufError> {
    let json = json(meta)?;
    let bytes = serde_json::to_vec(&json).expect("a JSON value serialises");
    // Read once, for a mistake must show here and not in another stage.
    Tokenizer::from_bytes(&bytes).map_err(|e| GgufError::Tokenizer(e.to_string()))?;
    let mut files = vec![("tokenizer.json", bytes), ("tokenizer_config.json", config(meta)?)];
    if let Some(template) = meta.text("tokenizer.chat_template") {
        files.push(("chat_template.jinja", template.as_bytes().to_vec()));
    }
    Ok(files)
}

fn json(meta: Meta<'_>) -> Result<Value, GgufError> {
    let fault = |text: String| GgufError::Tokenizer(text);
    let model = meta.text("tokenizer.ggml.model").unwrap_or_default();
    if model != "gpt2" {
        return Err(fault(format!(
            "tokenizer.ggml.model is `{model}`, and only `gpt2` (byte-level BPE) is made"
        )));
    }
    let pre = meta.text("tokenizer.ggml.pre").unwrap_or_default();
    let Some((_, cut)) = CUTS.iter().find(|(name, _)| *name == pre) else {
        let known = CUTS.map(|(name, _)| name).join(", ");
        return Err(fault(format!("tokenizer.ggml.pre is `{pre}`, which is not known; known: {known}")));
    };
    let tokens = tokens(meta)?;
    let kinds = meta.integers("tokenizer.ggml.token_type").unwrap_or_else(|| vec![1; tokens.len()]);
    let merges = meta.texts("tokenizer.ggml.merges").unwrap_or_default();
    let mut pairs = Vec::with_capacity(merges.len());
    for (i, merge) in merges.iter().enumerate() {
        let pair = merge.split_once(' ');
        pairs.push(pair.ok_or_else(|| fault(format!("merge {i} is `{merge}`, not two parts")))?);
    }
    let kept = || tokens.iter().zip(&kinds).enumerate().filter(|(_, (_, kind))| **kind != UNUSED);
    let added = kept().filter(|(_, (_, kind))| [CONTROL, USER_DEFINED].contains(kind));
    let added = added.map(|(id, (token, kind))| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": *kind == CONTROL})
    });
    let vocab: BTreeMap<&str, usize> = kept().map(|(id, (token, _))| (*token, id)).collect();
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": if *cut == Cut::Qwen2 { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": cut.pre_tokenizer(&byte_level),
        "post_processor": begin(meta, &tokens)?,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": *cut == Cut::Llama3,
            "vocab": vocab,
            "merges": pairs,
        },
    }))
}

fn tokens(meta: Meta<'_>) -> Result<Vec<&str>, GgufError> {
    let tokens = meta.texts("tokenizer.ggml.tokens").filter(|tokens| !tokens.is_empty());
    tokens.ok_or_else(|| GgufError::Tokenizer("tokenizer.ggml.tokens is missing".to_owned()))
}

impl Cut {
    fn pre_tokenizer(self, byte_level: &dyn Fn(bool) -> Value) -> Value {
        let sequence =
            |first: Value, then: Value| json!({"type": "Sequence", "pretokenizers": [first, then]});
        // Contractions, words with what stands before them, numbers, signs, line ends, blanks.
        let pattern = |digits: &str| {
            let regex = format!(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            );
            json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
        };
        match self {
            Self::Gpt2 => byte_level(true),
            Self::Digits => sequence(json!({"type": "Digits", "individual_digits": true}), byte_level(true)),
            Self::Llama3 => sequence(pattern(r"\p{N}{1,3}"), byte_level(false)),
            Self::Qwen2 => sequence(pattern(r"\p{N}"), byte_level(false)),
        }
    }
}

/// What puts the first token before a text, where the file or its family asks for one.
fn begin(meta: Meta<'_>, tokens: &[&str]) -> Result<Value, GgufError> {
    let family =
        meta.text("tokenizer.ggml.pre").is_some_and(|pre| ["llama-bpe", "llama3", "llama-v3"].contains(&pre));
    if !meta.flag("tokenizer.ggml.add_bos_token").unwrap_or(family) {
        return Ok(Value::Null);
    }
    let Some((id, token)) = special(meta, "bos", tokens)? else { return Ok(Value::Null) };
    let text = |sequence: &str| json!({"Sequence": {"id": sequence, "type_id": 0}});
    let first = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let single = json!([first, text("A")]);
    let pair = json!([first, text("A"), first, text("B")]);
    let known = json!({ token: {"id": token, "ids": [id], "tokens": [token]} });
    Ok(json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": known}))
}

/// A token that has a part to play, by its key.
fn special<'a>(meta: Meta<'_>, key: &str, tokens: &[&'a str]) -> Result<Option<(usize, &'a str)>, GgufError> {
    let key: Cow<'_, str> = format!("tokenizer.ggml.{key}_token_id").into();
    let Some(id) = meta.integer(&key)? else { return Ok(None) };
    let token = tokens.get(id);
    let fault = || GgufError::Tokenizer(format!("{key} is {id}, and there are {} tokens", tokens.len()));
    token.map(|token| Some((id, *token))).ok_or_else(fault)
}

fn config(meta: Meta<'_>) -> Result<Vec<u8>, GgufError> {
    let tokens = tokens(meta)?;
    let mut config = json!({
        "clean_up_tokenization_spaces": false,
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    for (name, key) in [("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding")] {
        if let Some((_, token)) = special(meta, key, &tokens)? {
            config[name] = token.into();
        }
    }
    Ok(serde_json::to_vec_pretty(&config).expect("a JSON value serialises"))
}
