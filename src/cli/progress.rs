//! What a person sees of a run while it runs. Knows the engine's events; stages reach it through the engine only.

mod bars;
mod gauge;
mod plain;
mod screen;
mod tally;

use std::{
    io::{self, IsTerminal},
    sync::{Mutex, PoisonError},
};

use self::tally::{Counts, Tally};
use super::paint::{Colour, Palette, seconds};
use crate::engine::{
    event::{Event, Reporter},
    state::Status,
};

/// Where lines about stages go.
trait View: Send + Sync {
    /// So many stages are where.
    fn counts(&self, _: Counts) {}
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
    tally: Mutex<Tally>,
}

impl Terminal {
    /// A view for stages with these names.
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let width = names.map(|name| name.chars().count()).max().unwrap_or_default().clamp(6, 32);
        let stderr = io::stderr();
        let palette = Palette::of(&stderr);
        let view: Box<dyn View> = if stderr.is_terminal() {
            Box::new(bars::Bars::new(Box::new(screen::Stderr::new()), palette, width))
        } else {
            Box::new(plain::Plain::new(stderr))
        };
        Self::on(view, palette, width)
    }

    fn on(view: Box<dyn View>, palette: Palette, width: usize) -> Self {
        Self { view, palette, width, tally: Mutex::default() }
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
        if let Some(counts) = self.tally.lock().unwrap_or_else(PoisonError::into_inner).take(event) {
            self.view.counts(counts);
        }
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
mod tests;
