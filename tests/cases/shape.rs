//! The form of what `--format json` prints: scripts rely on every key and every word of it.

use serde_json::{Value, json};

use crate::harness::{
    pipelines::DIAMOND,
    space::{Ran, Space},
};

fn diamond() -> Space {
    let space = Space::new(DIAMOND);
    space.file("in/a.txt", "hello\n");
    space
}

/// The keys of an object, sorted.
fn keys(object: &Value) -> String {
    let mut keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys.join(" ")
}

/// Whether a value is a digest as it is printed everywhere.
fn is_digest(value: &Value) -> bool {
    let digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    value.as_str().is_some_and(|text| text.len() == 64 && text.chars().all(digit))
}

/// What the documentation says of the object of a run or a plan.
fn check_form(told: &Ran, statuses: &[&str]) {
    let json = told.json();
    assert_eq!(keys(&json), "pipeline run seconds stages status");
    assert!(json["run"].is_string() && json["seconds"].is_f64(), "{json}");
    assert!(["ok", "failed"].contains(&json["status"].as_str().unwrap()), "{json}");
    for stage in json["stages"].as_array().unwrap() {
        assert_eq!(
            keys(stage),
            "attempts key kind log name outputs peak_memory seconds status why",
            "{stage}"
        );
        assert!(statuses.contains(&stage["status"].as_str().unwrap()), "{stage}");
        assert!(stage["key"].is_null() || is_digest(&stage["key"]), "{stage}");
        assert!(stage["why"].as_str().is_some_and(|why| !why.is_empty()), "{stage}");
        let there = ["ran", "cached"].contains(&stage["status"].as_str().unwrap());
        let outputs = stage["outputs"].as_object().unwrap();
        assert_eq!(outputs.is_empty(), !there, "{stage}");
        for output in outputs.values() {
            assert_eq!(keys(output), "bytes digest path");
            assert!(is_digest(&output["digest"]) && output["bytes"].is_u64(), "{output}");
            assert!(std::path::Path::new(output["path"].as_str().unwrap()).is_absolute(), "{output}");
        }
    }
}

#[test]
fn a_run_has_the_same_form_however_it_ends() {
    let statuses = ["cached", "ran", "failed", "skipped", "blocked"];
    let space = diamond();
    check_form(&space.run("").ok(), &statuses);
    check_form(&space.run("").ok(), &statuses);
    check_form(&space.run("--only upper").ok(), &statuses);
    space.edit("tr a-z A-Z <", "false; tr a-z A-Z <");
    space.edit("cp\"", "false\"");
    let failed = space.run("--keep-going --set word=\"x\"").exits(1);
    check_form(&failed, &statuses);
    let copy = failed.stage("copy");
    assert_eq!((&copy["status"], &copy["seconds"].is_f64()), (&json!("failed"), &true));
    let count = failed.stage("count");
    assert_eq!(
        (&count["status"], &count["key"], &count["seconds"]),
        (&json!("blocked"), &json!(null), &json!(0.0))
    );
}

#[test]
fn a_plan_has_the_form_of_a_run_with_its_own_words() {
    let statuses = ["cached", "run", "maybe", "blocked", "skipped"];
    let space = Space::new(DIAMOND);
    check_form(&space.does("plan p.toml --format json").ok(), &statuses);
    space.file("in/a.txt", "hello\n");
    let fresh = space.does("plan p.toml --format json").ok();
    check_form(&fresh, &statuses);
    assert_eq!(fresh.json()["run"], "", "nothing was run");
    space.run("").ok();
    check_form(&space.does("plan p.toml --format json").ok(), &statuses);
    let some = space.does("plan p.toml --format json --until upper --set word=\"x\"").ok();
    check_form(&some, &statuses);
    assert_eq!(some.with_status("skipped"), ["copy", "count"]);
}

