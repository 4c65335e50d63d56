//! Tickets: all that another host needs to run one stage, as a file in the cache. Knows no cluster.
//!
//! ```text
//! job/<key>.json       the ticket
//! job/<key>.failed     why its last attempt failed; absent while it may still succeed
//! ```

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    action::{Class, Numerics, Stop},
    event::{Event, Journal, Reporter},
    executor::Engine,
    graph::{Graph, Node, NodeId},
    hub::Pinned,
    key::Key,
    limits::{Limits, Resources, Retry},
    reason::{self, Reason, sentence},
    relay::Relay,
    resolve::{Miss, ReadFile},
    state::Status,
    worker::{Attempt, Job},
};
use crate::store::{self, Claimed, Digest, Lookup, Store, StoreError, Tree};

/// All that another host needs to run one stage.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ticket {
    /// The stage's name.
    pub stage: String,
    /// What it runs, as the planner wrote it down; the engine does not read it.
    pub recipe: String,
    /// The key that must come out.
    pub key: Key,
    /// Its inputs, by port.
    pub inputs: BTreeMap<String, Tree>,
    /// The user's files: logical name and absolute path.
    pub reads: Vec<(String, PathBuf)>,
    /// The repositories that it reads.
    #[serde(default)]
    pub repos: Vec<Pinned>,
    /// The device that it runs on, as `--device` takes it.
    pub device: String,
    /// Whether it runs although it is recorded.
    pub forced: bool,
    /// Why it runs.
    pub why: Vec<String>,
    /// Seconds that one attempt may take.
    pub timeout: Option<f64>,
    /// Attempts after the first, the pause before the second in seconds, and the classes that are worth another one.
    pub retry: (u32, f64, Vec<Class>),
    /// Bytes of main memory that it keeps within.
    #[serde(default)]
    pub memory: Option<u64>,
    /// What it needs of a cluster; not in the file.
    #[serde(skip)]
    pub resources: Resources,
}

impl Ticket {
    /// The ticket of a node that must run.
    pub(crate) fn new(node: &Node, miss: &Miss, device: &str) -> Self {
        let retry = &node.limits.retry;
        Self {
            stage: node.name.clone(),
            recipe: node.recipe.as_deref().unwrap_or_default().to_owned(),
            key: miss.key.clone(),
            inputs: miss.inputs.clone(),
            reads: miss.reads.iter().map(|read| (read.name.clone(), absolute(&read.path))).collect(),
            repos: miss.repos.clone(),
            device: device.to_owned(),
            forced: miss.slot.is_none(),
            why: miss.reasons.iter().map(ToString::to_string).collect(),
            timeout: node.limits.timeout.map(|limit| limit.as_secs_f64()),
            retry: (retry.times, retry.backoff.as_secs_f64(), retry.on.iter().copied().collect()),
            memory: node.limits.memory,
            resources: node.limits.resources.clone(),
        }
    }

    /// Writes it into the cache, and forgets how an earlier attempt failed.
    pub fn save(&self, store: &Store) -> store::Result<()> {
        let key = self.key.digest();
        store.forget_job(&key, "failed")?;
        store.forget_job(&key, "progress")?;
        let bytes = serde_json::to_vec(self).expect("a ticket is plain data with string keys");
        store.write_job(&key, "json", &bytes)
    }

    /// Reads the ticket of a key.
    pub fn load(store: &Store, key: &Digest) -> Result<Self, TicketError> {
        let bytes = store.read_job(key, "json")?.ok_or(TicketError::None)?;
        let ticket: Self = serde_json::from_slice(&bytes).map_err(|_| TicketError::Damaged)?;
        if ticket.key.digest() == *key { Ok(ticket) } else { Err(TicketError::Damaged) }
    }

    /// What it may use and how often it is tried.
    pub fn limits(&self) -> Limits {
        let (times, backoff, on) = &self.retry;
        let seconds = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        Limits {
            timeout: self.timeout.map(seconds),
            retry: Retry { times: *times, backoff: seconds(*backoff), on: on.iter().copied().collect() },
            memory: self.memory,
            resources: self.resources.clone(),
        }
    }
}

/// Another process may have another working directory.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// What came of a ticket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Worked {
    /// Its key is recorded.
    Done,
    /// The stage failed.
    Failed(String),
    /// A stop was asked for.
    Stopped {
        /// Whether there is a checkpoint to go on from.
        saved: bool,
    },
}

