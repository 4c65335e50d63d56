//! What runs, what is left out, and how runs end.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::*;

#[test]
fn a_failure_stops_the_run_or_only_its_branch() {
    let space = Space::new();
    let nodes = || {
        vec![
            space.fake("bad").fails("no luck").node(),
            space.fake("after").reading(&[0]),
            space.fake("later").reading(&[1]),
            space.fake("other").node(),
            space.fake("next").reading(&[3]),
        ]
    };
    let strict = space.run_with(nodes(), &Options { jobs: 1, ..Options::default() });
    assert_eq!(line(&strict), "bad:failed after:blocked later:blocked other:skipped next:skipped");
    assert_eq!(stage(&strict, "bad").why, "no luck");
    assert_eq!(stage(&strict, "later").why, "needs `bad`, which failed");
    assert_eq!(stage(&strict, "other").why, "`bad` failed before its turn");
    assert_eq!(strict.status, RunStatus::Failed);
    let lenient = space.run_with(nodes(), &Options { keep_going: true, ..Options::default() });
    assert_eq!(line(&lenient), "bad:failed after:blocked later:blocked other:ran next:ran");
    assert_eq!(lenient.status, RunStatus::Failed);
}

#[test]
fn a_panic_is_a_failure() {
    let space = Space::new();
    let summary = space.run(vec![space.fake("a").first(|_| panic!("out of {}", "cheese")).node()]);
    assert_eq!(line(&summary), "a:failed");
    assert_eq!(stage(&summary, "a").why, "panicked: out of cheese");
}

#[test]
fn errors_are_told_with_their_causes() {
    let space = Space::new();
    let act = |_: &Cx<'_>| fs::read("/no/such/file").map(drop).map_err(Failure::stage);
    let summary = space.run(vec![space.fake("a").first(act).node()]);
    assert!(stage(&summary, "a").why.contains("No such file"), "{}", stage(&summary, "a").why);
    let stray = |cx: &Cx<'_>| fs::write(cx.out.join("extra"), "").map_err(Failure::stage);
    let summary = space.run(vec![space.fake("b").first(stray).node()]);
    assert!(stage(&summary, "b").why.starts_with("wrote `extra` beside its outputs"));
}

#[test]
fn a_stop_ends_running_stages_and_skips_the_rest() {
    let space = Space::new();
    let stop = Arc::new(Stop::default());
    let raise = stop.clone();
    let nodes = vec![
        space.fake("a").node(),
        space
            .fake("b")
            .first(move |cx| {
                raise.raise();
                cx.check_stop()
            })
            .reading(&[0]),
        space.fake("c").reading(&[1]),
        space.fake("d").reading(&[0]),
    ];
    let summary = space.try_run(nodes, &Options { jobs: 1, ..Options::default() }, &stop).unwrap();
    assert_eq!(line(&summary), "a:ran b:failed c:blocked d:skipped");
    assert_eq!(stage(&summary, "b").why, "stopped before the end");
    assert_eq!(stage(&summary, "d").why, "the run was stopped before its turn");
    assert!(summary.interrupted && !summary.checkpointed);
    let chain = vec![space.fake("a").node()];
    assert_eq!(line(&space.run(chain)), "a:cached", "what was done is kept");
}

