//! A plan: what a run would do and why, without running anything.

use std::{collections::BTreeMap, time::Instant};

use rayon::prelude::*;

use super::{
    action::Files,
    executor::Engine,
    failure::chain,
    graph::NodeId,
    key::Key,
    latest::Latest,
    options::{EngineError, Mode},
    reason::{Reason, sentence},
    resolve::Resolved,
    state::Status,
    summary::{RunStatus, RunSummary, StageSummary},
};
use crate::store::{self, Record};

impl Engine<'_> {
    /// What a run would do now, in the order of the graph: `cached`, `run`, `maybe`, `blocked` or `skipped`.
    pub fn plan(&self) -> Result<RunSummary, EngineError> {
        let started = Instant::now();
        let modes = self.options.select.modes(self.graph)?;
        self.options.force.check(self.graph)?;
        let latest = Latest::open(self.store, &self.options.pipeline)?;
        let mut records = vec![None; self.graph.len()];
        let mut stages: Vec<Option<StageSummary>> = vec![None; self.graph.len()];
        for wave in self.levels() {
            let view =
                View { engine: self, modes: &modes, latest: &latest, records: &records, stages: &stages };
            let planned: Vec<_> = wave.par_iter().map(|&id| view.stage(id)).collect();
            for (id, stage) in wave.iter().zip(planned) {
                records[id.0].clone_from(&stage.record);
                stages[id.0] = Some(stage);
            }
        }
        let blocked = stages.iter().flatten().any(|s| matches!(s.status, Status::Blocked | Status::Failed));
        Ok(RunSummary {
            run: String::new(),
            pipeline: self.options.pipeline.clone(),
            status: if blocked { RunStatus::Failed } else { RunStatus::Ok },
            seconds: started.elapsed().as_secs_f64(),
            stages: self.graph.order().iter().filter_map(|id| stages[id.0].take()).collect(),
            interrupted: false,
            checkpointed: false,
        })
    }

    /// Nodes by distance from the roots: each level reads only earlier ones.
    fn levels(&self) -> Vec<Vec<NodeId>> {
        let mut depth = vec![0; self.graph.len()];
        let mut levels: Vec<Vec<NodeId>> = Vec::new();
        for &id in self.graph.order() {
            depth[id.0] = self.graph.producers(id).map(|p| depth[p.0] + 1).max().unwrap_or(0);
            if levels.len() <= depth[id.0] {
                levels.push(Vec::new());
            }
            levels[depth[id.0]].push(id);
        }
        levels
    }
}

/// What is known so far.
struct View<'a> {
    engine: &'a Engine<'a>,
    modes: &'a [Mode],
    latest: &'a Latest,
    records: &'a [Option<std::sync::Arc<Record>>],
    stages: &'a [Option<StageSummary>],
}

impl View<'_> {
    fn stage(&self, id: NodeId) -> StageSummary {
        let mut stage = self.planned(id);
        if matches!(stage.status, Status::Run | Status::Maybe) {
            stage.forecast = self.engine.graph.node(id).action.forecast(&|port| self.made(id, port));
        }
        stage
    }

    /// The files of a node's input, if they are in the cache already.
    fn made(&self, id: NodeId, port: &str) -> Option<Files> {
        let source = self.engine.graph.node(id).inputs.get(port)?;
        let tree = self.records[source.node.0].as_ref()?.outputs.get(&source.port)?;
        self.engine.store.files(tree).ok()
    }

    fn planned(&self, id: NodeId) -> StageSummary {
        let mode = self.modes[id.0];
        if mode == Mode::Off {
            return self.engine.summary(id, Status::Skipped, "not selected");
        }
        let (mut waits, mut lacks) = (Vec::new(), None);
        for producer in self.engine.graph.producers(id) {
            match self.stages[producer.0].as_ref().map(|s| s.status) {
                Some(Status::Cached) => {}
                Some(Status::Run | Status::Maybe) => waits.push(producer),
                _ => lacks = Some(producer),
            }
        }
        waits.sort_unstable();
        if let Some(producer) = lacks {
            let why = format!("needs `{}`, which is not in the cache", self.engine.name(producer));
            let status = if mode == Mode::Run { Status::Blocked } else { Status::Skipped };
            return self.engine.summary(id, status, why);
        }
        if waits.is_empty() {
            return self.known(id, mode);
        }
        let unreadable = |error| self.engine.summary(id, Status::Blocked, chain(&error));
        self.waiting((id, mode), &waits).unwrap_or_else(unreadable)
    }

    /// A node whose inputs are all in the cache.
    fn known(&self, id: NodeId, mode: Mode) -> StageSummary {
        match self.engine.resolve((id, mode), self.records, self.latest) {
            Ok(Resolved::Hit { digest, record, outputs }) => {
                let mut stage = self.engine.summary(id, Status::Cached, "nothing that it reads has changed");
                (stage.key, stage.outputs, stage.record) = (Some(digest), outputs, Some(record));
                stage
            }
            Ok(Resolved::Miss(_)) if mode == Mode::Probe => {
                self.engine.summary(id, Status::Skipped, "not in the cache, and not selected")
            }
            Ok(Resolved::Miss(miss)) => {
                let mut stage = self.engine.summary(id, Status::Run, sentence(&miss.reasons));
                (stage.key, stage.reasons) = (Some(miss.digest), miss.reasons);
                stage
            }
            Err(error) => self.engine.summary(id, Status::Blocked, chain(&error)),
        }
    }

    /// A node that reads what is not made yet: what is known of its key can still say why it must run.
    fn waiting(&self, (id, mode): (NodeId, Mode), waits: &[NodeId]) -> store::Result<StageSummary> {
        let forced = mode == Mode::Run && self.engine.options.forces(self.engine.name(id));
        let mut reasons = if forced { vec![Reason::Forced] } else { self.declared_reasons(id)? };
        let sure = matches!(reasons[..], [Reason::Forced | Reason::NeverRun]);
        if sure && mode == Mode::Probe {
            return Ok(self.engine.summary(id, Status::Skipped, "not in the cache, and not selected"));
        }
        reasons.extend(waits.iter().map(|&w| Reason::WaitsOn(self.engine.name(w).to_owned())));
        let status = if sure { Status::Run } else { Status::Maybe };
        let mut stage = self.engine.summary(id, status, sentence(&reasons));
        stage.reasons = reasons;
        Ok(stage)
    }

    /// The difference to the last key in all but the inputs that are not made yet.
    fn declared_reasons(&self, id: NodeId) -> store::Result<Vec<Reason>> {
        let name = self.engine.name(id);
        let Some(last) = self.latest.get(name) else { return Ok(vec![Reason::NeverRun]) };
        let Some(old) = self.engine.store.key(&last)? else { return Ok(vec![Reason::RecordGone]) };
        let Some(old) = Key::from_json(&old) else { return Ok(vec![Reason::Format]) };
        let mut inputs = BTreeMap::new();
        for (port, source) in &self.engine.graph.node(id).inputs {
            let made = self.records[source.node.0].as_ref().and_then(|r| r.outputs.get(&source.port));
            let digest = made.map(|tree| tree.digest).or_else(|| old.inputs.get(port).copied());
            inputs.extend(digest.map(|d| (port.clone(), d)));
        }
        let reads = self.engine.reads(id)?;
        // What cannot be asked now is told when the stage's turn comes.
        let Ok(repos) = self.engine.repos(id) else { return Ok(Vec::new()) };
        let new = self.engine.key(id, inputs, (&reads, &repos));
        Ok(super::reason::diff(&old, &new.as_stored()))
    }
}
