//! What a person sees of a run while it runs. Knows the engine's events; stages reach it through the engine only.

mod bars;
mod plain;

use std::io::{self, IsTerminal};

use indicatif::ProgressDrawTarget;

use super::paint::{Colour, Palette, seconds};
use crate::engine::{
    event::{Event, Reporter},
    state::Status,
};

/// Where lines about stages go.
trait View: Send + Sync {
    /// A stage starts.
    fn started(&self, stage: &str, why: &str);
    /// A part of its work starts.
    fn phase(&self, stage: &str, what: &str, total: Option<u64>, unit: &str);
    /// A part of its work goes on.
    fn advance(&self, stage: &str, n: u64);
    /// A figure beside it.
    fn note(&self, stage: &str, text: &str);
    /// A line that stays.
    fn line(&self, text: &str);
    /// Nothing more to show live of a stage.
    fn finished(&self, stage: &str);
    /// Leaves the terminal as it should be, whatever still runs.
    fn clear(&self);
}

/// Shows a run on standard error: live on a terminal, in whole lines elsewhere.
pub(super) struct Terminal {
    view: Box<dyn View>,
    palette: Palette,
    width: usize,
}

impl Terminal {
    /// A view for stages with these names.
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let width = names.map(|name| name.chars().count()).max().unwrap_or_default().clamp(6, 32);
        let stderr = io::stderr();
        let palette = Palette::of(&stderr);
        let view: Box<dyn View> = if stderr.is_terminal() {
            Box::new(bars::Bars::new(ProgressDrawTarget::stderr(), palette, width))
        } else {
            Box::new(plain::Plain::new(stderr))
        };
        Self { view, palette, width }
    }

    /// A line above everything else.
    pub(super) fn heading(&self, name: &str, rest: &str) {
        let (name, rest) =
            (self.palette.paint(Colour::Strong, name), self.palette.paint(Colour::Faint, rest));
        self.view.line(&format!("{name}  {rest}"));
    }

    /// A line about the run as a whole.
    pub(super) fn remark(&self, text: &str) {
        self.view.line(&self.palette.paint(Colour::Warning, text).to_string());
    }

    /// A line of the log.
    pub(super) fn log(&self, text: &str) {
        self.view.line(&self.palette.paint(Colour::Faint, text).to_string());
    }

    /// Leaves the terminal as it should be.
    pub(super) fn clear(&self) {
        self.view.clear();
    }

    /// Sets what was live apart from what follows.
    pub(super) fn end(&self) {
        self.view.clear();
        self.view.line("");
    }

    fn finished(&self, stage: &str, status: Status, took: f64, why: &str) {
        let (mark, colour) = match status {
            Status::Ran => ("✓", Colour::Good),
            Status::Failed => ("✗", Colour::Bad),
            // The table at the end lists what did not run.
            _ => return,
        };
        let mark = self.palette.paint(colour, mark);
        let name = self.palette.paint(Colour::Strong, stage);
        let (first, more) = why.split_once('\n').unwrap_or((why, ""));
        let why = if status == Status::Ran {
            self.palette.paint(Colour::Faint, first).to_string()
        } else {
            first.to_owned()
        };
        let more: String = more.lines().map(|line| ["\n        ", line].concat()).collect();
        self.view.line(&format!(
            "  {mark} {name:width$}  {:>7}  {why}{more}",
            seconds(took),
            width = self.width
        ));
    }
}

