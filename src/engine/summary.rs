//! What a run or a plan came to, in the form that `--format json` prints.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use serde::Serialize;

use super::{action::Forecast, reason::Reason, state::Status};
use crate::store::{self, Digest, Record, Store};

/// What a run or a plan came to.
#[derive(Debug, Clone, Serialize)]
pub struct RunSummary {
    /// The run's name; empty for a plan.
    pub run: String,
    /// The pipeline's name.
    pub pipeline: String,
    /// Whether every selected stage is in the cache now; for a plan, whether nothing is blocked.
    pub status: RunStatus,
    /// How long it took.
    pub seconds: f64,
    /// All stages of the graph, in its order.
    pub stages: Vec<StageSummary>,
    /// Whether a stop was asked for.
    #[serde(skip)]
    pub interrupted: bool,
    /// Whether a stage that was stopped left a checkpoint to go on from.
    #[serde(skip)]
    pub checkpointed: bool,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// Every selected stage is in the cache now.
    Ok,
    /// At least one is not.
    Failed,
}

/// What one stage came to.
#[derive(Debug, Clone, Serialize)]
pub struct StageSummary {
    /// The stage's name.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// How it ended.
    pub status: Status,
    /// How often it was tried, if it ran.
    pub attempts: u32,
    /// How much memory it took at most, in bytes, if that is known.
    pub peak_memory: Option<u64>,
    /// Its log, if it wrote one.
    pub log: Option<PathBuf>,
    /// Why, in one line.
    pub why: String,
    /// How long it ran now; 0 when it did not.
    pub seconds: f64,
    /// The digest of its key, once that is known.
    pub key: Option<Digest>,
    /// Its artifacts by output port, once they are in the cache.
    pub outputs: BTreeMap<String, OutputSummary>,
    /// What it is going to take, in a plan and where the stage can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forecast: Option<Forecast>,
    /// Why it runs or ran, typed.
    #[serde(skip)]
    pub reasons: Vec<Reason>,
    /// Its record, once it is in the cache.
    #[serde(skip)]
    pub record: Option<Arc<Record>>,
}

/// One artifact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutputSummary {
    /// The digest of its tree.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
    /// Where to look at it: a file, or a folder when it has several.
    pub path: PathBuf,
}

impl StageSummary {
    pub(crate) fn new(name: &str, kind: &'static str, status: Status, why: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            status,
            why: why.into(),
            attempts: 0,
            peak_memory: None,
            log: None,
            seconds: 0.0,
            key: None,
            outputs: BTreeMap::new(),
            forecast: None,
            reasons: Vec::new(),
            record: None,
        }
    }
}

/// The artifacts of a record, with links to look at them.
pub(crate) fn outputs(store: &Store, record: &Record) -> store::Result<BTreeMap<String, OutputSummary>> {
    let output = |tree: &store::Tree| {
        Ok(OutputSummary { digest: tree.digest, bytes: tree.bytes(), path: store.view(tree)? })
    };
    record.outputs.iter().map(|(port, tree)| Ok((port.clone(), output(tree)?))).collect()
}
