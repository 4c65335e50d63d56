//! The view for terminals: a live line for each running stage, one for the run, and lines that stay. Knows no engine.

mod line;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use self::line::Live;
use super::{
    View,
    gauge::Memory,
    screen::{Screen, Surface},
    tally::Counts,
};
use crate::cli::paint::Palette;

/// How often the lines are drawn: few enough times for a slow connection.
const EVERY: Duration = Duration::from_millis(250);

/// Live lines at the bottom of a terminal.
pub(super) struct Bars(Arc<Mutex<Inner>>);

struct Inner {
    screen: Screen,
    palette: Palette,
    width: usize,
    /// In the order in which they started.
    running: Vec<(String, Live)>,
    run: Option<(Instant, Counts)>,
    memory: Memory,
    tick: usize,
}

impl Bars {
    /// Lines that are drawn when something is said above them.
    fn still(surface: Box<dyn Surface>, palette: Palette, width: usize) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            screen: Screen::new(surface),
            palette,
            width: width.clamp(8, 32),
            running: Vec::new(),
            run: None,
            memory: Memory::new(),
            tick: 0,
        })))
    }

    /// Lines that are also drawn a few times a second.
    pub(super) fn new(surface: Box<dyn Surface>, palette: Palette, width: usize) -> Self {
        let bars = Self::still(surface, palette, width);
        let inner = Arc::downgrade(&bars.0);
        thread::spawn(move || {
            while let Some(inner) = inner.upgrade() {
                inner.lock().unwrap_or_else(PoisonError::into_inner).draw(None);
                drop(inner);
                thread::sleep(EVERY);
            }
        });
        bars
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, stage: &str, change: impl FnOnce(&mut Live)) {
        if let Some((_, live)) = self.lock().running.iter_mut().find(|(name, _)| name == stage) {
            change(live);
        }
    }
}

impl Inner {
    fn draw(&mut self, above: Option<&str>) {
        self.tick += 1;
        let (rows, columns) = self.screen.size();
        let mut lines = Vec::new();
        // The last line is that of the run; one row stays for what was said before.
        let room = rows.saturating_sub(2).max(1);
        for (name, live) in self.running.iter_mut().take(room) {
            lines.push(live.line(name, (self.width, columns), self.tick, self.palette));
        }
        if let Some((since, counts)) = self.run.filter(|(_, counts)| counts.begun) {
            let hidden = self.running.len().saturating_sub(room);
            let (elapsed, memory) = (since.elapsed().as_secs_f64(), self.memory.now());
            lines.push(line::of_run(counts, hidden, elapsed, memory, self.palette));
        }
        self.screen.draw(above, &lines);
    }
}

impl View for Bars {
    fn counts(&self, counts: Counts) {
        let mut inner = self.lock();
        let since = inner.run.map_or_else(Instant::now, |(since, _)| since);
        inner.run = Some((since, counts));
    }

    /// Not drawn at once: a quick stage would only flicker.
    fn started(&self, stage: &str, why: &str) {
        let mut inner = self.lock();
        inner.running.retain(|(name, _)| name != stage);
        inner.running.push((stage.to_owned(), Live::new(why)));
    }

    fn phase(&self, stage: &str, what: &str, total: Option<u64>, unit: &str) {
        self.with(stage, |live| live.phase(what, total, unit));
    }

    fn advance(&self, stage: &str, n: u64) {
        self.with(stage, |live| live.done += n);
    }

    fn note(&self, stage: &str, text: &str) {
        self.with(stage, |live| text.clone_into(&mut live.note));
    }

    fn line(&self, text: &str) {
        self.lock().draw(Some(text));
    }

    fn finished(&self, stage: &str) {
        self.lock().running.retain(|(name, _)| name != stage);
    }

    fn clear(&self) {
        let mut inner = self.lock();
        inner.running.clear();
        inner.run = None;
        inner.draw(None);
    }
}

#[cfg(test)]
mod tests {
    use indicatif::InMemoryTerm;

    use super::*;

    /// What is on a screen of so many rows and columns after these steps.
    fn screen(size: (u16, u16), steps: impl Fn(&Bars)) -> Vec<String> {
        let term = InMemoryTerm::new(size.0, size.1);
        let bars = Bars::still(Box::new(term.clone()), Palette(false), 6);
        steps(&bars);
        bars.lock().draw(None);
        term.contents().lines().map(str::to_owned).collect()
    }

