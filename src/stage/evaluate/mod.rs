//! The evaluate stage: how far a converted and a healed model are from the original, on text that neither has seen.
//!
//! Knows no conversion. The models run layer by layer; all figures are made from f64.

mod compare;
mod documents;
mod forward;
mod held_out;
mod rows;
mod summary;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    artifact::{Artifact, checkpoint::Checkpoint, scores::Scores, splits::Split, texts::Texts},
    engine::action::{Cx, Failure, OutputPort, Pool},
    model::{Config, ModelError},
    stage::{
        Input, InputPort, Invalid, Stage,
        code::{self, Code},
    },
};

use documents::EncodeError;
use forward::States;
use held_out::HeldOut;

/// Compares models with the original one on held-out text: KL divergence, top-1 agreement and perplexity, by position too; recall of
/// facts stated far back, where the text marks such answers; and what a token of context costs in the KV cache.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Evaluate {
    /// The model that everything is measured against; its tokenizer is used.
    pub original: Input<Checkpoint>,
    /// The model after conversion.
    pub converted: Input<Checkpoint>,
    /// The model after healing.
    #[serde(default)]
    pub healed: Option<Input<Checkpoint>>,
    /// Held-out documents; either this or `split`.
    #[serde(default)]
    pub texts: Option<Input<Texts>>,
    /// A split as held-out documents; either this or `texts`.
    #[serde(default)]
    pub split: Option<Input<Split>>,
    /// Splits that calibration or healing saw: their documents are left out here.
    #[serde(default)]
    pub exclude: Vec<Input<Split>>,
    /// Tokens to evaluate, about: documents are taken in the order of their ids until there are so many.
    #[serde(default = "max_tokens")]
    pub max_tokens: usize,
    /// Documents are cut after this many tokens.
    #[serde(default = "max_length")]
    pub max_length: usize,
    /// The token to put before every document. Default: none.
    #[serde(default)]
    pub bos: Option<String>,
    /// Positions at which a new bucket starts, ascending.
    #[serde(default = "buckets")]
    pub buckets: Vec<usize>,
    /// Distances from statement to answer, in tokens, at which a new bucket of recall starts, ascending.
    #[serde(default = "distances")]
    pub distances: Vec<usize>,
    /// Tokens whose logits are in memory at one time. Changes figures by rounding only.
    #[serde(default = "chunk")]
    pub chunk: usize,
}

fn max_tokens() -> usize {
    65_536
}
fn max_length() -> usize {
    8192
}
fn buckets() -> Vec<usize> {
    vec![128, 1024, 4096]
}
fn distances() -> Vec<usize> {
    vec![128, 512, 2048]
}
fn chunk() -> usize {
    256
}

/// Why models could not be compared.
#[derive(Debug, thiserror::Error)]
enum EvaluateError {
    #[error("the model `{name}`: {source}")]
    Model { name: &'static str, source: ModelError },
    #[error(
        "the model `{name}` has a vocabulary of {got}, the original one of {want}; a KL divergence needs the same tokens"
    )]
    Vocabulary { name: &'static str, got: usize, want: usize },
    #[error("the model `{name}` gives logits that are not finite; its weights are damaged")]
    NotFinite { name: &'static str },
    #[error("no held-out document has two tokens or more ({left_out} were left out by `exclude`)")]
    NoText { left_out: usize },
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

impl Stage for Evaluate {
    const KIND: &'static str = "evaluate";
    const CODE: Code = code::of("evaluate");
    const POOL: Pool = Pool::Device;
    const OUTPUTS: &'static [OutputPort] = &[OutputPort { name: "scores", kind: Scores::KIND }];

    fn inputs(&self) -> Vec<InputPort> {
        let mut ports = vec![self.original.port("original"), self.converted.port("converted")];
        ports.extend(self.healed.as_ref().map(|input| input.port("healed")));
        ports.extend(self.texts.as_ref().map(|input| input.port("texts")));
        ports.extend(self.split.as_ref().map(|input| input.port("split")));
        ports.extend(self.exclude.iter().enumerate().map(|(i, input)| input.port(format!("exclude.{i}"))));
        ports
    }

    fn check(&self) -> Result<(), Invalid> {
        if self.texts.is_some() == self.split.is_some() {
            return Err(Invalid::new(
                "texts",
                "held-out text is needed from exactly one of `texts` and `split`",
            )
            .hint("a second corpus stage with another seed makes text that calibration has not seen"));
        }
        for (param, value, least) in
            [("max-tokens", self.max_tokens, 2), ("max-length", self.max_length, 2), ("chunk", self.chunk, 1)]
        {
            if value < least {
                return Err(Invalid::new(
                    param,
                    format!("`{param}` is {value}, but must be at least {least}"),
                ));
            }
        }
        for (param, edges) in [("buckets", &self.buckets), ("distances", &self.distances)] {
            if edges.first() == Some(&0) || edges.windows(2).any(|pair| pair[0] >= pair[1]) {
                return Err(Invalid::new(param, format!("`{param}` must be positive and ascending")));
            }
        }
        Ok(())
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        let models = self.models(cx)?;
        let held_out = HeldOut::load(self, cx, &models[0].checkpoint)?;
        let ids: Vec<&[u32]> = held_out.documents.iter().map(|d| d.ids.as_slice()).collect();
        let batches = forward::batches(&ids);
        let passes: usize = models.iter().map(|model| model.config.layers.len()).sum();
        let tokens: usize = ids.iter().map(|ids| ids.len()).sum();
        cx.progress.phase("evaluating", Some(((passes + 1) * tokens) as u64), "tokens");
        let run = |m: &Model| States::run((m.name, models.len()), (&m.checkpoint, &m.config), &batches, cx);
        let states = models.iter().map(run).collect::<Result<Vec<_>, _>>()?;
        let predictions = forward::predictions(&states, &batches, self.chunk, cx)?;
        let configs: Vec<_> = models.iter().map(|model| (model.name, &model.config)).collect();
        let scores = rows::scores(self, &configs, &held_out, &predictions);
        scores.save(&cx.output("scores")).map_err(Failure::stage)?;
        scores.lines().iter().for_each(|line| cx.progress.say(line));
        Ok(())
    }
}

/// A model to measure.
struct Model {
    name: &'static str,
    checkpoint: Checkpoint,
    config: Config,
}

impl Evaluate {
    /// The original first.
    fn models(&self, cx: &Cx<'_>) -> Result<Vec<Model>, Failure> {
        let inputs = [
            ("original", Some(&self.original)),
            ("converted", Some(&self.converted)),
            ("healed", self.healed.as_ref()),
        ];
        let mut models: Vec<Model> = Vec::new();
        for (name, input) in inputs {
            let Some(input) = input else { continue };
            let checkpoint = input.load(cx, name)?;
            let config = Config::parse(&checkpoint.config)
                .map_err(|e| Failure::stage(EvaluateError::Model { name, source: e.into() }))?;
            let (got, want) =
                (config.vocab_size, models.first().map_or(config.vocab_size, |m| m.config.vocab_size));
            if got != want {
                return Err(Failure::stage(EvaluateError::Vocabulary { name, got, want }));
            }
            models.push(Model { name, checkpoint, config });
        }
        Ok(models)
    }
}

#[cfg(test)]
mod tests;