/// Why a ticket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// There is none.
    #[error("there is no job for this key in the cache; `mla-run run` makes them")]
    None,
    /// Its file is not what was written.
    #[error("the job's file is damaged; start the run again")]
    Damaged,
    /// This program, host or file makes another key.
    #[error("here the stage has another key: {0}")]
    OtherKey(String),
    /// The cache cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Engine<'_> {
    /// What must run for a ticket, whose stage is the graph's only node. Refuses if anything differs from when it was written.
    pub(crate) fn redeem(&self, ticket: &Ticket) -> Result<Miss, TicketError> {
        let id = NodeId(0);
        let node = self.graph.node(id);
        let mut reads: Vec<ReadFile> = Vec::new();
        for (name, path) in &node.reads {
            let (digest, stamp) = self.store.digest_file(path)?;
            reads.push(ReadFile { name: name.clone(), path: path.clone(), digest, stamp });
        }
        let inputs = ticket.inputs.iter().map(|(port, tree)| (port.clone(), tree.digest)).collect();
        let key = self.key(id, inputs, (&reads, &ticket.repos));
        let digest = key.digest();
        if digest != ticket.key.digest() {
            let mut why = sentence(&reason::diff(&ticket.key, &key));
            if node.action.numerics() == Numerics::PerDevice && key.fingerprint != ticket.key.fingerprint {
                why +=
                    "; if this is the right kind of host, tell the run so: [executor.slurm] fingerprint = \"";
                why += key.fingerprint.as_deref().unwrap_or_default();
                why += "\"";
            }
            return Err(TicketError::OtherKey(why));
        }
        let reasons = ticket.why.iter().map(|why| Reason::Told(why.clone())).collect();
        let slot = match (ticket.forced, self.store.lookup(&digest)?) {
            (false, Lookup::Miss(slot)) => Some(slot),
            _ => None,
        };
        let (inputs, repos) = (ticket.inputs.clone(), ticket.repos.clone());
        Ok(Miss { key, digest, slot, inputs, reads, repos, reasons })
    }

    /// Does what a ticket asks, unless it is done. Waits for another process that does it already.
    pub fn work(&self, ticket: &Ticket, reporter: &dyn Reporter, stop: &Stop) -> Result<Worked, TicketError> {
        const PAUSE: Duration = Duration::from_secs(1);
        let id = NodeId(0);
        let miss = self.redeem(ticket)?;
        let done =
            |digest: &Digest| Ok::<_, StoreError>(matches!(self.store.lookup(digest)?, Lookup::Hit(_)));
        let dir = self.store.root().join("job").join(format!("{}.run", miss.digest));
        let relay = Relay::new(self.store, miss.digest, reporter);
        let journal = Journal::open(&relay, &dir)?;
        let mut waits = false;
        let _claim = loop {
            if !ticket.forced && done(&miss.digest)? {
                return Ok(Worked::Done);
            }
            match self.store.claim(&miss.digest)? {
                Claimed::Mine(claim) => break claim,
                Claimed::Theirs(_) if stop.is_raised() => return Ok(Worked::Stopped { saved: false }),
                Claimed::Theirs(owner) => {
                    let owner = owner.map_or_else(|| "another process".to_owned(), |owner| owner.to_string());
                    if !std::mem::replace(&mut waits, true) {
                        journal.tell(&Event::StageWaits { stage: &ticket.stage, owner: &owner });
                    }
                    std::thread::sleep(PAUSE);
                }
            }
        };
        let (stage, kind, why) = (&*ticket.stage, self.graph.node(id).action.kind(), sentence(&miss.reasons));
        journal.tell(&Event::StageStarted { stage, kind, key: miss.digest, why: &why });
        let Attempt { result, seconds, checkpointed, .. } = self.attempt(Job { id, miss }, &journal, stop);
        let (status, why) = match &result {
            Ok(_) => (Status::Ran, why),
            Err(error) => (Status::Failed, error.clone()),
        };
        journal.tell(&Event::StageFinished { stage, status, seconds, why: &why });
        Ok(match result {
            Ok(_) => Worked::Done,
            Err(_) if stop.is_raised() => Worked::Stopped { saved: checkpointed },
            Err(error) => Worked::Failed(error),
        })
    }

    /// The graph of a ticket's stage alone.
    ///
    /// # Panics
    /// Never: one node cannot wait for itself.
    pub fn alone(node: Node) -> Graph {
        Graph::new(vec![node]).expect("one node without edges")
    }
}

impl Store {
    fn job(&self, key: &Digest, kind: &str) -> PathBuf {
        self.root().join("job").join(format!("{key}.{kind}"))
    }

    pub(crate) fn write_job(&self, key: &Digest, kind: &str, bytes: &[u8]) -> store::Result<()> {
        let dir = self.root().join("job");
        fs::create_dir_all(&dir).map_err(|source| StoreError::Io { doing: "make", path: dir, source })?;
        self.replace_file(&self.job(key, kind), bytes)
    }

    pub(crate) fn read_job(&self, key: &Digest, kind: &str) -> store::Result<Option<Vec<u8>>> {
        store::read_if_present(&self.job(key, kind))
    }

    pub(crate) fn forget_job(&self, key: &Digest, kind: &str) -> store::Result<()> {
        let path = self.job(key, kind);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::Io { doing: "remove", path, source })
            }
            _ => Ok(()),
        }
    }
}
