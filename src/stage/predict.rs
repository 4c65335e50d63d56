//! The predict stage: what a teacher says of every token, kept for `distill`. Knows no student and no loss.

mod keep;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::keep::Keep;
use crate::{
    artifact::{
        Artifact,
        checkpoint::Checkpoint,
        predictions::{About, Document, Predictions, Writer, id},
        splits::Split,
        texts::Texts,
    },
    engine::action::{Cx, Failure, OutputPort, Pool},
    kernel::host,
    model::{Batch, Model, ModelError, probe::NoProbe},
    stage::{
        Finite, Input, InputPort, Invalid, Stage,
        code::{self, Code},
        encode,
        shards::{self, Shard, Sharded},
    },
};

/// Runs a teacher once over documents and keeps what it predicts: the most probable tokens with the mass of all others, or draws. `distill`
/// takes it in place of the teacher in its phase `kl`, so that each step runs the student alone. The documents must be those of `distill`,
/// cut at the same length; they are found by their tokens.
///
/// Draws are unbiased: cost and gradient have those of the whole distribution as their means. The most probable tokens teach nothing of how
/// the mass of the others is spread (arXiv 2503.16870).
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Predict {
    /// The teacher, with its tokenizer.
    pub model: Input<Checkpoint>,
    /// Calibration splits.
    #[serde(default)]
    pub splits: Vec<Input<Split>>,
    /// A corpus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<Input<Texts>>,
    /// Documents that the model wrote itself (stage `sample`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<Input<Texts>>,
    /// Documents are cut after this many tokens.
    #[serde(default = "max_length")]
    pub max_length: usize,
    /// How many of the most probable tokens are kept.
    #[serde(default = "top_k")]
    pub top_k: usize,
    /// Fewer are kept where they have this much of the probability already.
    #[serde(default = "mass")]
    pub mass: Finite,
    /// Draws so many tokens instead; those that come up more than once are kept once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draws: Option<usize>,
    /// Most tokens that go through the model at one time, unless a document has more.
    #[serde(default = "micro_batch_tokens", skip_serializing)]
    pub micro_batch_tokens: usize,
}

fn max_length() -> usize {
    8192
}
fn top_k() -> usize {
    64
}
fn mass() -> Finite {
    Finite(0.9999)
}
fn micro_batch_tokens() -> usize {
    8192
}

const OUTPUT: &str = "predictions";
/// Rows of logits that exist at one time.
const ROWS: usize = 256;

/// Why nothing is predicted.
#[derive(Debug, thiserror::Error)]
enum PredictError {
    #[error("the model: {0}")]
    Model(#[from] ModelError),
    #[error("no document has two tokens or more; give `splits` or `texts` with text in them")]
    NoText,
    #[error(
        "the model predicts no numbers in the document that begins with the tokens {0:?}; its weights are damaged"
    )]
    NotFinite(Vec<u32>),
}

impl Stage for Predict {
    const KIND: &'static str = "predict";
    const CODE: Code = code::of("predict");
    const POOL: Pool = Pool::Device;
    const OUTPUTS: &'static [OutputPort] = &[OutputPort { name: OUTPUT, kind: Predictions::KIND }];

    fn inputs(&self) -> Vec<InputPort> {
        let mut ports = vec![self.model.port("model")];
        ports.extend(self.splits.iter().enumerate().map(|(i, split)| split.port(format!("splits.{i}"))));
        ports.extend(self.texts.as_ref().map(|texts| texts.port("texts")));
        ports.extend(self.samples.as_ref().map(|samples| samples.port("samples")));
        ports
    }

    fn check(&self) -> Result<(), Invalid> {
        if self.splits.is_empty() && self.texts.is_none() && self.samples.is_none() {
            return Err(Invalid::new("splits", "there is no text").hint("name splits, `texts` or `samples`"));
        }
        if self.top_k == 0 || self.draws == Some(0) {
            let name = if self.top_k == 0 { "top-k" } else { "draws" };
            return Err(Invalid::new(name, "must be positive"));
        }
        if self.mass.0 <= 0.0 || self.mass.0 > 1.0 {
            return Err(Invalid::new("mass", "must lie between 0 and 1"));
        }
        if self.max_length < 2 || self.micro_batch_tokens == 0 {
            let name = if self.max_length < 2 { "max-length" } else { "micro-batch-tokens" };
            return Err(Invalid::new(name, "is too small"));
        }
        Ok(())
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        self.predict(None, cx)
    }
}

impl Sharded for Predict {
    fn shard_params(&self, shard: Shard) -> Value {
        json!({ "params": self, "shard": shard.index, "of": shard.of })
    }