    fn counts(done: usize, running: usize, failed: usize) -> Counts {
        Counts { total: 11, done, running, failed, begun: true }
    }

    #[test]
    fn a_line_per_running_stage_and_one_for_the_run() {
        let lines = screen((10, 120), |bars| {
            bars.counts(counts(3, 2, 1));
            bars.started("corpus", "never ran");
            bars.started("embed", "never ran");
            bars.phase("embed", "vectors", Some(4000), "docs");
            bars.advance("embed", 1000);
            bars.note("embed", "dim 256");
            bars.line("a line that stays");
            bars.finished("corpus");
        });
        let [stays, embed, run] = &lines[..] else { panic!("{lines:?}") };
        assert_eq!(stays, "a line that stays");
        assert!(embed.contains("embed     ━━━━━") && embed.contains("25 %  1.00k/4.00k docs"), "{embed}");
        assert!(embed.ends_with("  vectors  dim 256"), "{embed}");
        assert!(run.starts_with("  3/11 done  2 running  6 waiting  1 failed  "), "{run}");
        assert!(run.ends_with("iB"), "the memory: {run}");
    }

    #[test]
    fn a_new_phase_takes_the_old_figures_away() {
        let lines = screen((10, 110), |bars| {
            bars.started("train", "forced");
            bars.phase("train", "warm up", Some(10), "steps");
            bars.advance("train", 5);
            bars.note("train", "loss 9");
            bars.phase("train", "save", None, "files");
        });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert!(line.contains(" train     ") && line.ends_with("  save"), "{line}");
        assert!(!line.contains("loss") && !line.contains('%'), "{line}");
    }

    #[test]
    fn why_a_stage_runs_is_shown_until_it_says_more() {
        let lines = screen((10, 110), |bars| bars.started("train", "parameter `lr` is new: 1"));
        assert!(lines[0].ends_with("  parameter `lr` is new: 1"), "{lines:?}");
        let lines = screen((10, 110), |bars| {
            bars.started("train", "forced");
            bars.note("train", "so far");
        });
        assert!(lines[0].ends_with("  so far") && !lines[0].contains("forced"), "{lines:?}");
    }

    #[test]
    fn nothing_is_left_of_stages_that_are_done_or_never_ran() {
        let lines = screen((10, 110), |bars| {
            bars.phase("never", "x", Some(1), "u");
            bars.counts(counts(0, 2, 0));
            for stage in ["a", "b"] {
                bars.started(stage, "forced");
                bars.phase(stage, "x", Some(2), "u");
            }
            bars.line("stays");
            bars.finished("a");
            bars.advance("a", 1);
            bars.clear();
            bars.finished("b");
        });
        assert_eq!(lines, ["stays"]);
    }

    #[test]
    fn more_stages_than_rows_are_counted_and_lines_are_cut() {
        let lines = screen((6, 40), |bars| {
            bars.counts(counts(0, 9, 0));
            for i in 0..9 {
                bars.started(&format!("stage-{i}"), "a reason that is longer than the window is wide");
            }
        });
        assert_eq!(lines.len(), 5, "{lines:?}");
        assert!(lines.iter().all(|line| line.chars().count() < 40), "{lines:?}");
        assert!(lines[3].contains("stage-3") && lines[4].contains("9 running (5 not shown)"), "{lines:?}");
    }

    #[test]
    fn a_run_of_hits_shows_nothing() {
        let lines = screen((6, 40), |bars| bars.counts(Counts { begun: false, ..counts(3, 0, 0) }));
        assert_eq!(lines, [""; 0]);
    }

    #[test]
    fn the_lines_move_by_themselves_and_stop_with_the_view() {
        let term = InMemoryTerm::new(6, 60);
        let bars = Bars::new(Box::new(term.clone()), Palette(false), 6);
        bars.started("train", "forced");
        let deadline = Instant::now() + Duration::from_mins(1);
        while !term.contents().contains("train") {
            assert!(Instant::now() < deadline, "nothing was drawn");
            thread::sleep(Duration::from_millis(10));
        }
        bars.clear();
        drop(bars);
        assert_eq!(term.contents(), "");
    }
}
