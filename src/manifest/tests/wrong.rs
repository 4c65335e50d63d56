//! Wrong manifests: for each, what is told, at which text, and what to do about it.

use super::*;

/// Faults as `message | text underlined | hint`, one a line.
fn told(text: &str) -> String {
    told_with(text, &Options::default())
}

fn told_with(text: &str, options: &Options) -> String {
    let sources = sources(&[("m.toml", text)], options);
    let (_, faults) = Manifest::parse(&sources);
    let line = |fault: &Fault| {
        let under = fault.place.as_ref().map_or("-", |place| sources.text(place));
        format!("{} | {under} | {}\n", fault.error, fault.hint.as_deref().unwrap_or("-"))
    };
    faults.iter().map(line).collect()
}

#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let found = told(text);
    assert_eq!(found.lines().collect::<Vec<_>>(), expected, "{text}");
}

#[test]
fn sections_of_the_wrong_type() {
    let section = "write it as a section, or as `{ key = value }`";
    for (text, what, found, under) in [
        ("stage = 'x'", "[stage]", "a string", "'x'"),
        ("[stage]\na = 1.5", "[stage.a]", "a float", "1.5"),
        ("[stage]\na = true", "[stage.a]", "a boolean", "true"),
        ("[stage]\na = 1979-05-27", "[stage.a]", "a date", "1979-05-27"),
        ("[stage]\na = [{}]", "[stage.a]", "an array", "[{}]"),
        ("pipeline = -3\n[stage.a]", "[pipeline]", "a negative number", "-3"),
        ("vars = 3\n[stage.a]", "[vars]", "an integer", "3"),
        ("profile = 'q'\n[stage.a]", "[profile]", "a string", "'q'"),
        ("[profile]\nq = []\n[stage.a]", "[profile.q]", "an array", "[]"),
        ("[stage.a]\nmatrix = [1]", "`matrix`", "an array", "[1]"),
    ] {
        check(text, &[&format!("{what} must be a table, found {found} | {under} | {section}")]);
    }
}

#[test]
fn common_keys_of_the_wrong_type() {
    let quotes = "put it in quotes";
    let number = "any such number will do; equal seeds give equal results";
    let whole = "must be a whole number from 0 to 2^64 - 1, found";
    for (text, expected) in [
        ("[stage.a]\nkind = true", format!("`kind` must be a string, found a boolean | true | {quotes}")),
        (
            "[stage.a]\nkind = { x = 1 }",
            format!("`kind` must be a string, found a table | {{ x = 1 }} | {quotes}"),
        ),
        ("[stage.a]\nsalt = 1.5", format!("`salt` must be a string, found a float | 1.5 | {quotes}")),
        ("[stage.a]\nseed = 1.0", format!("`seed` {whole} a float | 1.0 | {number}")),
        ("[stage.a]\nseed = '1'", format!("`seed` {whole} a string | '1' | {number}")),
        (
            "[stage.a]\nseed = 18446744073709551616",
            format!("`seed` {whole} an integer | 18446744073709551616 | {number}"),
        ),
        (
            "[pipeline]\nname = 1\n[stage.a]",
            format!("`name` must be a string, found an integer | 1 | {quotes}"),
        ),
        (
            "[pipeline]\nextends = []\n[stage.a]",
            format!("`extends` must be a string, found an array | [] | {quotes}"),
        ),
        ("[pipeline]\nseed = {}\n[stage.a]", format!("`seed` {whole} a table | {{}} | {number}")),
    ] {
        check(text, &[&expected]);
    }
}

#[test]
fn names_of_stages_are_what_inputs_can_write() {
    let hint = "use letters, digits, `-` and `_`";
    for name in ["a b", "a.b", "a[1]", "é", "a,b", "a=b", ""] {
        let expected = format!("`{name}` cannot be the name of a stage | \"{name}\" | {hint}");
        check(&format!("[stage.\"{name}\"]"), &[&expected]);
    }
    for name in ["a", "A-1_b", "0", "-", "_"] {
        check(&format!("[stage.{name}]"), &[]);
    }
}

