//! How many stages of a run are where. Knows events, no terminal.

use std::collections::{BTreeMap, BTreeSet};

use crate::engine::{event::Event, state::Status};

/// The stages of a run by what they do.
#[derive(Debug, Default)]
pub(super) struct Tally {
    total: usize,
    running: BTreeSet<String>,
    /// Those that ended, and whether they failed.
    done: BTreeMap<String, bool>,
    begun: bool,
}

/// So many stages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub total: usize,
    /// Ended, whether well or not.
    pub done: usize,
    pub running: usize,
    pub failed: usize,
    /// Whether there is anything to wait for: a run of nothing but hits shows no line.
    pub begun: bool,
}

impl Counts {
    pub(super) fn waiting(self) -> usize {
        self.total.saturating_sub(self.done + self.running)
    }
}

impl Tally {
    /// Takes an event; returns the counts if it changed them.
    pub(super) fn take(&mut self, event: &Event<'_>) -> Option<Counts> {
        match *event {
            Event::RunStarted { stages, .. } => *self = Self { total: stages.len(), ..Self::default() },
            Event::StageStarted { stage, .. } => {
                self.begun = true;
                self.running.insert(stage.to_owned());
            }
            Event::StageWaits { .. } => self.begun = true,
            Event::StageRewound { stage, reader } => {
                self.running.remove(reader);
                self.done.remove(stage);
            }
            Event::StageFinished { stage, status, .. } => {
                self.running.remove(stage);
                self.done.insert(stage.to_owned(), status == Status::Failed);
            }
            _ => return None,
        }
        Some(Counts {
            total: self.total,
            done: self.done.len(),
            running: self.running.len(),
            failed: self.done.values().filter(|failed| **failed).count(),
            begun: self.begun,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Digest;

    fn started(stage: &str) -> Event<'_> {
        Event::StageStarted { stage, kind: "exec", key: Digest::of(b"k"), why: "" }
    }

    fn finished(stage: &str, status: Status) -> Event<'_> {
        Event::StageFinished { stage, status, seconds: 0.0, why: "" }
    }

    /// `done running waiting failed` after each event.
    fn after(events: &[Event<'_>]) -> Vec<[usize; 4]> {
        let mut tally = Tally::default();
        let counts = events.iter().filter_map(|event| tally.take(event));
        counts.map(|c| [c.done, c.running, c.waiting(), c.failed]).collect()
    }

    #[test]
    fn stages_are_counted_where_they_are() {
        let found = after(&[
            Event::RunStarted { run: "r", pipeline: "p", stages: &["a", "b", "c", "d"] },
            finished("a", Status::Cached),
            started("b"),
            Event::Advance { stage: "b", n: 1 },
            started("b"),
            started("c"),
            finished("b", Status::Failed),
            finished("c", Status::Ran),
            finished("d", Status::Blocked),
        ]);
        let expected = [
            [0, 0, 4, 0],
            [1, 0, 3, 0],
            [1, 1, 2, 0],
            [1, 1, 2, 0],
            [1, 2, 1, 0],
            [2, 1, 1, 1],
            [3, 0, 1, 1],
            [4, 0, 0, 1],
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_stage_that_is_made_again_waits_again_with_its_reader() {
        let found = after(&[
            Event::RunStarted { run: "r", pipeline: "p", stages: &["a", "b"] },
            finished("a", Status::Ran),
            started("b"),
            Event::StageRewound { stage: "a", reader: "b" },
        ]);
        assert_eq!(found[2..], [[1, 1, 0, 0], [0, 0, 2, 0]]);
    }

    #[test]
    fn hits_alone_begin_nothing_and_waiting_for_another_process_does() {
        let mut tally = Tally::default();
        assert!(!tally.take(&finished("a", Status::Cached)).unwrap().begun);
        assert!(tally.take(&Event::StageWaits { stage: "b", owner: "o" }).unwrap().begun);
        assert_eq!(tally.take(&Event::Note { stage: "b", text: "x" }), None);
    }
}
