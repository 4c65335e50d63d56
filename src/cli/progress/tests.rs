//! Tests of what a person is told, and where it goes.

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
    let terminal = Terminal::on(view, Palette(false), 6);
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
    fn counts(&self, counts: Counts) {
        self.keep(format!("{} of {} done, {} running", counts.done, counts.total, counts.running));
    }
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
    let terminal = Terminal::on(Box::new(kept.clone()), Palette(false), 6);
    let key = crate::store::Digest::of(b"key");
    for event in [
        Event::RunStarted { run: "r", pipeline: "p", stages: &["svd"] },
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
        "0 of 1 done, 0 running",
        "0 of 1 done, 1 running",
        "started svd forced",
        "phase svd layers Some(3) layers",
        "advance svd 2",
        "note svd rank 8",
        "1 of 1 done, 0 running",
        "finished svd",
        "  ✓ svd       10 ms  forced",
        "2 of 1 done, 0 running",
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
    let terminal = Terminal::on(Box::new(kept.clone()), Palette(true), 6);
    terminal.finished("svd", Status::Failed, 1.0, "no luck\nline 2");
    let expected = "  \x1b[31;1m✗\x1b[0m \x1b[1msvd   \x1b[0m    1.0 s  no luck\n        line 2";
    assert_eq!(*kept.0.lock().unwrap(), [expected]);
}
