//! The tokenizer stage: trains byte-level BPE on texts. Knows no model.
//!
//! The merges are learnt here rather than by the `tokenizers` crate, whose trainer breaks some ties by the order of a hash map;
//! the result is in that crate's format and runs on it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokenizers::{
    OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, PreTokenizerWrapper,
    SplitDelimiterBehavior,
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use crate::{
    artifact::{
        Artifact,
        texts::Texts,
        tokenizer::{SPECIALS, Tokenizer, TokenizerError},
    },
    engine::action::{Cx, Failure, Numerics, OutputPort},
    stage::{
        Input, InputPort, Invalid, Stage,
        code::{self, Code},
    },
};

/// Trains a byte-level BPE tokenizer. Texts are first cut into words with the space before them, single digits, runs of
/// punctuation and runs of white space; merges never cross a cut.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TrainTokenizer {
    /// The texts to learn from.
    pub texts: Input<Texts>,
    /// The greatest number of entries: three special tokens, 256 bytes, then merges. Fewer result when no pair of tokens occurs
    /// twice any more.
    #[serde(default = "default_vocab_size")]
    pub vocab_size: u32,
}

fn default_vocab_size() -> u32 {
    2_048
}

const LEAST: u32 = SPECIALS.len() as u32 + 256;
const MOST: u32 = 1 << 20;

impl Stage for TrainTokenizer {
    const KIND: &'static str = "tokenizer";
    const CODE: Code = code::of("tokenizer");
    const NUMERICS: Numerics = Numerics::Bitwise;
    const OUTPUTS: &'static [OutputPort] = &[OutputPort { name: "tokenizer", kind: Tokenizer::KIND }];

    fn inputs(&self) -> Vec<InputPort> {
        vec![self.texts.port("texts")]
    }

    fn check(&self) -> Result<(), Invalid> {
        if (LEAST..=MOST).contains(&self.vocab_size) {
            return Ok(());
        }
        Err(Invalid::new("vocab-size", format!("is {}, but must lie in {LEAST}..={MOST}", self.vocab_size))
            .hint("2,048 suits the synthetic corpus; published models have 32,000 to 201,088"))
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        let texts = self.texts.load(cx, "texts")?;
        if texts.0.is_empty() {
            return Err(Failure::stage("there is no text to learn from; check the corpus stage's drops"));
        }
        cx.progress.phase("words", None, "texts");
        let tokenizer = train(texts.0.iter().map(|text| text.text.as_str()), self.vocab_size as usize)
            .map_err(Failure::stage)?;
        cx.progress.say(&format!("{} entries of at most {}", tokenizer.vocab_size(), self.vocab_size));
        tokenizer.save(&cx.output("tokenizer")).map_err(Failure::stage)
    }
}

/// Where a text is cut before merges: GPT-2's pattern, except that a digit stands alone.
const CUTS: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Trains a tokenizer of at most `vocab_size` entries. The result does not depend on the order of the texts or on threads.
pub fn train<'a>(
    texts: impl Iterator<Item = &'a str>,
    vocab_size: usize,
) -> Result<Tokenizer, TokenizerError> {
    let cutter = cutter().map_err(|e| TokenizerError::Refused(e.to_string()))?;
    let texts: Vec<&str> = texts.collect();
    let words = texts
        .par_iter()
        .map(|text| count_words(&cutter, text))
        .try_reduce(BTreeMap::new, |a, b| Ok(sum(a, b)))
        .map_err(|e| TokenizerError::Refused(e.to_string()))?;
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let mut vocab: Vec<String> = SPECIALS.map(str::to_owned).into();
    vocab.extend(alphabet.iter().map(char::to_string));
    let merges = Merger::new(&words, &vocab).run(&mut vocab, vocab_size);
    assemble(&cutter, &vocab, &merges)
}

fn cutter() -> tokenizers::Result<PreTokenizerWrapper> {
    let split = Split::new(SplitPattern::Regex(CUTS.to_owned()), SplitDelimiterBehavior::Isolated, false)?;
    let bytes = ByteLevel::new(false, false, false);
    Ok(Sequence::new(vec![split.into(), bytes.into()]).into())
}

type Words = BTreeMap<String, u64>;

fn count_words(cutter: &PreTokenizerWrapper, text: &str) -> tokenizers::Result<Words> {
    let mut cut = PreTokenizedString::from(text);
    cutter.pre_tokenize(&mut cut)?;
    let mut words = Words::new();
    for (word, ..) in cut.get_splits(OffsetReferential::Original, OffsetType::Byte) {
        match words.get_mut(word) {
            Some(n) => *n += 1,
            None => drop(words.insert(word.to_owned(), 1)),
        }
    }
    Ok(words)
}

