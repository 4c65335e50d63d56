//! The stages: one file each, with parameters, documentation, code and tests. This module holds what they share.
//!
//! A stage sees its declared inputs, its parameters, a seed, a device, progress and checkpoints ([`Cx`]); never the store,
//! the clock, the environment or another stage.

pub mod activations;
pub mod analyze;
pub mod cluster;
pub mod code;
pub mod context_gain;
pub mod corpus;
pub mod distill;
pub mod embed;
mod encode;
pub mod evaluate;
pub mod exec;
pub mod export;
pub mod hub;
pub mod init;
pub mod model;
pub mod needle;
pub mod predict;
pub mod sample;
pub mod select;
pub mod shards;
pub(crate) mod streamed;
pub mod svd;
pub mod table;
#[cfg(test)]
pub(crate) mod testing;
pub mod tokenizer;
pub(crate) mod weights;

use std::{borrow::Cow, marker::PhantomData, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

use self::code::Code;
pub use crate::artifact::files::ANY;
use crate::{
    artifact::Artifact,
    engine::action::{Cx, Failure, Forecast, Made, Numerics, OutputPort, Pool, Repo},
};

/// A stage: the struct holds its parameters, whose doc comments are the manual.
///
/// Derive `Serialize, Deserialize, JsonSchema` with `#[serde(deny_unknown_fields, rename_all = "kebab-case")]`, then add one row
/// to [`table::STAGES`]. The serialised form enters the key, so inputs ([`Input`]) and paths ([`UserPath`]) serialise as `null`.
pub trait Stage: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {
    /// The kind's name in manifests.
    const KIND: &'static str;
    /// The code that can change its bytes: [`code::of`] its module.
    const CODE: Code;
    /// Which workers run it.
    const POOL: Pool = Pool::Cpu;
    /// Whether its bytes are the same everywhere.
    const NUMERICS: Numerics = Numerics::PerDevice;
    /// The artifacts it writes.
    const OUTPUTS: &'static [OutputPort];

    /// The declared inputs, by port. The port's name is the parameter's name in the manifest.
    fn inputs(&self) -> Vec<InputPort> {
        Vec::new()
    }

    /// The user's files that it reads. `base` tells the folder that the path in a parameter (`sources.0.files`) is relative to.
    fn reads(&self, _base: &Base<'_>) -> Result<Vec<Read>, Invalid> {
        Ok(Vec::new())
    }

    /// The repositories of a hub that it reads.
    fn repos(&self) -> Vec<Repo> {
        Vec::new()
    }

    /// Checks what types cannot: ranges, combinations.
    fn check(&self) -> Result<(), Invalid> {
        Ok(())
    }

    /// Whether its bytes are the same everywhere; a stage may let its parameters decide.
    fn numerics(&self) -> Numerics {
        Self::NUMERICS
    }

    /// What it is going to take, if it can tell from the inputs that are there already.
    fn forecast(&self, _inputs: Made<'_>) -> Option<Forecast> {
        None
    }

    /// Runs the stage.
    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure>;
}

/// For `skip_serializing_if`: a parameter that was not there when keys were made must not change them.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A declared input as the planner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputPort {
    /// The parameter's name, dotted where it lies in a table: `texts`, `inputs.texts`.
    pub port: Cow<'static, str>,
    /// The artifact kind that it takes; [`crate::artifact::files::ANY`] takes every kind.
    pub kind: &'static str,
    /// What the user wrote: a stage's name, or `stage.port` where a stage has several outputs of the kind.
    pub from: String,
}

impl InputPort {
    /// Whether an artifact of this kind may arrive here.
    pub fn takes(&self, kind: &str) -> bool {
        self.kind == ANY || self.kind == kind
    }
}

/// A user's file that a stage reads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Read {
    /// The name the stage sees, independent of where the folder lies: `sources.0/guide/intro.md`.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// A parameter that is out of range or does not fit another one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// The parameter at fault, dotted: `ranks`, `sources.0.files`.
    pub param: String,
    /// What is wrong, as a fragment that follows the parameter's place.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Invalid {
    /// A fault of one parameter.
    pub fn new(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: param.into(), message: message.into(), hint: None }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// An input parameter: names the stage that makes an artifact of type `T`. The only way to draw an edge.
///
/// Written as a string, kept out of keys (the input's content is in them instead).
pub struct Input<T> {
    /// The stage (or `stage.port`) that makes it.
    pub from: String,
    artifact: PhantomData<fn() -> T>,
}

// By hand: the derived forms would ask the same of the artifact.
impl<T> Clone for Input<T> {
    fn clone(&self) -> Self {
        Self { from: self.from.clone(), artifact: PhantomData }
    }
}

impl<T> std::fmt::Debug for Input<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Input({:?})", self.from)
    }
}

impl<T> PartialEq for Input<T> {
    fn eq(&self, other: &Self) -> bool {
        self.from == other.from
    }
}

impl<T> Eq for Input<T> {}

impl<T: Artifact> Input<T> {
    /// An input from the named stage.
    pub fn new(from: impl Into<String>) -> Self {
        Self { from: from.into(), artifact: PhantomData }
    }

    /// The port as the planner sees it.
    pub fn port(&self, port: impl Into<Cow<'static, str>>) -> InputPort {
        InputPort { port: port.into(), kind: T::KIND, from: self.from.clone() }
    }

    /// Loads the artifact that arrived at `port`.
    pub fn load(&self, cx: &Cx<'_>, port: &str) -> Result<T, Failure> {
        T::load(cx.input(port)?).map_err(Failure::stage)
    }
}

impl<T> Serialize for Input<T> {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_unit()
    }
}

impl<'de, T> Deserialize<'de> for Input<T> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Ok(Self { from: String::deserialize(d)?, artifact: PhantomData })
    }
}

impl<T: Artifact> JsonSchema for Input<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("Input of {}", T::KIND).into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": format!("name of the stage that makes the `{}`", T::KIND)
        })
    }
}

/// The folder that the path in a parameter is relative to: that of the manifest which says it, extended ones included.
pub type Base<'a> = dyn Fn(&str) -> PathBuf + 'a;

/// A path or glob of the user, relative to the manifest. Kept out of keys: the content enters through [`Stage::reads`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct UserPath(pub String);

impl Serialize for UserPath {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_unit()
    }
}

/// A finite floating-point parameter: `nan` and `inf` are refused, so that keys stay injective.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Finite(pub f64);

impl<'de> Deserialize<'de> for Finite {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let x = f64::deserialize(d)?;
        if x.is_finite() { Ok(Self(x)) } else { Err(serde::de::Error::custom("expected a finite number")) }
    }
}
