//! Whole runs with fake actions: what runs, what hits, and what the cache is left with.

mod branches;
mod caching;
mod cluster;
mod crash;
mod hub;
mod limits;
mod memory;
mod noop;
mod running;
mod selecting;
mod sharing;

use std::{fs, path::PathBuf};

use super::{
    action::{Cx, Failure, Numerics, Pool, Stop},
    event::Silent,
    executor::Engine,
    fake::{Fake, Log},
    graph::{Graph, Node},
    options::{EngineError, Force, Options, Select},
    state::Status,
    summary::{RunStatus, RunSummary, StageSummary},
};
use crate::store::Store;

/// A cache, a folder for the user's files, and a log of what ran.
struct Space {
    dir: tempfile::TempDir,
    log: Log,
}

impl Space {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), log: Log::default() }
    }

    fn store(&self) -> Store {
        Store::open(&self.dir.path().join("cache")).unwrap()
    }

    fn fake(&self, name: &str) -> Fake {
        Fake::new(name).log(&self.log)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn run(&self, nodes: Vec<Node>) -> RunSummary {
        self.run_with(nodes, &Options::default())
    }

    fn run_with(&self, nodes: Vec<Node>, options: &Options) -> RunSummary {
        self.try_run(nodes, options, &Stop::default()).unwrap()
    }

    fn try_run(&self, nodes: Vec<Node>, options: &Options, stop: &Stop) -> Result<RunSummary, EngineError> {
        let (store, graph) = (self.store(), Graph::new(nodes).unwrap());
        Engine { store: &store, graph: &graph, options }.run(&Silent, stop)
    }

    fn plan(&self, nodes: Vec<Node>, options: &Options) -> RunSummary {
        let (store, graph) = (self.store(), Graph::new(nodes).unwrap());
        Engine { store: &store, graph: &graph, options }.plan().unwrap()
    }

    /// a → b → c, where `b` has a parameter.
    fn chain(&self, rank: u32) -> Vec<Node> {
        vec![
            self.fake("a").node(),
            self.fake("b").param("rank", rank).reading(&[0]),
            self.fake("c").reading(&[1]),
        ]
    }
}

/// `a:ran b:cached`
fn line(summary: &RunSummary) -> String {
    summary.stages.iter().map(|s| format!("{}:{}", s.name, s.status.as_str())).collect::<Vec<_>>().join(" ")
}

fn stage<'a>(summary: &'a RunSummary, name: &str) -> &'a StageSummary {
    summary.stages.iter().find(|s| s.name == name).unwrap()
}

fn text(summary: &RunSummary, name: &str) -> String {
    fs::read_to_string(&stage(summary, name).outputs["out"].path).unwrap()
}