    fn run_shard(&self, shard: Shard, cx: &Cx<'_>) -> Result<(), Failure> {
        self.predict(Some(shard), cx)
    }

    /// The shards say everything, whatever made them.
    fn merge_params(&self) -> Value {
        Value::Null
    }

    fn merge(&self, of: usize, cx: &Cx<'_>) -> Result<(), Failure> {
        let part =
            |shard| Predictions::load(cx.input(&shards::merge_port(OUTPUT, shard))?).map_err(Failure::stage);
        let parts = (0..of).map(part).collect::<Result<Vec<Predictions>, Failure>>()?;
        let mut writer = Writer::create(&cx.output(OUTPUT), parts[0].about).map_err(Failure::stage)?;
        for part in &parts {
            cx.check_stop()?;
            writer.append(part).map_err(Failure::stage)?;
        }
        writer.finish().map_err(Failure::stage)
    }
}

impl Predict {
    /// Predicts all documents, or those of a shard: neighbours in the order in which they are written.
    fn predict(&self, shard: Option<Shard>, cx: &Cx<'_>) -> Result<(), Failure> {
        let checkpoint = self.model.load(cx, "model")?;
        let texts = encode::gather(cx, &self.splits, [self.texts.as_ref(), self.samples.as_ref()])?;
        let mut documents = encode::encode(cx, &checkpoint, &texts)?;
        encode::cut(cx, &mut documents, self.max_length);
        documents.sort_by_cached_key(|ids| id(ids));
        documents.dedup();
        if documents.is_empty() {
            return Err(Failure::stage(PredictError::NoText));
        }
        if let Some(Shard { index, of }) = shard {
            let at = |shard: usize| documents.len() * shard / of;
            documents = documents[at(index)..at(index + 1)].to_vec();
        }
        let failed = |e| Failure::stage(PredictError::Model(e));
        let model = Model::frozen(&checkpoint).map_err(failed)?;
        let tokens: usize = documents.iter().map(Vec::len).sum();
        cx.progress.phase("predicting", Some(tokens as u64), "tokens");
        let keep = Keep { top_k: self.top_k, mass: self.mass.0, draws: self.draws, seed: cx.seed };
        let about = About { entries: keep.entries(), vocab_size: model.config.vocab_size };
        let mut writer = Writer::create(&cx.output(OUTPUT), about).map_err(Failure::stage)?;
        for batch in Batch::packed(documents.iter().map(Vec::as_slice), self.micro_batch_tokens) {
            cx.check_stop()?;
            let states = model.hidden(&batch, &mut NoProbe).map_err(failed)?;
            for document in batch.offsets.windows(2) {
                let ids = &batch.ids[document[0]..document[1]];
                let rows = states.narrow(0, document[0], ids.len()).map_err(Failure::stage)?;
                let kept = predicted(&model, &rows, (ids, &keep)).map_err(failed)?;
                let kept = kept.ok_or_else(|| {
                    Failure::stage(PredictError::NotFinite(ids.iter().take(8).copied().collect()))
                })?;
                writer.push(ids, &kept).map_err(Failure::stage)?;
                cx.progress.advance(ids.len() as u64);
            }
        }
        writer.finish().map_err(Failure::stage)
    }
}

/// What is kept for a document `ids`, from its states behind the final norm [t, hidden]; `None` where a logit is no number.
fn predicted(
    model: &Model,
    states: &candle_core::Tensor,
    (ids, keep): (&[u32], &Keep),
) -> Result<Option<Document>, ModelError> {
    let (mut kept, stream) = (Document::default(), keep::stream(ids));
    let last = ids.len() - 1;
    for from in (0..last).step_by(ROWS) {
        let n = ROWS.min(last - from);
        let logits = model.shell.lm_head.forward(&states.narrow(0, from, n)?)?;
        let vocab = logits.dim(1)?;
        let logits = host(&logits)?;
        let rows = logits.par_chunks_exact(vocab).enumerate();
        let rows: Vec<_> = rows.map(|(i, logits)| keep.row(logits, (stream, from + i))).collect();
        for row in rows {
            let Some(row) = row else { return Ok(None) };
            kept.lengths.push(row.entries.len() as u32);
            kept.entropies.push(row.entropy);
            kept.ids.extend(row.entries.iter().map(|(id, _)| *id));
            kept.weights.extend(row.entries.iter().map(|(_, weight)| *weight));
        }
    }
    // Nothing follows the last token.
    kept.lengths.push(0);
    kept.entropies.push(0.0);
    Ok(Some(kept))
}

#[cfg(test)]
mod tests;
