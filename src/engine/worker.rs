//! One attempt at one node: private folders, the stage itself, and publishing. A panic is a failure like any other.

use std::{
    any::Any,
    collections::BTreeMap,
    error::Error,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use super::{
    action::{Checkpoints, Cx, Failure, Files, Stop},
    event::{Journal, StageProgress},
    executor::Engine,
    graph::{Node, NodeId},
    resolve::{Miss, ReadFile},
    summary::{self, OutputSummary},
};
use crate::store::{Digest, Made, Record, Slot, Store, StoreError, Workdir};

/// A node that a worker takes.
pub(crate) struct Job {
    pub(crate) id: NodeId,
    pub(crate) miss: Miss,
}

/// What came of it.
pub(crate) struct Attempt {
    pub(crate) id: NodeId,
    pub(crate) digest: Digest,
    pub(crate) seconds: f64,
    pub(crate) reasons: Vec<super::reason::Reason>,
    pub(crate) result: Result<(Arc<Record>, BTreeMap<String, OutputSummary>), String>,
    /// Whether it was stopped with a checkpoint to go on from.
    pub(crate) checkpointed: bool,
}

#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("{}", chain(.0))]
    Failure(#[from] Failure),
    #[error("panicked: {0}")]
    Panic(String),
    #[error("{}", chain(.0))]
    Store(#[from] StoreError),
    #[error("file `{0}` changed while the stage read it; run again once it is settled")]
    ReadChanged(String),
    #[error("wrote `{0}` beside its outputs; only its declared outputs are kept")]
    Stray(String),
}

impl Engine<'_> {
    /// Runs a node on this thread.
    pub(crate) fn attempt(&self, job: Job, journal: &Journal<'_>, stop: &Stop) -> Attempt {
        let Job { id, mut miss } = job;
        let started = Instant::now();
        let _span = tracing::info_span!("stage", name = self.name(id)).entered();
        let kept = Kept { store: self.store, key: miss.digest, published: AtomicBool::new(false) };
        let run = || self.try_run(id, &mut miss, &kept, (journal, stop, started));
        let result = catch_unwind(AssertUnwindSafe(run))
            .unwrap_or_else(|payload| Err(AttemptError::Panic(message(&*payload))));
        let stopped = matches!(&result, Err(AttemptError::Failure(Failure::Stopped)));
        let checkpointed = stopped && (kept.published.into_inner() || self.has_checkpoint(&miss.digest));
        let result = result.map_err(|e| {
            if checkpointed {
                format!("{e}; the next run goes on from its checkpoint")
            } else {
                e.to_string()
            }
        });
        let seconds = started.elapsed().as_secs_f64();
        Attempt { id, digest: miss.digest, seconds, reasons: miss.reasons, result, checkpointed }
    }

    fn has_checkpoint(&self, key: &Digest) -> bool {
        self.store.latest_checkpoint(key).is_ok_and(|c| c.is_some())
    }

    fn try_run(
        &self,
        id: NodeId,
        miss: &mut Miss,
        kept: &Kept<'_>,
        (journal, stop, started): (&Journal<'_>, &Stop, Instant),
    ) -> Result<(Arc<Record>, BTreeMap<String, OutputSummary>), AttemptError> {
        let node = self.graph.node(id);
        let slot = match miss.slot.take() {
            Some(slot) => slot,
            None => self.store.refresh(&miss.digest)?,
        };
        let ports: Vec<&str> = node.action.outputs().iter().map(|o| o.name).collect();
        let work = slot.workdir(&ports)?;
        let progress = StageProgress { stage: &node.name, journal };
        let cx = self.context(node, miss, &work, (&progress, kept, stop))?;
        node.action.run(&cx)?;
        self.check_reads(&miss.reads)?;
        check_stray(&work, &ports)?;
        let record = Arc::new(publish(slot, node, miss, &work, started)?);
        tracing::debug!(key = %record.digest, "recorded");
        let outputs = summary::outputs(self.store, &record)?;
        Ok((record, outputs))
    }

    fn context<'a>(
        &self,
        node: &Node,
        miss: &Miss,
        work: &Workdir,
        (progress, checkpoints, stop): (&'a StageProgress<'a>, &'a Kept<'a>, &'a Stop),
    ) -> Result<Cx<'a>, AttemptError> {
        let mut inputs = BTreeMap::new();
        for (port, tree) in &miss.inputs {
            inputs.insert(port.clone(), self.store.files(tree)?);
        }
        Ok(Cx {
            inputs,
            reads: miss.reads.iter().map(|r| (r.name.clone(), r.path.clone())).collect(),
            out: work.out.clone(),
            scratch: work.scratch.clone(),
            seed: node.seed,
            device: self.options.device.clone(),
            progress,
            checkpoints,
            stop,
        })
    }

    /// A result made from a file that changed meanwhile belongs to no key.
    fn check_reads(&self, reads: &[ReadFile]) -> Result<(), AttemptError> {
        for read in reads {
            let changed = || AttemptError::ReadChanged(read.name.clone());
            let (digest, stamp) = self.store.digest_file(&read.path).map_err(|_| changed())?;
            if stamp != read.stamp && digest != read.digest {
                return Err(changed());
            }
        }
        Ok(())
    }
}

fn publish(
    slot: Slot,
    node: &Node,
    miss: &Miss,
    work: &Workdir,
    started: Instant,
) -> Result<Record, StoreError> {
    let made = Made {
        kind: node.action.kind().to_owned(),
        key: miss.key.to_json(),
        ports: node.action.outputs().iter().map(|o| o.name.to_owned()).collect(),
        seconds: started.elapsed().as_secs_f64(),
        why: miss.reasons.iter().map(ToString::to_string).collect(),
    };
    slot.record(made, work)
}

/// What lies outside the ports' folders would be lost without a word.
fn check_stray(work: &Workdir, ports: &[&str]) -> Result<(), AttemptError> {
    let entries = fs::read_dir(&work.out).map_err(Failure::stage)?;
    for entry in entries {
        let name = entry.map_err(Failure::stage)?.file_name().to_string_lossy().into_owned();
        if !ports.contains(&name.as_str()) {
            return Err(AttemptError::Stray(name));
        }
    }
    Ok(())
}

/// The checkpoints of one key.
struct Kept<'a> {
    store: &'a Store,
    key: Digest,
    published: AtomicBool,
}

impl Checkpoints for Kept<'_> {
    fn latest(&self) -> io::Result<Option<Files>> {
        self.store.latest_checkpoint(&self.key).map_err(io::Error::other)
    }

    fn publish(&self, dir: &Path) -> io::Result<()> {
        self.store.publish_checkpoint(&self.key, dir).map_err(io::Error::other)?;
        self.published.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

/// The words of a panic.
fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