#[test]
fn why_is_a_name_a_status_and_reasons() {
    let space = diamond();
    let why = |words: &str| space.does(&format!("why {words} --format json")).ok().json();
    let fresh = json!({ "name": "source", "status": "run", "reasons": ["never run"] });
    assert_eq!(why("source p.toml"), fresh);
    let waits = json!(["never run", "waits on `upper`", "waits on `copy`"]);
    assert_eq!(why("count p.toml")["reasons"], waits);
    space.run("").ok();
    let cached = json!({ "name": "source", "status": "cached", "reasons": ["never run"] });
    assert_eq!(why("source"), cached);
    assert_eq!(why("count --set word=\"x\"")["status"], "maybe");
}

#[test]
fn a_listing_has_a_row_a_record() {
    let space = diamond();
    assert_eq!(space.does("cache ls --format json").ok().json(), json!([]));
    space.run("--until copy").ok();
    let rows = space.does("cache ls --format json").ok().json();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert_eq!(keys(row), "bytes files key kind made seconds why");
        assert!(is_digest(&row["key"]) && row["made"].as_i64().unwrap() > 1_700_000_000, "{row}");
        assert_eq!((&row["kind"], &row["files"], &row["bytes"]), (&json!("exec"), &json!(1), &json!(10)));
        assert_eq!(row["why"], json!(["never run"]));
    }
    let verified = space.does("cache verify --format json").ok().json();
    let expected = json!({ "blobs": 1, "bytes": 10, "records": 2, "damaged": [], "incomplete": [] });
    assert_eq!(verified, expected, "both stages wrote the same bytes");
}

#[test]
fn the_reference_of_the_stages_is_data() {
    let space = diamond();
    let all = space.does("stages --format json").ok().json();
    let kinds: Vec<&str> = all.as_array().unwrap().iter().map(|row| row["kind"].as_str().unwrap()).collect();
    for kind in [
        "corpus",
        "embed",
        "activations",
        "cluster",
        "context-gain",
        "needle",
        "predict",
        "sample",
        "select",
        "analyze",
        "svd",
        "distill",
        "evaluate",
        "export",
        "exec",
    ] {
        assert!(kinds.contains(&kind), "{kind} is not among {kinds:?}");
    }
    let one = space.does("stages exec --format json").ok().json();
    assert_eq!(one.as_array().unwrap().len(), 1);
    assert_eq!(keys(&one[0]), "doc keys kind outputs parameters");
    for parameter in one[0]["parameters"].as_array().unwrap() {
        assert_eq!(keys(parameter), "default doc name required type", "{parameter}");
    }
    let exec = all.as_array().unwrap().iter().find(|row| row["kind"] == "exec").unwrap();
    assert_eq!(exec, &one[0]);
}

#[test]
fn only_the_object_goes_to_standard_output_and_the_rest_to_standard_error() {
    let space = diamond();
    let ran = space.run("").ok();
    assert!(ran.stderr.contains("✓ source") && ran.stdout.starts_with('{'), "{}", ran.stderr);
    for words in ["plan p.toml", "why copy", "check p.toml", "cache ls", "cache verify", "stages"] {
        let told = space.does(&format!("{words} --format json")).ok();
        told.json();
        assert_eq!(told.stderr, "", "{words}");
    }
}

#[test]
fn the_journal_and_the_summary_of_a_run_are_kept_under_its_name() {
    let space = diamond();
    let json = space.run("").ok().json();
    let folder = format!("cache/run/{}", json["run"].as_str().unwrap());
    let saved: Value = serde_json::from_str(&space.read(&format!("{folder}/summary.json"))).unwrap();
    assert_eq!(saved, json);
    let journal = space.read(&format!("{folder}/events.jsonl"));
    let events: Vec<Value> = journal.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let count = |event: &str| events.iter().filter(|line| line["event"] == event).count();
    assert_eq!(["run-started", "stage-started", "stage-finished", "run-finished"].map(count), [1, 4, 4, 1]);
    assert!(events.windows(2).all(|pair| pair[0]["at"].as_f64() <= pair[1]["at"].as_f64()), "{journal}");
}
