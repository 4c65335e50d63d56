//! What the engine runs: an erased stage, and the context it runs in.
//!
//! Knows no tensors, no manifest and no store. A stage sees files, a seed, a device name, a progress handle, a checkpoint
//! handle and a stop flag; it cannot reach the clock, the environment or another stage.

use std::{
    collections::BTreeMap,
    error::Error,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use serde::Serialize;

pub use super::hub::{Repo, RepoKind};

/// The files of one artifact: name inside the artifact → path of its immutable bytes.
pub type Files = BTreeMap<String, PathBuf>;

/// A stage that the engine can run; made by `stage::Erased` from a typed stage, or by a test.
pub trait Action: Send + Sync {
    /// The stage kind, such as `svd`; part of the key.
    fn kind(&self) -> &'static str;
    /// The code that can change its bytes, as names of files and crates with what identifies their version; part of the key.
    fn code(&self) -> BTreeMap<String, String>;
    /// Which pool of workers runs it.
    fn pool(&self) -> Pool;
    /// How far its bytes can be trusted on another machine; decides whether the device fingerprint enters the key.
    fn numerics(&self) -> Numerics;
    /// The parameters that can change the result. Names of stages and paths are left out.
    fn params(&self) -> serde_json::Value;
    /// The repositories of a hub that it reads.
    fn repos(&self) -> Vec<Repo> {
        Vec::new()
    }
    /// The artifacts it writes.
    fn outputs(&self) -> &'static [OutputPort];
    /// What it is going to take, if it can tell from the inputs that are there already.
    fn forecast(&self, _inputs: Made<'_>) -> Option<Forecast> {
        None
    }
    /// Runs it. All outputs must be under [`Cx::out`] when it returns `Ok`.
    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure>;
}

/// One artifact that a stage writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutputPort {
    /// The port's name, such as `checkpoint`.
    pub name: &'static str,
    /// The kind of artifact, such as `texts`; inputs are checked against it.
    pub kind: &'static str,
}

/// The files of an input port, if they are there already.
pub type Made<'a> = &'a dyn Fn(&str) -> Option<Files>;

/// What a stage is going to take, from the shapes of its inputs alone.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forecast {
    /// Bytes of memory at most, by what they are for.
    pub memory: Vec<(&'static str, u64)>,
    /// Floating-point operations, an addition and a multiplication being two.
    pub flop: f64,
    /// What had to be assumed, if anything.
    pub assumed: Option<&'static str>,
}

impl Forecast {
    /// All memory together.
    pub fn bytes(&self) -> u64 {
        self.memory.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The workers that may run a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pool {
    /// Any of the `--jobs` CPU workers.
    Cpu,
    /// The one worker that owns the device (`--device`); it runs one stage at a time.
    Device,
}

/// Whether two machines get the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numerics {
    /// The same bytes everywhere: integers and fixed-order arithmetic. The device is not in the key.
    Bitwise,
    /// The same bytes on the same kind of device only. The fingerprint is in the key.
    PerDevice,
}

impl Numerics {
    /// The name used in keys and in `--format json`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bitwise => "bitwise",
            Self::PerDevice => "per-device",
        }
    }
}

/// Everything a running stage can see.
pub struct Cx<'a> {
    /// Input artifacts by port.
    pub inputs: BTreeMap<String, Files>,
    /// Files that the stage declared, of the user and of a hub: logical name (`sources.0/a/b.md`) → path.
    pub reads: Files,
    /// The private folder for outputs: one sub-folder per output port, already made.
    pub out: PathBuf,
    /// A private folder for scratch files, gone after the run.
    pub scratch: PathBuf,
    /// A file that the stage may write its log to; kept with the run's journal.
    pub log: PathBuf,
    /// The stage's seed.
    pub seed: u64,
    /// The device that `--device` chose, such as `cpu` or `cuda:0`.
    pub device: String,
    /// Bytes of main memory that the stage should keep within; `None` where nothing was said. No result may depend on it.
    pub memory: Option<u64>,
    /// Where to report progress.
    pub progress: &'a dyn Progress,
    /// Where to keep and find checkpoints of this very key.
    pub checkpoints: &'a dyn Checkpoints,
    /// Raised when the run should end.
    pub stop: &'a Stop,
}

impl Cx<'_> {
    /// The files of an input port.
    pub fn input(&self, port: &str) -> Result<&Files, Failure> {
        self.inputs.get(port).ok_or_else(|| Failure::UndeclaredInput(port.to_owned()))
    }

    /// The folder that holds an output port's files.
    pub fn output(&self, port: &str) -> PathBuf {
        self.out.join(port)
    }

    /// Fails with [`Failure::Stopped`] once a stop was asked for. Call it often in long loops.
    pub fn check_stop(&self) -> Result<(), Failure> {
        if self.stop.is_raised() { Err(Failure::Stopped) } else { Ok(()) }
    }
}

/// Progress of one stage: a line or a bar. All methods are cheap.
pub trait Progress: Send + Sync {
    /// Starts a phase with a known or unknown number of units (`docs`, `tokens`, `steps`).
    fn phase(&self, what: &str, total: Option<u64>, unit: &str);
    /// `n` more units of the phase are done.
    fn advance(&self, n: u64);
    /// A short figure to show beside the bar, such as `loss 1.23`.
    fn note(&self, text: &str);
    /// A full line worth keeping on screen and in the run's journal, such as one row of a table.
    fn say(&self, text: &str);
    /// How much memory processes take that the stage started, in bytes.
    fn memory(&self, _bytes: u64) {}
}

