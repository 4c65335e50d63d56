//! `why`, `plan`, `show`, `stages`, `graph` and `schema`: what the program says about itself.

use crate::harness::{pipelines::DIAMOND, space::Space};

fn ran_once() -> Space {
    let space = Space::new(DIAMOND);
    space.file("in/a.txt", "hello\n");
    space.run("").ok();
    space
}

#[test]
fn why_names_the_parameter_with_both_values() {
    let space = ran_once();
    let why = |words: &str| space.does(&format!("why {words}")).ok().stdout;
    let expected = "`upper` will run:\n  parameter `allow-empty` changed: false -> true\n";
    assert_eq!(why("upper p.toml --set upper.allow-empty=true"), expected);
    assert_eq!(why("p.toml upper --set upper.allow-empty=true"), expected);
    assert_eq!(why("upper"), "`upper` is cached; why it ran:\n  never run\n");
    space.run("--set upper.allow-empty=true").ok();
    // The last run's manifest, `--set` included.
    assert_eq!(
        why("upper"),
        "`upper` is cached; why it ran:\n  parameter `allow-empty` changed: false -> true\n"
    );
}

#[test]
fn why_names_files_and_inputs() {
    let space = ran_once();
    space.file("in/a.txt", "other\n");
    space.file("in/b.txt", "new\n");
    let why = space.does("why source p.toml").ok().stdout;
    assert!(
        why.contains("file `in/a.txt` has other content") && why.contains("file `in/b.txt` is new"),
        "{why}"
    );
    let ran = space.run("").ok();
    assert_eq!(ran.why("copy"), "input `inputs.text` has other content");
}

