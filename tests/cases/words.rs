//! What each command answers to words that are right, wrong, or too many.

use std::process::Stdio;

use crate::harness::{pipelines::DIAMOND, space::Space};

const MATRIX: &str = "
[stage.a]
kind = 'exec'
argv = ['sh', '-c', 'echo {seed} > {out}/x; echo ${word} > {out}/y']
outputs = ['x', 'y']
matrix = { seed = [1, 2] }

[stage.b]
kind = 'exec'
argv = ['sh', '-c', 'cat {in.a}/* > {out}/sum']
inputs = { a = 'a' }
outputs = ['sum']

[stage.first]
kind = 'exec'
argv = ['cp', '{in.a}/x', '{out}/x']
inputs = { a = 'a[seed=1]' }
outputs = ['x']

[vars]
word = 'one'

[profile.loud.vars]
word = 'ONE'
";

fn diamond() -> Space {
    let space = Space::new(DIAMOND);
    space.file("in/a.txt", "hello\n");
    space.run("").ok();
    space
}

fn matrix() -> Space {
    let space = Space::new(MATRIX);
    space.run("").ok();
    space
}

/// The error of a command, with its hint.
#[track_caller]
fn wrong(space: &Space, words: &str, code: i32) -> String {
    let ran = space.does(words).exits(code);
    assert_eq!(ran.stdout, "", "{words}");
    ran.stderr
}

#[test]
fn a_stage_that_is_not_there_is_told_the_same_way_by_every_command() {
    let space = diamond();
    for command in [
        "why uper",
        "show uper",
        "checkout uper out",
        "run p.toml --only uper",
        "run p.toml --force uper",
        "plan p.toml --until uper",
        "plan p.toml --from upper,uper",
    ] {
        let expected = "error: there is no stage `uper`\nhelp: did you mean `upper`?\n";
        assert_eq!(wrong(&space, command, 2), expected, "{command}");
    }
    assert!(!space.path("out").exists());
}

#[test]
fn a_word_too_many_is_not_passed_over() {
    let space = diamond();
    for (words, extra) in [
        ("why upper copy", "copy"),
        ("why upper p.toml q.toml", "q.toml"),
        ("show upper out more", "more"),
        ("show upper out p.toml more", "more"),
        ("checkout upper out more", "more"),
    ] {
        let told = wrong(&space, words, 2);
        let own = format!(
            "error: `{extra}` is one word too many\nhelp: a manifest is told by its ending `.toml`\n"
        );
        // Beyond the number of words that a command takes at all, the parser says so.
        assert!(told == own || told.contains(&format!("unexpected value '{extra}'")), "{words}: {told}");
    }
    let two = "error: `upper` has no output `p.toml`\nhelp: known outputs: `out`\n";
    assert_eq!(wrong(&space, "show upper p.toml p.toml", 2), two, "one manifest is enough");
    assert!(wrong(&space, "why p.toml", 2).starts_with("error: no stage was named"));
    assert!(
        wrong(&space, "checkout upper p.toml", 2).starts_with("error: `checkout` needs a stage and a folder")
    );
}

#[test]
fn a_stage_with_variants_is_named_with_one_of_them() {
    let space = matrix();
    let several = "error: `a` has several variants\nhelp: name one: `a[seed=1]`, `a[seed=2]`\n";
    for words in ["why a", "show a", "show a out", "checkout a out"] {
        assert_eq!(wrong(&space, words, 2), several, "{words}");
    }
    assert_eq!(space.does("why a[seed=2]").ok().stdout, "`a[seed=2]` is cached; why it ran:\n  never run\n");
    let path = space.does("show b[seed=2] out --path").ok().stdout;
    assert_eq!(std::fs::read_to_string(path.trim()).unwrap(), "2\none\n");
    assert_eq!(space.does("checkout a[seed=1] here").ok().stdout, "here: 2 files, 6 B\n");
    assert_eq!((space.read("here/x"), space.read("here/y")), ("1\n".to_owned(), "one\n".to_owned()));
    assert_eq!(space.does("checkout first there").ok().stdout, "there: 1 file, 2 B\n");
    let told = wrong(&space, "show b[seed=3]", 2);
    assert!(told.contains("there is no stage `b[seed=3]`\nhelp: did you mean `b[seed=1]`?"), "{told}");
}

#[test]
fn a_name_without_its_variant_selects_all_variants() {
    let space = matrix();
    space.run("--force a").ok().ran(["a[seed=1]", "a[seed=2]"]).hits(3);
    space.run("--only b --force all").ok().ran(["b[seed=1]", "b[seed=2]"]);
    space.run("--only b[seed=1],first --force b[seed=1],first").ok().ran(["b[seed=1]", "first"]);
    let until = space.run("--until first --force all").ok().ran(["a[seed=1]", "first"]);
    assert_eq!(until.with_status("skipped"), ["a[seed=2]", "b[seed=1]", "b[seed=2]"]);
}

