//! Whole runs with fake actions: what runs, what hits, and what the cache is left with.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    action::{Failure, Numerics, Pool, Stop},
    event::Silent,
    executor::Engine,
    fake::{Fake, Log},
    graph::{Graph, Node},
    options::{EngineError, Force, Options, Select},
    state::Status,
    summary::{RunStatus, RunSummary, StageSummary},
};
use crate::store::Store;

/// A cache, a folder for the user's files, and a log of what ran.
struct Space {
    dir: tempfile::TempDir,
    log: Log,
}

impl Space {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), log: Log::default() }
    }

    fn store(&self) -> Store {
        Store::open(&self.dir.path().join("cache")).unwrap()
    }

    fn fake(&self, name: &str) -> Fake {
        Fake::new(name).log(&self.log)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn run(&self, nodes: Vec<Node>) -> RunSummary {
        self.run_with(nodes, &Options::default())
    }

    fn run_with(&self, nodes: Vec<Node>, options: &Options) -> RunSummary {
        self.try_run(nodes, options, &Stop::default()).unwrap()
    }

    fn try_run(&self, nodes: Vec<Node>, options: &Options, stop: &Stop) -> Result<RunSummary, EngineError> {
        let (store, graph) = (self.store(), Graph::new(nodes).unwrap());
        Engine { store: &store, graph: &graph, options }.run(&Silent, stop)
    }

    fn plan(&self, nodes: Vec<Node>, options: &Options) -> RunSummary {
        let (store, graph) = (self.store(), Graph::new(nodes).unwrap());
        Engine { store: &store, graph: &graph, options }.plan().unwrap()
    }

    /// a → b → c, where `b` has a parameter.
    fn chain(&self, rank: u32) -> Vec<Node> {
        vec![
            self.fake("a").node(),
            self.fake("b").param("rank", rank).reading(&[0]),
            self.fake("c").reading(&[1]),
        ]
    }
}

/// `a:ran b:cached`
fn line(summary: &RunSummary) -> String {
    summary.stages.iter().map(|s| format!("{}:{}", s.name, s.status.as_str())).collect::<Vec<_>>().join(" ")
}

fn stage<'a>(summary: &'a RunSummary, name: &str) -> &'a StageSummary {
    summary.stages.iter().find(|s| s.name == name).unwrap()
}

fn text(summary: &RunSummary, name: &str) -> String {
    fs::read_to_string(&stage(summary, name).outputs["out"].path).unwrap()
}

#[test]
fn a_second_run_does_nothing() {
    let space = Space::new();
    let first = space.run(space.chain(96));
    assert_eq!(line(&first), "a:ran b:ran c:ran");
    assert_eq!(space.log.take(), ["a", "b", "c"]);
    assert!(text(&first, "c").contains("in0/data"), "{}", text(&first, "c"));
    let second = space.run(space.chain(96));
    assert_eq!(line(&second), "a:cached b:cached c:cached");
    assert_eq!(space.log.take(), [""; 0]);
    for (a, b) in first.stages.iter().zip(&second.stages) {
        assert_eq!((a.key, &a.outputs), (b.key, &b.outputs));
    }
}

#[test]
fn a_parameter_reruns_what_depends_on_it_and_says_why() {
    let space = Space::new();
    space.run(space.chain(96));
    let second = space.run(space.chain(64));
    assert_eq!(line(&second), "a:cached b:ran c:ran");
    assert_eq!(stage(&second, "b").why, "parameter `rank` changed: 96 -> 64");
    assert_eq!(stage(&second, "c").why, "input `in0` has other content");
    assert_eq!(
        line(&space.run(space.chain(96))),
        "a:cached b:cached c:cached",
        "the old result is still there"
    );
}

#[test]
fn the_reason_is_kept_in_the_record() {
    let space = Space::new();
    space.run(space.chain(96));
    space.run(space.chain(64));
    let third = space.run(space.chain(64));
    let record = stage(&third, "b").record.as_ref().unwrap();
    assert_eq!(record.why, ["parameter `rank` changed: 96 -> 64"]);
}

