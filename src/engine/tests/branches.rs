//! Runs that do not go well in every branch, runs on files that change, and what is kept of them.

use std::{
    sync::{Arc, Barrier, Mutex, mpsc},
    time::Duration,
};

use super::*;
use crate::engine::event::{Event, Reporter};

fn keep_going() -> Options {
    Options { keep_going: true, ..Options::default() }
}

#[test]
fn in_a_diamond_one_side_goes_on_and_the_end_is_blocked() {
    let space = Space::new();
    let nodes = |left: Fake| {
        vec![
            space.fake("top").node(),
            left.reading(&[0]),
            space.fake("right").reading(&[0]),
            space.fake("end").reading(&[1, 2]),
        ]
    };
    let failed = space.run_with(nodes(space.fake("left").fails("no")), &keep_going());
    assert_eq!(line(&failed), "top:ran left:failed right:ran end:blocked");
    assert_eq!(stage(&failed, "end").why, "needs `left`, which failed");
    assert!(stage(&failed, "left").key.is_some() && stage(&failed, "left").outputs.is_empty());
    let panicked = space.run_with(nodes(space.fake("left").first(|_| panic!("no"))), &keep_going());
    assert_eq!(line(&panicked), "top:cached left:failed right:cached end:blocked");
    let well = space.run_with(nodes(space.fake("left")), &keep_going());
    assert_eq!(line(&well), "top:cached left:ran right:cached end:ran");
    assert_eq!(stage(&well, "left").why, "never run", "a failure leaves nothing behind");
}

#[test]
fn a_failure_lets_what_runs_come_to_its_end() {
    let space = Space::new();
    let both = Arc::new(Barrier::new(2));
    let meet = both.clone();
    let bad = space.fake("bad").first(move |_| {
        meet.wait();
        Err(Failure::stage("no"))
    });
    let slow = space.fake("slow").first(move |cx| {
        both.wait();
        std::thread::sleep(Duration::from_millis(30));
        cx.check_stop() // a failure elsewhere is no stop
    });
    let nodes = vec![bad.node(), slow.node(), space.fake("after").reading(&[1])];
    let summary = space.run_with(nodes, &Options { jobs: 2, ..Options::default() });
    assert_eq!(line(&summary), "bad:failed slow:ran after:skipped");
    assert_eq!(stage(&summary, "after").why, "`bad` failed before its turn");
    assert!(!summary.interrupted);
}

#[test]
fn a_stage_that_needs_two_failures_names_the_one_that_came_first() {
    let space = Space::new();
    let nodes = vec![
        space.fake("a").fails("no").node(),
        space.fake("b").fails("no").node(),
        space.fake("c").reading(&[1, 0]),
    ];
    let summary = space.run_with(nodes, &Options { jobs: 1, ..keep_going() });
    assert_eq!(line(&summary), "a:failed b:failed c:blocked");
    assert_eq!(stage(&summary, "c").why, "needs `a`, which failed");
}

#[test]
fn a_stop_before_the_start_starts_nothing() {
    let space = Space::new();
    let stop = Stop::default();
    stop.raise();
    let summary = space.try_run(space.chain(1), &Options::default(), &stop).unwrap();
    assert_eq!(line(&summary), "a:skipped b:skipped c:skipped");
    assert!(summary.interrupted && summary.status == RunStatus::Failed);
    assert_eq!(space.log.take(), [""; 0]);
}

#[test]
fn the_device_and_the_processor_work_at_the_same_time() {
    let space = Space::new();
    let (to_device, at_device) = mpsc::channel::<()>();
    let (to_cpu, at_cpu) = mpsc::channel::<()>();
    // Each waits for a word of the other: one after the other they would wait in vain.
    let talk = |say: mpsc::Sender<()>, hear: mpsc::Receiver<()>| {
        let (say, hear) = (Mutex::new(say), Mutex::new(hear));
        move |_: &Cx<'_>| {
            say.lock().unwrap().send(()).map_err(Failure::stage)?;
            hear.lock().unwrap().recv_timeout(Duration::from_secs(30)).map_err(Failure::stage)
        }
    };
    let cpu = space.fake("cpu").first(talk(to_device, at_cpu));
    let device = space.fake("device").pool(Pool::Device).first(talk(to_cpu, at_device));
    let summary = space.run_with(vec![cpu.node(), device.node()], &Options { jobs: 1, ..Options::default() });
    assert_eq!(line(&summary), "cpu:ran device:ran");
}

#[test]
fn no_worker_is_one_worker() {
    let space = Space::new();
    assert_eq!(
        line(&space.run_with(space.chain(1), &Options { jobs: 0, ..Options::default() })),
        "a:ran b:ran c:ran"
    );
}