#[test]
fn unknown_keys_are_told_with_the_nearest_known_one() {
    check(
        "[stages.a]\n[stage.a]",
        &["unknown key `stages` in the manifest | stages | did you mean `stage`?"],
    );
    check(
        "x = 1\n[stage.a]",
        &[
            "unknown key `x` in the manifest | x | known keys: `pipeline`, `vars`, `cache`, `executor`, `profile`, `stage`",
        ],
    );
    check(
        "[pipeline]\nsed = 1\n[stage.a]",
        &["unknown key `sed` in [pipeline] | sed | did you mean `seed`?"],
    );
    check(
        "[profile.p.stages.a]\n[stage.a]",
        &["unknown key `stages` in [profile.p] | stages | did you mean `stage`?"],
    );
}

#[test]
fn axes_are_checked_one_by_one() {
    let remove = "remove one of the two";
    let keep = "keep one of the two";
    let text = "a string may hold anything but `[`, `]`, `,` and line breaks";
    let a = |matrix: &str| format!("[stage.a]\nmatrix = {{ {matrix} }}");
    check(&a("x = []"), &["axis `x` of the matrix has no values | [] | give it a value, or remove the axis"]);
    check(
        &a("x = 'y'"),
        &["axis `x` of the matrix must be an array of values, found one value | 'y' | write `[64, 96]`"],
    );
    check(&a("x = [1, '1']"), &[&format!("axis `x` of the matrix lists 1 twice | '1' | {remove}")]);
    check(
        &a("x = [true, true, false]"),
        &[&format!("axis `x` of the matrix lists true twice | true | {remove}")],
    );
    for (value, under) in [("'a,b'", "'a,b'"), ("'[a'", "'[a'"), ("'a]'", "'a]'"), ("\"a\\nb\"", "\"a\\nb\"")]
    {
        let expected = format!(
            "axis `x` of the matrix holds string; a value must be a string, a number or a boolean | {under} | {text}"
        );
        check(&a(&format!("x = [1, {value}]")), &[&expected]);
    }
    for (value, found) in [("[1]", "array"), ("{ y = 1 }", "table"), ("1979-05-27", "datetime")] {
        let expected = format!(
            "axis `x` of the matrix holds {found}; a value must be a string, a number or a boolean | {value} | {text}"
        );
        check(&a(&format!("x = [1, {value}]")), &[&expected]);
    }
    for key in ["kind", "salt", "matrix"] {
        let hint = "an axis varies a parameter of the stage, or `seed`";
        check(
            &a(&format!("{key} = ['x']")),
            &[&format!("`{key}` cannot be an axis of a matrix | {key} | {hint}")],
        );
    }
    check(
        &format!("{}\nx = 2", a("x = [1]")),
        &[&format!("parameter `x` is also an axis of the matrix | x | {keep}")],
    );
    check(
        &format!("{}\nseed = 2", a("seed = [1]")),
        &[&format!("parameter `seed` is also an axis of the matrix | 2 | {keep}")],
    );
    check(&a("x = [1.5, 'é x', -2, true]"), &[]);
}

#[test]
fn a_wrong_axis_is_no_parameter_and_the_others_stay() {
    let sources =
        sources(&[("m.toml", "[stage.a]\nmatrix = { kind = ['b'], x = [1], y = [] }")], &Options::default());
    let (manifest, faults) = Manifest::parse(&sources);
    assert_eq!(faults.len(), 2, "{faults:?}");
    let manifest = manifest.unwrap();
    let axes: Vec<_> = manifest.stages[0].matrix.iter().map(|axis| axis.key.get_ref().to_string()).collect();
    assert_eq!(axes, ["x"]);
}

