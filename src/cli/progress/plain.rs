//! The view for log files: whole lines, and now and then how far a long stage is. Knows no engine.

use std::{
    collections::BTreeMap,
    io::Write,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::View;
use crate::cli::paint::{count, seconds};

/// How often a running stage writes a line.
const EVERY: Duration = Duration::from_secs(10);

/// Lines on a stream.
pub(super) struct Plain<W> {
    out: Mutex<W>,
    every: Duration,
    running: Mutex<BTreeMap<String, Phase>>,
}

struct Phase {
    what: String,
    unit: String,
    total: Option<u64>,
    done: u64,
    note: String,
    started: Instant,
    told: Instant,
}

impl<W: Write + Send> Plain<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out: Mutex::new(out), every: EVERY, running: Mutex::default() }
    }

    fn write(&self, text: &str) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        // A reader that went away is no reason to stop the work.
        let _gone = writeln!(out, "{text}").and_then(|()| out.flush());
    }

    fn with(&self, stage: &str, change: impl FnOnce(&mut Phase)) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(phase) = running.get_mut(stage) else { return };
        change(phase);
        if phase.told.elapsed() >= self.every {
            phase.told = Instant::now();
            let line = format!("  {stage}: {}", phase.describe());
            drop(running);
            self.write(&line);
        }
    }
}

impl Phase {
    fn new(what: &str, total: Option<u64>, unit: &str) -> Self {
        let now = Instant::now();
        let (what, unit, note) = (what.to_owned(), unit.to_owned(), String::new());
        Self { what, unit, total, done: 0, note, started: now, told: now }
    }

    fn describe(&self) -> String {
        let elapsed = self.started.elapsed().as_secs_f64();
        let rate = self.done as f64 / elapsed.max(1e-9);
        let mut parts = vec![self.what.clone()];
        if let Some(total) = self.total.filter(|&total| total > 0) {
            let share = self.done as f64 / total as f64 * 100.0;
            parts.push(format!("{}/{} {} ({share:.0} %)", self.done, total, self.unit));
        } else if self.done > 0 {
            parts.push(format!("{} {}", self.done, self.unit));
        }
        if self.done > 0 {
            parts.push(format!("{} {}/s", count(rate), self.unit));
        }
        if let Some(total) = self.total.filter(|_| self.done > 0) {
            parts.push(format!("{} left", seconds(total.saturating_sub(self.done) as f64 / rate)));
        }
        parts.push(self.note.clone());
        parts.retain(|part| !part.is_empty());
        parts.join(", ")
    }
}

impl<W: Write + Send> View for Plain<W> {
    fn started(&self, stage: &str, why: &str) {
        let phase = Phase::new("running", None, "");
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(stage.to_owned(), phase);
        self.write(&format!("  {stage}: started, {why}"));
    }

    fn phase(&self, stage: &str, what: &str, total: Option<u64>, unit: &str) {
        self.with(stage, |phase| *phase = Phase { told: phase.told, ..Phase::new(what, total, unit) });
    }

    fn advance(&self, stage: &str, n: u64) {
        self.with(stage, |phase| phase.done += n);
    }

    fn note(&self, stage: &str, text: &str) {
        self.with(stage, |phase| text.clone_into(&mut phase.note));
    }

    fn line(&self, text: &str) {
        self.write(text);
    }

    fn finished(&self, stage: &str) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(stage);
    }

    fn clear(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(plain: Plain<Vec<u8>>) -> String {
        String::from_utf8(plain.out.into_inner().unwrap()).unwrap()
    }

    #[test]
    fn a_quick_stage_writes_no_progress() {
        let plain = Plain::new(Vec::new());
        plain.started("corpus", "never ran");
        plain.phase("corpus", "files", Some(3), "docs");
        plain.advance("corpus", 3);
        plain.finished("corpus");
        assert_eq!(text(plain), "  corpus: started, never ran\n");
    }

    #[test]
    fn a_long_stage_says_how_far_it_is() {
        let plain = Plain { every: Duration::ZERO, ..Plain::new(Vec::new()) };
        plain.started("corpus", "never ran");
        plain.phase("corpus", "files", Some(4), "docs");
        plain.advance("corpus", 1);
        plain.note("corpus", "2 dropped");
        let text = text(plain);
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("  corpus: files, 1/4 docs (25 %), "), "{text}");
        assert!(last.ends_with(" left, 2 dropped"), "{text}");
    }

    /// The lines of a stage that tells of every step, without its rate and the time that is left.
    fn lines(tell: impl Fn(&Plain<Vec<u8>>)) -> Vec<String> {
        let plain = Plain { every: Duration::ZERO, ..Plain::new(Vec::new()) };
        tell(&plain);
        let of_time = |part: &&str| !part.ends_with("/s") && !part.ends_with(" left");
        let short = |line: &str| line.split(", ").filter(of_time).collect::<Vec<_>>().join(", ");
        text(plain).lines().map(short).collect()
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        let found = lines(|plain| {
            plain.started("a", "forced");
            plain.note("a", "early");
            plain.phase("a", "load", None, "files");
            plain.advance("a", 2);
            plain.phase("a", "nothing to do", Some(0), "docs");
            plain.phase("a", "train", Some(3), "steps");
            plain.note("a", "loss 1.5");
            plain.advance("a", 1);
            plain.advance("a", 4);
        });
        let expected = [
            "  a: started, forced",
            "  a: running, early",
            "  a: load",
            "  a: load, 2 files",
            "  a: nothing to do",
            "  a: train, 0/3 steps (0 %)",
            "  a: train, 0/3 steps (0 %), loss 1.5",
            "  a: train, 1/3 steps (33 %), loss 1.5",
            "  a: train, 5/3 steps (167 %), loss 1.5",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn stages_that_do_not_run_say_nothing() {
        let found = lines(|plain| {
            plain.advance("never", 1);
            plain.started("a", "forced");
            plain.finished("a");
            plain.finished("a");
            plain.note("a", "late");
            plain.phase("a", "late", None, "");
            plain.line("a line of its own");
        });
        assert_eq!(found, ["  a: started, forced", "a line of its own"]);
    }

    #[test]
    fn a_line_is_written_at_most_once_in_a_while() {
        let plain = Plain::new(Vec::new());
        plain.started("a", "forced");
        plain.phase("a", "load", Some(100), "files");
        for _ in 0..100 {
            plain.advance("a", 1);
        }
        assert_eq!(text(plain), "  a: started, forced\n");
    }

    #[test]
    fn a_reader_that_went_away_stops_nothing() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
        }
        let plain = Plain::new(Gone);
        plain.started("a", "forced");
        plain.line("x");
        plain.clear();
    }
}
