//! The lock file: written by whole runs, and what `--locked` and `--frozen` make of it.

use crate::harness::{pipelines::DIAMOND, space::Space};

fn locked() -> Space {
    let space = Space::new(DIAMOND);
    space.file("in/a.txt", "hello\n");
    space.run("").ok();
    space
}

#[test]
fn a_whole_run_writes_it_and_an_experiment_does_not() {
    let space = locked();
    let first = space.read("p.lock.toml");
    assert_eq!(first.matches("[stage.").count(), 8, "{first}");
    space.run("--set word=two").ok();
    space.run("--until upper").ok();
    assert_eq!(space.read("p.lock.toml"), first);
    space.edit("one", "two");
    space.run("").ok();
    assert_ne!(space.read("p.lock.toml"), first);
}

#[test]
fn it_says_the_same_wherever_the_project_lies() {
    assert_eq!(locked().read("p.lock.toml"), locked().read("p.lock.toml"));
}

#[test]
fn a_locked_run_makes_what_is_missing_and_must_get_the_same() {
    let space = locked();
    space.run("--locked").ok().hits(4);
    std::fs::remove_dir_all(space.path("cache/act")).unwrap();
    space.run("--locked").ok().ran(["source", "upper", "copy", "count"]);
    // Another text, another key: refused before anything runs.
    space.file("in/a.txt", "other\n");
    let refused = space.run("--locked").exits(4);
    assert!(refused.why("source").starts_with("has another key than in the lock file"), "{}", refused.stdout);
    assert!(refused.with_status("ran").is_empty());
}

#[test]
fn other_bytes_under_the_same_key_are_an_error() {
    let space = Space::new(
        "[stage.a]\nkind = 'exec'\nargv = ['sh', '-c', 'cat /proc/sys/kernel/random/uuid > {out}/x']\noutputs = ['x']\n",
    );
    space.run("").ok();
    space.run("--locked").ok().hits(1);
    let told = space.run("--locked --force a").exits(4);
    assert!(told.stderr.contains("`a` made other bytes than locked in `out`"), "{}", told.stderr);
}

#[test]
fn a_frozen_run_runs_nothing() {
    let space = locked();
    space.run("--frozen").ok().hits(4);
    std::fs::remove_dir_all(space.path("cache/act")).unwrap();
    let refused = space.run("--frozen").exits(4);
    assert!(refused.why("source").contains("`--frozen` runs nothing"), "{}", refused.stdout);
    assert!(refused.with_status("ran").is_empty());
}

#[test]
fn without_a_sound_file_nothing_is_held_to_it() {
    let space = locked();
    space.file("p.lock.toml", "format = 1\n[stage.a]\nkind = 3\n");
    let told = space.does("run p.toml --locked").exits(4).stderr;
    assert!(told.contains("p.lock.toml:3: ") && told.contains("help: "), "{told}");
    std::fs::remove_file(space.path("p.lock.toml")).unwrap();
    let told = space.does("run p.toml --frozen").exits(4).stderr;
    assert!(told.contains("there is no lock file `p.lock.toml`"), "{told}");
}
