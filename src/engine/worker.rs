//! One attempt at one node: private folders, the stage itself, and publishing. A panic is a failure like any other.

use std::{
    collections::BTreeMap,
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    action::{Checkpoints, Cx, Failure, Files, Stop},
    event::{Event, Journal, StageProgress},
    executor::Engine,
    failure::{AttemptError, message},
    graph::{Node, NodeId},
    memory::Watch,
    resolve::{Miss, ReadFile},
    summary::{self, OutputSummary},
};
use crate::store::{Digest, Lookup, Made, Record, Slot, Store, StoreError, Workdir};

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
    /// How often it was tried.
    pub(crate) count: u32,
    pub(crate) peak_memory: Option<u64>,
    /// The log of the last attempt, if the stage wrote one.
    pub(crate) log: Option<PathBuf>,
    pub(crate) reasons: Vec<super::reason::Reason>,
    pub(crate) result: Result<(Arc<Record>, BTreeMap<String, OutputSummary>), String>,
    /// Where it was found, if it need not run after all.
    pub(crate) found: Option<Found>,
    /// The producers whose outputs were lost, if it failed.
    pub(crate) lost: Vec<NodeId>,
    /// Whether it was stopped with a checkpoint to go on from.
    pub(crate) checkpointed: bool,
}

/// One attempt at a node.
struct Try<'a> {
    id: NodeId,
    /// Its number, from 1.
    count: u32,
    forced: bool,
    started: Instant,
    log: PathBuf,
    watch: &'a Watch,
}

/// What a run of a node leaves.
struct Outcome {
    record: Arc<Record>,
    outputs: BTreeMap<String, OutputSummary>,
    found: Option<Found>,
}

/// Where a result was found that was missing when the stage was looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Another process recorded it meanwhile.
    Meanwhile,
    /// Another machine had put it into the shared cache.
    Shared,
}

