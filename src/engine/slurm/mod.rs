//! Slurm: ready stages become array jobs, whose tasks run `mla-run worker` on a node and publish into the shared cache.
//!
//! Sites limit how often a scheduler may be asked, so stages that become ready together are one `sbatch`, and one `squeue` tells of all
//! jobs, at most every [`Settings::poll`]. Whether a stage is done, its record says; the scheduler is asked only about those that have
//! none. The number of a stage's job is kept in the cache, so a run that comes later goes on waiting for it.

mod queue;
mod script;

use std::{
    collections::BTreeMap,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use self::queue::{Job, Seen};
use super::{
    action::Class,
    cluster::{Cluster, News},
    limits::Resources,
    ticket::Ticket,
};
use crate::store::{self, Digest, Store};

/// How jobs are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The program that a job runs.
    pub program: PathBuf,
    /// The queue of stages that name none.
    pub partition: Option<String>,
    /// More words for `sbatch`, such as `--account=x`.
    pub args: Vec<String>,
    /// How many tasks of one array run at once.
    pub at_once: Option<u32>,
    /// The shortest time between two questions about jobs.
    pub poll: Duration,
}

/// A Slurm cluster.
pub struct Slurm {
    store: Store,
    settings: Settings,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    jobs: BTreeMap<Digest, Handed>,
    asked: Option<Instant>,
    largest_array: Option<u32>,
}

/// A stage that was handed over.
struct Handed {
    job: Job,
    told: Option<String>,
    /// How often in a row the scheduler did not know the job, or called it ended.
    missing: u32,
}

impl Slurm {
    /// A cluster whose jobs publish into this cache.
    pub fn new(store: Store, settings: Settings) -> Self {
        Self { store, settings, state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over the jobs that an earlier run made and that still go on; returns the tickets that need new ones.
    fn adopt<'t>(&self, state: &mut State, tickets: &'t [Ticket]) -> Result<Vec<&'t Ticket>, String> {
        let mut known: BTreeMap<Digest, Job> = BTreeMap::new();
        for key in tickets.iter().map(|ticket| ticket.key.digest()) {
            let bytes = self.store.read_job(&key, "id").map_err(|error| store_error(&error))?;
            let job = bytes.and_then(|bytes| String::from_utf8(bytes).ok()?.trim().parse().ok());
            known.extend(job.map(|job| (key, job)));
        }
        let alive = if known.is_empty() { BTreeMap::new() } else { queue::ask(known.values())? };
        let mut rest = Vec::new();
        for ticket in tickets {
            let key = ticket.key.digest();
            match known.get(&key).filter(|job| alive.get(*job).is_some_and(Seen::goes_on)) {
                Some(&job) if !ticket.forced => {
                    state.jobs.insert(key, Handed { job, told: None, missing: 0 });
                }
                _ => rest.push(ticket),
            }
        }
        Ok(rest)
    }

    /// One array job for stages of equal needs.
    fn batch(&self, state: &mut State, resources: &Resources, tickets: &[&Ticket]) -> Result<(), String> {
        let failed = |error: store::StoreError| store_error(&error);
        for ticket in tickets {
            ticket.save(&self.store).map_err(failed)?;
        }
        let keys: Vec<String> = tickets.iter().map(|ticket| ticket.key.digest().to_string()).collect();
        let keys = keys.join("\n");
        let list = Digest::of(keys.as_bytes());
        self.store.write_job(&list, "list", keys.as_bytes()).map_err(failed)?;
        let script = script::Script {
            settings: &self.settings,
            cache: self.store.root(),
            resources,
            list,
            count: tickets.len(),
            name: if let [one] = tickets { &one.stage } else { "mla-run" },
        };
        let id = sbatch(&script.text())?;
        for (task, ticket) in tickets.iter().enumerate() {
            let (key, job) = (ticket.key.digest(), Job { id, task: task as u32 });
            self.store.write_job(&key, "id", job.to_string().as_bytes()).map_err(failed)?;
            state.jobs.insert(key, Handed { job, told: None, missing: 0 });
        }
        tracing::info!(job = id, tasks = tickets.len(), "submitted");
        Ok(())
    }

