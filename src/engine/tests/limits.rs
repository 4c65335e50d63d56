//! Attempts: what is tried again, what ends for lack of time, and what of it reaches keys (nothing).

use std::{
    sync::atomic::{AtomicU32, Ordering},
    thread::sleep,
    time::{Duration, Instant},
};

use super::*;
use crate::engine::{
    action::Class,
    limits::{Limits, Retry},
};

fn retry(times: u32, on: &[Class]) -> Limits {
    let retry = Retry { times, backoff: Duration::from_millis(1), on: on.iter().copied().collect() };
    Limits { retry, ..Limits::default() }
}

/// A stage that fails so many times and then succeeds.
fn failing(space: &Space, times: u32, class: Class, limits: Limits) -> Vec<Node> {
    let count = AtomicU32::new(0);
    let fail = move |_: &Cx<'_>| {
        if count.fetch_add(1, Ordering::SeqCst) < times {
            return Err(Failure::Passing(class, "not yet".into()));
        }
        Ok(())
    };
    let mut node = space.fake("a").first(fail).node();
    node.limits = limits;
    vec![node]
}

#[test]
fn what_succeeds_at_its_third_attempt_is_a_hit_in_the_next_run() {
    let space = Space::new();
    let summary = space.run(failing(&space, 2, Class::Killed, retry(2, &[Class::Killed])));
    let a = stage(&summary, "a");
    assert_eq!((line(&summary).as_str(), a.attempts), ("a:ran", 3));
    assert!(a.record.as_ref().unwrap().peak_memory.is_some_and(|bytes| bytes > 1 << 20), "{a:?}");
    let plain = failing(&space, 9, Class::Killed, Limits::default());
    assert_eq!(line(&space.run(plain)), "a:cached", "neither attempts nor limits are in the key");
}

#[test]
fn attempts_end_with_their_number_and_other_classes_are_not_tried_again() {
    for (limits, attempts) in
        [(retry(2, &[Class::Killed]), 3), (retry(2, &[Class::Io]), 1), (Limits::default(), 1)]
    {
        let space = Space::new();
        let summary = space.run(failing(&space, 9, Class::Killed, limits));
        assert_eq!((line(&summary).as_str(), stage(&summary, "a").attempts), ("a:failed", attempts));
        assert_eq!(space.log.take().len(), attempts as usize);
    }
}

#[test]
fn a_forced_stage_is_forced_at_every_attempt() {
    let space = Space::new();
    space.run(failing(&space, 0, Class::Io, Limits::default()));
    space.log.take();
    let options = Options { force: Force::All, ..Options::default() };
    let summary = space.run_with(failing(&space, 1, Class::Io, retry(1, &[Class::Io])), &options);
    assert_eq!((line(&summary).as_str(), space.log.take().len()), ("a:ran", 2));
}

#[test]
fn a_stage_that_takes_too_long_is_stopped_and_goes_on_from_its_checkpoint() {
    let space = Space::new();
    let slow = |cx: &Cx<'_>| {
        if cx.checkpoints.latest().unwrap().is_some() {
            return Ok(()); // the second half is quick
        }
        let dir = cx.scratch.join("half");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("half"), "done").unwrap();
        cx.checkpoints.publish(&dir).unwrap();
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(30) {
            cx.check_stop()?;
            sleep(Duration::from_millis(2));
        }
        panic!("nobody stopped it");
    };
    let node = |limits: Limits| {
        let mut node = space.fake("a").first(slow).node();
        node.limits = Limits { timeout: Some(Duration::from_millis(50)), ..limits };
        vec![node]
    };
    let first = space.run(node(Limits::default()));
    let why = &stage(&first, "a").why;
    assert_eq!(why, "took longer than its timeout of 0.05 s; the next run goes on from its checkpoint");
    assert!(!first.interrupted, "one stage's time is not the run's");
    assert_eq!(line(&space.run(node(Limits::default()))), "a:ran");

    let space = Space::new();
    let mut node = space.fake("a").first(slow).node();
    node.limits = Limits { timeout: Some(Duration::from_millis(50)), ..retry(1, &[Class::Timeout]) };
    let once = space.run(vec![node]);
    assert_eq!((line(&once).as_str(), stage(&once, "a").attempts), ("a:ran", 2));
}

#[test]
fn a_stop_ends_the_pause_before_the_next_attempt() {
    let space = Space::new();
    let stop = Stop::default();
    let mut nodes = failing(&space, 9, Class::Io, retry(5, &[Class::Io]));
    nodes[0].limits.retry.backoff = Duration::from_mins(1);
    let started = Instant::now();
    let summary = std::thread::scope(|scope| {
        let run = scope.spawn(|| space.try_run(nodes, &Options::default(), &stop).unwrap());
        sleep(Duration::from_millis(50));
        stop.raise();
        run.join().unwrap()
    });
    assert!(started.elapsed() < Duration::from_secs(30));
    assert_eq!((line(&summary).as_str(), stage(&summary, "a").attempts), ("a:failed", 1));
}

#[test]
fn logs_are_kept_by_attempt_with_the_run_and_empty_ones_are_not() {
    let space = Space::new();
    let count = AtomicU32::new(0);
    let write = move |cx: &Cx<'_>| {
        let n = count.fetch_add(1, Ordering::SeqCst);
        fs::write(&cx.log, format!("attempt {n}")).map_err(Failure::stage)?;
        if n == 0 { Err(Failure::Passing(Class::Exit, "first".into())) } else { Ok(()) }
    };
    let mut loud = space.fake("loud[x=a/b]").first(write).node();
    loud.limits = retry(1, &[Class::Exit]);
    let quiet = space.fake("quiet").first(|cx| fs::write(&cx.log, "").map_err(Failure::stage)).node();
    let summary = space.run(vec![loud, quiet]);
    let log = stage(&summary, "loud[x=a/b]").log.clone().unwrap();
    assert!(log.ends_with(format!("run/{}/loud[x=a_b].2.log", summary.run)), "{log:?}");
    assert_eq!(fs::read_to_string(&log).unwrap(), "attempt 1");
    assert_eq!(fs::read_to_string(log.with_file_name("loud[x=a_b].log")).unwrap(), "attempt 0");
    assert_eq!(stage(&summary, "quiet").log, None);
}
