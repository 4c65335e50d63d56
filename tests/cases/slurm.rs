//! A run over Slurm, with scripts in place of its commands: what is asked of the scheduler, and what becomes of jobs that end in
//! every way. `tests/slurm/run.sh` does the same on a real cluster.

use std::{
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::space::{Ran, Space};

const PIPELINE: &str = "[executor.slurm]\npartition = \"low\"\npoll = \"100ms\"\nargs = [\"--account=lab\"]\n\
    [stage.a]\nkind = \"exec\"\nargv = [\"sh\", \"-c\", \"echo a > {out}/n\"]\noutputs = [\"n\"]\n\
    [stage.b]\nkind = \"exec\"\nmatrix = { seed = [1, 2, 3] }\nargv = [\"sh\", \"-c\", \"sleep ${slow} && cat {in.n}/n > {out}/n && echo {seed} >> {out}/n\"]\n\
    inputs = { n = \"a\" }\noutputs = [\"n\"]\nresources = { gpus = 1, time = \"2h\" }\n[vars]\nslow = \"0\"\n";

/// A folder of commands. `sbatch` runs the tasks of its script as processes and keeps their numbers; `squeue` tells which live.
fn cluster(space: &Space) {
    let command = |name: &str, body: &str| {
        let path = format!("bin/{name}");
        space.file(
            &path,
            &format!("#!/bin/sh\ncd \"$SLURM_FAKE\" || exit 9\necho \"{name} $*\" >> calls\n{body}\n"),
        );
        std::fs::set_permissions(space.path(&path), PermissionsExt::from_mode(0o755)).unwrap();
    };
    space.file("fake/next", "100\n");
    command(
        "sbatch",
        "id=$(($(cat next) + 1)); echo $id > next; cat > $id.sh; [ ! -e refuse ] || { echo 'queue is closed' >&2; exit 1; }\n\
         last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' $id.sh)\n\
         for task in $(seq 0 $last); do\n\
           [ -e vanish ] || SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_JOB_ID=$id sh $id.sh > $id.$task.log 2>&1 & echo $! > $id.$task.pid\n\
         done\necho $id",
    );
    command(
        "squeue",
        "[ ! -e down ] || { echo 'Unable to contact slurm controller' >&2; exit 1; }\n\
         for file in *.pid; do [ -e $file ] || continue; task=${file%.pid}\n\
           if kill -0 $(cat $file) 2>/dev/null; then echo \"${task%.*}_${task#*.}|RUNNING|None\"; else echo \"${task%.*}_${task#*.}|COMPLETED|None\"; fi\n\
         done",
    );
    command("scancel", "for job in \"$@\"; do kill $(cat $(echo $job | tr _ .).pid) 2>/dev/null; done");
    command("scontrol", "[ \"$1 $2\" != 'show config' ] || echo 'MaxArraySize            = 2'");
}

fn command(space: &Space, words: &str) -> Command {
    let mut command = space.command(&words.split_whitespace().collect::<Vec<_>>());
    let mut path = space.path("bin").into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    command.env("PATH", path);
    command.env("SLURM_FAKE", space.path("fake"));
    command
}

fn run(space: &Space, words: &str) -> Ran {
    let mut ran = Ran::new(&command(space, &format!("run p.toml --format json {words}")).output().unwrap());
    for (name, bytes) in space.tree("fake").iter().filter(|(name, _)| name.contains(".log")) {
        ran.stderr.extend(["\n", name, ": ", &String::from_utf8_lossy(bytes)]);
    }
    ran
}

fn calls(space: &Space, name: &str) -> usize {
    space.read("fake/calls").lines().filter(|line| line.starts_with(name)).count()
}

#[test]
fn stages_become_arrays_and_their_results_are_those_of_a_run_here() {
    let space = Space::new(PIPELINE);
    cluster(&space);
    let away = run(&space, "").ok().ran(["a", "b[seed=1]", "b[seed=2]", "b[seed=3]"]);
    assert_eq!(calls(&space, "sbatch"), 3, "one for a; b in arrays of two tasks at most, as the site says");
    let script = space.read("fake/102.sh");
    for words in
        ["--array=0-1\n", "--partition=low", "--gres=gpu:1", "--time=120", "--account=lab", "--requeue"]
    {
        assert!(script.contains(words), "{words}: {script}");
    }
    assert_eq!(run(&space, "").ok().hits(4).digests(), away.digests());
    let here = space.does("run p.toml --format json --local --cache other").ok();
    assert_eq!(here.digests(), away.digests());
}

#[test]
fn a_stage_that_fails_on_a_node_is_told_with_its_log() {
    let space = Space::new(PIPELINE);
    cluster(&space);
    let failed = run(&space, "--set slow=\"x\"").exits(1);
    let why = failed.why("b[seed=1]");
    assert!(why.contains("exit code 1") && why.contains("sleep"), "{why}");
    run(&space, "").ok().ran(["b[seed=1]", "b[seed=2]", "b[seed=3]"]);
}

#[test]
fn a_queue_that_refuses_and_a_job_that_vanishes_are_told() {
    let space = Space::new(PIPELINE);
    cluster(&space);
    space.file("fake/refuse", "");
    let refused = run(&space, "").exits(1);
    assert_eq!(refused.why("a"), "sbatch refused: queue is closed");
    std::fs::remove_file(space.path("fake/refuse")).unwrap();
    space.file("fake/vanish", "");
    let gone = run(&space, "").exits(1).why("a");
    assert!(gone.contains("ended without a result (COMPLETED)") && gone.contains(".log"), "{gone}");
}

#[test]
fn a_scheduler_that_does_not_answer_is_waited_for() {
    let space = Space::new(PIPELINE);
    cluster(&space);
    space.file("fake/down", "");
    run(&space, "").ok().ran(["a", "b[seed=1]", "b[seed=2]", "b[seed=3]"]);
    assert!(calls(&space, "squeue") > 0);
}

#[test]
fn a_run_that_is_killed_leaves_its_jobs_and_the_next_one_waits_for_them() {
    let space = Space::new(PIPELINE);
    cluster(&space);
    run(&space, "--until a").ok();
    let mut first = command(&space, "run p.toml --set slow=\"3\"");
    let mut child = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while space.tree("fake").keys().filter(|name| name.contains(".pid")).count() < 4 {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(200)); // the numbers of the jobs are kept
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    let before = calls(&space, "sbatch");
    run(&space, "--set slow=\"3\"").ok().ran(["b[seed=1]", "b[seed=2]", "b[seed=3]"]);
    assert_eq!(calls(&space, "sbatch"), before, "no job is made twice");
}

#[test]
fn a_run_that_is_interrupted_cancels_its_jobs() {
    let space = Space::new(PIPELINE);
    cluster(&space);
    run(&space, "--until a").ok();
    let mut first = command(&space, "run p.toml --set slow=\"60\"");
    let mut child = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while space.tree("fake").keys().filter(|name| name.contains(".pid")).count() < 4 {
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let cancelled =
        space.read("fake/calls").lines().find(|line| line.starts_with("scancel")).unwrap().to_owned();
    assert_eq!(cancelled.split_whitespace().count(), 4, "{cancelled}");
}

#[test]
fn a_worker_says_what_it_lacks() {
    let space = Space::new(PIPELINE);
    let none = space.does(&format!("worker --cache cache --action {}", "0".repeat(64))).exits(1);
    assert!(none.stderr.contains("there is no job for this key"), "{}", none.stderr);
    let list = space.does("worker --cache cache --list none.list --index 0").exits(2);
    assert!(list.stderr.contains("none.list"), "{}", list.stderr);
    assert!(space.does("worker --fingerprint --device cpu").ok().stdout.contains("candle-core-"));
}

#[test]
fn shards_are_the_tasks_of_an_array_and_merge_to_what_a_run_here_makes() {
    let space = Space::new(
        "[executor.slurm]\npoll = \"100ms\"\n[stage.corpus]\nsources = [{ synthetic = { prose = 9, max-tokens = 200 } }]\n\
         [stage.embed]\ntexts = \"corpus\"\ndim = 16\nshards = 4\nresources = { gpus = 1 }\n",
    );
    cluster(&space);
    space.file("bin/scontrol", "#!/bin/sh\n[ \"$1 $2\" != 'show config' ] || echo 'MaxArraySize = 100'\n");
    let away = run(&space, "").ok();
    assert_eq!(away.with_status("ran").len(), 7);
    assert_eq!(calls(&space, "sbatch"), 4, "corpus, split, one array of shards, merge");
    let script = space.read("fake/103.sh");
    assert!(script.contains("--array=0-3\n") && script.contains("--gres=gpu:1"), "{script}");
    assert!(!space.read("fake/104.sh").contains("gres"), "the merge needs no device");
    let here = space.does("run p.toml --format json --local --cache other").ok();
    assert_eq!(here.digests(), away.digests());
}
