//! The evaluate stage: how far a converted and a healed model are from the original, on text that neither has seen.
//!
//! Knows no conversion. The models run layer by layer; all figures are made from f64.

mod compare;
mod documents;
mod forward;
mod held_out;
mod rows;
mod summary;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    artifact::{Artifact, checkpoint::Checkpoint, scores::Scores, splits::Split, texts::Texts},
    engine::action::{Cx, Failure, OutputPort, Pool},
    model::{Config, ModelError, config::Storage, storage::Stored},
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
    /// More models to compare, by the name of their column: `variants = { transmla = "svd-transmla" }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variants: BTreeMap<String, Input<Checkpoint>>,
    /// The cache of original, converted and healed model stored in fewer bits, such as `["fp8", "int4"]`: what the same bytes buy
    /// otherwise. A column each, named `original-fp8` and so on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<Stored>,
    /// Runs the original once more with cache and activations in BF16: no smaller divergence means anything.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub noise_floor: bool,
    /// Runs the converted and the healed model once more as a decoder in BF16 does: on the latent itself, with cache and activations in
    /// BF16. A column each, named `converted-absorbed` and so on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub absorbed: bool,
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
    Model { name: String, source: ModelError },
    #[error(
        "the model `{name}` has a vocabulary of {got}, the original one of {want}; a KL divergence needs the same tokens"
    )]
    Vocabulary { name: String, got: usize, want: usize },
    #[error("the model `{name}` gives logits that are not finite; its weights are damaged")]
    NotFinite { name: String },
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
        ports.extend(self.variants.iter().map(|(name, input)| input.port(format!("variants.{name}"))));
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
        let plain = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let columns = self.columns();
        let taken = |name: &str| {
            ["original", "converted", "healed"].contains(&name)
                || columns.iter().filter(|column| column.name == name).count() > 1
        };
        for name in self.variants.keys() {
            if !plain(name) || taken(name) {
                return Err(Invalid::new("variants", format!("`{name}` cannot be the name of a variant"))
                    .hint(
                        "letters, digits, `-`, `_` and `.`; the names of the models and of their `caches` are taken",
                    ));
            }
        }
        if self.caches.contains(&Stored::Exact) {
            return Err(Invalid::new("caches", "an `exact` cache is that of the model itself"));
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
        let run = |m: &Model| States::run((&m.name, models.len()), (&m.checkpoint, &m.config), &batches, cx);
        let states = models.iter().map(run).collect::<Result<Vec<_>, _>>()?;
        let predictions = forward::predictions(&states, &batches, self.chunk, cx)?;
        let configs: Vec<_> = models.iter().map(|model| (model.name.as_str(), &model.config)).collect();
        let scores = rows::scores(self, &configs, &held_out, &predictions);
        scores.save(&cx.output("scores")).map_err(Failure::stage)?;
        scores.lines().iter().for_each(|line| cx.progress.say(line));
        Ok(())
    }
}

/// The column of the original in BF16.
const NOISE_FLOOR: &str = "bf16-noise";

/// A column of the table: a model, and how it is run.
struct Column<'a> {
    name: String,
    port: String,
    input: &'a Input<Checkpoint>,
    storage: Storage,
}

/// A model to measure.
struct Model {
    name: String,
    checkpoint: Checkpoint,
    config: Config,
}

impl Evaluate {
    /// The original first, then the other models, then the same ones with other caches.
    fn columns(&self) -> Vec<Column<'_>> {
        let mut models = vec![("original", &self.original), ("converted", &self.converted)];
        models.extend(self.healed.as_ref().map(|input| ("healed", input)));
        let column =
            |name: String, port: &str, input, storage| Column { name, port: port.to_owned(), input, storage };
        let mut columns: Vec<Column<'_>> = Vec::new();
        columns.extend(
            models.iter().map(|&(name, input)| column(name.to_owned(), name, input, Storage::default())),
        );
        let variants = self.variants.iter();
        columns.extend(variants.map(|(name, input)| {
            column(name.clone(), &format!("variants.{name}"), input, Storage::default())
        }));
        for &(name, input) in &models {
            columns.extend(self.caches.iter().map(|&cache| {
                let storage = Storage { cache, ..Storage::default() };
                column(format!("{name}-{}", cache.name()), name, input, storage)
            }));
        }
        let bf16 = Storage { cache: Stored::Bf16, activations: Stored::Bf16, absorbed: false };
        for &(name, input) in models[1..].iter().filter(|_| self.absorbed) {
            let storage = Storage { absorbed: true, ..bf16 };
            columns.push(column(format!("{name}-absorbed"), name, input, storage));
        }
        if self.noise_floor {
            columns.push(column(NOISE_FLOOR.to_owned(), "original", &self.original, bf16));
        }
        columns
    }

    fn models(&self, cx: &Cx<'_>) -> Result<Vec<Model>, Failure> {
        let mut models: Vec<Model> = Vec::new();
        for Column { name, port, input, storage } in self.columns() {
            let checkpoint = input.load(cx, &port)?;
            let failed = |source| EvaluateError::Model { name: name.clone(), source };
            let config = Config::parse(&checkpoint.config).map_err(|e| Failure::stage(failed(e.into())))?;
            let config = Config { storage, ..config };
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
