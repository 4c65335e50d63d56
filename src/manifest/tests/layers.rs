//! What is left of a value that several layers write: files that extend each other, a profile, `--set`.

use serde_json::{Map, Value as Json, json};

use super::*;

const NAMES: [&str; 3] = ["top.toml", "middle.toml", "bottom.toml"];

/// The stages of up to three files, the first of which extends the second and so on, as
/// `{ name: { kind, parameters…, matrix: { axis: [labels] } } }`.
fn stages(texts: &[&str], profile: Option<&str>, set: &[&str]) -> Json {
    let extends = |i: usize| match texts.get(i + 1) {
        Some(_) => format!("[pipeline]\nextends = '{}'\n", NAMES[i + 1]),
        None => String::new(),
    };
    let texts: Vec<String> =
        texts.iter().enumerate().map(|(i, text)| format!("{}{text}", extends(i))).collect();
    let files: Vec<(&str, &str)> = NAMES.into_iter().zip(texts.iter().map(String::as_str)).collect();
    let options =
        Options { profile: profile.map(str::to_owned), set: set.iter().map(|&set| set.to_owned()).collect() };
    let sources = sources(&files, &options);
    let (manifest, faults) = Manifest::parse(&sources);
    assert!(faults.is_empty(), "{faults:?}");
    let all: Map<String, Json> =
        manifest.unwrap().stages.iter().map(|stage| (stage.name.clone(), shown(stage))).collect();
    Json::Object(all)
}

fn shown(stage: &Entry<'_>) -> Json {
    let mut out = json(&stage.table);
    out["kind"] = json!(stage.kind);
    if let Some(seed) = &stage.seed {
        out["seed"] = json!(seed.get_ref());
    }
    if let Some(salt) = &stage.salt {
        out["salt"] = json!(salt);
    }
    if !stage.matrix.is_empty() {
        let labels = |axis: &Axis<'_>| axis.values.iter().map(|(label, _)| json!(label)).collect::<Json>();
        let axes = stage.matrix.iter().map(|axis| (axis.key.get_ref().to_string(), labels(axis)));
        out["matrix"] = Json::Object(axes.collect());
    }
    out
}

#[track_caller]
fn check(texts: &[&str], profile: Option<&str>, set: &[&str], expected: &Json) {
    assert_eq!(&stages(texts, profile, set), expected, "{texts:#?} {profile:?} {set:?}");
}

#[test]
fn of_three_files_the_nearest_that_says_something_wins() {
    let bottom = "[stage.a]\nx = 1\ny = 1\nz = 1\nt = { p = 1, q = 1, r = 1 }";
    let middle = "[stage.a]\ny = 2\nz = 2\nt = { q = 2, r = 2 }";
    let top = "[stage.a]\nz = 3\nt.r = 3";
    let expected = json!({ "a": { "kind": "a", "x": 1, "y": 2, "z": 3, "t": { "p": 1, "q": 2, "r": 3 } } });
    check(&[top, middle, bottom], None, &[], &expected);
}

#[test]
fn arrays_and_tables_of_another_type_are_replaced_and_not_joined() {
    let below = "[stage.a]\nlist = [1, 2, 3]\ntable = { x = 1 }\nplain = 1";
    let above = "[stage.a]\nlist = [9]\ntable = 'now a text'\nplain = { y = 2 }";
    let expected = json!({ "a": { "kind": "a", "list": [9], "table": "now a text", "plain": { "y": 2 } } });
    check(&[above, below], None, &[], &expected);
}

#[test]
fn a_variable_of_the_base_takes_the_value_of_the_nearest_layer() {
    let below = "[vars]\nrank = 64\nname = 'r${rank}'\n[profile.q.vars]\nrank = 8\n[stage.a]\nx = '${name}'";
    let above = "[vars]\nrank = 96";
    let x = |texts: &[&str], profile, set: &[&str]| stages(texts, profile, set)["a"]["x"].clone();
    assert_eq!(x(&[below], None, &[]), "r64");
    assert_eq!(x(&[above, below], None, &[]), "r96");
    assert_eq!(x(&[above, below], Some("q"), &[]), "r8", "a profile lies over all files");
    assert_eq!(x(&[above, below], Some("q"), &["rank=2"]), "r2", "--set lies over a profile");
    assert_eq!(x(&[above, below], None, &["name='n-${rank}'"]), "n-96", "--set may use variables");
}