#[test]
fn twins_end_with_one_result() {
    let space = Space::new();
    let nodes = || {
        let twin = |name: &str| {
            let mut node = space.fake("same").node();
            node.name = name.to_owned();
            node
        };
        vec![twin("one"), twin("two"), space.fake("both").reading(&[0, 1])]
    };
    let summary = space.run(nodes());
    assert_eq!(summary.status, RunStatus::Ok);
    assert_eq!(
        (stage(&summary, "one").key, &stage(&summary, "one").outputs),
        (stage(&summary, "two").key, &stage(&summary, "two").outputs)
    );
    assert_eq!(line(&space.run(nodes())), "one:cached two:cached both:cached");
    assert_eq!(space.store().ls().unwrap().len(), 2);
}

#[test]
fn other_bytes_under_the_same_key_reach_those_who_read_them() {
    let space = Space::new();
    let nodes = |text: &'static str| {
        // Against the rules: writes what is not in its key.
        let act = move |cx: &Cx<'_>| fs::write(cx.output("out").join("more"), text).map_err(Failure::stage);
        vec![space.fake("a").first(act).node(), space.fake("b").reading(&[0])]
    };
    space.run(nodes("one"));
    assert_eq!(line(&space.run(nodes("two"))), "a:cached b:cached", "nobody asked");
    let forced = space.run_with(
        nodes("two"),
        &Options { force: Force::Stages(["a".to_owned()].into()), ..Options::default() },
    );
    assert_eq!(line(&forced), "a:ran b:ran");
    assert_eq!(stage(&forced, "b").why, "input `in0` has other content");
    assert!(text_of(&forced, "b").contains("in0/more: two"));
    assert_eq!(
        line(&space.run(nodes("three"))),
        "a:cached b:cached",
        "the new result is the one that counts"
    );
}

fn text_of(summary: &RunSummary, name: &str) -> String {
    fs::read_to_string(&stage(summary, name).outputs["out"].path).unwrap()
}

#[test]
fn a_file_that_changes_while_a_stage_reads_it() {
    type Change = fn(&std::path::Path);
    let changes: [(&str, Change, &str); 4] = [
        ("other bytes", |path| fs::write(path, "later!").unwrap(), "a:failed"),
        ("other bytes of the same size", |path| fs::write(path, "AFTER_").unwrap(), "a:failed"),
        ("written again with the same bytes", |path| fs::write(path, "before").unwrap(), "a:ran"),
        (
            "replaced by an equal file",
            |path| {
                fs::copy(path, path.with_extension("new")).unwrap();
                fs::rename(path.with_extension("new"), path).unwrap();
            },
            "a:ran",
        ),
    ];
    for (what, change, expected) in changes {
        let space = Space::new();
        let path = space.file("doc", "before");
        let mut node = space.fake("a").node();
        node.reads.push(("doc".to_owned(), path.clone()));
        // After it has read the file and before the run looks at it again.
        let act = move |cx: &Cx<'_>| {
            assert_eq!(fs::read_to_string(&cx.reads["doc"]).unwrap(), "before");
            std::thread::sleep(Duration::from_millis(25));
            change(&path);
            Ok(())
        };
        node.action = space.fake("a").first(act).node().action;
        assert_eq!(line(&space.run(vec![node])), expected, "{what}");
    }
}

/// Removes a file as soon as a stage starts.
struct Remove(PathBuf);

impl Reporter for Remove {
    fn event(&self, event: &Event<'_>) {
        if matches!(event, Event::StageStarted { .. }) {
            fs::remove_file(&self.0).unwrap();
        }
    }
}

#[test]
fn a_file_that_goes_away_while_a_stage_reads_it_fails_the_stage() {
    let space = Space::new();
    let path = space.file("doc", "before");
    let mut node = space.fake("a").node();
    node.reads.push(("doc".to_owned(), path.clone()));
    let store = space.store();
    let graph = Graph::new(vec![node]).unwrap();
    let options = Options::default();
    let engine = Engine { store: &store, graph: &graph, options: &options };
    let summary = engine.run(&Remove(path), &Stop::default()).unwrap();
    assert_eq!(line(&summary), "a:failed");
    assert!(store.ls().unwrap().is_empty());
}

#[test]
fn a_forced_stage_starts_afresh_and_not_from_a_checkpoint() {
    let space = Space::new();
    let nodes = |fails: bool| {
        let act = move |cx: &Cx<'_>| {
            let found = cx.checkpoints.latest().map_err(Failure::stage)?.is_some();
            fs::write(cx.output("out").join("resumed"), found.to_string()).map_err(Failure::stage)?;
            let dir = cx.scratch.join("ckpt");
            fs::create_dir(&dir).and_then(|()| fs::write(dir.join("x"), "1")).map_err(Failure::stage)?;
            cx.checkpoints.publish(&dir).map_err(Failure::stage)?;
            if fails { Err(Failure::stage("no")) } else { Ok(()) }
        };
        vec![space.fake("a").first(act).node()]
    };
    let resumed = |summary: &RunSummary| {
        fs::read_to_string(stage(summary, "a").outputs["out"].path.join("resumed")).unwrap()
    };
    assert_eq!(line(&space.run(nodes(true))), "a:failed");
    let forced = Options { force: Force::All, ..Options::default() };
    assert_eq!(resumed(&space.run_with(nodes(false), &forced)), "false");
    let other = Space::new();
    assert_eq!(line(&other.run(nodes(true))), "a:failed");
    assert_eq!(resumed(&other.run(nodes(false))), "true", "a failure keeps the checkpoint");
}

