//! Several runs on one cache at once, and blobs that are lost while a run goes on.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread::sleep,
    time::Duration,
};

use super::*;
use crate::engine::event::{Event, Reporter};

/// Keeps the sharing events as lines.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Reporter for Heard {
    fn event(&self, event: &Event<'_>) {
        let line = match event {
            Event::StageWaits { stage, owner } => format!("{stage} waits on {owner}"),
            Event::StageRewound { stage, reader } => format!("{stage} again for {reader}"),
            _ => return,
        };
        self.0.lock().unwrap().push(line);
    }
}

fn run(space: &Space, nodes: Vec<Node>, options: &Options, heard: &Heard) -> RunSummary {
    let (store, graph) = (space.store(), Graph::new(nodes).unwrap());
    Engine { store: &store, graph: &graph, options }.run(heard, &Stop::default()).unwrap()
}

#[test]
fn runs_that_share_a_cache_do_everything_once() {
    let space = Space::new();
    let slow = |name: &str| {
        space.fake(name).first(|_| {
            sleep(Duration::from_millis(30));
            Ok(())
        })
    };
    let nodes =
        || vec![slow("a").node(), slow("b").reading(&[0]), slow("c").reading(&[1]), slow("d").reading(&[1])];
    let heard = Heard::default();
    let summaries: Vec<RunSummary> = std::thread::scope(|scope| {
        let one = || run(&space, nodes(), &Options::default(), &heard);
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(space.log.take(), ["a", "b", "c", "d"], "each ran once");
    for summary in &summaries {
        assert_eq!(summary.status, RunStatus::Ok, "{}", line(summary));
        assert_eq!(text(summary, "d"), text(&summaries[0], "d"));
    }
    let told = heard.0.lock().unwrap();
    // One that has just claimed it has not always written its name yet.
    let waits = |line: &&String| line.starts_with("a waits on ");
    assert_eq!(told.iter().filter(waits).count(), 5, "each is told once: {told:?}");
}

#[test]
fn a_run_that_waits_for_another_goes_on_by_itself_when_that_one_fails() {
    let space = Space::new();
    let store = space.store();
    let graph = Graph::new(space.chain(1)).unwrap();
    let planned = space.plan(space.chain(1), &Options::default());
    let claim = store.claim(&stage(&planned, "a").key.unwrap()).unwrap();
    let options = Options::default();
    let summary = std::thread::scope(|scope| {
        let engine = scope.spawn(|| run(&space, space.chain(1), &options, &Heard::default()));
        sleep(Duration::from_millis(100));
        assert!(space.log.take().is_empty(), "somebody else runs it");
        drop(claim);
        engine.join().unwrap()
    });
    assert_eq!((line(&summary), graph.len()), ("a:ran b:ran c:ran".to_owned(), 3));
}

#[test]
fn a_stop_ends_a_run_that_only_waits() {
    let space = Space::new();
    let planned = space.plan(space.chain(1), &Options::default());
    let _claim = space.store().claim(&stage(&planned, "a").key.unwrap()).unwrap();
    let stop = Stop::default();
    let summary = std::thread::scope(|scope| {
        let run = scope.spawn(|| space.try_run(space.chain(1), &Options::default(), &stop).unwrap());
        sleep(Duration::from_millis(50));
        stop.raise();
        run.join().unwrap()
    });
    assert_eq!(line(&summary), "a:skipped b:skipped c:skipped");
}

/// Removes or spoils the blob of `a` once, when `b` has started or just before it starts.
fn losing(space: &Space, spoil: impl Fn(&std::path::Path) + Send + Sync + 'static, fails: bool) -> Vec<Node> {
    let (root, count) = (space.dir.path().join("cache"), AtomicU32::new(0));
    let lose = move |cx: &Cx<'_>| {
        if count.fetch_add(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        let path = cx.inputs["in0"]["data"].canonicalize().unwrap();
        assert!(path.starts_with(root.canonicalize().unwrap()));
        spoil(&path);
        if fails { Err(Failure::stage("cannot read its input")) } else { Ok(()) }
    };
    vec![space.fake("a").node(), space.fake("b").first(lose).reading(&[0]), space.fake("c").reading(&[0])]
}

fn truncate(path: &std::path::Path) {
    fs::remove_file(path).unwrap();
    fs::write(path, "").unwrap();
}

#[test]
fn what_was_lost_while_a_stage_ran_is_made_again_in_the_same_run() {
    for spoil in [truncate, |path: &std::path::Path| fs::remove_file(path).unwrap()] {
        let space = Space::new();
        let heard = Heard::default();
        let options = Options { jobs: 1, ..Options::default() };
        let summary = run(&space, losing(&space, spoil, true), &options, &heard);
        assert_eq!(line(&summary), "a:ran b:ran c:ran");
        assert!(stage(&summary, "a").why.contains("cache"), "{}", stage(&summary, "a").why);
        assert_eq!(heard.0.into_inner().unwrap()[0], "a again for b");
        assert_eq!(space.log.take(), ["a", "a", "b", "b", "c"]);
        assert_eq!(line(&space.run(losing(&space, spoil, false))), "a:cached b:cached c:cached");
    }
}

#[test]
fn what_was_lost_before_a_stage_starts_is_made_again_too() {
    let space = Space::new();
    let options = Options { jobs: 1, ..Options::default() };
    // `b` loses the input of `c`, which has been found but has not started, and reads its own from memory.
    let nodes = || {
        let spoil = |cx: &Cx<'_>| {
            let path = cx.inputs["in0"]["data"].canonicalize().unwrap();
            fs::remove_file(&path).unwrap();
            Ok(())
        };
        vec![
            space.fake("a").node(),
            space.fake("b").constant().first(spoil).reading(&[0]),
            space.fake("c").reading(&[0]),
        ]
    };
    let summary = run(&space, nodes(), &options, &Heard::default());
    assert_eq!(line(&summary), "a:ran b:ran c:ran");
    assert_eq!(space.log.take(), ["a", "a", "b", "c"]);
}

#[test]
fn a_cache_that_loses_everything_fails_in_the_end() {
    let space = Space::new();
    let always = |cx: &Cx<'_>| {
        fs::remove_file(cx.inputs["in0"]["data"].canonicalize().unwrap()).unwrap();
        Err(Failure::stage("cannot read its input"))
    };
    let summary = space.run(vec![space.fake("a").node(), space.fake("b").first(always).reading(&[0])]);
    assert_eq!(line(&summary), "a:ran b:failed");
    assert_eq!(space.log.take(), ["a", "a", "a", "b", "b", "b"]);
}