#[test]
fn equal_bytes_cut_the_rerun_off() {
    let space = Space::new();
    let nodes = |version| {
        vec![
            space.fake("a").version(version).constant().node(),
            space.fake("b").reading(&[0]),
            space.fake("c").reading(&[1]),
        ]
    };
    space.run(nodes(1));
    let second = space.run(nodes(2));
    assert_eq!(line(&second), "a:ran b:cached c:cached");
    assert_eq!(stage(&second, "a").why, "the stage's code is newer: version 1 -> 2");
}

#[test]
fn renaming_a_node_hits_and_swapping_inputs_misses() {
    let space = Space::new();
    let nodes = |reader: &str, inputs: &[usize]| {
        let named = |mut node: Node| {
            node.name = reader.to_owned();
            node
        };
        vec![space.fake("a").node(), space.fake("b").node(), named(space.fake("c").reading(inputs))]
    };
    space.run(nodes("c", &[0, 1]));
    assert_eq!(line(&space.run(nodes("renamed", &[0, 1]))), "a:cached b:cached renamed:cached");
    let swapped = space.run(nodes("c", &[1, 0]));
    assert_eq!(line(&swapped), "a:cached b:cached c:ran");
    assert_eq!(stage(&swapped, "c").why, "input `in0` has other content; input `in1` has other content");
}

#[test]
fn files_of_the_user_count_by_content() {
    let space = Space::new();
    let nodes = |file: &str| {
        let mut node = space.fake("a").node();
        node.reads.push(("doc".to_owned(), space.dir.path().join(file)));
        vec![node]
    };
    space.file("one", "text");
    assert_eq!(line(&space.run(nodes("one"))), "a:ran");
    space.file("one", "text"); // another time
    assert_eq!(line(&space.run(nodes("one"))), "a:cached");
    space.file("two", "text"); // another place
    assert_eq!(line(&space.run(nodes("two"))), "a:cached");
    space.file("one", "TEXT");
    let changed = space.run(nodes("one"));
    assert_eq!(stage(&changed, "a").why, "file `doc` has other content");
    let missing = space.run(nodes("three"));
    assert_eq!(line(&missing), "a:failed");
    assert!(stage(&missing, "a").why.starts_with("cannot read "), "{}", stage(&missing, "a").why);
}

#[test]
fn a_file_that_changes_during_the_run_is_not_cached() {
    let space = Space::new();
    let path = space.file("doc", "before");
    let nodes = |edit: bool| {
        let path = path.clone();
        let act = move |_: &super::action::Cx<'_>| {
            if edit { fs::write(&path, "during").map_err(Failure::stage) } else { Ok(()) }
        };
        let mut node = space.fake("a").first(act).node();
        node.reads.push(("doc".to_owned(), space.dir.path().join("doc")));
        vec![node]
    };
    let first = space.run(nodes(true));
    assert_eq!(line(&first), "a:failed");
    assert!(stage(&first, "a").why.starts_with("file `doc` changed while the stage read it"));
    assert_eq!(line(&space.run(nodes(false))), "a:ran", "nothing was recorded");
}

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
    let act = |_: &super::action::Cx<'_>| fs::read("/no/such/file").map(drop).map_err(Failure::stage);
    let summary = space.run(vec![space.fake("a").first(act).node()]);
    assert!(stage(&summary, "a").why.contains("No such file"), "{}", stage(&summary, "a").why);
    let stray = |cx: &super::action::Cx<'_>| fs::write(cx.out.join("extra"), "").map_err(Failure::stage);
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
        let act = move |cx: &super::action::Cx<'_>| {
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
fn the_device_counts_only_where_bytes_depend_on_it() {
    let space = Space::new();
    let nodes =
        || vec![space.fake("exact").node(), space.fake("float").numerics(Numerics::PerDevice).reading(&[0])];
    let on = |fingerprint: &str| Options { fingerprint: fingerprint.into(), ..Options::default() };
    space.run_with(nodes(), &on("cpu avx2"));
    let other = space.run_with(nodes(), &on("cuda 9.0"));
    assert_eq!(line(&other), "exact:cached float:ran");
    assert_eq!(stage(&other, "float").why, "the device changed: cpu avx2 -> cuda 9.0");
    let index = Options { device: "cuda:7".into(), ..on("cuda 9.0") };
    assert_eq!(line(&space.run_with(nodes(), &index)), "exact:cached float:cached");
}