    fn failure(&self, key: &Digest) -> Option<String> {
        let bytes = self.store.read_job(key, "failed").ok().flatten()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn log(&self, job: Job) -> PathBuf {
        script::log(self.store.root(), &job.to_string())
    }
}

impl Cluster for Slurm {
    fn submit(&self, tickets: &[Ticket]) -> Result<(), String> {
        let mut state = self.state();
        let rest = self.adopt(&mut state, tickets)?;
        let largest = match state.largest_array {
            Some(largest) => largest,
            None => *state.largest_array.insert(queue::largest_array()),
        };
        let mut groups: Vec<(&Resources, Vec<&Ticket>)> = Vec::new();
        for ticket in rest {
            match groups.iter_mut().find(|(resources, _)| **resources == ticket.resources) {
                Some((_, group)) => group.push(ticket),
                None => groups.push((&ticket.resources, vec![ticket])),
            }
        }
        for (resources, group) in groups {
            for part in group.chunks(largest.max(1) as usize) {
                self.batch(&mut state, resources, part)?;
            }
        }
        Ok(())
    }

    fn news(&self) -> Vec<(Digest, News)> {
        /// A job that has just ended may have a record that this host does not see yet.
        const PATIENCE: u32 = 2;
        let mut state = self.state();
        let mut news = Vec::new();
        for key in state.jobs.keys() {
            news.extend(self.failure(key).map(|why| (*key, News::Failed(why))));
        }
        for (key, _) in &news {
            state.jobs.remove(key);
        }
        if state.jobs.is_empty() || state.asked.is_some_and(|asked| asked.elapsed() < self.settings.poll) {
            return news;
        }
        state.asked = Some(Instant::now());
        let seen = match queue::ask(state.jobs.values().map(|handed| &handed.job)) {
            Ok(seen) => seen,
            Err(why) => {
                // It may be restarting; jobs go on without it.
                tracing::warn!("{why}");
                return news;
            }
        };
        for (key, handed) in &mut state.jobs {
            let seen = seen.get(&handed.job);
            if seen.is_some_and(Seen::goes_on) {
                handed.missing = 0;
                let words = seen.map(|seen| seen.words(handed.job));
                if words != handed.told {
                    news.extend(words.clone().map(|words| (*key, News::Going(words))));
                    handed.told = words;
                }
                continue;
            }
            handed.missing += 1;
            if handed.missing >= PATIENCE {
                let how = seen.map_or("is not known any more", |seen| &seen.state);
                let log = self.log(handed.job);
                let why =
                    format!("job {} ended without a result ({how}); its log: {}", handed.job, log.display());
                news.push((*key, News::Lost(why, seen.map_or(Some(Class::Killed), Seen::class))));
            }
        }
        for (key, what) in &news {
            if matches!(what, News::Failed(_) | News::Lost(..)) {
                state.jobs.remove(key);
            }
        }
        news
    }

    fn cancel(&self) {
        let state = self.state();
        let jobs: Vec<String> = state.jobs.values().map(|handed| handed.job.to_string()).collect();
        if !jobs.is_empty() {
            // A job that is gone needs no cancelling, and there is nobody to tell.
            drop(Command::new("scancel").args(jobs).output());
        }
    }
}

fn store_error(error: &store::StoreError) -> String {
    super::chain(error)
}

/// Submits a script; the number of the job.
fn sbatch(script: &str) -> Result<u64, String> {
    let start = || {
        let mut child = Command::new("sbatch")
            .arg("--parsable")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(script.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output =
        start().map_err(|error| format!("cannot start sbatch: {error}; is Slurm installed here?"))?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if !output.status.success() {
        return Err(format!("sbatch refused: {}", said(&output.stderr)));
    }
    let said = said(&output.stdout);
    // `123` or, with several clusters, `123;name`.
    said.split(';').next().and_then(|id| id.parse().ok()).ok_or_else(|| format!("sbatch said `{said}`"))
}
