//! One live line: what a stage does, or what the run came to so far. Knows how it looks, not where it stands.

use std::time::Instant;

use crate::cli::{
    paint::{Colour, Palette, bytes, count, seconds},
    progress::{gauge::Rate, tally::Counts},
};

const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
/// Where a window has fewer columns, bars are short.
const NARROW: usize = 100;

/// A stage that runs.
pub(super) struct Live {
    what: String,
    pub note: String,
    unit: String,
    total: Option<u64>,
    pub done: u64,
    rate: Rate,
    started: Instant,
    phase: Instant,
}

impl Live {
    pub(super) fn new(why: &str) -> Self {
        let now = Instant::now();
        Self {
            what: String::new(),
            note: why.to_owned(),
            unit: String::new(),
            total: None,
            done: 0,
            rate: Rate::default(),
            started: now,
            phase: now,
        }
    }

    /// Goes on to another part of the work.
    pub(super) fn phase(&mut self, what: &str, total: Option<u64>, unit: &str) {
        let started = self.started;
        let (what, unit) = (what.to_owned(), unit.to_owned());
        *self = Self { what, unit, total, started, ..Self::new("") };
    }

    /// The line as it is now.
    pub(super) fn line(
        &mut self,
        name: &str,
        (width, columns): (usize, usize),
        tick: usize,
        palette: Palette,
    ) -> String {
        let rate = self.rate.measure(self.phase.elapsed().as_secs_f64(), self.done);
        let spinner = palette.paint(Colour::Accent, SPINNER[tick % SPINNER.len()]).to_string();
        let name = palette.paint(Colour::Strong, &format!("{name:width$}")).to_string();
        let mut parts = vec![format!("  {spinner} {name}")];
        if let Some(total) = self.total.filter(|&total| total > 0) {
            let share = (self.done as f64 / total as f64).min(1.0);
            parts.push(bar(share, if columns < NARROW { 10 } else { 20 }, palette));
            parts.push(format!("{:>3.0} %", (100.0 * share).floor()));
            parts.push(format!("{}/{} {}", count(self.done as f64), count(total as f64), self.unit));
        } else if self.done > 0 {
            parts.push(format!("{} {}", count(self.done as f64), self.unit));
        }
        if let Some(rate) = rate {
            parts.push(format!("{} {}/s", count(rate), self.unit));
            if let Some(left) = self.total.and_then(|total| total.checked_sub(self.done)) {
                parts.push(format!("{} left", seconds((left as f64 / rate).max(1.0))));
            }
        }
        let elapsed = seconds(self.started.elapsed().as_secs_f64());
        parts.push(palette.paint(Colour::Faint, &elapsed).to_string());
        parts.extend([&self.what, &self.note].into_iter().filter(|text| !text.is_empty()).cloned());
        parts.join("  ")
    }
}

/// A bar of so many columns.
fn bar(share: f64, columns: usize, palette: Palette) -> String {
    let full = (share * columns as f64).floor() as usize;
    let (done, left) = ("━".repeat(full), "─".repeat(columns - full));
    format!("{}{}", palette.paint(Colour::Accent, &done), palette.paint(Colour::Faint, &left))
}

/// The line of the run.
pub(super) fn of_run(
    counts: Counts,
    hidden: usize,
    elapsed: f64,
    memory: Option<u64>,
    palette: Palette,
) -> String {
    let hidden = if hidden > 0 { format!(" ({hidden} not shown)") } else { String::new() };
    let mut parts = vec![format!("{}/{} done", counts.done, counts.total)];
    parts.push(format!("{} running{hidden}", counts.running));
    parts.push(format!("{} waiting", counts.waiting()));
    if counts.failed > 0 {
        parts.push(palette.paint(Colour::Bad, &format!("{} failed", counts.failed)).to_string());
    }
    parts.push(seconds(elapsed));
    parts.extend(memory.map(bytes));
    format!("  {}", parts.join("  "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn shown(live: &mut Live, columns: usize) -> String {
        live.line("svd", (8, columns), 1, Palette(false))
    }

    fn ago(seconds: u64) -> Instant {
        Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap()
    }

    #[test]
    fn a_stage_says_how_far_it_is_how_fast_and_for_how_long() {
        let mut live = Live::new("forced");
        live.phase("layers", Some(40), "layers");
        (live.done, live.started, live.phase) = (10, ago(200), ago(100));
        live.note = "rank 96".to_owned();
        let expected = "  ⠙ svd       ━━━━━───────────────   25 %  10/40 layers  0.10 layers/s  5:00 left  3:20  layers  rank 96";
        assert_eq!(shown(&mut live, 120), expected);
        assert!(
            shown(&mut live, 60).contains("  ━━────────   25 %  "),
            "a short bar where there is little room"
        );
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        let mut live = Live::new("never run");
        assert_eq!(shown(&mut live, 120), "  ⠙ svd       0 ms  never run");
        live.phase("load", None, "files");
        live.done = 3;
        assert_eq!(shown(&mut live, 120), "  ⠙ svd       3 files  0 ms  load");
        live.phase("nothing", Some(0), "docs");
        assert_eq!(shown(&mut live, 120), "  ⠙ svd       0 ms  nothing");
        live.phase("too much", Some(2), "docs");
        (live.done, live.phase) = (3, ago(10));
        let line = shown(&mut live, 120);
        assert!(line.contains("100 %  3/2 docs") && !line.contains("left"), "{line}");
    }

    #[test]
    fn the_run_in_one_line() {
        let counts = Counts { total: 11, done: 3, running: 2, failed: 0, begun: true };
        let line = |counts, memory| of_run(counts, 0, 83.0, memory, Palette(false));
        assert_eq!(line(counts, Some(3 << 30)), "  3/11 done  2 running  6 waiting  83.0 s  3.0 GiB");
        let failed = Counts { failed: 1, ..counts };
        assert_eq!(line(failed, None), "  3/11 done  2 running  6 waiting  1 failed  83.0 s");
        let red = of_run(failed, 4, 0.0, None, Palette(true));
        assert!(
            red.contains("2 running (4 not shown)") && red.contains("\x1b[31;1m1 failed\x1b[0m"),
            "{red}"
        );
    }

    #[test]
    fn a_bar_is_as_long_as_it_should_be() {
        for (share, text) in [(0.0, "────"), (0.49, "━───"), (0.5, "━━──"), (1.0, "━━━━")]
        {
            assert_eq!(bar(share, 4, Palette(false)), text);
        }
    }
}
