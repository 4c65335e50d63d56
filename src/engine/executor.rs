//! The run: ready → key → hit or queued → claimed → running → done. Knows no terminal, no manifest and no tensors.
//!
//! One thread, the caller's, owns all state. Ready nodes are looked up in parallel, in waves; each running stage has a thread of
//! its own, at most `jobs` of the CPU pool and one of the device pool at a time.

mod dispatch;
mod handed;
mod rewind;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::File,
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use rayon::prelude::*;

use self::handed::Handed;
use super::{
    action::{Pool, Stop},
    event::{Event, Journal, Reporter},
    failure::chain,
    graph::{Graph, NodeId},
    latest::Latest,
    options::{EngineError, Mode, Options},
    reason::sentence,
    resolve::{Miss, Resolved},
    state::{State, States, Status},
    summary::{RunStatus, RunSummary, StageSummary},
    worker::{Attempt, Found, Job},
};
use crate::store::{self, Digest, Record, Store, StoreError};

/// What runs graphs: a cache, a graph and what is asked of it.
pub struct Engine<'a> {
    /// The cache.
    pub store: &'a Store,
    /// The stages.
    pub graph: &'a Graph,
    /// What is asked.
    pub options: &'a Options,
}

impl Engine<'_> {
    /// Runs what is missing. A stage's failure is in the summary; an error means that the run could not be done at all.
    pub fn run(&self, reporter: &dyn Reporter, stop: &Stop) -> Result<RunSummary, EngineError> {
        let modes = self.options.select.modes(self.graph)?;
        self.options.force.check(self.graph)?;
        let run = store::run_id();
        let dir = self.store.run_dir(&run)?;
        let events = dir.join("events.jsonl");
        let file = File::create(&events).map_err(|source| StoreError::Io {
            doing: "make the journal",
            path: events,
            source,
        })?;
        let journal = Journal::new(reporter, Box::new(file), dir.clone());
        let names: Vec<&str> = self.graph.order().iter().map(|&id| self.name(id)).collect();
        let pipeline = &*self.options.pipeline;
        journal.tell(&Event::RunStarted { run: &run, pipeline, stages: &names });

        let latest = Latest::open(self.store, &self.options.pipeline)?;
        let mut session = Session::new(self, &modes, &journal, stop, latest);
        thread::scope(|scope| session.drive(scope));
        let summary = session.into_summary(run);

        let seconds = summary.seconds;
        journal.tell(&Event::RunFinished { ok: summary.status == RunStatus::Ok, seconds });
        let json = serde_json::to_vec(&summary).expect("a summary is plain data with string keys");
        self.store.replace_file(&dir.join("summary.json"), &json)?;
        Ok(summary)
    }

    pub(crate) fn name(&self, id: NodeId) -> &str {
        &self.graph.node(id).name
    }

    pub(crate) fn summary(&self, id: NodeId, status: Status, why: impl Into<String>) -> StageSummary {
        let node = self.graph.node(id);
        StageSummary::new(&node.name, node.action.kind(), status, why)
    }
}

const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// The state of one run.
struct Session<'a> {
    engine: &'a Engine<'a>,
    modes: &'a [Mode],
    journal: &'a Journal<'a>,
    stop: &'a Stop,
    latest: Latest,
    states: States<'a>,
    records: Vec<Option<Arc<Record>>>,
    stages: Vec<Option<StageSummary>>,
    pools: [Workers; 2],
    /// The keys that are queued or running, each with the nodes that wait for it because they have the same.
    in_work: BTreeMap<Digest, Vec<NodeId>>,
    /// What is ready for the cluster.
    outbox: Vec<Job>,
    /// What the cluster has, by key.
    handed: BTreeMap<Digest, Handed>,
    /// What is handed over again, and when.
    again: Vec<(Instant, Job)>,
    /// How often the jobs of a stage were lost.
    lost_jobs: BTreeMap<Digest, u32>,
    /// When it was last told how far that is.
    listened: Option<Instant>,
    /// Nodes whose keys another process runs; looked up again from time to time.
    elsewhere: Vec<NodeId>,
    /// The nodes of which it was told that another process runs them.
    told: BTreeSet<NodeId>,
    /// How often each node was sent back because what it reads was lost.
    rewinds: BTreeMap<NodeId, u32>,
    /// Why nothing more is started.
    halted: Option<String>,
    checkpointed: bool,
}

/// The queue of one pool.
struct Workers {
    limit: usize,
    running: usize,
    queue: VecDeque<Job>,
}