#[test]
fn variables_are_told_once_each_and_where_they_stand() {
    let plain = "write `$${` for a plain `${`";
    check(
        "[stage.a]\nx = '${no}'",
        &[&format!("unknown variable `no` | ${{no}} | there are no variables; {plain}")],
    );
    check(
        "[vars]\nrank = 1\n[stage.a]\nx = [1, { y = 'a ${rnk} b ${zz}' }]",
        &[
            "unknown variable `rnk` | ${rnk} | did you mean `rank`?",
            &format!("unknown variable `zz` | ${{zz}} | known variables: `rank`; {plain}"),
        ],
    );
    check(
        "[stage.a]\nx = 'a ${b'",
        &["`${` without a closing `}` | 'a ${b' | close it with `}`, or write `$${` for a plain `${`"],
    );
    check(
        "[vars]\nt = { p = 1 }\n[stage.a]\nx = 'a${t}'",
        &[
            "variable `t` is a table and cannot stand inside a longer string | ${t} | let the string be `${t}` alone, and it becomes the table",
        ],
    );
    // One wrong variable used twice: what uses it says nothing more.
    check(
        "[vars]\na = '${no}'\n[stage.a]\nx = '${a}'\ny = 'y${a}'",
        &[&format!("unknown variable `no` | ${{no}} | known variables: `a`; {plain}")],
    );
    check(
        "[vars]\na = '${a}'\n[stage.a]\nx = '${a}'",
        &["variables need each other: a → a | a | give one of them a plain value"],
    );
    check(
        "[pipeline]\nname = '${no}'\nseed = '${no}'\n[stage.a]\nkind = '${no}'",
        &[
            &format!("unknown variable `no` | ${{no}} | there are no variables; {plain}"),
            &format!("unknown variable `no` | ${{no}} | there are no variables; {plain}"),
            &format!("unknown variable `no` | ${{no}} | there are no variables; {plain}"),
        ],
    );
}

#[test]
fn an_unknown_key_of_the_chosen_profile_is_told_once() {
    let text = "[profile.p]\nstag = 1\npipeline = {}\nvars.v = 1\n[stage.a]\nx = '${v}'";
    let options = Options { profile: Some("p".into()), set: Vec::new() };
    let expected = "\
unknown key `stag` in [profile.p] | stag | did you mean `stage`?
unknown key `pipeline` in [profile.p] | pipeline | known keys: `vars`, `cache`, `executor`, `stage`
";
    assert_eq!(told_with(text, &options), expected);
}

#[test]
fn a_wrong_set_does_not_stop_the_others() {
    let options =
        Options { profile: None, set: vec!["nope=1".into(), "x".into(), "a.seed=-1".into(), "v=2".into()] };
    let found = told_with("[vars]\nv = 1\n[stage.a]\nseed = 1", &options);
    let expected = "\
unknown variable `nope` | nope | known variables: `v`; a parameter is `STAGE.PARAMETER`
`--set` needs the form NAME=VALUE or STAGE.PARAMETER=VALUE | x | write `rank=96` or `svd.rank=96`
`seed` must be a whole number from 0 to 2^64 - 1, found a negative number | -1 | any such number will do; equal seeds give equal results
";
    assert_eq!(found, expected);
}

#[test]
fn syntax_is_told_with_what_to_do() {
    let hints = |text: &str| -> Vec<String> {
        told(text).lines().map(|line| line.rsplit(" | ").next().unwrap().to_owned()).collect()
    };
    for (text, hint) in [
        ("a = text", "put text in quotes"),
        ("a = tru", "put text in quotes"),
        ("a = ['x' 'y']", "put a `,` here, or close the bracket before it"),
        ("a = [1, 2", "close what is open: a bracket or a quote"),
        ("[a]\n[a]", "the name is used twice: remove one or rename it"),
        ("a = 1\na = 2", "the name is used twice: remove one or rename it"),
        ("a 1", "https://toml.io shows how TOML is written"),
    ] {
        assert_eq!(hints(text), [hint], "{text}");
    }
}
