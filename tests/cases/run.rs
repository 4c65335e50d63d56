//! What `run` does and tells.

use serde_json::json;

use crate::harness::{pipelines::DIAMOND, space::Space};

fn diamond() -> Space {
    let space = Space::new(DIAMOND);
    space.file("in/a.txt", "hello\n");
    space
}

#[test]
fn a_first_run_makes_everything() {
    let space = diamond();
    let ran = space.run("").ok().ran(["source", "upper", "copy", "count"]);
    let json = ran.json();
    assert_eq!((&json["status"], json["stages"].as_array().unwrap().len()), (&json!("ok"), 4));
    assert!(json["run"].is_string() && json["seconds"].as_f64().unwrap() > 0.0, "{json}");
    let upper = ran.stage("upper");
    let fields: Vec<&String> = upper.as_object().unwrap().keys().collect();
    let mut expected =
        ["name", "kind", "status", "why", "seconds", "key", "outputs", "attempts", "log", "peak_memory"];
    expected.sort_unstable();
    let mut found = fields.iter().map(|field| field.as_str()).collect::<Vec<_>>();
    found.sort_unstable();
    assert_eq!(found, expected);
    let output = &upper["outputs"]["out"];
    assert_eq!(output["bytes"], 10);
    let path = std::path::Path::new(output["path"].as_str().unwrap());
    assert_eq!(std::fs::read_to_string(path).unwrap(), "HELLO\nONE\n");
}

#[test]
fn a_bare_manifest_is_a_run_and_text_goes_to_a_table() {
    let ran = diamond().does("p.toml").ok();
    assert!(ran.stdout.contains("4 stages: 4 ran"), "{}", ran.stdout);
    assert!(ran.stdout.contains("  upper   ran"), "{}", ran.stdout);
    assert!(ran.stderr.contains("✓ upper"), "{}", ran.stderr);
    assert!(!ran.stdout.contains('\x1b') && !ran.stderr.contains('\x1b'), "no colours in files");
}

#[test]
fn a_failure_stops_what_needs_it() {
    let space = diamond();
    space.edit("tr a-z A-Z < {in.text}/text > {out}/text", "echo bad luck; exit 3");
    let ran = space.run("--jobs 1").exits(1);
    assert_eq!(ran.json()["status"], "failed");
    assert_eq!(
        ran.stage("upper")["why"],
        "`sh` ended with exit code 3; the last lines of its log:\n  bad luck"
    );
    assert_eq!(ran.stage("count")["status"], "blocked");
    assert_eq!(ran.stage("count")["why"], "needs `upper`, which failed");
    assert_eq!(ran.stage("copy")["status"], "skipped");
    assert!(ran.stderr.contains("bad luck"), "{}", ran.stderr);
}

#[test]
fn keep_going_runs_what_does_not_need_the_failure() {
    let space = diamond();
    space.edit("tr a-z A-Z < {in.text}/text > {out}/text", "exit 3");
    let ran = space.run("--jobs 1 --keep-going").exits(1).ran(["source", "copy"]);
    assert_eq!(ran.stage("count")["status"], "blocked");
}

#[test]
fn selections() {
    let space = diamond();
    space.run("--until upper").ok().ran(["source", "upper"]);
    space.run("--only copy").ok().ran(["copy"]);
    let blocked = space.run("--only count --force count --set word=\"x\"").exits(1);
    assert_eq!(blocked.stage("count")["status"], "blocked");
    space.run("--from upper").ok().ran(["count"]);
    space.run("--force upper").ok().ran(["upper"]).hits(3);
    space.run("--force all").ok().ran(["source", "upper", "copy", "count"]);
}

#[test]
fn wrong_words_are_told_with_exit_code_2() {
    let space = diamond();
    let check = |words: &str, expected: &str| {
        let ran = space.does(words).exits(2);
        assert!(ran.stderr.contains(expected) && ran.stdout.is_empty(), "{words}: {}", ran.stderr);
    };
    check("p.toml --only uper", "error: there is no stage `uper`\nhelp: did you mean `upper`?");
    check("p.toml --device tpu", "unknown device `tpu`");
    check("p.toml --jobs 0", "--jobs");
    check("p.toml --nonsense", "--nonsense");
    check("why upper", "nothing was run with the cache");
    check("cache ls --cache nowhere", "there is no cache `nowhere`");
    check("stages exek", "did you mean `exec`?");
}

#[test]
fn a_wrong_manifest_is_told_with_exit_code_3_and_touches_nothing() {
    let space = diamond();
    space.edit("outputs = [\"count\"]", "outpust = [\"count\"]");
    let before = space.tree("cache");
    let ran = space.does("p.toml").exits(3);
    assert!(ran.stderr.contains("outpust") && ran.stderr.contains("p.toml:27"), "{}", ran.stderr);
    space.does("check p.toml").exits(3);
    assert_eq!(space.tree("cache"), before);
}

