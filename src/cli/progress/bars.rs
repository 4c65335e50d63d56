//! The view for terminals: one live line per running stage, and lines that stay. Knows no engine.

use std::{collections::BTreeMap, fmt::Write, sync::Mutex, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::View;
use crate::cli::paint::{Colour, Palette, count, seconds};

/// Live lines at the bottom of a terminal.
pub(super) struct Bars {
    all: MultiProgress,
    palette: Palette,
    width: usize,
    running: Mutex<BTreeMap<String, Live>>,
}

struct Live {
    bar: ProgressBar,
    what: String,
    note: String,
}

impl Bars {
    pub(super) fn new(target: ProgressDrawTarget, palette: Palette, width: usize) -> Self {
        let all = MultiProgress::with_draw_target(target);
        all.set_move_cursor(false);
        Self { all, palette, width: width.clamp(8, 32), running: Mutex::default() }
    }

    fn with(&self, stage: &str, change: impl FnOnce(&mut Live)) {
        let mut running = self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(live) = running.get_mut(stage) {
            change(live);
        }
    }

    fn spinner(&self) -> ProgressStyle {
        self.style("{faint_elapsed:>7}  {wide_msg}")
    }

    fn bar(&self, unit: &str) -> ProgressStyle {
        let unit = unit.to_owned();
        let per = unit.clone();
        self.style("{bar:20.cyan/black.bright} {percent:>3} %  {of}  {rate}  {left}  {wide_msg}")
            .with_key("of", move |state: &ProgressState, out: &mut dyn Write| {
                let total = state.len().map_or_else(|| "?".to_owned(), |len| count(len as f64));
                let _ignored = write!(out, "{}/{total} {unit}", count(state.pos() as f64));
            })
            .with_key("rate", move |state: &ProgressState, out: &mut dyn Write| {
                let _ignored = write!(out, "{} {per}/s", count(state.per_sec()));
            })
    }

    fn style(&self, rest: &str) -> ProgressStyle {
        let palette = self.palette;
        let faint = move |text: String, out: &mut dyn Write| {
            let _ignored = write!(out, "{}", palette.paint(Colour::Faint, &text));
        };
        ProgressStyle::with_template(&format!("  {{spinner:.cyan}} {{prefix:.bold}}  {rest}"))
            .expect("the template is fixed")
            .tick_chars("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏ ")
            .progress_chars("━╸─")
            .with_key("faint_elapsed", move |state: &ProgressState, out: &mut dyn Write| {
                faint(seconds(state.elapsed().as_secs_f64()), out);
            })
            .with_key("left", move |state: &ProgressState, out: &mut dyn Write| {
                faint(format!("{} left", seconds(state.eta().as_secs_f64().max(1.0))), out);
            })
    }
}

impl View for Bars {
    fn started(&self, stage: &str, why: &str) {
        let bar = self.all.add(ProgressBar::no_length().with_style(self.spinner()));
        bar.set_prefix(format!("{stage:width$}", width = self.width));
        bar.set_message(why.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        let live = Live { bar, what: String::new(), note: why.to_owned() };
        self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(stage.to_owned(), live);
    }

    fn phase(&self, stage: &str, what: &str, total: Option<u64>, unit: &str) {
        self.with(stage, |live| {
            what.clone_into(&mut live.what);
            live.note.clear();
            live.bar.reset();
            if let Some(total) = total {
                live.bar.set_style(self.bar(unit));
                live.bar.set_length(total);
            } else {
                live.bar.set_style(self.spinner());
                live.bar.unset_length();
            }
            live.bar.set_message(live.what.clone());
        });
    }

    fn advance(&self, stage: &str, n: u64) {
        self.with(stage, |live| live.bar.inc(n));
    }

    fn note(&self, stage: &str, text: &str) {
        self.with(stage, |live| {
            text.clone_into(&mut live.note);
            let gap = if live.what.is_empty() { "" } else { "  " };
            live.bar.set_message(format!("{}{gap}{text}", live.what));
        });
    }

    fn line(&self, text: &str) {
        // A terminal that went away is no reason to stop the work.
        let _gone = self.all.println(text);
    }

    fn finished(&self, stage: &str) {
        let live = self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(stage);
        if let Some(live) = live {
            live.bar.finish_and_clear();
            self.all.remove(&live.bar);
        }
    }

    fn clear(&self) {
        let _gone = self.all.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_per_running_stage() {
        let term = indicatif::InMemoryTerm::new(10, 110);
        let target = ProgressDrawTarget::term_like(Box::new(term.clone()));
        let bars = Bars::new(target, Palette(false), 6);
        bars.started("corpus", "never ran");
        bars.started("embed", "never ran");
        bars.phase("embed", "vectors", Some(4000), "docs");
        bars.advance("embed", 1000);
        bars.note("embed", "dim 256");
        bars.line("a line that stays");
        bars.finished("corpus");
        let screen = term.contents();
        let lines: Vec<&str> = screen.lines().collect();
        assert_eq!(lines[0], "a line that stays", "{screen}");
        assert!(
            lines[1].contains("embed     ━━━━━") && lines[1].contains("25 %  1.00k/4.00k docs"),
            "{screen}"
        );
        assert!(lines[1].trim_end().ends_with("vectors  dim 256"), "{screen}");
        assert_eq!(lines.len(), 2, "{screen}");
    }

    /// What is on the screen after these steps, without spinners and times.
    fn screen(steps: impl Fn(&Bars)) -> Vec<String> {
        let term = indicatif::InMemoryTerm::new(10, 110);
        let target = ProgressDrawTarget::term_like(Box::new(term.clone()));
        let bars = Bars::new(target, Palette(false), 6);
        steps(&bars);
        let plain = |line: &str| line.chars().skip(4).collect::<String>();
        term.contents().lines().map(plain).collect()
    }

    #[test]
    fn a_new_phase_takes_the_old_figures_away() {
        let lines = screen(|bars| {
            bars.started("train", "forced");
            bars.phase("train", "warm up", Some(10), "steps");
            bars.advance("train", 5);
            bars.note("train", "loss 9");
            bars.phase("train", "save", None, "files");
        });
        let [line] = &lines[..] else { panic!("{lines:?}") };
        assert!(line.starts_with("train     ") && line.trim_end().ends_with("  save"), "{line}");
        assert!(!line.contains("loss") && !line.contains('%'), "{line}");
    }

    #[test]
    fn why_a_stage_runs_is_shown_until_it_says_more() {
        let lines = screen(|bars| bars.started("train", "parameter `lr` is new: 1"));
        assert!(lines[0].trim_end().ends_with("  parameter `lr` is new: 1"), "{lines:?}");
        let lines = screen(|bars| {
            bars.started("train", "forced");
            bars.note("train", "so far");
        });
        assert!(lines[0].trim_end().ends_with("  so far") && !lines[0].contains("forced"), "{lines:?}");
    }

    #[test]
    fn nothing_is_left_of_stages_that_are_done_or_never_ran() {
        let lines = screen(|bars| {
            bars.phase("never", "x", Some(1), "u");
            for stage in ["a", "b"] {
                bars.started(stage, "forced");
                bars.phase(stage, "x", Some(2), "u");
            }
            bars.finished("a");
            bars.advance("a", 1);
            bars.finished("b");
            bars.finished("b");
            bars.clear();
        });
        assert_eq!(lines, [""; 0]);
    }
}
