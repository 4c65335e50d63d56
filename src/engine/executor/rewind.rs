//! Rewinding: what a stage reads was lost after it was found, so the producer runs again, and then the stage.

use super::Session;
use crate::engine::{event::Event, graph::NodeId, state::State, worker::Attempt};

/// How often one node is sent back in a run; a disk that loses everything must not keep it going for ever.
const LIMIT: u32 = 2;

impl Session<'_> {
    /// Sends a node back whose inputs were lost. Returns the producers that must be looked up again, or `None` when the attempt
    /// ended for reasons of its own.
    pub(super) fn rewind(&mut self, attempt: &Attempt) -> Option<Vec<NodeId>> {
        let count = self.rewinds.entry(attempt.id).or_default();
        if attempt.result.is_ok() || attempt.lost.is_empty() || *count == LIMIT || self.halted.is_some() {
            return None;
        }
        *count += 1;
        let mut again = Vec::new();
        for &producer in &attempt.lost {
            // Another reader may have sent it back already.
            if matches!(self.states.get(producer), State::Done(status) if status.is_ok()) {
                self.states.set(producer, State::Ready);
                (self.records[producer.0], self.stages[producer.0]) = (None, None);
                again.push(producer);
            }
            let (stage, reader) = (self.engine.name(producer), self.engine.name(attempt.id));
            self.journal.tell(&Event::StageRewound { stage, reader });
        }
        self.states.set(attempt.id, State::Waiting);
        if self.states.has_all(attempt.id) {
            again.push(attempt.id); // all of them are made again by now
        }
        Some(again)
    }
}
