//! What happens during a run, told to whoever shows or keeps it. Knows no terminal.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, atomic::Ordering},
    time::Instant,
};

use serde::Serialize;

use super::{action::Progress, memory::Watch, state::Status};
use crate::store::{self, Digest, StoreError};

/// One step of a run.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event<'a> {
    /// The run starts; the stages in the order of the graph.
    RunStarted {
        /// The run's name.
        run: &'a str,
        /// The pipeline's name.
        pipeline: &'a str,
        /// The names of all stages.
        stages: &'a [&'a str],
    },
    /// A stage starts to run.
    StageStarted {
        /// The stage's name.
        stage: &'a str,
        /// Its kind.
        kind: &'a str,
        /// The digest of its key.
        key: Digest,
        /// Why it runs.
        why: &'a str,
    },
    /// A stage waits, because another process runs the same key.
    StageWaits {
        /// The stage's name.
        stage: &'a str,
        /// Who runs it.
        owner: &'a str,
    },
    /// A stage must run again, because what it wrote was lost before it was read.
    StageRewound {
        /// The stage's name.
        stage: &'a str,
        /// Who wanted to read it.
        reader: &'a str,
    },
    /// An attempt failed, and there will be another one.
    StageRetries {
        /// The stage's name.
        stage: &'a str,
        /// The number of the attempt that failed, from 1.
        attempt: u32,
        /// Seconds until the next one.
        pause: f64,
        /// Why it failed.
        why: &'a str,
    },
    /// A running stage enters a phase.
    Phase {
        /// The stage's name.
        stage: &'a str,
        /// What it does now.
        what: &'a str,
        /// The number of units, if known.
        total: Option<u64>,
        /// The unit, such as `docs`.
        unit: &'a str,
    },
    /// More units of the phase are done. Not in the journal.
    Advance {
        /// The stage's name.
        stage: &'a str,
        /// How many.
        n: u64,
    },
    /// A figure to show beside the bar. Not in the journal.
    Note {
        /// The stage's name.
        stage: &'a str,
        /// The figure.
        text: &'a str,
    },
    /// A line worth keeping.
    Say {
        /// The stage's name.
        stage: &'a str,
        /// The line.
        text: &'a str,
    },
    /// A stage is done, whether it ran or not.
    StageFinished {
        /// The stage's name.
        stage: &'a str,
        /// How it ended.
        status: Status,
        /// How long it ran.
        seconds: f64,
        /// Why it ran, failed or did not run.
        why: &'a str,
    },
    /// The run is over.
    RunFinished {
        /// Whether every selected stage is in the cache now.
        ok: bool,
        /// How long it took.
        seconds: f64,
    },
}

/// Shows events. Called from several threads; must be quick.
pub trait Reporter: Send + Sync {
    /// Takes one event.
    fn event(&self, event: &Event<'_>);
}

/// A reporter that shows nothing.
pub struct Silent;

impl Reporter for Silent {
    fn event(&self, _: &Event<'_>) {}
}

/// Passes events on to a reporter and writes the lasting ones to the run's journal.
pub(crate) struct Journal<'a> {
    dir: PathBuf,
    reporter: &'a dyn Reporter,
    started: Instant,
    file: Mutex<BufWriter<Box<dyn Write + Send>>>,
}

impl<'a> Journal<'a> {
    /// Writes to `file`; the logs of stages lie in `dir`.
    pub(crate) fn new(reporter: &'a dyn Reporter, file: Box<dyn Write + Send>, dir: PathBuf) -> Self {
        Self { dir, reporter, started: Instant::now(), file: Mutex::new(BufWriter::new(file)) }
    }

