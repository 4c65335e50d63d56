//! The table of stages, and what the planner and the engine see of a row. No stage reads this file, so a new row changes no key.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Base, InputPort, Invalid, Read, Stage, activations, analyze, cluster, code, context_gain, corpus,
    distill, embed, evaluate, exec, export, init, model, needle, predict, sample, select,
    shards::{Part, PartOf, Sharded},
    svd, tokenizer,
};
use crate::engine::action::{Action, Cx, Failure, Forecast, Made, Numerics, OutputPort, Pool, Repo};

/// One row of the stage table.
pub struct Entry {
    /// The kind's name in manifests.
    pub kind: &'static str,
    /// Decodes the stage's own part of its table.
    pub decode: fn(toml::de::Deserializer<'_>) -> Result<Box<dyn Planned>, toml::de::Error>,
    /// The JSON Schema of its parameters, doc comments included.
    pub schema: fn(&mut schemars::SchemaGenerator) -> schemars::Schema,
    /// The artifacts it writes.
    pub outputs: &'static [OutputPort],
    /// Whether it can be run in shards.
    pub sharded: bool,
}

impl Entry {
    /// The row of a stage type.
    pub const fn of<S: Stage>() -> Self {
        Self {
            kind: S::KIND,
            decode: |table| Ok(Box::new(Erased(S::deserialize(table)?))),
            schema: |generator| generator.subschema_for::<S>(),
            outputs: S::OUTPUTS,
            sharded: false,
        }
    }

    /// The row of a stage type that can be run in shards.
    pub const fn sharded<S: Sharded>() -> Self {
        Self {
            decode: |table| Ok(Box::new(Dividing(Erased(S::deserialize(table)?)))),
            sharded: true,
            ..Self::of::<S>()
        }
    }
}

/// A decoded stage as the planner sees it.
pub trait Planned: Send + Sync {
    /// See [`Stage::inputs`].
    fn inputs(&self) -> Vec<InputPort>;
    /// See [`Stage::reads`].
    fn reads(&self, base: &Base<'_>) -> Result<Vec<Read>, Invalid>;
    /// See [`Stage::check`] and, for a stage that is run in shards, [`Sharded::check_shards`].
    fn check(&self, sharded: bool) -> Result<(), Invalid>;
    /// The runnable form.
    fn into_action(self: Box<Self>) -> Box<dyn Action>;
    /// The form that is run in shards, for the kinds that can be.
    fn divided(self: Box<Self>) -> Option<Box<dyn Divided>> {
        None
    }
}

/// A decoded stage that is run in shards, as the planner sees it.
pub trait Divided {
    /// The input that is divided; without one, every shard reads all inputs.
    fn divides(&self) -> Option<&'static str>;
    /// The runnable form of a part.
    fn part(&self, part: Part) -> Box<dyn Action>;
}

struct Erased<S>(S);

impl<S: Stage> Planned for Erased<S> {
    fn inputs(&self) -> Vec<InputPort> {
        self.0.inputs()
    }
    fn reads(&self, base: &Base<'_>) -> Result<Vec<Read>, Invalid> {
        self.0.reads(base)
    }
    fn check(&self, _: bool) -> Result<(), Invalid> {
        self.0.check()
    }
    fn into_action(self: Box<Self>) -> Box<dyn Action> {
        self
    }
}

impl<S: Stage> Action for Erased<S> {
    fn kind(&self) -> &'static str {
        S::KIND
    }
    fn code(&self) -> BTreeMap<String, String> {
        code::map(S::CODE)
    }
    fn pool(&self) -> Pool {
        S::POOL
    }
    fn numerics(&self) -> Numerics {
        self.0.numerics()
    }
    fn params(&self) -> serde_json::Value {
        serde_json::to_value(&self.0).expect("parameters are plain data with string keys and finite numbers")
    }
    fn repos(&self) -> Vec<Repo> {
        self.0.repos()
    }
    fn outputs(&self) -> &'static [OutputPort] {
        S::OUTPUTS
    }
    fn forecast(&self, inputs: Made<'_>) -> Option<Forecast> {
        self.0.forecast(inputs)
    }
    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        self.0.run(cx)
    }
}

/// A stage of a kind that can be run in shards.
struct Dividing<S>(Erased<S>);

impl<S: Sharded> Planned for Dividing<S> {
    fn inputs(&self) -> Vec<InputPort> {
        self.0.inputs()
    }
    fn reads(&self, base: &Base<'_>) -> Result<Vec<Read>, Invalid> {
        self.0.reads(base)
    }
    fn check(&self, sharded: bool) -> Result<(), Invalid> {
        if sharded { self.0.0.check_shards() } else { self.0.0.check() }
    }
    fn into_action(self: Box<Self>) -> Box<dyn Action> {
        Box::new(self.0)
    }
    fn divided(self: Box<Self>) -> Option<Box<dyn Divided>> {
        Some(Box::new(Arc::new(self.0.0)))
    }
}

impl<S: Sharded> Divided for Arc<S> {
    fn divides(&self) -> Option<&'static str> {
        S::SPLIT.map(|split| split.port)
    }
    fn part(&self, part: Part) -> Box<dyn Action> {
        Box::new(PartOf { stage: self.clone(), part })
    }
}

/// Every stage kind, in pipeline order.
#[rustfmt::skip] // one row a line
pub const STAGES: &[Entry] = &[
    Entry::of::<corpus::Corpus>(),
    Entry::of::<tokenizer::TrainTokenizer>(),
    Entry::of::<init::Init>(),
    Entry::sharded::<embed::Embed>(),
    Entry::of::<activations::Activations>(),
    Entry::of::<cluster::Cluster>(),
    Entry::sharded::<context_gain::ContextGain>(),
    Entry::sharded::<predict::Predict>(),
    Entry::of::<sample::Sample>(),
    Entry::of::<select::Select>(),
    Entry::of::<model::ModelSource>(),
    Entry::sharded::<analyze::Analyze>(),
    Entry::of::<svd::Svd>(),
    Entry::of::<distill::Distill>(),
    Entry::of::<needle::MakeNeedles>(),
    Entry::of::<evaluate::Evaluate>(),
    Entry::of::<export::Export>(),
    Entry::sharded::<exec::Exec>(),
];