impl Engine<'_> {
    /// Runs a node on this thread, as often as its limits allow.
    pub(crate) fn attempt(&self, job: Job, journal: &Journal<'_>, stop: &Stop) -> Attempt {
        let Job { id, mut miss } = job;
        let started = Instant::now();
        let _span = tracing::info_span!("stage", name = self.name(id)).entered();
        let kept = Kept { store: self.store, key: miss.digest, published: AtomicBool::new(false) };
        let (watch, mut count) = (Watch::start(), 1);
        let forced = miss.slot.is_none();
        let (result, log) = loop {
            let try_ =
                Try { id, count, forced, started, log: journal.log(self.name(id), count), watch: &watch };
            let run = || self.try_run(&try_, &mut miss, &kept, (journal, stop));
            let result = catch_unwind(AssertUnwindSafe(run))
                .unwrap_or_else(|payload| Err(AttemptError::Panic(message(&*payload))));
            match &result {
                Err(error)
                    if self.lost_inputs(id, &miss).is_empty()
                        && self.again(id, error, count, (journal, stop)) =>
                {
                    count += 1;
                }
                _ => break (result, try_.log),
            }
        };
        let stopped =
            matches!(&result, Err(AttemptError::Failure(Failure::Stopped) | AttemptError::Timeout(_)));
        let checkpointed = stopped && (kept.published.into_inner() || self.has_checkpoint(&miss.digest));
        let lost = if result.is_err() { self.lost_inputs(id, &miss) } else { Vec::new() };
        let (result, found) = match result {
            Ok(Outcome { record, outputs, found }) => (Ok((record, outputs)), found),
            Err(e) if checkpointed => (Err(format!("{e}; the next run goes on from its checkpoint")), None),
            Err(e) => (Err(e.to_string()), None),
        };
        Attempt {
            id,
            digest: miss.digest,
            seconds: started.elapsed().as_secs_f64(),
            count,
            peak_memory: watch.peak(),
            log: kept_log(log),
            reasons: miss.reasons,
            result,
            found,
            lost,
            checkpointed,
        }
    }

    /// Waits for the next attempt, if there is to be one.
    fn again(
        &self,
        id: NodeId,
        error: &AttemptError,
        count: u32,
        (journal, stop): (&Journal<'_>, &Stop),
    ) -> bool {
        let node = self.graph.node(id);
        let Some(pause) = node.limits.retry.pause(count, error.class()).filter(|_| !stop.is_raised()) else {
            return false;
        };
        let (stage, why) = (&*node.name, &*error.to_string());
        journal.tell(&Event::StageRetries { stage, attempt: count, pause: pause.as_secs_f64(), why });
        let end = Instant::now() + pause;
        while Instant::now() < end && !stop.is_raised() {
            thread::sleep(Duration::from_millis(20).min(end.saturating_duration_since(Instant::now())));
        }
        !stop.is_raised()
    }

    fn try_run(
        &self,
        try_: &Try<'_>,
        miss: &mut Miss,
        kept: &Kept<'_>,
        (journal, stop): (&Journal<'_>, &Stop),
    ) -> Result<Outcome, AttemptError> {
        let node = self.graph.node(try_.id);
        if let Some(&producer) = self.lost_inputs(try_.id, miss).first() {
            return Err(AttemptError::InputLost(self.name(producer).to_owned()));
        }
        if !try_.forced
            && try_.count == 1
            && let Some(record) = self.fetch(try_.id, &miss.digest, journal)
        {
            let outputs = summary::outputs(self.store, &record)?;
            return Ok(Outcome { record: Arc::new(record), outputs, found: Some(Found::Shared) });
        }
        let slot = match (try_.forced, try_.count) {
            (true, 1) => self.store.refresh(&miss.digest)?,
            (true, _) => self.store.retry(&miss.digest),
            // Between the first look and the claim, another process may have been done.
            (false, _) => match self.store.lookup(&miss.digest)? {
                Lookup::Miss(slot) => slot,
                Lookup::Hit(record) => {
                    let outputs = summary::outputs(self.store, &record)?;
                    return Ok(Outcome { record: Arc::new(record), outputs, found: Some(Found::Meanwhile) });
                }
            },
        };
        let ports: Vec<&str> = node.action.outputs().iter().map(|o| o.name).collect();
        let work = slot.workdir(&ports)?;
        let progress = StageProgress { stage: &node.name, journal, watch: try_.watch };
        let limited = stop.until(node.limits.timeout.map(|limit| Instant::now() + limit));
        let mut cx = self.context(node, miss, &work, (&progress, kept, &limited))?;
        cx.log.clone_from(&try_.log);
        let result = self.bring(miss, &mut cx).and_then(|()| node.action.run(&cx));
        match (result, node.limits.timeout) {
            (Err(Failure::Stopped), Some(limit)) if !stop.is_raised() => {
                return Err(AttemptError::Timeout(limit));
            }
            (result, _) => result?,
        }
        self.check_reads(&miss.reads)?;
        check_stray(&work, &ports)?;
        let record = Arc::new(publish(slot, node, miss, &work, try_)?);
        tracing::debug!(key = %record.digest, "recorded");
        self.publish(try_.id, &record, journal);
        let outputs = summary::outputs(self.store, &record)?;
        Ok(Outcome { record, outputs, found: None })
    }

    /// What another machine made of a key. What is wrong with the shared cache is said, and then the stage runs here.
    fn fetch(&self, id: NodeId, key: &Digest, journal: &Journal<'_>) -> Option<Record> {
        let shared = self.options.shared.as_deref()?;
        match shared.fetch(key) {
            Ok(false) => None,
            Ok(true) => match self.store.lookup(key) {
                Ok(Lookup::Hit(record)) => Some(record),
                Ok(Lookup::Miss(_)) | Err(_) => None, // damaged or removed again; it runs
            },
            Err(why) => {
                let text = &*format!("not taken from the shared cache: {why}");
                journal.tell(&Event::Say { stage: self.name(id), text });
                None
            }
        }
    }

    /// Puts what was made into the shared cache. What is wrong with that is said, and the result is safe here.
    pub(crate) fn publish(&self, id: NodeId, record: &Record, journal: &Journal<'_>) {
        if let Some(Err(why)) = self.options.shared.as_ref().map(|shared| shared.publish(record)) {
            let text = &*format!("not put into the shared cache: {why}");
            journal.tell(&Event::Say { stage: self.name(id), text });
        }
    }

    /// Whether a stage that may not run can be taken from the shared cache; then it is here afterwards.
    pub(crate) fn fetches(&self, id: NodeId, key: &Digest) -> bool {
        let forced = self.options.forces(self.name(id));
        let shared = self.options.shared.as_deref().filter(|_| !forced);
        shared.is_some_and(|shared| shared.fetch(key).is_ok_and(|found| found))
    }

    /// The producers of inputs whose bytes are not there any more. A cache that cannot be read has lost nothing.
    pub(crate) fn lost_inputs(&self, id: NodeId, miss: &Miss) -> Vec<NodeId> {
        let sources = &self.graph.node(id).inputs;
        let gone = miss.inputs.iter().filter(|(_, tree)| matches!(self.store.has(tree), Ok(false)));
        // A stage that was handed over knows its inputs, and not who makes them.
        let mut lost: Vec<NodeId> = gone.filter_map(|(port, _)| Some(sources.get(port)?.node)).collect();
        lost.sort_unstable();
        lost.dedup();
        lost
    }

    /// Adds the files of a hub that the stage declared to what it reads.
    fn bring(&self, miss: &Miss, cx: &mut Cx<'_>) -> Result<(), Failure> {
        for repo in &miss.repos {
            let files = self.options.hub.fetch(repo, cx.progress, cx.stop)?;
            cx.reads.extend(files.into_iter().map(|(path, place)| (repo.prefix.clone() + &path, place)));
        }
        Ok(())
    }

    fn has_checkpoint(&self, key: &Digest) -> bool {
        self.store.latest_checkpoint(key).is_ok_and(|c| c.is_some())
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
            log: PathBuf::new(),
            seed: node.seed,
            device: self.options.device.clone(),
            memory: node.limits.memory,
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
    try_: &Try<'_>,
) -> Result<Record, StoreError> {
    let made = Made {
        kind: node.action.kind().to_owned(),
        key: miss.key.to_json(),
        ports: node.action.outputs().iter().map(|o| o.name.to_owned()).collect(),
        seconds: try_.started.elapsed().as_secs_f64(),
        peak_memory: try_.watch.peak(),
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

/// A log that the stage wrote to; an empty one goes.
fn kept_log(log: PathBuf) -> Option<PathBuf> {
    let length = fs::metadata(&log).ok()?.len();
    if length == 0 {
        drop(fs::remove_file(&log));
        return None;
    }
    Some(log)
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
