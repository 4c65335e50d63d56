//! What runs again, and what does not.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use crate::harness::{pipelines::DIAMOND, space::Space};

fn ran_once() -> Space {
    let space = Space::new(DIAMOND);
    space.file("in/a.txt", "hello\n");
    space.run("").ok();
    space
}

#[test]
fn a_second_run_does_nothing_and_shows_the_same() {
    let space = ran_once();
    let first = space.run("").ok().hits(4).digests();
    assert_eq!(space.run("").ok().hits(4).digests(), first);
}

#[test]
fn a_changed_variable_reruns_what_depends_on_it() {
    let space = ran_once();
    space.run("--set word=\"two\"").ok().ran(["source", "upper", "copy", "count"]);
    space.run("").ok().hits(4);
    space.run("--set word=\"two\"").ok().hits(4);
}

#[test]
fn a_changed_parameter_reruns_that_stage_and_what_follows() {
    let space = ran_once();
    space.run("--set upper.allow-empty=true").ok().ran(["upper"]).hits(3);
}

#[test]
fn the_same_bytes_stop_the_rerun() {
    let space = ran_once();
    space.edit("tr a-z A-Z <", "tr abcdefghijklmnopqrstuvwxyz A-Z <");
    space.run("").ok().ran(["upper"]).hits(3);
}

#[test]
fn names_times_and_comments_do_not_matter() {
    let space = ran_once();
    let hits = |what: &str| {
        let ran = space.run("").ok();
        assert_eq!(ran.with_status("cached").len(), 4, "after {what}: {}", ran.stdout);
    };
    let text = space.read("p.toml");
    space.file("p.toml", &text.replace("stage.upper", "stage.loud").replace("\"upper\"", "\"loud\""));
    hits("a stage was renamed");
    space.file(
        "p.toml",
        &format!("# a comment\n{}", text.replace("[stage.upper]", "\n[stage.upper] # here\n")),
    );
    hits("comments");
    let file = fs::File::options().append(true).open(space.path("in/a.txt")).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_hours(24)).unwrap();
    hits("a file was touched");
    fs::rename(space.path("in/a.txt"), space.path("old.txt")).unwrap();
    space.file("in/a.txt", "hello\n");
    hits("a file was replaced by an equal one");
    let parts: Vec<&str> = text.split("\n[").collect();
    let stages: Vec<String> = parts[1..].iter().rev().map(|part| format!("[{part}\n")).collect();
    space.file("p.toml", &stages.concat());
    hits("the stages changed places");
}

#[test]
fn a_moved_project_hits() {
    let space = ran_once();
    let moved = Space::new(&space.read("p.toml"));
    for folder in ["in", "cache"] {
        let _old = fs::remove_dir_all(moved.path(folder));
        fs::rename(space.path(folder), moved.path(folder)).unwrap();
    }
    moved.run("").ok().hits(4);
}

#[test]
fn changed_content_reruns() {
    let space = ran_once();
    space.file("in/b.txt", "more\n");
    space.run("").ok().ran(["source", "upper", "copy", "count"]);
    space.file("in/b.txt", "mare\n");
    // The count is of the same length.
    space.run("").ok().ran(["source", "upper", "copy", "count"]);
    fs::remove_file(space.path("in/b.txt")).unwrap();
    space.run("").ok().hits(4);
}

#[test]
fn a_declared_variable_of_the_environment_counts() {
    let space = Space::new(
        "[stage.a]\nkind = \"exec\"\nargv = [\"sh\", \"-c\", \"echo $WHO > {out}/x\"]\nenv = [\"WHO\"]\noutputs = [\"x\"]\n",
    );
    let run = |who: Option<&str>| {
        let mut command = space.command(&["run", "p.toml", "--format", "json"]);
        command.env("OTHER", who.unwrap_or("x")).envs(who.map(|who| ("WHO", who)));
        let output = command.output().unwrap();
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        json["stages"][0]["status"].as_str().unwrap().to_owned()
    };
    let statuses = [None, Some("a"), Some("a"), Some("b"), None].map(run);
    assert_eq!(statuses, ["ran", "ran", "cached", "ran", "cached"]);
}
