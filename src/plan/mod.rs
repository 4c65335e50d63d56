//! The manifest's meaning: decoded stages joined into a graph. Knows no store, no terminal, and of a stage only its row in
//! the table of stages.

mod connect;
mod decode;
pub mod error;
mod expand;
mod graph;
mod limits;
pub mod manual;
mod order;
pub mod recipe;
pub mod schema;
mod target;
mod variant;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::Path,
    sync::Arc,
};

pub use error::PlanError;

use crate::{
    engine::{action::Action, limits::Limits},
    manifest::{Cache, Fault, Manifest, Options, Slurm, Sources, Span},
    stage::{self, Read},
};

/// What is to be done: every node after those that it reads from.
pub struct Plan {
    /// The pipeline's name: the manifest's, or that of its file.
    pub name: String,
    /// The nodes, producers first.
    pub nodes: Vec<Node>,
    /// The cache that is shared. Nothing of it enters a key.
    pub cache: Cache,
    /// The cluster that runs the stages. Nothing of it enters a key.
    pub slurm: Option<Slurm>,
    /// The texts of the manifest, for messages.
    pub sources: Sources,
}

/// One stage, one variant of a stage with a matrix, or one part of a stage with shards.
pub struct Node {
    /// The name: `svd`, `svd[rank=64]`, `embed[shard=3]`.
    pub name: String,
    /// The name without the part of a stage with shards: `embed[dim=64]` for `embed[dim=64,shard=3]`.
    pub variant: String,
    /// The stage's name without its variant.
    pub stage: String,
    /// The runnable stage.
    pub action: Arc<dyn Action>,
    /// Where its inputs come from.
    pub inputs: Vec<Edge>,
    /// The user's files that it reads, or why they cannot be read: a plan can be shown before the files are there.
    pub reads: Result<Vec<Read>, Arc<Fault<PlanError>>>,
    /// Its seed.
    pub seed: u64,
    /// A text that sets its key apart.
    pub salt: Option<String>,
    /// Its table, for a host that has no manifest; kept when a cluster runs the stages.
    pub recipe: Option<String>,
    /// What it may use and how often it is tried.
    pub limits: Limits,
    /// Where its name stands in the manifest.
    pub place: Span,
}

/// An input and the output that it reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// The input's port: `texts`, `inputs.texts`.
    pub port: String,
    /// The producer's place in [`Plan::nodes`].
    pub node: usize,
    /// The producer's output.
    pub output: &'static str,
}

/// A manifest that cannot be run, with all its faults in the order of the text.
#[derive(Debug)]
pub struct Rejected {
    /// The texts of the manifest.
    pub sources: Sources,
    /// What is wrong, at least one.
    pub faults: Vec<Arc<Fault<PlanError>>>,
}

impl Rejected {
    /// Sorts the faults and drops what several variants of a stage say alike.
    fn new(sources: Sources, mut faults: Vec<Arc<Fault<PlanError>>>) -> Self {
        let start = |fault: &Fault<PlanError>| fault.place.as_ref().map_or(0, |place| place.start);
        faults.sort_by_key(|fault| start(fault));
        let mut seen = BTreeSet::new();
        faults.retain(|fault| seen.insert((start(fault), fault.error.to_string())));
        Self { sources, faults }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.faults.iter().map(|fault| fault.error.to_string()).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for Rejected {}

/// Reads a manifest and plans it with the stages of `table`.
pub fn open(path: &Path, options: &Options, table: &'static [stage::table::Entry]) -> Result<Plan, Rejected> {
    let (sources, faults) = Sources::read(path, options);
    plan(path, sources, faults, table)
}

/// [`open`] with texts that have been read, and the faults of doing so.
pub fn plan(
    path: &Path,
    sources: Sources,
    faults: Vec<Fault>,
    table: &'static [stage::table::Entry],
) -> Result<Plan, Rejected> {
    let mut faults: Vec<Fault<PlanError>> = faults.into_iter().map(Fault::from).collect();
    if !faults.is_empty() {
        return Err(Rejected::new(sources, faults.into_iter().map(Arc::new).collect()));
    }
    let (manifest, mistakes) = Manifest::parse(&sources);
    faults.extend(mistakes.into_iter().map(Fault::from));
    let mut name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut nodes = Vec::new();
    let (mut cache, mut slurm) = (Cache::default(), None);
    if let Some(manifest) = manifest {
        nodes = self::nodes(&manifest, table, &mut faults);
        name = manifest.name.unwrap_or(name);
        (cache, slurm) = (manifest.cache, manifest.slurm);
    }
    if faults.is_empty() {
        return Ok(Plan { name, nodes, cache, slurm, sources });
    }
    Err(Rejected::new(sources, faults.into_iter().map(Arc::new).collect()))
}

fn nodes(
    manifest: &Manifest<'_>,
    table: &'static [stage::table::Entry],
    faults: &mut Vec<Fault<PlanError>>,
) -> Vec<Node> {
    let rows = decode::rows(manifest, table, faults);
    let mut stages: Vec<_> = manifest
        .stages
        .iter()
        .zip(rows)
        .map(|(entry, row)| decode::stage(manifest, entry, (row, table), faults))
        .collect();
    let (links, edges) = connect::connect(&mut stages, faults);
    let order = order::topological(stages.len(), &edges);
    expand::nodes(stages, &links, &order, &|place| manifest.folder(place), faults)
}

impl Plan {
    /// The nodes by name.
    pub fn by_name(&self) -> BTreeMap<&str, usize> {
        self.nodes.iter().enumerate().map(|(i, node)| (node.name.as_str(), i)).collect()
    }

    /// Refuses to go on if a stage's own files cannot be read.
    pub fn require_reads(self) -> Result<Self, Rejected> {
        let faults: Vec<_> =
            self.nodes.iter().filter_map(|node| node.reads.as_ref().err().cloned()).collect();
        if faults.is_empty() { Ok(self) } else { Err(Rejected::new(self.sources, faults)) }
    }
}

#[cfg(test)]
mod tests;
