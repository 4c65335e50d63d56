//! `cache gc`, `pin` and `unpin` as a user meets them.

use crate::harness::space::Space;

const CHAIN: &str = "[vars]\nn = \"1\"\n\
    [stage.a]\nkind = \"exec\"\nargv = [\"sh\", \"-c\", \"echo ${n} > {out}/n\"]\noutputs = [\"n\"]\n\
    [stage.b]\nkind = \"exec\"\nargv = [\"sh\", \"-c\", \"cat {in.n}/n {in.n}/n > {out}/n\"]\ninputs = { n = \"a\" }\noutputs = [\"n\"]\n";

fn records(space: &Space) -> usize {
    let listed = space.does("cache ls --cache cache --format json").ok();
    listed.json().as_array().unwrap().len()
}

fn gc(space: &Space, words: &str) -> serde_json::Value {
    space.does(&format!("cache gc --cache cache --older-than 0s --format json {words}")).ok().json()
}

#[test]
fn what_no_pipeline_refers_to_goes_and_the_rest_is_found_again() {
    let space = Space::new(CHAIN);
    for n in 1..=5 {
        space.run(&format!("--set n=\"{n}\"")).ok();
    }
    assert_eq!(records(&space), 10);
    let dry = gc(&space, "--dry-run");
    assert_eq!(records(&space), 10);
    let wet = gc(&space, "");
    assert_eq!((dry["records"].as_u64(), wet["records"].as_u64()), (Some(4), Some(4)), "three runs are kept");
    for n in 3..=5 {
        space.run(&format!("--set n=\"{n}\"")).ok().hits(2);
    }
    assert_eq!(gc(&space, "--keep-runs 0")["records"], 4, "what the stages are now is kept");
    space.run("--set n=\"5\"").ok().hits(2);
    space.run("--set n=\"1\"").ok().ran(["a", "b"]);
    space.does("cache verify").ok();
}

#[test]
fn pins_and_lock_files_hold_what_everything_else_has_forgotten() {
    let space = Space::new(CHAIN);
    space.run("").ok();
    space.run("--set n=\"2\"").ok();
    space.does("cache pin b p.toml --set n=\"2\" --name best").ok();
    space.run("--set n=\"3\"").ok();
    let report = gc(&space, "--keep-runs 0");
    assert_eq!(report["kept"]["pinned"], 1);
    assert_eq!(report["kept"]["in a lock file"], 2, "the run without --set wrote one: {report}");
    assert_eq!(records(&space), 5, "a of the pinned b went");
    space.does("cache unpin best --cache cache").ok();
    std::fs::remove_file(space.path("p.lock.toml")).unwrap();
    gc(&space, "--keep-runs 0");
    assert_eq!(records(&space), 2);
    let unknown = space.does("cache unpin best --cache cache").exits(2);
    assert!(unknown.stderr.contains("no pin `best`"), "{}", unknown.stderr);
}

#[test]
fn a_cache_without_any_root_is_not_emptied_by_mistake() {
    let space = Space::new(CHAIN);
    space.run("").ok();
    for gone in ["cache/run", "cache/root"] {
        std::fs::remove_dir_all(space.path(gone)).unwrap();
    }
    let refused = space.does("cache gc --cache cache --older-than 0s").exits(2);
    assert!(refused.stderr.contains("--all"), "{}", refused.stderr);
    assert_eq!(records(&space), 2);
    let text = space.does("cache gc --cache cache --older-than 0s --all").ok().stdout;
    assert!(text.starts_with("removed 6 B: 2 blobs, 2 records"), "{text}");
    assert_eq!(records(&space), 0);
}