#[test]
fn a_plan_says_what_would_run_and_runs_nothing() {
    let space = ran_once();
    space.file("in/a.txt", "other\n");
    let plan = space.does("plan p.toml --format json").ok();
    let statuses: Vec<String> = plan.json()["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stage| format!("{} {}", stage["name"].as_str().unwrap(), stage["status"].as_str().unwrap()))
        .collect();
    assert_eq!(statuses, ["source run", "upper maybe", "copy maybe", "count maybe"]);
    space.file("in/a.txt", "hello\n");
    space.run("").ok().hits(4);
    let text = space.does("plan p.toml").ok().stdout;
    assert!(text.contains("4 stages: 4 cached"), "{text}");
}

#[test]
fn a_plan_says_which_files_are_missing() {
    let space = Space::new(DIAMOND);
    let plan = space.does("plan p.toml --format json").ok();
    assert_eq!(plan.with_status("blocked"), ["source", "upper", "copy", "count"]);
    assert!(plan.why("source").contains("no file matches `in/*.txt`"), "{}", plan.stdout);
    assert_eq!(plan.why("copy"), "needs `source`, whose own files are not all there");
    space.does("p.toml").exits(3);
}

#[test]
fn show_tells_paths_and_contents() {
    let space = ran_once();
    let path = space.does("show upper out --path").ok().stdout;
    assert_eq!(std::fs::read_to_string(path.trim()).unwrap(), "HELLO\nONE\n");
    let text = space.does("show p.toml upper out").ok().stdout;
    assert!(text.contains("10 B") && text.ends_with("\nHELLO\nONE\n"), "{text}");
    let text = space.does("show upper").ok().stdout;
    assert!(text.starts_with("upper (exec), key ") && text.contains("never run"), "{text}");
    let wrong = space.does("show upper oot").exits(2);
    assert!(wrong.stderr.contains("did you mean `out`?"), "{}", wrong.stderr);
    space.file("in/a.txt", "other\n");
    let gone = space.does("show upper p.toml").exits(1);
    assert!(gone.stderr.contains("is not in the cache as the manifest stands"), "{}", gone.stderr);
}

#[test]
fn graphs() {
    let space = ran_once();
    let draw = |format: &str| space.does(&format!("graph p.toml --format {format}")).ok().stdout;
    assert!(draw("mermaid").contains("-->|\"inputs.upper\"|"), "{}", draw("mermaid"));
    assert!(draw("dot").starts_with("digraph"));
    assert!(draw("svg").ends_with("</svg>\n"));
}

#[test]
fn a_graph_shows_what_a_run_would_do() {
    let space = ran_once();
    space.file("in/a.txt", "other\n");
    let draw = |words: &str| space.does(&format!("graph p.toml --status {words}")).ok().stdout;
    let mermaid = draw("");
    assert!(mermaid.contains("[\"source<br><small>exec · run</small>\"]:::run\n"), "{mermaid}");
    assert!(mermaid.contains("  classDef maybe fill:"), "{mermaid}");
    let some = draw("--until upper --format dot");
    assert!(some.contains("[label=\"count\\nexec · skipped\", style=\"rounded,filled,dashed\""), "{some}");
    std::fs::remove_file(space.path("in/a.txt")).unwrap();
    let svg = draw("--format svg");
    assert!(svg.contains(">blocked 4</text>") && !svg.contains(">run "), "{svg}");
    assert!(!space.does("graph p.toml").ok().stdout.contains("class"), "as it is without --status");
}

#[test]
fn a_graph_without_a_status_needs_no_cache() {
    let space = Space::new(DIAMOND);
    space.does("graph p.toml").ok();
    assert!(!space.path("cache/FORMAT").exists());
}

#[test]
fn the_schema_and_the_manual_come_from_the_stages() {
    let space = ran_once();
    let schema: serde_json::Value = serde_json::from_str(&space.does("schema").ok().stdout).unwrap();
    assert!(schema.to_string().contains("allow-empty"), "{schema}");
    let manual = space.does("stages exec").ok().stdout;
    assert!(manual.contains("argv — list of string, required"), "{manual}");
    assert!(space.does("stages").ok().stdout.contains("  exec  "));
}

#[test]
fn completions_and_help() {
    let space = ran_once();
    assert!(space.does("completions bash").ok().stdout.contains("mla-run"));
    let help = space.does("--help").ok().stdout;
    for command in [
        "run", "plan", "why", "check", "schema", "graph", "history", "diff", "show", "checkout", "stages",
        "cache",
    ] {
        assert!(help.contains(&format!("\n  {command} ")), "{command} in {help}");
    }
    assert!(help.contains("Exit codes:"), "{help}");
}

#[test]
fn check_needs_no_cache() {
    let space = Space::new(DIAMOND);
    let checked = space.does("check p.toml").ok().stdout;
    assert!(checked.contains("`p` is right: 4 stages; its own files are not all there yet:"), "{checked}");
    space.file("in/a.txt", "x");
    assert_eq!(space.does("check p.toml").ok().stdout, "`p` is right: 4 stages\n");
    assert!(!space.path("cache/FORMAT").exists());
}

#[test]
fn a_wrong_manifest_is_told_as_data_too() {
    let space = Space::new("[pipeline]\nname = 'p'\n[stage.a]\nkind = 'exce'\n");
    for command in ["run p.toml", "plan p.toml", "check p.toml", "why a p.toml"] {
        let told = space.does(&format!("{command} --format json")).exits(3).json();
        assert_eq!((told["status"].as_str(), told["exit"].as_u64()), (Some("error"), Some(3)), "{command}");
        let mistake = &told["mistakes"][0];
        assert_eq!((mistake["line"].as_u64(), mistake["column"].as_u64()), (Some(4), Some(8)), "{command}");
        assert!(mistake["hint"].as_str().unwrap().contains("exec"), "{mistake}");
    }
    let told = space.does("cache ls --cache nowhere --format json").exits(2).json();
    assert!(told["error"].as_str().unwrap().contains("nowhere"), "{told}");
}

#[test]
fn a_right_manifest_is_told_as_data_too() {
    let told = Space::new(DIAMOND).does("check p.toml --format json").ok().json();
    assert_eq!((told["status"].as_str(), told["stages"].as_u64()), (Some("ok"), Some(4)));
    assert_eq!(told["missing"].as_array().unwrap().len(), 1, "{told}");
}
