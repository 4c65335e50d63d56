//! The context-gain stage: how much a model's loss on each document falls when it sees more than a window. Knows no selection.

mod documents;
mod forward;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::{
    documents::{Document, Plan, Task},
    forward::Forward,
};
use crate::{
    artifact::{
        Artifact,
        checkpoint::Checkpoint,
        encoder::{Encoder, EncoderError},
        gains::{About, Gain, Gains},
        texts::Texts,
    },
    engine::action::{Cx, Failure, OutputPort, Pool},
    model::ModelError,
    stage::{
        Input, InputPort, Invalid, Stage,
        code::{self, Code},
        shards::{self, Shard, Sharded, Split},
    },
};

/// Measures for each document how much a model gains from context beyond a window: the loss of a token when the model sees only the
/// last `window` tokens before it, less the loss when it sees all of them, as a mean over some tokens of the document. Both
/// losses are of the same tokens, and each short context is a sequence of its own: in a longer one, layers of sliding windows would
/// pass on what lies further back. `select` takes the result as `context-gain`.
///
/// A document's figure depends on that document alone. One of at most `window` + 1 tokens has none, since nothing lies beyond.
/// A model reads up to `max-tokens` + `samples` · `window` tokens for each document.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ContextGain {
    /// The documents.
    pub texts: Input<Texts>,
    /// The model: the teacher, or a smaller one. Its own tokenizer is used.
    pub model: Input<Checkpoint>,
    /// Tokens of the short context.
    #[serde(default = "window")]
    pub window: usize,
    /// Tokens that are scored in each document: one drawn from each of so many equal parts of what lies beyond the window, or all
    /// where there are no more. The error of the mean falls with the root of this number.
    #[serde(default = "samples")]
    pub samples: usize,
    /// Documents are cut after this many tokens; their rows say so.
    #[serde(default = "max_tokens")]
    pub max_tokens: usize,
    /// Documents with fewer tokens are not measured. Default: all are that are longer than the window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_tokens: Option<usize>,
    /// The token to put before every document and every window. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos: Option<String>,
    /// Tokens whose states are in memory at one time, about; each layer is loaded once for so many. Changes no figure.
    #[serde(default = "chunk", skip_serializing)]
    pub chunk: usize,
}

fn window() -> usize {
    128
}
fn samples() -> usize {
    64
}
fn max_tokens() -> usize {
    8192
}
fn chunk() -> usize {
    65_536
}

