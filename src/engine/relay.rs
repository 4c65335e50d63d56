//! The progress of a stage that another host runs: written into the cache there, read and told here. Knows no cluster.
//!
//! ```text
//! job/<key>.progress     what its worker told last
//! ```

use std::{
    mem,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::event::{Event, Reporter};
use crate::store::{Digest, Store};

/// A worker writes counts no more often.
const PAUSE: Duration = Duration::from_secs(2);
/// Phases and lines are written at once, unless there were so many that a second brings only so many more.
const BURST: f64 = 200.0;
const REFILL: f64 = 10.0;
/// The last lines that a stage said are kept, and no more.
const LINES: usize = 100;

/// What a running stage has told so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Told {
    /// How many phases have begun.
    phases: u64,
    what: String,
    total: Option<u64>,
    unit: String,
    /// Units of the phase that are done.
    done: u64,
    note: String,
    /// How many lines were said, and the last of them.
    said: u64,
    lines: Vec<String>,
}

impl Told {
    fn take(&mut self, event: &Event<'_>) {
        match *event {
            Event::Phase { what, total, unit, .. } => {
                (self.what, self.total, self.unit) = (what.to_owned(), total, unit.to_owned());
                (self.phases, self.done) = (self.phases + 1, 0);
                self.note.clear();
            }
            Event::Advance { n, .. } => self.done += n,
            Event::Note { text, .. } => text.clone_into(&mut self.note),
            Event::Say { text, .. } => {
                self.lines.push(text.to_owned());
                self.said += 1;
                let old = self.lines.len().saturating_sub(LINES);
                drop(self.lines.drain(..old));
            }
            _ => {}
        }
    }

    /// Tells what is new since `before`.
    pub(crate) fn since(&self, before: &Self, stage: &str, tell: &mut dyn FnMut(&Event<'_>)) {
        // A job that came again begins anew.
        let again = self.phases < before.phases || self.said < before.said;
        let before = if again { &Self::default() } else { before };
        if self.phases > before.phases {
            tell(&Event::Phase { stage, what: &self.what, total: self.total, unit: &self.unit });
        }
        let done = if self.phases > before.phases { 0 } else { before.done };
        if self.done > done {
            tell(&Event::Advance { stage, n: self.done - done });
        }
        if self.note != before.note {
            tell(&Event::Note { stage, text: &self.note });
        }
        let new = (self.said - before.said).min(self.lines.len() as u64) as usize;
        for text in &self.lines[self.lines.len() - new..] {
            tell(&Event::Say { stage, text });
        }
    }
}

/// Passes events on, and keeps what was told where the run that waits can read it.
pub(crate) struct Relay<'a> {
    store: &'a Store,
    key: Digest,
    reporter: &'a dyn Reporter,
    state: Mutex<State>,
}

struct State {
    told: Told,
    written: Option<Instant>,
    /// How many phases and lines may still be written at once, as of when.
    budget: f64,
    counted: Option<Instant>,
}

impl State {
    /// Whether what was told is to be written now.
    fn is_due(&mut self, event: &Event<'_>, now: Instant) -> bool {
        let passed = self.counted.replace(now).map_or(0.0, |last| (now - last).as_secs_f64());
        self.budget = BURST.min(self.budget + passed * REFILL);
        let since = self.written.map(|last| now - last);
        let lasting = matches!(event, Event::Phase { .. } | Event::Say { .. }) && self.budget >= 1.0;
        if lasting {
            self.budget -= 1.0;
        }
        let due = lasting || since.is_none_or(|since| since >= PAUSE);
        if due {
            self.written = Some(now);
        }
        due
    }
}

impl<'a> Relay<'a> {
    pub(crate) fn new(store: &'a Store, key: Digest, reporter: &'a dyn Reporter) -> Self {
        let state = State { told: Told::default(), written: None, budget: BURST, counted: None };
        Self { store, key, reporter, state: Mutex::new(state) }
    }
}

impl Reporter for Relay<'_> {
    fn event(&self, event: &Event<'_>) {
        self.reporter.event(event);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.told.take(event);
        if state.is_due(event, Instant::now()) {
            // It is for people: a full disk shows itself where it matters.
            let bytes = serde_json::to_vec(&state.told).unwrap_or_default();
            drop(self.store.write_job(&self.key, "progress", &bytes));
        }
    }
}

/// What was told here of a stage that runs elsewhere.
#[derive(Debug, Default)]
pub(crate) struct Heard(Told);