#[test]
fn the_words_of_the_last_run_are_remembered_and_new_ones_count_alone() {
    let space = matrix();
    space.does("p.toml --profile loud").ok();
    let shown = |words: &str| {
        let path = space.does(&format!("show a[seed=1] {words} --path")).ok().stdout;
        std::fs::read_to_string(std::path::Path::new(path.trim()).join("y")).unwrap()
    };
    assert_eq!(shown(""), "ONE\n", "the profile of the last run");
    assert_eq!(shown("p.toml"), "one\n", "a manifest alone is that manifest as it stands");
    assert_eq!(shown("--set word=\"one\""), "one\n");
    assert!(wrong(&space, "show a[seed=1] --set word=\"two\"", 1).contains("run it first"));
}

#[test]
fn files_that_are_missing_matter_to_those_who_are_meant() {
    let space = Space::new(DIAMOND);
    space.file("p.toml", &format!("{DIAMOND}\n[stage.alone]\nkind = \"exec\"\nargv = [\"touch\", \"{{out}}/x\"]\noutputs = [\"x\"]\nallow-empty = true\n"));
    space.run("--only alone").ok().ran(["alone"]);
    let told = space.run("--until upper").exits(3);
    assert!(told.stderr.contains("no file matches `in/*.txt`"), "{}", told.stderr);
    space.run("").exits(3);
    assert!(wrong(&space, "why upper p.toml", 3).contains("no file matches"));
    space.does("why alone p.toml").ok();
}

#[test]
fn every_shell_gets_a_script_that_knows_the_commands() {
    let space = Space::new("");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = space.does(&format!("completions {shell}")).ok().stdout;
        for word in ["mla-run", "checkout", "verify", "keep-going", "profile"] {
            assert!(script.contains(word), "{word} for {shell}");
        }
    }
    let told = wrong(&space, "completions tcsh", 2);
    assert!(told.contains("tcsh") && told.contains("possible values"), "{told}");
}

#[test]
fn every_command_has_its_help_and_the_version_is_that_of_the_package() {
    let space = Space::new("");
    for command in [
        "run",
        "plan",
        "why",
        "check",
        "schema",
        "graph",
        "history",
        "diff",
        "show",
        "checkout",
        "stages",
        "cache",
        "cache ls",
        "cache verify",
        "completions",
    ] {
        let help = space.does(&format!("{command} --help")).ok().stdout;
        assert!(help.contains("Usage: ") && help.lines().next().unwrap().len() > 10, "{command}: {help}");
    }
    let version = format!("mla-run {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(space.does("--version").ok().stdout, version);
    assert!(wrong(&space, "", 2).contains("Usage: "));
    assert!(wrong(&space, "rnu p.toml", 2).contains("rnu"));
}

#[test]
fn a_manifest_that_cannot_be_read_is_told_with_exit_code_3() {
    let space = diamond();
    space.file("folder/x", "");
    std::fs::write(space.path("latin.toml"), b"# caf\xe9\n").unwrap();
    std::fs::create_dir(space.path("dir.toml")).unwrap();
    for (words, part) in [
        ("gone.toml", "cannot read `gone.toml`"),
        ("check latin.toml", "a manifest is a UTF-8 text file that you may read"),
        ("graph dir.toml", "cannot read `dir.toml`"),
        ("plan folder", "cannot read `folder`"),
    ] {
        let told = wrong(&space, words, 3);
        assert!(told.contains(part) && told.ends_with("nothing was run\n"), "{words}: {told}");
    }
}

#[test]
fn a_cache_that_cannot_be_used_is_told_with_its_cause_and_exit_code_5() {
    let space = diamond();
    for words in ["p.toml --cache p.toml", "plan p.toml --cache in/a.txt"] {
        let told = wrong(&space, words, 5);
        assert!(
            told.starts_with("error: the cache cannot be used: ") && told.contains("Not a directory"),
            "{told}"
        );
    }
    assert!(wrong(&space, "cache ls --cache p.toml", 2).contains("there is no cache `p.toml`"));
}

#[test]
fn a_reader_that_stops_reading_is_no_failure() {
    let space = diamond();
    for words in [&["schema"][..], &["completions", "bash"], &["stages", "--format", "json"]] {
        let mut child = space.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]), "{words:?}");
    }
}

#[test]
fn a_pipeline_of_one_stage_is_told_in_the_singular() {
    let space = Space::new(
        "[stage.x]\nkind = \"exec\"\nargv = [\"sh\", \"-c\", \"echo 1 > {out}/x\"]\noutputs = [\"x\"]\n",
    );
    assert_eq!(space.does("check p.toml").ok().stdout, "`p` is right: 1 stage\n");
    let ran = space.does("p.toml").ok();
    assert!(ran.stdout.ends_with("\n  1 stage: 1 ran\n"), "{}", ran.stdout);
    assert!(ran.stderr.starts_with("p  1 stage on "), "{}", ran.stderr);
}

#[test]
fn a_graph_is_drawn_as_the_options_make_it() {
    let space = matrix();
    let draw = |words: &str| space.does(&format!("graph p.toml {words}")).ok().stdout;
    assert_eq!(draw("").matches("[\"").count(), 5);
    let one = draw("--set a.seed=7 --set first.inputs.a=a");
    assert!(one.contains("n0[\"a<br>") && one.contains("[\"b<br>"), "{one}");
    assert_eq!(draw("--set a.matrix.seed=[1,2,3]").matches("-->").count(), 4);
    assert_eq!(draw("--format svg").matches("<rect").count(), 5);
}
