//! The table of stages, and what the planner and the engine see of a row. No stage reads this file, so a new row changes no key.

use std::collections::BTreeMap;

use super::{
    Base, InputPort, Invalid, Read, Stage, analyze, cluster, corpus, distill, embed, evaluate, exec, export,
    init, model, select, svd, tokenizer,
};
use crate::engine::action::{Action, Cx, Failure, Numerics, OutputPort, Pool};

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
}

impl Entry {
    /// The row of a stage type.
    pub const fn of<S: Stage>() -> Self {
        Self {
            kind: S::KIND,
            decode: |table| Ok(Box::new(Erased(S::deserialize(table)?))),
            schema: |generator| generator.subschema_for::<S>(),
            outputs: S::OUTPUTS,
        }
    }
}

/// A decoded stage as the planner sees it.
pub trait Planned: Send + Sync {
    /// See [`Stage::inputs`].
    fn inputs(&self) -> Vec<InputPort>;
    /// See [`Stage::reads`].
    fn reads(&self, base: &Base<'_>) -> Result<Vec<Read>, Invalid>;
    /// See [`Stage::check`].
    fn check(&self) -> Result<(), Invalid>;
    /// The runnable form.
    fn into_action(self: Box<Self>) -> Box<dyn Action>;
}

struct Erased<S>(S);

impl<S: Stage> Planned for Erased<S> {
    fn inputs(&self) -> Vec<InputPort> {
        self.0.inputs()
    }
    fn reads(&self, base: &Base<'_>) -> Result<Vec<Read>, Invalid> {
        self.0.reads(base)
    }
    fn check(&self) -> Result<(), Invalid> {
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
        S::CODE.iter().map(|&(name, version)| (name.to_owned(), version.to_owned())).collect()
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
    fn outputs(&self) -> &'static [OutputPort] {
        S::OUTPUTS
    }
    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        self.0.run(cx)
    }
}

/// Every stage kind, in pipeline order.
#[rustfmt::skip] // one row a line
pub const STAGES: &[Entry] = &[
    Entry::of::<corpus::Corpus>(),
    Entry::of::<tokenizer::TrainTokenizer>(),
    Entry::of::<init::Init>(),
    Entry::of::<embed::Embed>(),
    Entry::of::<cluster::Cluster>(),
    Entry::of::<select::Select>(),
    Entry::of::<model::ModelSource>(),
    Entry::of::<analyze::Analyze>(),
    Entry::of::<svd::Svd>(),
    Entry::of::<distill::Distill>(),
    Entry::of::<evaluate::Evaluate>(),
    Entry::of::<export::Export>(),
    Entry::of::<exec::Exec>(),
];
