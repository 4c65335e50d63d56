//! `verify`: stages made again, aside.

use crate::harness::space::Space;

const PIPELINE: &str = "[stage.a]\nkind = \"exec\"\nargv = [\"sh\", \"-c\", \"echo one > {out}/n; echo two > {out}/m\"]\noutputs = [\"n\", \"m\"]\n\
    [stage.b]\nkind = \"exec\"\nargv = [\"sh\", \"-c\", \"cat {in.a}/n words.txt > {out}/n\"]\ninputs = { a = \"a\" }\nfiles = [\"words.txt\"]\noutputs = [\"n\"]\n\
    [stage.c]\nkind = \"exec\"\nargv = [\"sh\", \"-c\", \"cat {in.b}/n > {out}/n; date +%N >> {out}/n\"]\ninputs = { b = \"b\" }\noutputs = [\"n\"]\n";

fn space() -> Space {
    let space = Space::new(PIPELINE);
    space.file("words.txt", "some words\n");
    space
}

#[test]
fn equal_bytes_are_told_and_the_cache_stays_as_it_is() {
    let space = space();
    space.run("").ok();
    let records = space.tree("cache/act");
    let verified = space.does("verify a b p.toml --twice").ok();
    assert_eq!(verified.stdout.matches("same bytes").count(), 4, "two stages, twice: {}", verified.stdout);
    assert_eq!(space.tree("cache/act"), records);
    assert!(space.tree("cache/tmp").is_empty());
    let json = space.does("verify b p.toml --format json").ok().json();
    assert_eq!((&json["status"], &json["outputs"][0]["stage"]), (&"ok".into(), &"b".into()), "{json}");
    space.run("").ok().hits(3);
}

#[test]
fn a_stage_that_makes_other_bytes_is_found_with_the_place() {
    let space = space();
    space.run("").ok();
    let verified = space.does("verify --cache cache").exits(1);
    assert!(verified.stdout.contains("b.out (bitwise): same bytes"), "{}", verified.stdout);
    assert!(
        verified.stdout.contains("c.out (bitwise): other bytes: n differs from byte 1"),
        "{}",
        verified.stdout
    );
}

#[test]
fn what_was_never_made_cannot_be_compared() {
    let space = space();
    let refused = space.does("verify p.toml").exits(1);
    assert!(refused.stderr.contains("stage `a` is not in the cache"), "{}", refused.stderr);
}

#[test]
fn a_stage_that_fails_the_second_time_is_told() {
    let space = space();
    let flag = space.path("flag");
    let fails = format!("[ ! -e {0} ] || exit 4; touch {0}; echo 1 > {{out}}/n", flag.display());
    space.file(
        "q.toml",
        &format!("[stage.a]\nkind = \"exec\"\nargv = [\"sh\", \"-c\", \"{fails}\"]\noutputs = [\"n\"]\n"),
    );
    space.does("run q.toml").ok();
    let verified = space.does("verify q.toml").exits(1);
    assert!(verified.stdout.contains("exit code 4"), "{}", verified.stdout);
}
