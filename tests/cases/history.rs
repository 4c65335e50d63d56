//! `history` and `diff`: what is known of runs that are over, killed or gone.

use serde_json::Value;

use crate::harness::{pipelines::DIAMOND, space::Space};

fn diamond() -> Space {
    let space = Space::new(DIAMOND);
    space.file("in/a.txt", "hello\n");
    space
}

fn list(space: &Space, words: &str) -> Vec<Value> {
    let told = space.does(&format!("history {words} --format json")).ok().json();
    told.as_array().unwrap().clone()
}

fn texts(rows: &[Value], field: &str) -> Vec<String> {
    rows.iter().map(|row| row[field].as_str().unwrap().to_owned()).collect()
}

fn diff(space: &Space, words: &str) -> Value {
    space.does(&format!("diff {words} --format json")).ok().json()
}

fn wrong(space: &Space, words: &str) -> String {
    space.does(words).exits(2).stderr
}

#[test]
fn runs_are_listed_newest_first_with_what_they_came_to() {
    let space = diamond();
    let first = space.run("").ok().json();
    space.run("").ok();
    space.edit("cp\"", "false\"");
    space.run("--keep-going").exits(1);
    let rows = list(&space, "");
    assert_eq!(texts(&rows, "status"), ["failed", "ok", "ok"]);
    assert_eq!(rows[2]["run"], first["run"]);
    let counts = |row: &Value| (row["stages"].as_u64(), row["ran"].as_u64(), row["cached"].as_u64());
    assert_eq!(counts(&rows[2]), (Some(4), Some(4), Some(0)));
    assert_eq!(counts(&rows[1]), (Some(4), Some(0), Some(4)));
    assert_eq!(rows[0]["failed"], serde_json::json!(["copy"]));
    let started = rows[0]["started"].as_str().unwrap();
    assert!(started.len() == 20 && started.starts_with("20") && started.ends_with('Z'), "{started}");
    let text = space.does("history").ok().stdout;
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(text.lines().nth(1).unwrap().ends_with("  failed: `copy`"), "{text}");
    assert_eq!(list(&space, "--limit 1").len(), 1);
    assert_eq!(list(&space, "--limit 0").len(), 0);
}

#[test]
fn a_pipeline_is_named_by_its_name_or_its_manifest() {
    let space = diamond();
    space.run("").ok();
    space.file("q.toml", &DIAMOND.replace("[vars]", "[pipeline]\nname = \"other\"\n[vars]"));
    space.does("q.toml").ok();
    assert_eq!(texts(&list(&space, ""), "pipeline"), ["other", "p"]);
    assert_eq!(texts(&list(&space, "p"), "pipeline"), ["p"]);
    assert_eq!(texts(&list(&space, "q.toml"), "pipeline"), ["other"]);
    let expected = "error: no run is of a pipeline `othr`\nhelp: did you mean `other`?\n";
    assert_eq!(wrong(&space, "history othr"), expected);
    space.file("r.toml", &DIAMOND.replace("[vars]", "[pipeline]\nname = \"new\"\n[vars]"));
    assert_eq!(space.does("history r.toml").ok().stdout, "  no runs\n", "a manifest may be new");
    assert!(wrong(&space, "history --cache nowhere").contains("there is no cache `nowhere`"));
}

#[test]
fn a_run_without_a_summary_is_unfinished() {
    let space = diamond();
    let run = space.run("").ok().json()["run"].as_str().unwrap().to_owned();
    let folder = format!("cache/run/{run}");
    let journal = space.read(&format!("{folder}/events.jsonl"));
    let cut = journal.find("\"stage-finished\"").unwrap() + 5;
    space.file(&format!("{folder}/events.jsonl"), &journal[..cut]);
    std::fs::remove_file(space.path(&format!("{folder}/summary.json"))).unwrap();
    let rows = list(&space, "p");
    assert_eq!(
        (texts(&rows, "status"), texts(&rows, "pipeline")),
        (vec!["unfinished".into()], vec!["p".to_owned()])
    );
    assert_eq!(rows[0]["running"], serde_json::json!(["source"]));
    let text = space.does("history").ok().stdout;
    assert!(text.contains("unfinished") && text.contains("  in `source`"), "{text}");
    let told = wrong(&space, &format!("diff {run} last"));
    assert!(told.contains("has no summary") && told.contains("it was killed"), "{told}");
    assert!(wrong(&space, "diff last last").contains("there is no run `last`"));
}