#[test]
fn a_stage_that_is_stopped_early_keeps_the_checkpoint_of_before() {
    let space = Space::new();
    let nodes = |publishes: bool| {
        let act = move |cx: &Cx<'_>| {
            let dir = cx.scratch.join("ckpt");
            if publishes {
                fs::create_dir(&dir).and_then(|()| fs::write(dir.join("x"), "1")).map_err(Failure::stage)?;
                cx.checkpoints.publish(&dir).map_err(Failure::stage)?;
            }
            Err(Failure::Stopped)
        };
        vec![space.fake("a").first(act).node()]
    };
    let none = space.run(nodes(false));
    assert_eq!((stage(&none, "a").why.as_str(), none.checkpointed), ("stopped before the end", false));
    let goes_on = "stopped before the end; the next run goes on from its checkpoint";
    for publishes in [true, false] {
        let stopped = space.run(nodes(publishes));
        assert_eq!((stage(&stopped, "a").why.as_str(), stopped.checkpointed), (goes_on, true));
    }
}

#[test]
fn the_time_of_a_stage_is_told_and_kept_and_a_hit_takes_none() {
    let space = Space::new();
    let nodes = |fails: bool| {
        let act = move |_: &Cx<'_>| {
            std::thread::sleep(Duration::from_millis(20));
            if fails { Err(Failure::stage("no")) } else { Ok(()) }
        };
        vec![space.fake("a").first(act).node()]
    };
    assert!(stage(&space.run(nodes(true)), "a").seconds >= 0.02);
    let ran = space.run(nodes(false));
    let a = stage(&ran, "a");
    assert!(a.seconds >= 0.02 && a.record.as_ref().unwrap().seconds >= 0.02 && ran.seconds >= a.seconds);
    let hit = space.run(nodes(false));
    assert!(stage(&hit, "a").seconds == 0.0 && stage(&hit, "a").record == a.record);
}

/// Keeps events as words: `started a`, `finished a ran`.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Reporter for Heard {
    fn event(&self, event: &Event<'_>) {
        let words = match event {
            Event::RunStarted { stages, .. } => format!("run {}", stages.join(",")),
            Event::StageStarted { stage, why, .. } => format!("started {stage}: {why}"),
            Event::StageFinished { stage, status, .. } => format!("finished {stage} {}", status.as_str()),
            Event::RunFinished { ok, .. } => format!("end {ok}"),
            Event::StageWaits { stage, .. } => format!("waits {stage}"),
            Event::StageRewound { stage, .. } => format!("rewound {stage}"),
            Event::StageRetries { stage, attempt, .. } => format!("retries {stage} {attempt}"),
            Event::Phase { stage, what, .. } => format!("phase {stage} {what}"),
            Event::Advance { stage, n } => format!("advance {stage} {n}"),
            Event::Note { stage, text } => format!("note {stage} {text}"),
            Event::Say { stage, text } => format!("say {stage} {text}"),
        };
        self.0.lock().unwrap().push(words);
    }
}

#[test]
fn every_step_is_told_once_and_in_order() {
    let space = Space::new();
    space.run(vec![space.fake("a").node()]);
    let act = |cx: &Cx<'_>| {
        cx.progress.phase("half", Some(2), "docs");
        cx.progress.advance(1);
        cx.progress.note("n");
        cx.progress.say("s");
        Ok(())
    };
    let nodes = vec![
        space.fake("c").fails("no").reading(&[1]),
        space.fake("b").first(act).reading(&[2]),
        space.fake("a").node(),
        space.fake("d").reading(&[0]),
    ];
    let (store, graph, options) =
        (space.store(), Graph::new(nodes).unwrap(), Options { jobs: 1, ..Options::default() });
    let heard = Heard::default();
    Engine { store: &store, graph: &graph, options: &options }.run(&heard, &Stop::default()).unwrap();
    let expected = [
        "run a,b,c,d",
        "finished a cached",
        "started b: never run",
        "phase b half",
        "advance b 1",
        "note b n",
        "say b s",
        "finished b ran",
        "started c: never run",
        "finished c failed",
        "finished d blocked",
        "end false",
    ];
    assert_eq!(*heard.0.lock().unwrap(), expected);
}