impl Reporter for Terminal {
    fn event(&self, event: &Event<'_>) {
        match *event {
            Event::RunStarted { .. } | Event::RunFinished { .. } => {}
            Event::StageStarted { stage, why, .. } => self.view.started(stage, why),
            Event::Phase { stage, what, total, unit } => self.view.phase(stage, what, total, unit),
            Event::Advance { stage, n } => self.view.advance(stage, n),
            Event::Note { stage, text } => self.view.note(stage, text),
            Event::Say { stage, text } => {
                let name = format!("{stage:width$} │", width = self.width);
                self.view.line(&format!("    {} {text}", self.palette.paint(Colour::Faint, &name)));
            }
            Event::StageRetries { stage, attempt, pause, why } => {
                let why = why.lines().next().unwrap_or_default();
                let again =
                    format!("`{stage}` failed at attempt {attempt}, next one in {}: {why}", seconds(pause));
                self.remark(&again);
            }
            Event::StageWaits { stage, owner } => {
                self.remark(&format!("`{stage}` waits: {owner} runs it already"));
            }
            Event::StageRewound { stage, reader } => {
                self.view.finished(reader);
                self.remark(&format!(
                    "`{stage}` runs again: what it wrote was lost before `{reader}` read it"
                ));
            }
            Event::StageFinished { stage, status, seconds, why } => {
                self.view.finished(stage);
                self.finished(stage, status, seconds, why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_run_in_plain_lines() {
        let sink = Sink::default();
        let view = Box::new(plain::Plain::new(sink.clone()));
        let terminal = Terminal { view, palette: Palette(false), width: 6 };
        terminal.heading("full", "2 stages");
        let finished = |stage, status, why| Event::StageFinished { stage, status, seconds: 1.25, why };
        for event in [
            finished("corpus", Status::Cached, ""),
            Event::Say { stage: "svd", text: "layer 0" },
            finished("svd", Status::Ran, "parameter `rank` changed: 96 -> 64"),
            finished("distill", Status::Failed, "no loss\nlast line"),
        ] {
            terminal.event(&event);
        }
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let expected = "full  2 stages
    svd    │ layer 0
  ✓ svd       1.2 s  parameter `rank` changed: 96 -> 64
  ✗ distill    1.2 s  no loss
        last line
";
        assert_eq!(text, expected);
    }

    /// A view that keeps what it is told.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<String>>>);

    impl Kept {
        fn keep(&self, text: String) {
            self.0.lock().unwrap().push(text);
        }
    }

    impl View for Kept {
        fn started(&self, stage: &str, why: &str) {
            self.keep(format!("started {stage} {why}"));
        }
        fn phase(&self, stage: &str, what: &str, total: Option<u64>, unit: &str) {
            self.keep(format!("phase {stage} {what} {total:?} {unit}"));
        }
        fn advance(&self, stage: &str, n: u64) {
            self.keep(format!("advance {stage} {n}"));
        }
        fn note(&self, stage: &str, text: &str) {
            self.keep(format!("note {stage} {text}"));
        }
        fn line(&self, text: &str) {
            self.keep(text.to_owned());
        }
        fn finished(&self, stage: &str) {
            self.keep(format!("finished {stage}"));
        }
        fn clear(&self) {
            self.keep("clear".to_owned());
        }
    }

    #[test]
    fn every_event_reaches_the_view() {
        let kept = Kept::default();
        let terminal = Terminal { view: Box::new(kept.clone()), palette: Palette(false), width: 6 };
        let key = crate::store::Digest::of(b"key");
        for event in [
            Event::RunStarted { run: "r", stages: &["svd"] },
            Event::StageStarted { stage: "svd", kind: "svd", key, why: "forced" },
            Event::Phase { stage: "svd", what: "layers", total: Some(3), unit: "layers" },
            Event::Advance { stage: "svd", n: 2 },
            Event::Note { stage: "svd", text: "rank 8" },
            Event::StageFinished { stage: "svd", status: Status::Ran, seconds: 0.01, why: "forced" },
            Event::StageFinished { stage: "after", status: Status::Blocked, seconds: 0.0, why: "needs it" },
            Event::RunFinished { ok: true, seconds: 1.0 },
        ] {
            terminal.event(&event);
        }
        terminal.remark("stopping");
        terminal.end();
        let expected = [
            "started svd forced",
            "phase svd layers Some(3) layers",
            "advance svd 2",
            "note svd rank 8",
            "finished svd",
            "  ✓ svd       10 ms  forced",
            "finished after",
            "stopping",
            "clear",
            "",
        ];
        assert_eq!(*kept.0.lock().unwrap(), expected);
    }

    #[test]
    fn only_the_marks_and_the_names_are_coloured() {
        let kept = Kept::default();
        let terminal = Terminal { view: Box::new(kept.clone()), palette: Palette(true), width: 6 };
        terminal.finished("svd", Status::Failed, 1.0, "no luck\nline 2");
        let expected = "  \x1b[31;1m✗\x1b[0m \x1b[1msvd   \x1b[0m    1.0 s  no luck\n        line 2";
        assert_eq!(*kept.0.lock().unwrap(), [expected]);
    }
}
