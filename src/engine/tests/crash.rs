//! Kills a run with SIGKILL at many moments; the next run must end with the same digests and leave nothing behind.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use super::*;

const MARK: &str = "killed-by-test"; // tells the child that its working folder is meant for it

/// a → train (with checkpoints) → b, each with several files.
fn nodes() -> Vec<Node> {
    let many = |cx: &Cx<'_>| {
        (0..4_u8).try_for_each(|i| fs::write(cx.output("out").join(format!("part{i}")), vec![i; 5000]))
    };
    let train = |cx: &Cx<'_>| {
        let last = cx.checkpoints.latest()?;
        let done = last.map_or(Ok(0), |files| fs::read(&files["step"]).map(|bytes| bytes.len()))?;
        for step in done..3 {
            let dir = cx.scratch.join("ckpt");
            fs::create_dir_all(&dir)?;
            fs::write(dir.join("step"), vec![7; step + 1])?;
            cx.checkpoints.publish(&dir)?;
        }
        Ok::<_, std::io::Error>(())
    };
    vec![
        Fake::new("a").first(move |cx| many(cx).map_err(Failure::stage)).node(),
        Fake::new("train").first(move |cx| train(cx).map_err(Failure::stage)).reading(&[0]),
        Fake::new("b").first(move |cx| many(cx).map_err(Failure::stage)).reading(&[1]),
    ]
}

fn run_in(dir: &Path) -> RunSummary {
    let (store, graph) = (Store::open(&dir.join("cache")).unwrap(), Graph::new(nodes()).unwrap());
    let options = Options { jobs: 2, ..Options::default() };
    Engine { store: &store, graph: &graph, options: &options }.run(&Silent, &Stop::default()).unwrap()
}

/// Not a test of its own: what the next test starts and kills.
#[test]
#[ignore = "the child of the next test"]
fn child() {
    if Path::new(MARK).exists() {
        assert_eq!(run_in(Path::new(".")).status, RunStatus::Ok);
    }
}

fn start(dir: &Path) -> Child {
    fs::write(dir.join(MARK), "").unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "engine::tests::crash::child", "--ignored"])
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn digests(summary: &RunSummary) -> Vec<(&str, crate::store::Digest)> {
    summary.stages.iter().map(|s| (s.name.as_str(), s.outputs["out"].digest)).collect()
}

#[test]
fn a_run_killed_at_any_moment_is_taken_up_by_the_next() {
    const KILLS: u32 = 50;
    let straight = tempfile::tempdir().unwrap();
    let expected = run_in(straight.path());
    let timed = tempfile::tempdir().unwrap();
    let started = Instant::now();
    assert!(start(timed.path()).wait().unwrap().success());
    let whole = started.elapsed();

    let mut unfinished = 0;
    for kill in 0..KILLS {
        let dir = tempfile::tempdir().unwrap();
        let mut child = start(dir.path());
        sleep(
            whole.mul_f64(f64::from(kill) / f64::from(KILLS))
                + Duration::from_micros(137 * u64::from(kill % 7)),
        );
        child.kill().unwrap();
        child.wait().unwrap();
        let next = run_in(dir.path());
        assert_eq!(digests(&next), digests(&expected), "kill {kill}");
        unfinished += u32::from(next.stages.iter().any(|s| s.status == Status::Ran));
        let store = Store::open(&dir.path().join("cache")).unwrap();
        let verified = store.verify().unwrap();
        assert!(verified.is_sound(), "kill {kill}: {verified:?}");
        drop(store);
        for left in ["tmp", "lease", "bad", "ckpt"] {
            let names =
                fs::read_dir(dir.path().join("cache").join(left)).unwrap().map(|e| e.unwrap().file_name());
            // A lease that was being made has a minute.
            let names: Vec<_> = names.filter(|name| !name.as_encoded_bytes().starts_with(b".")).collect();
            assert!(names.is_empty(), "kill {kill} left {names:?} in {left}");
        }
    }
    assert!(unfinished > KILLS / 4, "only {unfinished} kills came before the end");
}