#[test]
fn a_stopped_stage_goes_on_from_its_checkpoint() {
    let space = Space::new();
    let steps = Arc::new(AtomicUsize::new(0));
    let nodes = |stop_at: usize| {
        let steps = steps.clone();
        let act = move |cx: &Cx<'_>| {
            let last = cx.checkpoints.latest().map_err(Failure::stage)?;
            let read = |path: &PathBuf| fs::read_to_string(path).unwrap().parse::<usize>().unwrap();
            for step in last.map_or(0, |files| read(&files["step"]))..5 {
                if step == stop_at {
                    return Err(Failure::Stopped);
                }
                steps.fetch_add(1, Ordering::Relaxed);
                let dir = cx.scratch.join("ckpt");
                fs::create_dir_all(&dir).map_err(Failure::stage)?;
                fs::write(dir.join("step"), (step + 1).to_string()).map_err(Failure::stage)?;
                cx.checkpoints.publish(&dir).map_err(Failure::stage)?;
            }
            Ok(())
        };
        vec![space.fake("train").first(act).node()]
    };
    let stopped = space.run(nodes(3));
    assert_eq!(
        stage(&stopped, "train").why,
        "stopped before the end; the next run goes on from its checkpoint"
    );
    assert!(stopped.checkpointed);
    let resumed = space.run(nodes(9));
    assert_eq!(line(&resumed), "train:ran");
    assert_eq!(steps.load(Ordering::Relaxed), 5, "no step was done twice");
    assert_eq!(fs::read_dir(space.dir.path().join("cache/ckpt")).unwrap().count(), 0);
    let straight = Space::new();
    let nodes = vec![straight.fake("train").node()];
    assert_eq!(text(&straight.run(nodes), "train"), text(&resumed, "train"));
}

#[test]
fn force_reruns_the_named_or_all() {
    let space = Space::new();
    space.run(space.chain(1));
    let force = |force| Options { force, ..Options::default() };
    let one = space.run_with(space.chain(1), &force(Force::Stages(["b".to_owned()].into())));
    assert_eq!(line(&one), "a:cached b:ran c:cached");
    assert_eq!(stage(&one, "b").why, "forced");
    let all = space.run_with(space.chain(1), &force(Force::All));
    assert_eq!(line(&all), "a:ran b:ran c:ran");
    let unknown = force(Force::Stages(["x".to_owned()].into()));
    assert!(space.try_run(space.chain(1), &unknown, &Stop::default()).is_err());
}

#[test]
fn selections_run_what_they_say() {
    let select = |only: &[&str], until: &[&str], from: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        Options {
            select: Select { only: owned(only), until: owned(until), from: owned(from) },
            ..Options::default()
        }
    };
    let space = Space::new();
    let only = space.run_with(space.chain(1), &select(&["b"], &[], &[]));
    assert_eq!(line(&only), "a:skipped b:blocked c:skipped");
    assert_eq!(stage(&only, "b").why, "needs `a`, which is not in the cache; select it too");
    assert_eq!(only.status, RunStatus::Failed);
    let until = space.run_with(space.chain(1), &select(&[], &["a"], &[]));
    assert_eq!((line(&until).as_str(), until.status), ("a:ran b:skipped c:skipped", RunStatus::Ok));
    let only = space.run_with(space.chain(1), &select(&["b"], &[], &[]));
    assert_eq!((line(&only).as_str(), only.status), ("a:cached b:ran c:skipped", RunStatus::Ok));
    let from = space.run_with(space.chain(2), &select(&[], &[], &["c"]));
    assert_eq!(line(&from), "a:cached b:ran c:ran", "what c lacks is made");
}

#[test]
fn force_is_for_what_is_selected_and_leaves_what_it_reads_alone() {
    let space = Space::new();
    space.run(space.chain(1));
    let only = |force| Options {
        select: Select { only: vec!["b".into()], ..Select::default() },
        force,
        ..Options::default()
    };
    for force in [Force::All, Force::Stages(["a".to_owned(), "b".to_owned()].into())] {
        assert_eq!(line(&space.plan(space.chain(1), &only(force.clone()))), "a:cached b:run c:skipped");
        assert_eq!(line(&space.run_with(space.chain(1), &only(force))), "a:cached b:ran c:skipped");
    }
}

#[test]
fn a_plan_does_not_run_what_is_not_selected() {
    let space = Space::new();
    let ends = Select { only: vec!["a".into(), "c".into()], ..Select::default() };
    let options = Options { select: ends, ..Options::default() };
    assert_eq!(line(&space.plan(space.chain(1), &options)), "a:run b:skipped c:blocked");
    assert_eq!(line(&space.run_with(space.chain(1), &options)), "a:ran b:skipped c:blocked");
}