#[test]
fn the_cache_is_where_the_manifest_is() {
    let space = diamond();
    space.file("deep/p.toml", "[stage.x]\nkind = \"exec\"\nargv = [\"touch\", \"{out}/x\"]\noutputs = [\"x\"]\nallow-empty = true\n");
    space.does("deep/p.toml").ok();
    assert!(space.path("cache/FORMAT").is_file());
    space.does("deep/p.toml --cache other").ok();
    assert!(space.path("other/FORMAT").is_file());
}

#[test]
fn an_unknown_cache_format_is_refused_with_exit_code_5() {
    let space = diamond();
    space.file("cache/FORMAT", "mla-run cache 99\n");
    let ran = space.does("p.toml").exits(5);
    assert!(ran.stderr.contains("mla-run cache 99"), "{}", ran.stderr);
}

#[test]
fn a_matrix_is_one_stage_a_value() {
    let space = Space::new(
        "[stage.a]\nkind = \"exec\"\nargv = [\"sh\", \"-c\", \"echo {seed} > {out}/x\"]\noutputs = [\"x\"]\nmatrix = { seed = [1, 2] }\n",
    );
    space.run("").ok().ran(["a[seed=1]", "a[seed=2]"]);
    let ran = space.does("why a").exits(2);
    assert!(ran.stderr.contains("name one: `a[seed=1]`, `a[seed=2]`"), "{}", ran.stderr);
}

#[test]
fn a_trace_shows_when_each_stage_ran() {
    let space = diamond();
    space.run("--trace trace.json --until upper").ok();
    let text = std::fs::read_to_string(space.path("trace.json")).unwrap();
    let trace: serde_json::Value = serde_json::from_str(&text).unwrap();
    let bars: Vec<&serde_json::Value> =
        trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "X").collect();
    let names: Vec<&str> = bars.iter().map(|bar| bar["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["source", "upper"]);
    let end = |bar: &serde_json::Value| bar["ts"].as_u64().unwrap() + bar["dur"].as_u64().unwrap();
    assert!(end(bars[0]) <= bars[1]["ts"].as_u64().unwrap(), "`upper` reads `source`: {text}");
    space.does("run p.toml --trace no/such/folder.json").exits(1);
}

#[test]
fn the_log_says_what_was_found_and_what_was_made() {
    let space = diamond();
    assert!(!space.run("").ok().stderr.contains("hit"), "silent unless asked");
    let again = space.run("--log debug --force upper").ok().stderr;
    for words in ["stage=\"source\" ", ": hit ", "stage{name=\"upper\"}", "recorded key="] {
        assert!(again.contains(words), "{words} in {again}");
    }
    assert!(!space.run("--log mla_run::store=debug").ok().stderr.contains("hit"), "a filter by module");
    let wrong = space.does("run p.toml --log a=b=c").exits(2).stderr;
    assert!(wrong.contains("`--log a=b=c`") && wrong.contains("help: give a level"), "{wrong}");
}

/// A path belongs to the file that says it: in a variable, to the file that gives it its value.
#[test]
fn a_path_is_relative_to_the_manifest_that_says_it() {
    let space = Space::new("[pipeline]\nextends = 'base/b.toml'\n[vars]\nmine = 'in/*.txt'\n");
    space.file(
        "base/b.toml",
        "[vars]\nmine = 'nowhere/*'\ntheirs = 'own/*.txt'\n[stage.all]\nkind = 'exec'\n\
         argv = ['sh', '-c', 'cat in/*.txt own/*.txt fixed.txt > {out}/text']\n\
         files = ['${mine}', '${theirs}', 'fixed.txt']\noutputs = ['text']\n",
    );
    for (name, text) in
        [("in/a.txt", "mine\n"), ("base/own/a.txt", "theirs\n"), ("base/fixed.txt", "fixed\n")]
    {
        space.file(name, text);
    }
    let text = |ran: crate::harness::space::Ran| {
        let path = ran.stage("all")["outputs"]["out"]["path"].as_str().unwrap().to_owned();
        std::fs::read_to_string(path).unwrap()
    };
    assert_eq!(text(space.run("").ok()), "mine\ntheirs\nfixed\n");
    // A word of the command line stands beside the manifest that is run.
    space.file("in/b.txt", "set\n");
    assert_eq!(
        text(space.run("--set theirs='in/b.txt' --set all.argv=['cp','in/b.txt','{out}/text']").ok()),
        "set\n"
    );
}
