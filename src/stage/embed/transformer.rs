//! Embedding with a transformer: texts become windows of tokens, windows become packed batches, vectors become rows of the grid.
//! Knows no network.
//!
//! Windows are sorted by length and packed up to a number of tokens, so a batch is no larger than it must be and nothing is padded; the
//! squares of lengths, which attention costs, are bounded with it. What a document's row is does not depend on its batch. While one
//! part of the documents is embedded, the next is tokenised.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::{Embed, Windows, files};
use crate::{
    artifact::{Artifact, Files, checkpoint::Checkpoint, encoder::Encoder, file, texts::Text},
    engine::action::{Cx, Failure, Stopwatch},
    math::grid,
    model::text_encoder::{Family, Pooling, TextEncoder},
};

/// Tokens of a batch, unless one window has more.
const BATCH: usize = 2048;
/// Documents that are tokenised before the first of them is embedded.
const AT_ONCE: usize = 4096;

/// A transformer and its tokenizer.
pub(super) struct Transformer {
    encoder: TextEncoder,
    tokenizer: Encoder,
    /// The tokens before and behind every window.
    around: (Vec<u32>, Vec<u32>),
    pooling: Pooling,
    max_tokens: usize,
    windows: Windows,
    prefix: String,
}

/// Why a transformer cannot embed.
#[derive(Debug, thiserror::Error)]
enum TransformerError {
    #[error("{0}")]
    Files(String),
    #[error("its vectors have {0} coordinates, and up to {most} are exact on the grid", most = grid::MAX_DIM)]
    TooWide(usize),
    #[error("the model sees {0} tokens at once, and {1} of them are special: no room is left for text")]
    NoRoom(usize, usize),
    #[error(
        "document {id}: its vector is not finite; the weights are damaged or not those of this architecture"
    )]
    NotFinite { id: String },
}

impl Transformer {
    /// Reads a model's files.
    pub(super) fn load(embed: &Embed, reads: &Files) -> Result<Self, Failure> {
        let fault = |why| Failure::stage(TransformerError::Files(why));
        let checkpoint = Checkpoint::load(reads).map_err(Failure::stage)?;
        let encoder = TextEncoder::load(&checkpoint).map_err(Failure::stage)?;
        let config = encoder.config();
        if config.hidden_size > grid::MAX_DIM {
            return Err(Failure::stage(TransformerError::TooWide(config.hidden_size)));
        }
        let path = file("checkpoint", reads, "tokenizer.json").map_err(Failure::stage)?;
        let tokenizer = Encoder::from_file(path).map_err(Failure::stage)?;
        let around = tokenizer.around().map_err(Failure::stage)?;
        let usual = match config.family {
            Family::Bert => Pooling::Mean,
            Family::New => Pooling::Cls,
        };
        let pooling = match embed.pooling {
            Some(pooling) => pooling,
            None => files::pooling(reads).map_err(fault)?.unwrap_or(usual),
        };
        let asked = match embed.max_tokens {
            Some(most) => most,
            None => files::max_tokens(reads).map_err(fault)?.unwrap_or(usize::MAX),
        };
        let max_tokens = asked.min(config.max_position_embeddings);
        let special = around.0.len() + around.1.len();
        if max_tokens <= special {
            return Err(Failure::stage(TransformerError::NoRoom(max_tokens, special)));
        }
        let (windows, prefix) = (embed.windows, embed.prefix.clone());
        Ok(Self { encoder, tokenizer, around, pooling, max_tokens, windows, prefix })
    }

    /// The width of the vectors, the rows of all documents, and how many windows each fills.
    pub(super) fn embed(&self, texts: &[Text], cx: &Cx<'_>) -> Result<(usize, Vec<i16>, Vec<u32>), Failure> {
        let dim = self.encoder.config().hidden_size;
        let mut rows = vec![0_i16; texts.len() * dim];
        let mut windows = Vec::with_capacity(texts.len());
        let mut spent = Spent::default();
        cx.progress.phase("embedding", Some(texts.len() as u64), "docs");
        let mut parts = texts.chunks(AT_ONCE);
        let mut next = self.documents(parts.next(), &spent);
        for (texts, rows) in texts.chunks(AT_ONCE).zip(rows.chunks_mut(AT_ONCE * dim)) {
            let documents = next?;
            windows.extend(documents.iter().map(|document| document.fills));
            spent.tokens +=
                documents.iter().flat_map(|document| &document.windows).map(Vec::len).sum::<usize>();
            let part = parts.next();
            let (sums, after) = rayon::join(|| self.sums(&documents, cx), || self.documents(part, &spent));
            next = after;
            let sums = sums?;
            for ((sum, row), text) in sums.iter().zip(rows.chunks_exact_mut(dim)).zip(texts) {
                if !sum.iter().all(|x| x.is_finite()) {
                    return Err(Failure::stage(TransformerError::NotFinite { id: text.id.clone() }));
                }
                grid::quantise_real(sum, row);
            }
        }
        self.tell(&windows, &spent, cx);
        Ok((dim, rows, windows))
    }

