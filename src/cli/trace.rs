//! The timeline of a run as a Chrome trace, for Perfetto or chrome://tracing. Knows events and the clock, no stage.
//!
//! One row a stage; on it the stage as a whole, and its phases below. The format is the *Trace Event Format*: complete events
//! (`"ph": "X"`) with `ts` and `dur` in microseconds.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use serde_json::{Value, json};

use super::error::CliError;
use crate::engine::{
    event::{Event, Reporter},
    state::Status,
};

/// Shows events to another reporter and remembers when they came.
pub(super) struct Trace<'a> {
    shown: &'a dyn Reporter,
    started: Instant,
    timeline: Mutex<Timeline>,
}

impl<'a> Trace<'a> {
    /// A timeline that starts now.
    pub(super) fn new(shown: &'a dyn Reporter) -> Self {
        Self { shown, started: Instant::now(), timeline: Mutex::default() }
    }

    /// Writes the timeline so far.
    pub(super) fn save(&self, path: &Path) -> Result<(), CliError> {
        let timeline = self.timeline.lock().unwrap_or_else(PoisonError::into_inner);
        std::fs::write(path, timeline.json().to_string() + "\n")
            .map_err(|error| CliError::failed(format!("cannot write the trace {}: {error}", path.display())))
    }
}

impl Reporter for Trace<'_> {
    fn event(&self, event: &Event<'_>) {
        // Advances come by the thousand and say nothing about the timeline.
        if !matches!(event, Event::Advance { .. } | Event::Note { .. }) {
            let at = self.started.elapsed().as_micros() as u64;
            self.timeline.lock().unwrap_or_else(PoisonError::into_inner).take(at, event);
        }
        self.shown.event(event);
    }
}

#[derive(Default)]
struct Timeline {
    done: Vec<Value>,
    running: BTreeMap<String, Row>,
    rows: u64,
}

/// A stage that runs.
struct Row {
    id: u64,
    since: u64,
    args: Value,
    phase: Option<(String, u64)>,
}

impl Timeline {
    fn take(&mut self, at: u64, event: &Event<'_>) {
        match *event {
            Event::StageStarted { stage, kind, key, why } => {
                self.rows += 1;
                let args = json!({ "kind": kind, "key": key.to_string(), "why": why });
                self.running.insert(stage.to_owned(), Row { id: self.rows, since: at, args, phase: None });
                let name = json!({ "name": stage });
                self.done.push(
                    json!({ "name": "thread_name", "ph": "M", "pid": 1, "tid": self.rows, "args": name }),
                );
            }
            Event::Phase { stage, what, .. } => {
                if let Some(row) = self.running.get_mut(stage) {
                    let before = row.phase.replace((what.to_owned(), at));
                    self.done.extend(before.map(|phase| complete(row.id, phase, at, &json!({}))));
                }
            }
            Event::StageRewound { reader: stage, .. } | Event::StageFinished { stage, .. } => {
                // A hit has no length; it did not start either.
                if let Some(mut row) = self.running.remove(stage) {
                    self.done.extend(row.phase.take().map(|phase| complete(row.id, phase, at, &json!({}))));
                    if let Event::StageFinished { status, .. } = event {
                        row.args["status"] = Status::as_str(*status).into();
                    }
                    self.done.push(complete(row.id, (stage.to_owned(), row.since), at, &row.args));
                }
            }
            _ => {}
        }
    }

    fn json(&self) -> Value {
        json!({ "displayTimeUnit": "ms", "traceEvents": self.done })
    }
}

fn complete(row: u64, (name, since): (String, u64), until: u64, args: &Value) -> Value {
    json!({ "name": name, "ph": "X", "pid": 1, "tid": row, "ts": since, "dur": until - since, "args": args })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Digest;

    fn finished(stage: &str, status: Status) -> Event<'_> {
        Event::StageFinished { stage, status, seconds: 0.0, why: "" }
    }

    fn started(stage: &str) -> Event<'_> {
        Event::StageStarted { stage, kind: "exec", key: Digest::of(b"k"), why: "never run" }
    }

    /// `name row from length` of every bar.
    fn bars(timeline: &Timeline) -> Vec<String> {
        let json = timeline.json();
        let events = json["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "X");
        events
            .map(|e| format!("{} {} {} {}", e["name"].as_str().unwrap(), e["tid"], e["ts"], e["dur"]))
            .collect()
    }

    #[test]
    fn stages_overlap_on_rows_of_their_own_with_their_phases() {
        let phase = |stage, what| Event::Phase { stage, what, total: None, unit: "docs" };
        let mut timeline = Timeline::default();
        for (at, event) in [
            (5, finished("hit", Status::Cached)),
            (10, started("a")),
            (12, started("b")),
            (15, phase("a", "read")),
            (40, phase("a", "write")),
            (45, finished("b", Status::Failed)),
            (70, finished("a", Status::Ran)),
        ] {
            timeline.take(at, &event);
        }
        assert_eq!(bars(&timeline), ["read 1 15 25", "b 2 12 33", "write 1 40 30", "a 1 10 60"]);
        let json = timeline.json();
        assert_eq!(json["traceEvents"][0]["args"]["name"], "a", "rows are named");
        let b = json["traceEvents"].as_array().unwrap().iter().find(|e| e["name"] == "b").unwrap();
        assert_eq!(
            (b["args"]["status"].as_str(), b["args"]["why"].as_str()),
            (Some("failed"), Some("never run"))
        );
    }

    #[test]
    fn what_still_runs_is_no_bar_yet() {
        let mut timeline = Timeline::default();
        timeline.take(1, &started("a"));
        assert!(bars(&timeline).is_empty());
        timeline.take(2, &Event::Phase { stage: "unknown", what: "x", total: None, unit: "" });
        assert!(bars(&timeline).is_empty());
    }
}