const OUTPUT: &str = "gains";

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
enum ContextGainError {
    #[error("the model: {0}")]
    Model(#[from] ModelError),
    #[error("the model: {0}")]
    Tokens(#[from] EncoderError),
    #[error("`bos` is `{0}`, which is not in the model's vocabulary")]
    Bos(String),
    #[error("the model gives logits that are not finite for document {0}; its weights are damaged")]
    NotFinite(String),
}

impl From<ContextGainError> for Failure {
    fn from(error: ContextGainError) -> Self {
        Self::stage(error)
    }
}

impl Stage for ContextGain {
    const KIND: &'static str = "context-gain";
    const CODE: Code = code::of("context_gain");
    const POOL: Pool = Pool::Device;
    const OUTPUTS: &'static [OutputPort] = &[OutputPort { name: OUTPUT, kind: Gains::KIND }];

    fn inputs(&self) -> Vec<InputPort> {
        vec![self.texts.port("texts"), self.model.port("model")]
    }

    fn check(&self) -> Result<(), Invalid> {
        for (param, value) in [("window", self.window), ("samples", self.samples), ("chunk", self.chunk)] {
            if value == 0 {
                return Err(Invalid::new(param, format!("`{param}` is 0")));
            }
        }
        if self.max_tokens < self.window + 2 {
            return Err(Invalid::new(
                "max-tokens",
                format!(
                    "`max-tokens` is {}, so nothing lies beyond the window of {}",
                    self.max_tokens, self.window
                ),
            )
            .hint(format!("at least {} tokens are needed to score one", self.window + 2)));
        }
        Ok(())
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        finish(&self.measure(cx)?, cx)
    }
}

impl Sharded for ContextGain {
    const SPLIT: Option<Split> = Some(shards::texts::by_id("texts"));

    fn shard_params(&self, _: Shard) -> Value {
        serde_json::to_value(self).expect("parameters are plain data with string keys")
    }

    fn run_shard(&self, _: Shard, cx: &Cx<'_>) -> Result<(), Failure> {
        self.measure(cx)?.save(&cx.output(OUTPUT)).map_err(Failure::stage)
    }

    fn merge_params(&self) -> Value {
        json!({})
    }

    fn merge(&self, of: usize, cx: &Cx<'_>) -> Result<(), Failure> {
        let mut whole = Gains::default();
        for shard in 0..of {
            let files = cx.input(&shards::merge_port(OUTPUT, shard))?;
            let mut part = Gains::load(files).map_err(Failure::stage)?;
            whole.about = part.about;
            whole.rows.append(&mut part.rows);
        }
        finish(&whole, cx)
    }
}

impl ContextGain {
    /// The gains of all documents, from the newest checkpoint on when there is one.
    fn measure(&self, cx: &Cx<'_>) -> Result<Gains, Failure> {
        let checkpoint = self.model.load(cx, "model")?;
        let texts = self.texts.load(cx, "texts")?;
        let (plan, documents) = self.documents(cx, &checkpoint, &texts)?;
        let forward = Forward::load(cx, &checkpoint)?;
        let about = About { window: self.window, samples: self.samples, max_tokens: self.max_tokens };
        let mut gains = match cx.checkpoints.latest().map_err(Failure::stage)? {
            Some(files) => Gains::load(&files).map_err(Failure::stage)?,
            None => Gains { about, rows: Vec::new() },
        };
        let tokens: usize = documents.iter().skip(gains.rows.len()).map(|d| plan.tokens(d)).sum();
        cx.progress.phase("measuring", Some((tokens * forward.layers()) as u64), "tokens");
        let rest = documents.iter().enumerate().skip(gains.rows.len());
        let mut tasks = rest.flat_map(|(index, document)| plan.tasks(index, document)).peekable();
        let mut losses: Vec<Vec<f64>> = vec![Vec::new(); documents.len()];
        loop {
            let mut group: Vec<Task> = Vec::from_iter(tasks.next());
            let mut tokens = group.iter().map(Task::tokens).sum::<usize>();
            while let Some(task) = tasks.next_if(|task| tokens + task.tokens() <= self.chunk) {
                tokens += task.tokens();
                group.push(task);
            }
            for (task, part) in group.iter().zip(forward.losses(&group, &documents)?) {
                losses[task.document].extend(part);
            }
            // A document is done once the next task is of another one.
            let next = tasks.peek().map(|task| task.document);
            for index in gains.rows.len()..next.unwrap_or(documents.len()) {
                gains.rows.push(row(&documents[index], &std::mem::take(&mut losses[index])));
            }
            if next.is_none() {
                return Ok(gains);
            }
            publish(cx, &gains)?;
        }
    }

    /// The documents as tokens, with the places that are scored.
    fn documents(
        &self,
        cx: &Cx<'_>,
        checkpoint: &Checkpoint,
        texts: &Texts,
    ) -> Result<(Plan, Vec<Document>), Failure> {
        let path = checkpoint.file("tokenizer.json").map_err(Failure::stage)?;
        let encoder = Encoder::from_file(path).map_err(ContextGainError::from)?;
        let id = |name: &String| encoder.id(name).ok_or_else(|| ContextGainError::Bos(name.clone()));
        let plan = Plan {
            window: self.window,
            samples: self.samples,
            max_tokens: self.max_tokens,
            min_tokens: self.min_tokens.unwrap_or(0),
            bos: self.bos.as_ref().map(id).transpose()?,
            seed: cx.seed,
        };
        let documents = plan.documents(cx, &encoder, &texts.0)?;
        Ok((plan, documents))
    }
}

/// The figures of a document from its losses: those with all before, then those with the window alone.
fn row(document: &Document, losses: &[f64]) -> Gain {
    let (full, short) = losses.split_at(losses.len() / 2);
    let gains: Vec<f64> = short.iter().zip(full).map(|(short, full)| short - full).collect();
    let n = gains.len() as f64;
    let mean = gains.iter().sum::<f64>() / n;
    let square = gains.iter().map(|gain| (gain - mean).powi(2)).sum::<f64>();
    let millionths = |nats: f64| (nats * 1e6).round() as i64;
    Gain {
        id: document.id.clone(),
        gain: (!gains.is_empty()).then(|| millionths(mean)),
        error: (gains.len() > 1).then(|| millionths((square / (n - 1.0) / n).sqrt())),
        scored: gains.len(),
        tokens: document.tokens,
        truncated: document.tokens > document.ids.len(),
    }
}

fn publish(cx: &Cx<'_>, gains: &Gains) -> Result<(), Failure> {
    let dir = cx.scratch.join("checkpoint");
    std::fs::create_dir_all(&dir).map_err(Failure::stage)?;
    gains.save(&dir).map_err(Failure::stage)?;
    cx.checkpoints.publish(&dir).map_err(Failure::stage)
}

/// Writes the gains and says what they are.
fn finish(gains: &Gains, cx: &Cx<'_>) -> Result<(), Failure> {
    gains.save(&cx.output(OUTPUT)).map_err(Failure::stage)?;
    cx.progress.say(&line(gains));
    Ok(())
}

/// One line for the run's journal.
fn line(Gains { about, rows }: &Gains) -> String {
    let mut gains: Vec<i64> = rows.iter().filter_map(|row| row.gain).collect();
    gains.sort_unstable();
    let scored: usize = rows.iter().map(|row| row.scored).sum();
    let measured = format!("context gain: {} of {} documents measured", gains.len(), rows.len());
    let nats = |millionths: i64| millionths as f64 / 1e6;
    match gains[..] {
        [] => format!("{measured}; none is longer than {} tokens and has `min-tokens`", about.window + 1),
        [least, .., most] => format!(
            "{measured}, {scored} tokens scored; median {:.3} nats per token, {:.3} to {:.3}",
            nats(gains[(gains.len() - 1) / 2]),
            nats(least),
            nats(most)
        ),
        [only] => format!("{measured}, {scored} tokens scored; {:.3} nats per token", nats(only)),
    }
}

#[cfg(test)]
mod tests;
