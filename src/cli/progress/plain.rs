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
}