    /// Goes on with the journal in a folder, which is made if absent.
    pub(crate) fn open(reporter: &'a dyn Reporter, dir: &Path) -> store::Result<Self> {
        let failed = |source| StoreError::Io { doing: "open the journal in", path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let path = dir.join("events.jsonl");
        let file = File::options().create(true).append(true).open(path).map_err(failed)?;
        Ok(Self::new(reporter, Box::new(file), dir.to_owned()))
    }

    /// Where a stage's log of an attempt lies.
    pub(crate) fn log(&self, stage: &str, attempt: u32) -> PathBuf {
        let name: String = stage.chars().map(|c| if c == '/' || c == '\0' { '_' } else { c }).collect();
        let number = if attempt == 1 { String::new() } else { format!(".{attempt}") };
        // Names of variants can be long; a file's name may not.
        let name = if name.len() > 200 { crate::store::Digest::of(name.as_bytes()).short() } else { name };
        self.dir.join(format!("{name}{number}.log"))
    }

    /// Seconds since the run started.
    pub(crate) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    pub(crate) fn tell(&self, event: &Event<'_>) {
        if lasts(event) {
            let line = serde_json::to_vec(&Line { at: self.seconds(), event })
                .expect("an event is plain data with string keys");
            let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
            // The journal is for people: a full disk shows itself where it matters, in publishing.
            drop(file.write_all(&line).and_then(|()| file.write_all(b"\n")).and_then(|()| file.flush()));
        }
        self.reporter.event(event);
    }
}

#[derive(Serialize)]
struct Line<'a> {
    at: f64,
    #[serde(flatten)]
    event: &'a Event<'a>,
}

/// Hits are left out too: the run's summary lists them, and a run of nothing but hits should cost nothing.
fn lasts(event: &Event<'_>) -> bool {
    !matches!(
        event,
        Event::Advance { .. } | Event::Note { .. } | Event::StageFinished { status: Status::Cached, .. }
    )
}

/// The progress handle of one stage.
pub(crate) struct StageProgress<'a> {
    pub(crate) stage: &'a str,
    pub(crate) journal: &'a Journal<'a>,
    pub(crate) watch: &'a Watch,
}

impl Progress for StageProgress<'_> {
    fn phase(&self, what: &str, total: Option<u64>, unit: &str) {
        self.journal.tell(&Event::Phase { stage: self.stage, what, total, unit });
    }
    fn advance(&self, n: u64) {
        self.journal.tell(&Event::Advance { stage: self.stage, n });
    }
    fn note(&self, text: &str) {
        self.journal.tell(&Event::Note { stage: self.stage, text });
    }
    fn say(&self, text: &str) {
        self.journal.tell(&Event::Say { stage: self.stage, text });
    }
    fn memory(&self, bytes: u64) {
        self.watch.children.fetch_max(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[derive(Default)]
    struct Count(std::sync::atomic::AtomicUsize);

    impl Reporter for Count {
        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// A disk that is full.
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
    }

    #[test]
    fn a_journal_that_cannot_be_written_does_not_stop_the_telling() {
        let count = Count::default();
        let journal = Journal::new(&count, Box::new(Full), PathBuf::new());
        for _ in 0..3 {
            journal.tell(&Event::Say { stage: "svd", text: "x" });
        }
        assert_eq!(count.0.load(std::sync::atomic::Ordering::Relaxed), 3);
    }

    #[test]
    fn a_line_of_the_journal_has_the_documented_words() {
        let words = |event: Event<'_>| serde_json::to_value(event).unwrap();
        let key = Digest::of(b"k");
        for (event, expected) in [
            (
                Event::RunStarted { run: "r", pipeline: "p", stages: &["a"] },
                serde_json::json!({ "event": "run-started", "run": "r", "pipeline": "p", "stages": ["a"] }),
            ),
            (
                Event::StageStarted { stage: "a", kind: "svd", key, why: "w" },
                serde_json::json!({ "event": "stage-started", "stage": "a", "kind": "svd", "key": key, "why": "w" }),
            ),
            (
                Event::Phase { stage: "a", what: "p", total: None, unit: "u" },
                serde_json::json!({ "event": "phase", "stage": "a", "what": "p", "total": null, "unit": "u" }),
            ),
            (
                Event::Say { stage: "a", text: "t" },
                serde_json::json!({ "event": "say", "stage": "a", "text": "t" }),
            ),
            (
                Event::RunFinished { ok: true, seconds: 0.5 },
                serde_json::json!({ "event": "run-finished", "ok": true, "seconds": 0.5 }),
            ),
        ] {
            assert_eq!(words(event), expected);
        }
    }

    #[test]
    fn all_events_are_shown_and_the_lasting_ones_kept() {
        let (memory, count) = (Memory::default(), Count::default());
        let journal = Journal::new(&count, Box::new(memory.clone()), PathBuf::new());
        let watch = Watch::start();
        let progress = StageProgress { stage: "svd", journal: &journal, watch: &watch };
        progress.phase("layers", Some(6), "layers");
        progress.advance(1);
        progress.note("rank 96");
        progress.say("layer 0: error 0.01");
        let finished = |status| Event::StageFinished { stage: "svd", status, seconds: 1.0, why: "" };
        journal.tell(&finished(Status::Cached));
        journal.tell(&finished(Status::Ran));
        assert_eq!(count.0.load(std::sync::atomic::Ordering::Relaxed), 6);
        let text = String::from_utf8(memory.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let kinds: Vec<&str> = lines.iter().map(|l| l["event"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["phase", "say", "stage-finished"]);
        assert_eq!(lines[2]["status"], "ran");
        assert!(lines[0]["at"].is_f64());
    }
}
