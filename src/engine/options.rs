//! What a run is asked to do: which nodes, which are forced, how many workers. Knows no command line.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    cluster::Cluster,
    graph::{Graph, NodeId},
    hub::{Hub, NoHub},
    shared::Shared,
};
use crate::store::{self, Digest};

/// What a run is asked to do.
pub struct Options {
    /// The pipeline's name; the last keys of its stages are kept under it, for `why`.
    pub pipeline: String,
    /// Which stages may run.
    pub select: Select,
    /// Which stages run even if they are cached.
    pub force: Force,
    /// Whether stages that do not depend on a failed one still run.
    pub keep_going: bool,
    /// How many stages may run on the CPU at once.
    pub jobs: usize,
    /// What stages see as their device, such as `cpu` or `cuda:0`.
    pub device: String,
    /// What identifies the kind of device in keys; no device index.
    pub fingerprint: String,
    /// Asked before a stage runs, with its name and the digest of its key. An `Err` says why it may not.
    pub gate: Option<Box<Gate>>,
    /// A cache that other machines share: asked before a stage runs, and told what was made.
    pub shared: Option<Box<dyn Shared>>,
    /// Brings what stages read from a hub.
    pub hub: Arc<dyn Hub>,
    /// Runs stages on other hosts; without one, all run here.
    pub cluster: Option<Box<dyn Cluster>>,
}

/// See [`Options::gate`].
pub type Gate = dyn Fn(&str, &Digest) -> Result<(), String> + Send + Sync;

impl Default for Options {
    fn default() -> Self {
        Self {
            pipeline: String::new(),
            select: Select::default(),
            force: Force::default(),
            keep_going: false,
            jobs: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            device: "cpu".to_owned(),
            fingerprint: String::new(),
            gate: None,
            shared: None,
            hub: Arc::new(NoHub),
            cluster: None,
        }
    }
}

impl Options {
    pub(crate) fn forces(&self, stage: &str) -> bool {
        match &self.force {
            Force::None => false,
            Force::All => true,
            Force::Stages(names) => names.contains(stage),
        }
    }
}

/// Which stages run even if they are cached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Force {
    /// None.
    #[default]
    None,
    /// These.
    Stages(BTreeSet<String>),
    /// All that are selected.
    All,
}

/// Which stages may run: those that every non-empty list asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Select {
    /// Just these; what they read must be in the cache.
    pub only: Vec<String>,
    /// These and all that they need.
    pub until: Vec<String>,
    /// These, all that need them, and what those lack.
    pub from: Vec<String>,
}

/// What a run may do with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Look it up and run it if it is missing.
    Run,
    /// Look it up, because a selected node reads it; never run it.
    Probe,
    /// Leave it alone.
    Off,
}

/// Why a run cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A name that no stage has.
    #[error("there is no stage named `{0}`")]
    UnknownStage(String),
    /// The cache cannot be used.
    #[error(transparent)]
    Store(#[from] store::StoreError),
}

impl Select {
    /// What to do with each node.
    pub(crate) fn modes(&self, graph: &Graph) -> Result<Vec<Mode>, EngineError> {
        let named = |names: &[String]| -> Result<BTreeSet<NodeId>, EngineError> {
            let find =
                |name: &String| graph.find(name).ok_or_else(|| EngineError::UnknownStage(name.clone()));
            names.iter().map(find).collect()
        };
        let mut selected: BTreeSet<NodeId> = graph.order().iter().copied().collect();
        if !self.only.is_empty() {
            selected = &selected & &named(&self.only)?;
        }
        if !self.until.is_empty() {
            selected = &selected & &graph.with_ancestors(&named(&self.until)?);
        }
        if !self.from.is_empty() {
            let below = graph.with_descendants(&named(&self.from)?);
            selected = &selected & &graph.with_ancestors(&below);
        }
        let needed = graph.with_ancestors(&selected);
        let mode = |id| match (selected.contains(&id), needed.contains(&id)) {
            (true, _) => Mode::Run,
            (false, true) => Mode::Probe,
            (false, false) => Mode::Off,
        };
        Ok((0..graph.len()).map(|i| mode(NodeId(i))).collect())
    }
}

impl Force {
    /// Refuses names that no stage has.
    pub(crate) fn check(&self, graph: &Graph) -> Result<(), EngineError> {
        let Self::Stages(names) = self else { return Ok(()) };
        match names.iter().find(|name| graph.find(name).is_none()) {
            Some(unknown) => Err(EngineError::UnknownStage(unknown.clone())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fake::Fake;

    /// a → b → c and a → d
    fn modes(select: &Select) -> String {
        let nodes = vec![
            Fake::new("a").node(),
            Fake::new("b").reading(&[0]),
            Fake::new("c").reading(&[1]),
            Fake::new("d").reading(&[0]),
        ];
        let modes = select.modes(&Graph::new(nodes).unwrap()).unwrap();
        modes.iter().map(|m| format!("{m:?}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn selections_follow_the_graph() {
        let s = |name: &str| vec![name.to_owned()];
        let none = Select::default;
        assert_eq!(modes(&none()), "Run Run Run Run");
        assert_eq!(modes(&Select { until: s("b"), ..none() }), "Run Run Off Off");
        assert_eq!(modes(&Select { only: s("b"), ..none() }), "Probe Run Off Off");
        assert_eq!(modes(&Select { from: s("b"), ..none() }), "Run Run Run Off");
        assert_eq!(modes(&Select { from: s("d"), ..none() }), "Run Off Off Run");
        assert_eq!(modes(&Select { from: s("b"), until: s("b"), ..none() }), "Run Run Off Off");
        assert_eq!(modes(&Select { only: s("c"), until: s("d"), ..none() }), "Off Off Off Off");
        assert_eq!(modes(&Select { only: s("c"), ..none() }), "Probe Probe Run Off");
        let ends = vec!["a".to_owned(), "c".to_owned()];
        assert_eq!(modes(&Select { only: ends, ..none() }), "Run Probe Run Off");
        assert_eq!(modes(&Select { from: s("a"), ..none() }), "Run Run Run Run");
        let both = vec!["b".to_owned(), "d".to_owned(), "b".to_owned()];
        assert_eq!(modes(&Select { until: both, ..none() }), "Run Run Off Run");
    }

    #[test]
    fn unknown_names_are_refused() {
        let graph = Graph::new(vec![Fake::new("a").node()]).unwrap();
        let select = Select { only: vec!["b".into()], ..Select::default() };
        assert_eq!(select.modes(&graph).unwrap_err().to_string(), "there is no stage named `b`");
        let force = Force::Stages(["c".to_owned()].into());
        assert_eq!(force.check(&graph).unwrap_err().to_string(), "there is no stage named `c`");
        assert!(Force::Stages(["a".to_owned()].into()).check(&graph).is_ok());
    }
}