impl Heard {
    /// Reads what its worker told, and tells what is new.
    pub(crate) fn listen(
        &mut self,
        store: &Store,
        key: &Digest,
        stage: &str,
        tell: &mut dyn FnMut(&Event<'_>),
    ) {
        let bytes = store.read_job(key, "progress").ok().flatten();
        let Some(now) = bytes.and_then(|bytes| serde_json::from_slice::<Told>(&bytes).ok()) else { return };
        now.since(&mem::replace(&mut self.0, now.clone()), stage, tell);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::event::Silent;

    fn phase(what: &str) -> Event<'_> {
        Event::Phase { stage: "s", what, total: Some(9), unit: "docs" }
    }

    fn say(text: &str) -> Event<'_> {
        Event::Say { stage: "s", text }
    }

    fn told(events: &[Event<'_>]) -> Told {
        let mut told = Told::default();
        for event in events {
            told.take(event);
        }
        told
    }

    fn news(now: &Told, before: &Told) -> Vec<String> {
        let mut news = Vec::new();
        now.since(before, "s", &mut |event| {
            news.push(match event {
                Event::Phase { what, total, unit, .. } => format!("{what} {total:?} {unit}"),
                Event::Advance { n, .. } => format!("+{n}"),
                Event::Note { text, .. } => format!("note {text}"),
                Event::Say { text, .. } => format!("say {text}"),
                other => panic!("{other:?}"),
            });
        });
        news
    }

    #[test]
    fn only_what_is_new_is_told() {
        let first = [phase("reading"), Event::Advance { stage: "s", n: 3 }, say("a")];
        let then = [
            &first[..],
            &[Event::Advance { stage: "s", n: 2 }, Event::Note { stage: "s", text: "x" }, say("b")],
        ]
        .concat();
        let (one, two) = (told(&first), told(&then));
        assert_eq!(news(&one, &Told::default()), ["reading Some(9) docs", "+3", "say a"]);
        assert_eq!(news(&two, &one), ["+2", "note x", "say b"]);
        assert_eq!(news(&two, &two), [""; 0]);
        let three = told(&[&then[..], &[phase("writing"), Event::Advance { stage: "s", n: 1 }]].concat());
        assert_eq!(news(&three, &two), ["writing Some(9) docs", "+1", "note "]);
        assert_eq!(news(&one, &three), ["reading Some(9) docs", "+3", "say a"], "a job that came again");
    }

    #[test]
    fn of_many_lines_the_last_are_kept() {
        let mut now = Told::default();
        let before = now.clone();
        for i in 0..250 {
            now.take(&say(&i.to_string()));
        }
        let lines = news(&now, &before);
        assert_eq!((lines.len(), lines[0].as_str(), lines[99].as_str()), (100, "say 150", "say 249"));
    }

    #[test]
    fn a_flood_of_lines_is_written_now_and_then() {
        let start = Instant::now();
        let mut state = State { told: Told::default(), written: None, budget: BURST, counted: None };
        let mut due = 0;
        for i in 0..1000 {
            due += usize::from(state.is_due(&say("x"), start + Duration::from_millis(i)));
        }
        assert!((200..=210).contains(&due), "{due}");
        let late = start + Duration::from_secs(5);
        let advance = Event::Advance { stage: "s", n: 1 };
        assert!(state.is_due(&advance, late) && !state.is_due(&advance, late + Duration::from_secs(1)));
    }

    #[test]
    fn what_a_worker_tells_is_heard_here() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let key = Digest::of(b"k");
        let mut heard = Heard::default();
        let mut count = 0;
        heard.listen(&store, &key, "s", &mut |_| count += 1);
        assert_eq!(count, 0, "it has told nothing");
        let relay = Relay::new(&store, key, &Silent);
        relay.event(&phase("reading"));
        relay.event(&Event::Advance { stage: "s", n: 3 });
        heard.listen(&store, &key, "s", &mut |_| count += 1);
        assert_eq!(count, 1, "the second came too soon to be written");
        relay.state.lock().unwrap().written = None;
        relay.event(&Event::Advance { stage: "s", n: 3 });
        let mut advanced = 0;
        heard.listen(&store, &key, "s", &mut |event| {
            if let Event::Advance { n, .. } = event {
                advanced += n;
            }
        });
        assert_eq!(advanced, 6);
        store.write_job(&key, "progress", b"{").unwrap();
        heard.listen(&store, &key, "s", &mut |_| count += 1);
        assert_eq!(count, 1, "a file that cannot be read tells nothing");
    }
}