#[test]
fn a_profile_changes_adds_and_takes_away() {
    let text = "
        [stage.a]
        path = 'tiny'
        x = 1
        matrix.rank = [1, 2]
        [stage.b]
        [profile.q.stage.a]
        unset = ['path']
        hub = 'big'
        rank = 7
        [profile.q.stage.c]
        kind = 'b'
        [profile.other.stage.d]
    ";
    let plain = json!({
        "a": { "kind": "a", "path": "tiny", "x": 1, "matrix": { "rank": ["1", "2"] } },
        "b": { "kind": "b" },
    });
    check(&[text], None, &[], &plain);
    let quick = json!({
        "a": { "kind": "a", "hub": "big", "x": 1, "rank": 7 },
        "b": { "kind": "b" },
        "c": { "kind": "b" },
    });
    check(&[text], Some("q"), &[], &quick);
}

#[test]
fn a_profile_spread_over_two_files_is_one_profile() {
    let below = "[stage.a]\n[profile.q.stage.a]\nx = 1\ny = 1";
    let above = "[profile.q.stage.a]\ny = 2\nz = 2\n[stage.a]\nx = 9";
    let expected = json!({ "a": { "kind": "a", "x": 1, "y": 2, "z": 2 } });
    check(&[above, below], Some("q"), &[], &expected);
}

#[test]
fn unset_in_the_middle_lets_the_top_set_again() {
    let bottom = "[stage.a]\npath = 'x'\nkeep = 1\ndeep = { p = 1 }";
    let middle = "[stage.a]\nunset = ['path', 'deep']";
    check(&[middle, bottom], None, &[], &json!({ "a": { "kind": "a", "keep": 1 } }));
    let top = "[stage.a]\ndeep.q = 2";
    let expected = json!({ "a": { "kind": "a", "keep": 1, "deep": { "q": 2 } } });
    check(&[top, middle, bottom], None, &[], &expected);
    // A layer may take a parameter away and give it another value at once.
    let swap = "[stage.a]\nunset = ['deep']\ndeep = { q = 3 }";
    assert_eq!(stages(&[swap, bottom], None, &[])["a"]["deep"], json!({ "q": 3 }));
}

#[test]
fn another_kind_in_the_middle_starts_the_stage_afresh() {
    let bottom = "[stage.train]\nkind = 'svd'\nrank = 3\nseed = 5";
    let middle = "[stage.train]\nkind = 'distill'\nsteps = 1";
    let top = "[stage.train]\nsteps = 2\nlr = 1";
    let expected = json!({ "train": { "kind": "distill", "steps": 2, "lr": 1 } });
    check(&[top, middle, bottom], None, &[], &expected);
    let by_set = json!({ "train": { "kind": "exec" } });
    check(&[bottom], None, &["train.kind=exec"], &by_set);
}