#[test]
fn a_changed_value_is_told_with_its_reason_and_what_follows_from_it() {
    let space = diamond();
    let first = space.run("").ok().json()["run"].as_str().unwrap().to_owned();
    space.run("--set word=\"two\"").ok();
    let told = diff(&space, "last~1 last");
    assert_eq!((&told["a"]["run"], &told["same"]), (&Value::from(first.as_str()), &Value::from(0)));
    let stages = told["stages"].as_array().unwrap();
    assert_eq!(texts(stages, "name"), ["source", "upper", "copy", "count"]);
    let reasons = |i: usize| stages[i]["reasons"][0].as_str().unwrap();
    assert!(reasons(0).starts_with("parameter `argv.2` changed: "), "{told}");
    assert_eq!(reasons(2), "input `inputs.text` has other content");
    assert_eq!(stages[1]["outputs"][0]["port"], "out");
    assert_ne!(stages[1]["outputs"][0]["a"], stages[1]["outputs"][0]["b"]);
    assert!(stages[1]["a"]["seconds"].is_f64() && stages[1]["b"]["status"] == "ran", "{told}");
    assert_eq!(diff(&space, "last last")["same"], 4);
    let text = space.does(&format!("diff {first} last~0")).ok().stdout;
    for part in
        ["  ~ source", "parameter `argv.2` changed", "output `out` has other bytes", "4 stages: 4 changed"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn a_hit_costs_what_its_record_says_and_is_the_same() {
    let space = diamond();
    space.run("").ok();
    space.run("").ok();
    let told = diff(&space, "last~1 last");
    assert_eq!((&told["same"], told["stages"].as_array().unwrap().len()), (&Value::from(4), 0));
    space.edit("cp\"", "false\"");
    space.run("--keep-going").exits(1);
    let told = diff(&space, "last~1 last");
    let stages = told["stages"].as_array().unwrap();
    assert_eq!(texts(stages, "name"), ["copy", "count"]);
    assert_eq!((&stages[0]["a"]["status"], &stages[0]["b"]["status"]), (&"cached".into(), &"failed".into()));
    assert!(stages[0]["a"]["seconds"].as_f64().unwrap() > 0.0, "{told}");
    let why = stages[0]["reasons"][0].as_str().unwrap();
    assert!(why.starts_with("failed in b: `false` ended with exit code 1"), "{why}");
    assert_eq!(stages[1]["reasons"][0], "blocked in b: needs `copy`, which failed");
}

#[test]
fn stages_of_one_run_only_are_told_apart() {
    let space = diamond();
    space.run("").ok();
    space.edit("[stage.copy]", "[stage.twin]");
    space.edit("copy = \"copy\"", "copy = \"twin\"");
    space.run("").ok();
    let told = diff(&space, "last~1 last");
    assert_eq!(
        (&told["only_a"], &told["only_b"]),
        (&serde_json::json!(["copy"]), &serde_json::json!(["twin"]))
    );
    assert_eq!(told["same"], 3, "a name is in no key");
}

const SCORED: &str = r#"
[vars]
kl = 0.5

[stage.eval]
kind = "exec"
argv = ["sh", "-c", "echo '{{\"models\": [{{\"model\": \"healed\", \"kl\": ${kl}, \"n\": 7}}]}}' > {out}/scores.json"]
outputs = ["scores.json"]
"#;

#[test]
fn figures_that_differ_are_a_table() {
    let space = Space::new(SCORED);
    space.run("").ok();
    space.run("--set kl=0.25").ok();
    let told = diff(&space, "last~1 last");
    let table = &told["stages"][0]["scores"][0];
    assert_eq!(table["port"], "out");
    let expected = serde_json::json!([{ "name": "models.healed.kl", "a": 0.5, "b": 0.25, "change": -0.25 }]);
    assert_eq!(table["values"], expected);
    let text = space.does("diff last~1 last").ok().stdout;
    assert!(text.contains("  eval.out\n") && text.contains("−50.0 %"), "{text}");
}

#[test]
fn a_run_that_is_not_there_is_told_with_a_hint() {
    let space = diamond();
    let run = space.run("").ok().json()["run"].as_str().unwrap().to_owned();
    space.run("").ok();
    let near = format!("{}x", &run[..run.len() - 1]);
    let told = wrong(&space, &format!("diff {near} last"));
    assert!(told.contains(&format!("there is no run `{near}`\nhelp: did you mean `")), "{told}");
    assert!(wrong(&space, "diff last~9 last").ends_with("help: 2 runs ended so far\n"));
    let told = wrong(&space, "diff 2 last");
    assert!(told.contains("several runs begin with `2`\nhelp: name one: `20"), "{told}");
    let told = space.does("diff gone last --format json").exits(2).json();
    assert_eq!((told["status"].as_str(), told["exit"].as_u64()), (Some("error"), Some(2)));
}