    fn tell(&self, windows: &[u32], spent: &Spent, cx: &Cx<'_>) {
        let long = windows.iter().filter(|&&n| n > 1).count();
        let how = match self.windows {
            Windows::First => "their first window counts",
            Windows::Mean => "the mean of their windows counts",
        };
        let most = self.max_tokens;
        let (n, tokens) = (windows.len(), spent.tokens);
        cx.progress.say(&format!("{n} documents, {tokens} tokens; {long} longer than {most} tokens, {how}"));
        let (rate, share) = spent.rates();
        cx.progress.say(&format!(
            "{rate:.0} tokens/s; {share:.1} % of the time in the tokenizer; nothing is padded"
        ));
    }

    /// The windows of the texts of a part.
    fn documents(&self, texts: Option<&[Text]>, spent: &Spent) -> Result<Vec<Document>, Failure> {
        let timed = |text: &Text| {
            let watch = Stopwatch::start();
            let document = self.document(&text.text);
            spent.tokenizer.fetch_add((watch.seconds() * 1e9) as u64, Ordering::Relaxed);
            document
        };
        texts.unwrap_or_default().par_iter().map(timed).collect()
    }

    /// The windows of a text that are embedded.
    fn document(&self, text: &str) -> Result<Document, Failure> {
        let joined;
        let text = if self.prefix.is_empty() {
            text
        } else {
            joined = [&self.prefix, text].concat();
            &joined
        };
        let ids = self.tokenizer.ids(text).map_err(Failure::stage)?;
        let room = self.max_tokens - self.around.0.len() - self.around.1.len();
        let window = |ids: &[u32]| [&self.around.0, ids, &self.around.1].concat();
        let all = ids.len().div_ceil(room).max(1);
        let counted = if self.windows == Windows::First { 1 } else { all };
        // A text without tokens is its special ones.
        let mut windows: Vec<Vec<u32>> = ids.chunks(room).take(counted).map(window).collect();
        if windows.is_empty() {
            windows.push(window(&[]));
        }
        Ok(Document { windows, fills: all as u32 })
    }

    /// For each document the sum of the unit vectors of its windows.
    fn sums(&self, documents: &[Document], cx: &Cx<'_>) -> Result<Vec<Vec<f64>>, Failure> {
        let mut order: Vec<(usize, &[u32])> = Vec::new();
        for (i, document) in documents.iter().enumerate() {
            order.extend(document.windows.iter().map(|window| (i, window.as_slice())));
        }
        order.sort_by_key(|(_, window)| window.len());
        let mut vectors: Vec<Vec<Vec<f64>>> = vec![Vec::new(); documents.len()];
        for batch in batches(&order) {
            cx.check_stop()?;
            let windows: Vec<&[u32]> = batch.iter().map(|(_, window)| *window).collect();
            let pooled = self.encoder.embed(&windows, self.pooling).map_err(Failure::stage)?;
            for ((document, _), vector) in batch.iter().zip(pooled) {
                vectors[*document].push(unit(vector));
                let whole = vectors[*document].len() == documents[*document].windows.len();
                cx.progress.advance(u64::from(whole));
            }
        }
        Ok(vectors.into_iter().map(sum).collect())
    }
}

/// What embedding took, to be told.
struct Spent {
    watch: Stopwatch,
    tokens: usize,
    /// Nanoseconds of all threads.
    tokenizer: AtomicU64,
}

impl Default for Spent {
    fn default() -> Self {
        Self { watch: Stopwatch::start(), tokens: 0, tokenizer: AtomicU64::new(0) }
    }
}

impl Spent {
    /// Tokens a second, and the per cent of the threads' time that the tokenizer had.
    fn rates(&self) -> (f64, f64) {
        let seconds = self.watch.seconds().max(1e-9);
        let all = seconds * rayon::current_num_threads() as f64;
        let tokenizer = self.tokenizer.load(Ordering::Relaxed) as f64 / 1e9;
        (self.tokens as f64 / seconds, 100.0 * tokenizer / all)
    }
}

/// A document as the model sees it.
struct Document {
    windows: Vec<Vec<u32>>,
    /// How many windows the whole of it fills.
    fills: u32,
}

/// Parts of the order with at most [`BATCH`] tokens each, or one window.
fn batches<'o, 'w>(order: &'o [(usize, &'w [u32])]) -> Vec<&'o [(usize, &'w [u32])]> {
    let (mut parts, mut start, mut tokens) = (Vec::new(), 0, 0);
    for (i, (_, window)) in order.iter().enumerate() {
        if tokens + window.len() > BATCH && i > start {
            parts.push(&order[start..i]);
            (start, tokens) = (i, 0);
        }
        tokens += window.len();
    }
    parts.extend((start < order.len()).then(|| &order[start..]));
    parts
}

/// A vector at unit length; one without a direction stays.
fn unit(mut vector: Vec<f64>) -> Vec<f64> {
    let norm = vector.iter().fold(0.0, |sum, x| sum + x * x).sqrt();
    if norm > 0.0 {
        for x in &mut vector {
            *x /= norm;
        }
    }
    vector
}

/// The windows of one document lie in the order of their lengths: all but the last are equally long, so it is that of the text, but
/// for a last one that is shorter and comes first.
fn sum(vectors: Vec<Vec<f64>>) -> Vec<f64> {
    let mut vectors = vectors.into_iter();
    let first = vectors.next().unwrap_or_default();
    vectors.fold(first, |mut sum, vector| {
        sum.iter_mut().zip(&vector).for_each(|(sum, x)| *sum += x);
        sum
    })
}