fn sum(a: Words, b: Words) -> Words {
    let (mut into, from) = if a.len() < b.len() { (b, a) } else { (a, b) };
    for (word, n) in from {
        *into.entry(word).or_default() += n;
    }
    into
}

/// Two tokens that stand side by side.
type Pair = (u32, u32);

/// The state of training: every distinct word as tokens, and where each pair occurs.
struct Merger {
    words: Vec<(Vec<u32>, u64)>,
    counts: BTreeMap<Pair, u64>,
    places: BTreeMap<Pair, BTreeSet<usize>>,
}

impl Merger {
    fn new(words: &Words, vocab: &[String]) -> Self {
        let ids: BTreeMap<&str, u32> = (0..).zip(vocab).map(|(id, token)| (token.as_str(), id)).collect();
        let split = |word: &str| word.chars().map(|c| ids[c.encode_utf8(&mut [0; 4]) as &str]).collect();
        let words = words.iter().map(|(word, &n)| (split(word), n)).collect::<Vec<_>>();
        let mut merger = Self { words, counts: BTreeMap::new(), places: BTreeMap::new() };
        (0..merger.words.len()).for_each(|at| merger.enter(at));
        merger
    }

    /// Merges the most frequent pair, of equals the one with the smallest ids, until the vocabulary is full or no pair occurs
    /// twice. New tokens are appended to `vocab`.
    fn run(mut self, vocab: &mut Vec<String>, vocab_size: usize) -> Vec<Pair> {
        let mut ids: BTreeMap<String, u32> = (0..).zip(vocab.iter()).map(|(id, t)| (t.clone(), id)).collect();
        let mut merges = Vec::new();
        while vocab.len() < vocab_size {
            let best = self.counts.iter().max_by_key(|&(&pair, &n)| (n, Reverse(pair)));
            let Some((&pair, 2..)) = best else { break };
            let token = format!("{}{}", vocab[pair.0 as usize], vocab[pair.1 as usize]);
            // Two ways to the same string share an id.
            let id = *ids.entry(token).or_insert_with_key(|token| {
                vocab.push(token.clone());
                vocab.len() as u32 - 1
            });
            for at in self.places.get(&pair).cloned().unwrap_or_default() {
                self.leave(at);
                merge(&mut self.words[at].0, pair, id);
                self.enter(at);
            }
            merges.push(pair);
        }
        merges
    }

    /// Adds a word's pairs.
    fn enter(&mut self, at: usize) {
        let (tokens, n) = &self.words[at];
        for pair in tokens.windows(2).map(|w| (w[0], w[1])) {
            *self.counts.entry(pair).or_default() += n;
            self.places.entry(pair).or_default().insert(at);
        }
    }

    /// Takes a word's pairs away.
    fn leave(&mut self, at: usize) {
        let (tokens, n) = &self.words[at];
        for pair in tokens.windows(2).map(|w| (w[0], w[1])) {
            if let Some(count) = self.counts.get_mut(&pair) {
                *count -= n;
                if *count == 0 {
                    self.counts.remove(&pair);
                }
            }
            if let Some(places) = self.places.get_mut(&pair) {
                places.remove(&at);
            }
        }
    }
}

/// Replaces a pair by its token, from left to right.
fn merge(tokens: &mut Vec<u32>, pair: Pair, id: u32) {
    let mut read = 0;
    let mut write = 0;
    while read < tokens.len() {
        let hit = tokens[read] == pair.0 && tokens.get(read + 1) == Some(&pair.1);
        tokens[write] = if hit { id } else { tokens[read] };
        write += 1;
        read += 1 + usize::from(hit);
    }
    tokens.truncate(write);
}

/// Puts the parts into the format of the `tokenizers` crate and lets that crate write it.
fn assemble(
    cutter: &PreTokenizerWrapper,
    vocab: &[String],
    merges: &[Pair],
) -> Result<Tokenizer, TokenizerError> {
    let refused = |e: &dyn std::fmt::Display| TokenizerError::Refused(e.to_string());
    let flags = |id, name| {
        serde_json::json!({ "id": id, "content": name, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false })
    };
    let specials: Vec<_> = (0..).zip(SPECIALS).map(|(id, name): (u32, _)| flags(id, name)).collect();
    let ids: BTreeMap<&String, u32> = vocab.iter().zip(0..).collect();
    let merges: Vec<_> = merges.iter().map(|&(a, b)| (&vocab[a as usize], &vocab[b as usize])).collect();
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": specials,
        "pre_tokenizer": serde_json::to_value(cutter).map_err(|e| refused(&e))?,
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false },
        "model": { "type": "BPE", "vocab": ids, "merges": merges },
    });
    let tokenizer = tokenizers::Tokenizer::from_bytes(json.to_string()).map_err(|e| refused(&e))?;
    Tokenizer::from_json(&tokenizer.to_string(true).map_err(|e| refused(&e))?)
}

#[cfg(test)]
mod tests;