#[test]
fn axes_are_laid_over_each_other_one_by_one() {
    let below = "[stage.a]\nmatrix = { rank = [1, 2], layout = ['x', 'y'], seed = [3] }";
    let a = |above: &str, set: &[&str]| stages(&[above, below], None, set)["a"].clone();
    let all = json!({ "layout": ["x", "y"], "rank": ["1", "2"], "seed": ["3"] });
    assert_eq!(a("", &[])["matrix"], all);
    let rank = a("[stage.a]\nmatrix.rank = [9]", &[])["matrix"].clone();
    assert_eq!(rank, json!({ "layout": ["x", "y"], "rank": ["9"], "seed": ["3"] }));
    let fixed = a("[stage.a]\nseed = 1\nlayout = 'z'", &[]);
    assert_eq!(fixed, json!({ "kind": "a", "seed": 1, "layout": "z", "matrix": { "rank": ["1", "2"] } }));
    let set = a("", &["a.rank=4", "a.matrix.layout=['w']"]);
    assert_eq!(set["matrix"], json!({ "layout": ["w"], "seed": ["3"] }));
    assert_eq!(set["rank"], 4);
    let varied = a("[stage.a]\nseed = 1\nx = 5", &["a.matrix.x=[1]"]);
    assert_eq!(varied["matrix"], json!({ "layout": ["x", "y"], "rank": ["1", "2"], "x": ["1"] }));
    assert_eq!((&varied["seed"], varied.get("x")), (&json!(1), None));
}

#[test]
fn sets_are_laid_in_the_order_given() {
    let text = "[vars]\nv = 1\n[stage.a]\nx = '${v}'\ndeep = { p = [1, { q = 2 }] }";
    let a = |set: &[&str]| stages(&[text], None, set)["a"].clone();
    assert_eq!(a(&["v=2", "v=3"])["x"], 3);
    assert_eq!(a(&["a.x=5", "v=2"])["x"], 5, "a fixed parameter no longer reads the variable");
    assert_eq!(a(&["a.deep.p.1.q=7", "a.deep.p.1.r=8"])["deep"]["p"], json!([1, { "q": 7, "r": 8 }]));
    assert_eq!(a(&["a.deep.p=[[0]]", "a.deep.p.0.0=4"])["deep"]["p"], json!([[4]]));
    assert_eq!(
        a(&["a.seed=3", "a.salt=x"]),
        json!({
            "kind": "a", "x": 1, "deep": { "p": [1, { "q": 2 }] }, "seed": 3, "salt": "x"
        })
    );
}

#[test]
fn stages_keep_the_order_of_the_lowest_file_and_new_ones_follow() {
    let bottom = "[stage.c]\n[stage.a]\n[profile.q.stage.p]\n[profile.q.stage.a]\nx = 1";
    let top = "[stage.z]\n[stage.a]\ny = 1\n[stage.b]";
    let files = [("top.toml", format!("[pipeline]\nextends = 'bottom.toml'\n{top}"))];
    let files = [(files[0].0, files[0].1.as_str()), ("bottom.toml", bottom)];
    let sources = sources(&files, &Options { profile: Some("q".into()), set: Vec::new() });
    let (manifest, _) = Manifest::parse(&sources);
    let names: Vec<String> = manifest.unwrap().stages.into_iter().map(|stage| stage.name).collect();
    assert_eq!(names, ["c", "a", "z", "b", "p"]);
}

#[test]
fn name_and_seed_of_the_pipeline_may_come_from_different_files_and_hold_variables() {
    let bottom = "[pipeline]\nname = 'base-${n}'\nseed = 7\n[vars]\nn = 1\n[stage.a]";
    let open = |top: &str, set: &[&str]| {
        let set = set.iter().map(|&set| set.to_owned()).collect();
        let files = [("top.toml", top), ("bottom.toml", bottom)];
        let sources = sources(&files, &Options { profile: None, set });
        let (manifest, faults) = Manifest::parse(&sources);
        assert!(faults.is_empty(), "{faults:?}");
        let manifest = manifest.unwrap();
        (manifest.name.clone().unwrap_or_default(), manifest.seed)
    };
    let extends = "[pipeline]\nextends = 'bottom.toml'\n";
    assert_eq!(open(extends, &["n=2"]), ("base-2".to_owned(), 7));
    let (name, seed) = open(&format!("{extends}seed = '${{s}}'\n[vars]\ns = 0xff"), &[]);
    assert_eq!((name.as_str(), seed), ("base-1", 255));
    let largest = format!("{extends}name = 'own'\nseed = 18446744073709551615");
    assert_eq!(open(&largest, &[]), ("own".to_owned(), u64::MAX));
}