#[test]
fn a_gate_refuses_to_run() {
    let space = Space::new();
    let gate = || Options {
        gate: Some(Box::new(|name, _| if name == "b" { Err("not in the lock file".into()) } else { Ok(()) })),
        ..Options::default()
    };
    let summary = space.run_with(space.chain(1), &gate());
    assert_eq!(line(&summary), "a:ran b:failed c:blocked");
    assert_eq!(stage(&summary, "b").why, "not in the lock file");
    space.run(space.chain(1));
    assert_eq!(line(&space.run_with(space.chain(1), &gate())), "a:cached b:cached c:cached");
}

#[test]
fn pools_keep_their_limits() {
    let space = Space::new();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let node = |i: usize, pool| {
        let (now, most) = (now.clone(), most.clone());
        let act = move |_: &Cx<'_>| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_millis(5));
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        };
        space.fake(&format!("{pool:?}{i}")).pool(pool).first(act).node()
    };
    let options = Options { jobs: 3, ..Options::default() };
    space.run_with((0..6).map(|i| node(i, Pool::Device)).collect(), &options);
    assert_eq!(most.swap(0, Ordering::SeqCst), 1);
    space.run_with((0..9).map(|i| node(i, Pool::Cpu)).collect(), &options);
    assert!((2..=3).contains(&most.load(Ordering::SeqCst)), "{most:?}");
}

#[test]
fn plan_says_what_would_run_and_runs_nothing() {
    let space = Space::new();
    let options = Options::default();
    assert_eq!(line(&space.plan(space.chain(1), &options)), "a:run b:run c:run");
    space.run(space.chain(1));
    space.log.take();
    assert_eq!(line(&space.plan(space.chain(1), &options)), "a:cached b:cached c:cached");
    let changed = space.plan(space.chain(2), &options);
    assert_eq!(line(&changed), "a:cached b:run c:maybe");
    assert_eq!(stage(&changed, "b").why, "parameter `rank` changed: 1 -> 2");
    assert_eq!(stage(&changed, "c").why, "waits on `b`");
    let only = Select { only: vec!["c".into()], ..Select::default() };
    let only = space.plan(space.chain(2), &Options { select: only, ..Options::default() });
    assert_eq!(line(&only), "a:cached b:skipped c:blocked");
    let forced = Options { force: Force::Stages(["a".to_owned()].into()), ..Options::default() };
    let forced = space.plan(space.chain(1), &forced);
    assert_eq!(line(&forced), "a:run b:maybe c:maybe");
    assert_eq!(space.log.take(), [""; 0]);
}

#[test]
fn the_summary_has_the_documented_form() {
    let space = Space::new();
    let summary = space.run(vec![space.fake("a").node()]);
    let json = serde_json::to_value(&summary).unwrap();
    let keys = |v: &serde_json::Value| {
        let mut keys: Vec<String> = v.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys.join(" ")
    };
    assert_eq!(keys(&json), "pipeline run seconds stages status");
    assert_eq!(json["status"], "ok");
    let stage = &json["stages"][0];
    assert_eq!(keys(stage), "attempts key kind log name outputs peak_memory seconds status why");
    assert_eq!(
        (&stage["status"], &stage["kind"], &stage["why"]),
        (&"ran".into(), &"fake".into(), &"never run".into())
    );
    assert_eq!(keys(&stage["outputs"]["out"]), "bytes digest path");
    assert_eq!(Status::Ran.as_str(), stage["status"]);
    let run = space.dir.path().join("cache/run").join(&summary.run);
    let saved: serde_json::Value =
        serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap();
    assert_eq!(saved["stages"], json["stages"]);
    let journal = fs::read_to_string(run.join("events.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(journal.lines().last().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["ok"]), (&"run-finished".into(), &true.into()));
}