impl<'a> Session<'a> {
    fn new(
        engine: &'a Engine<'a>,
        modes: &'a [Mode],
        journal: &'a Journal<'a>,
        stop: &'a Stop,
        latest: Latest,
    ) -> Self {
        let n = engine.graph.len();
        let pool = |limit| Workers { limit, running: 0, queue: VecDeque::new() };
        Self {
            engine,
            modes,
            journal,
            stop,
            latest,
            states: States::new(engine.graph),
            records: vec![None; n],
            stages: vec![None; n],
            pools: [pool(engine.options.jobs.max(1)), pool(1)],
            in_work: BTreeMap::new(),
            outbox: Vec::new(),
            handed: BTreeMap::new(),
            again: Vec::new(),
            lost_jobs: BTreeMap::new(),
            listened: None,
            elsewhere: Vec::new(),
            told: BTreeSet::new(),
            rewinds: BTreeMap::new(),
            halted: None,
            checkpointed: false,
        }
    }

    fn drive<'scope>(&mut self, scope: &'scope thread::Scope<'scope, '_>)
    where
        'a: 'scope,
    {
        for i in 0..self.modes.len() {
            if self.modes[i] == Mode::Off {
                self.finish(NodeId(i), Status::Skipped, "not selected");
            }
        }
        let (done, results): (Sender<Attempt>, Receiver<Attempt>) = mpsc::channel();
        let mut ready = self.states.roots();
        let mut pause = SHORTEST_PAUSE;
        loop {
            self.look_at_stop();
            while !ready.is_empty() && self.halted.is_none() {
                ready = self.resolve_wave(&ready);
            }
            self.dispatch(scope, &done);
            if self.stop.is_raised() {
                self.take_back();
            }
            let away = !self.handed.is_empty() || !self.again.is_empty();
            let idle = self.pools.iter().all(|p| p.running == 0) && !away;
            if idle && (self.elsewhere.is_empty() || self.halted.is_some()) {
                break;
            }
            // Nobody tells when another process is done, nor when a stop is raised while nothing runs here.
            let alone = self.elsewhere.is_empty() && !away;
            let wait = if alone { FOREVER } else { pause };
            match results.recv_timeout(wait) {
                Ok(attempt) => {
                    ready.extend(self.take(attempt));
                    pause = SHORTEST_PAUSE;
                }
                Err(RecvTimeoutError::Timeout) => {
                    ready.append(&mut self.elsewhere);
                    ready.extend(self.collect());
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(RecvTimeoutError::Disconnected) => unreachable!("this thread holds a sender"),
            }
        }
        self.skip_the_rest();
    }

    fn look_at_stop(&mut self) {
        if self.stop.is_raised() && self.halted.is_none() {
            self.halted = Some("the run was stopped before its turn".to_owned());
        }
    }

    /// Looks ready nodes up; returns the nodes that become ready by hits.
    fn resolve_wave(&mut self, wave: &[NodeId]) -> Vec<NodeId> {
        const WORTH_THREADS: usize = 8;
        // What a node reads may have been lost while it waited for another node or process of its key.
        let (wave, early): (Vec<NodeId>, Vec<NodeId>) = wave.iter().partition(|id| self.states.has_all(**id));
        for id in early {
            self.states.set(id, State::Waiting);
        }
        for &id in &wave {
            self.states.set(id, State::Ready);
        }
        let (engine, modes, records, latest) = (self.engine, self.modes, &self.records, &self.latest);
        let resolve = |&id: &NodeId| engine.resolve((id, modes[id.0]), records, latest);
        let resolved: Vec<_> = if wave.len() < WORTH_THREADS {
            wave.iter().map(resolve).collect()
        } else {
            wave.par_iter().map(resolve).collect()
        };
        let mut freed = Vec::new();
        for (&id, resolved) in wave.iter().zip(resolved) {
            match resolved {
                Ok(Resolved::Hit { digest, record, outputs }) => {
                    let mut stage =
                        self.engine.summary(id, Status::Cached, "nothing that it reads has changed");
                    (stage.key, stage.outputs) = (Some(digest), outputs);
                    freed.extend(self.succeed(id, stage, record));
                }
                Ok(Resolved::Miss(miss)) => self.enqueue(id, *miss),
                Err(error) => self.fail(self.engine.summary(id, Status::Failed, chain(&error)), id),
            }
        }
        self.look_at_stop();
        freed
    }

    fn enqueue(&mut self, id: NodeId, miss: Miss) {
        if self.modes[id.0] == Mode::Probe {
            self.finish(id, Status::Skipped, "not in the cache, and not selected");
            return;
        }
        let gate = self.engine.options.gate.as_ref();
        if let Some(Err(refusal)) = gate.map(|gate| gate(self.engine.name(id), &miss.digest))
            && !self.engine.fetches(id, &miss.digest)
        {
            let mut stage = self.engine.summary(id, Status::Failed, refusal);
            (stage.key, stage.reasons) = (Some(miss.digest), miss.reasons);
            self.fail(stage, id);
            return;
        }
        if let Some(twins) = self.in_work.get_mut(&miss.digest) {
            twins.push(id);
            return;
        }
        self.in_work.insert(miss.digest, Vec::new());
        self.states.set(id, State::Queued);
        if self.engine.options.cluster.is_some() && self.engine.graph.node(id).recipe.is_some() {
            self.outbox.push(Job { id, miss });
            return;
        }
        let pool = self.engine.graph.node(id).action.pool();
        self.pools[pool_index(pool)].queue.push_back(Job { id, miss });
    }

    /// Takes what a worker brought; returns the nodes that become ready by it.
    fn take(&mut self, attempt: Attempt) -> Vec<NodeId> {
        let pool = self.engine.graph.node(attempt.id).action.pool();
        self.pools[pool_index(pool)].running -= 1;
        self.settle(attempt)
    }

    /// Ends an attempt, wherever it ran; returns the nodes that become ready by it.
    fn settle(&mut self, attempt: Attempt) -> Vec<NodeId> {
        let id = attempt.id;
        self.checkpointed |= attempt.checkpointed;
        let twins = self.in_work.remove(&attempt.digest).unwrap_or_default();
        if let Some(mut ready) = self.rewind(&attempt) {
            ready.extend(twins);
            return ready;
        }
        let (status, why) = match &attempt.result {
            Ok(_) => match attempt.found {
                Some(Found::Meanwhile) => (Status::Cached, "another process made it meanwhile".to_owned()),
                Some(Found::Shared) => (Status::Cached, "taken from the shared cache".to_owned()),
                None => (Status::Ran, sentence(&attempt.reasons)),
            },
            Err(error) => (Status::Failed, error.clone()),
        };
        let mut stage = self.engine.summary(id, status, why);
        (stage.key, stage.seconds, stage.reasons) = (Some(attempt.digest), attempt.seconds, attempt.reasons);
        (stage.attempts, stage.peak_memory, stage.log) = (attempt.count, attempt.peak_memory, attempt.log);
        if let Ok((record, outputs)) = attempt.result {
            stage.outputs = outputs;
            let mut ready = self.succeed(id, stage, record);
            ready.extend(twins);
            ready
        } else {
            self.fail(stage, id);
            twins
        }
    }

    fn succeed(&mut self, id: NodeId, mut stage: StageSummary, record: Arc<Record>) -> Vec<NodeId> {
        // Only `why` needs it: a full disk must not fail a stage whose result is safe.
        drop(self.latest.set(&stage.name, record.digest));
        stage.record = Some(record.clone());
        self.records[id.0] = Some(record);
        self.conclude(id, stage)
    }

    fn fail(&mut self, stage: StageSummary, id: NodeId) {
        self.look_at_stop();
        if !self.engine.options.keep_going && self.halted.is_none() {
            self.halted = Some(format!("`{}` failed before its turn", stage.name));
        }
        self.conclude(id, stage);
        self.block_readers(id, "failed");
    }

    /// Ends a node that did not run, and what reads it.
    fn finish(&mut self, id: NodeId, status: Status, why: &str) {
        self.conclude(id, self.engine.summary(id, status, why));
        if self.modes[id.0] == Mode::Probe {
            self.block_readers(id, "is not in the cache; select it too");
        }
    }

    fn block_readers(&mut self, id: NodeId, what: &str) {
        let why = format!("needs `{}`, which {what}", self.engine.name(id));
        for reader in self.engine.graph.with_descendants(&[id].into()) {
            if self.states.get(reader) == State::Waiting {
                let status = match self.modes[reader.0] {
                    Mode::Run => Status::Blocked,
                    Mode::Probe | Mode::Off => Status::Skipped,
                };
                self.conclude(reader, self.engine.summary(reader, status, why.clone()));
            }
        }
    }

    fn skip_the_rest(&mut self) {
        let Some(why) = self.halted.clone() else { return };
        self.pools.iter_mut().for_each(|p| p.queue.clear());
        for &id in self.engine.graph.order() {
            if !matches!(self.states.get(id), State::Done(_)) {
                self.conclude(id, self.engine.summary(id, Status::Skipped, why.clone()));
            }
        }
    }

    /// The one place where a node ends.
    fn conclude(&mut self, id: NodeId, stage: StageSummary) -> Vec<NodeId> {
        let freed = self.states.set(id, State::Done(stage.status));
        let (status, seconds) = (stage.status, stage.seconds);
        self.journal.tell(&Event::StageFinished { stage: &stage.name, status, seconds, why: &stage.why });
        self.stages[id.0] = Some(stage);
        freed
    }

    fn into_summary(mut self, run: String) -> RunSummary {
        let order = self.engine.graph.order();
        let ok = order.iter().all(|id| {
            let good = self.stages[id.0].as_ref().is_some_and(|s| s.status.is_ok());
            good || self.modes[id.0] != Mode::Run
        });
        RunSummary {
            run,
            pipeline: self.engine.options.pipeline.clone(),
            status: if ok { RunStatus::Ok } else { RunStatus::Failed },
            seconds: self.journal.seconds(),
            stages: order.iter().filter_map(|id| self.stages[id.0].take()).collect(),
            interrupted: self.stop.is_raised(),
            checkpointed: self.checkpointed,
        }
    }
}

fn pool_index(pool: Pool) -> usize {
    match pool {
        Pool::Cpu => 0,
        Pool::Device => 1,
    }
}