#[test]
fn seed_salt_and_jobs() {
    let space = Space::new();
    let nodes = |seed, salt: Option<&str>| {
        let mut node = space.fake("a").node();
        (node.seed, node.salt) = (seed, salt.map(str::to_owned));
        vec![node]
    };
    space.run(nodes(1, None));
    assert_eq!(stage(&space.run(nodes(2, None)), "a").why, "the seed changed: 1 -> 2");
    assert_eq!(stage(&space.run(nodes(2, Some("x"))), "a").why, "the salt changed");
    assert_eq!(line(&space.run_with(nodes(1, None), &Options { jobs: 7, ..Options::default() })), "a:cached");
}

#[test]
fn pools_keep_their_limits() {
    let space = Space::new();
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let node = |i: usize, pool| {
        let (now, most) = (now.clone(), most.clone());
        let act = move |_: &super::action::Cx<'_>| {
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
fn two_runs_on_one_cache_agree() {
    let space = Space::new();
    let both = Arc::new(Barrier::new(2));
    let nodes = || {
        let both = both.clone();
        let meet = move |_: &super::action::Cx<'_>| {
            both.wait(); // each run has missed before either records
            Ok(())
        };
        vec![space.fake("a").first(meet).node(), space.fake("b").reading(&[0])]
    };
    let (one, two) = std::thread::scope(|scope| {
        let other = scope.spawn(|| space.run(nodes()));
        (space.run(nodes()), other.join().unwrap())
    });
    for summary in [&one, &two] {
        assert_eq!(summary.status, RunStatus::Ok, "{}", line(summary));
        assert_eq!(stage(summary, "b").outputs, stage(&one, "b").outputs);
    }
    assert!(space.store().verify().unwrap().is_sound());
}

#[test]
fn damage_is_found_put_aside_and_repaired() {
    let space = Space::new();
    let first = space.run(space.chain(1));
    let tree = &stage(&first, "a").record.as_ref().unwrap().outputs["out"];
    let blob = space.store().blob_path(&tree.files[0].blob);
    let size = fs::metadata(&blob).unwrap().len() as usize;
    let bad = || fs::read_dir(space.dir.path().join("cache/bad")).unwrap().count();
    for (count, bytes) in [vec![0; size], vec![1; size - 1], Vec::new()].into_iter().enumerate() {
        fs::remove_file(&blob).unwrap();
        fs::write(&blob, bytes).unwrap();
        let repaired = space.run(space.chain(1));
        assert_eq!(line(&repaired), "a:ran b:cached c:cached");
        assert_eq!(stage(&repaired, "a").why, "output `out` was damaged in the cache and moved to bad/");
        assert_eq!(text(&repaired, "a"), text(&first, "a"));
        assert_eq!(bad(), count + 1);
    }
    fs::remove_file(&blob).unwrap();
    let repaired = space.run(space.chain(1));
    assert_eq!(stage(&repaired, "a").why, "output `out` is gone from the cache");
    assert!(space.store().verify().unwrap().is_sound());
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
    assert_eq!(keys(&json), "run seconds stages status");
    assert_eq!(json["status"], "ok");
    let stage = &json["stages"][0];
    assert_eq!(keys(stage), "key kind name outputs seconds status why");
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