/// Progress that goes nowhere.
pub struct Quiet;

impl Progress for Quiet {
    fn phase(&self, _: &str, _: Option<u64>, _: &str) {}
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
    fn say(&self, _: &str) {}
}

/// Measures time for a figure that is shown. No result may depend on it.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts at zero.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Seconds since the start.
    pub fn seconds(self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}

/// Checkpoints of the running key. A checkpoint is a folder of files, published whole or not at all.
pub trait Checkpoints: Send + Sync {
    /// The newest checkpoint, if there is one and it is sound. Its files stay until two newer ones are published.
    fn latest(&self) -> std::io::Result<Option<Files>>;
    /// Publishes the files of a folder as the newest checkpoint. They are moved: the folder is empty afterwards.
    fn publish(&self, dir: &Path) -> std::io::Result<()>;
}

/// Checkpoints that are never kept.
pub struct NoCheckpoints;

impl Checkpoints for NoCheckpoints {
    fn latest(&self) -> std::io::Result<Option<Files>> {
        Ok(None)
    }
    fn publish(&self, _: &Path) -> std::io::Result<()> {
        Ok(())
    }
}

/// A flag that asks running stages to end.
#[derive(Debug, Default)]
pub struct Stop {
    flag: Arc<AtomicBool>,
    deadline: Option<Instant>,
}

impl Stop {
    /// Asks every stage to end at its next check.
    pub fn raise(&self) {
        self.flag.store(true, Ordering::SeqCst);
    }
    /// Whether a stop was asked for, or the time is up.
    pub fn is_raised(&self) -> bool {
        self.flag.load(Ordering::SeqCst) || self.deadline.is_some_and(|end| Instant::now() >= end)
    }
    /// The same flag, which also counts as raised from `deadline` on.
    #[must_use]
    pub fn until(&self, deadline: Option<Instant>) -> Self {
        Self { flag: self.flag.clone(), deadline }
    }
}

/// Why a stage did not finish.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The stage failed; its own error says why.
    #[error(transparent)]
    Stage(Box<dyn Error + Send + Sync>),
    /// The stage failed in a way that another attempt may not.
    #[error("{1}")]
    Passing(Class, #[source] Box<dyn Error + Send + Sync>),
    /// The stage asked for an input that it did not declare.
    #[error("read of undeclared input `{0}`; this is a bug in the stage")]
    UndeclaredInput(String),
    /// A stop was asked for and the stage ended; a checkpoint may have been published.
    #[error("stopped before the end")]
    Stopped,
}

/// Failures that another attempt may not meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// The operating system refused to read or write.
    Io,
    /// There was not enough memory, on the host or on the device.
    Memory,
    /// A process was killed.
    Killed,
    /// A command ended with an exit code of its own.
    Exit,
    /// The time was up.
    Timeout,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Io, Self::Memory, Self::Killed, Self::Exit, Self::Timeout];
}

impl Failure {
    /// The class of the failure, if another attempt may not meet it.
    pub fn class(&self) -> Option<Class> {
        match self {
            Self::Passing(class, _) => Some(*class),
            Self::Stage(error) => class_of(&**error),
            Self::UndeclaredInput(_) | Self::Stopped => None,
        }
    }

    /// Wraps a stage's own error.
    pub fn stage(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Stage(error.into())
    }
}

/// What an error and its causes say of themselves. CUDA libraries tell that memory ran out in words only.
fn class_of(error: &(dyn Error + 'static)) -> Option<Class> {
    let causes = std::iter::successors(Some(error), |error| (*error).source());
    for error in causes {
        let words = error.to_string().to_ascii_lowercase().replace('_', " ");
        if words.contains("out of memory") {
            return Some(Class::Memory);
        }
        if error.is::<std::io::Error>() {
            return Some(Class::Io);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use super::*;

    #[test]
    fn failures_tell_whether_another_attempt_may_help() {
        #[derive(Debug, thiserror::Error)]
        #[error("layer 3")]
        struct Layer(#[source] io::Error);

        let disk = || io::Error::other("disk");
        let none: Option<Class> = None;
        assert_eq!(Failure::stage("wrong shape").class(), none);
        assert_eq!(Failure::Stopped.class(), none);
        assert_eq!(Failure::stage(disk()).class(), Some(Class::Io));
        assert_eq!(Failure::stage(Layer(disk())).class(), Some(Class::Io));
        assert_eq!(Failure::stage("CUDA_ERROR_OUT_OF_MEMORY").class(), Some(Class::Memory));
        assert_eq!(Failure::stage(Layer(io::Error::other("Out of memory"))).class(), Some(Class::Memory));
        let killed = Failure::Passing(Class::Killed, "by signal 9".into());
        assert_eq!((killed.class(), killed.to_string()), (Some(Class::Killed), "by signal 9".to_owned()));
    }

    #[test]
    fn a_deadline_raises_its_own_stop_and_a_raised_stop_all() {
        let stop = Stop::default();
        let past = stop.until(Some(Instant::now()));
        let later = stop.until(Some(Instant::now() + Duration::from_hours(1)));
        assert_eq!([&stop, &past, &later].map(Stop::is_raised), [false, true, false]);
        stop.raise();
        assert_eq!([&stop, &past, &later].map(Stop::is_raised), [true; 3]);
    }
}
