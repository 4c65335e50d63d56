//! Whole manifests: layers, common keys, matrices.

mod layers;
mod places;
mod wrong;

use std::path::Path;

use super::*;

fn sources(files: &[(&str, &str)], options: &Options) -> Sources {
    let open = |path: &Path| {
        let found = files.iter().find(|(name, _)| Path::new(name) == path);
        found.map(|(_, text)| (*text).to_owned()).ok_or_else(|| std::io::ErrorKind::NotFound.into())
    };
    let (sources, faults) = Sources::read_with(Path::new(files[0].0), options, &open);
    assert!(faults.is_empty(), "{faults:?}");
    sources
}

fn json(table: &DeTable<'_>) -> serde_json::Value {
    let table = toml::de::Deserializer::from(Spanned::new(0..0, table.clone()));
    serde::Deserialize::deserialize(table).unwrap()
}

/// The faults of one file, each with the text it underlines.
fn faults(text: &str) -> Vec<(String, String)> {
    let sources = sources(&[("m.toml", text)], &Options::default());
    let (_, faults) = Manifest::parse(&sources);
    faults.iter().map(|f| (f.error.to_string(), sources.text(f.place.as_ref().unwrap()).to_owned())).collect()
}

const BASE: &str = "
[pipeline]
name = 'base'
seed = 7
[vars]
rank = 64
words = 10
[profile.quick.vars]
words = 2
[profile.quick.stage.embed]
dim = 8
[stage.corpus]
words = '${words}'
[stage.embed]
texts = 'corpus'
dim = 32
";

const CHILD: &str = "
[pipeline]
extends = 'base.toml'
[vars]
rank = 96
[stage.train]
kind = 'svd'
seed = 3
salt = 'again'
rank = '${rank}'
";

#[test]
fn layers_are_laid_in_order() {
    let files = [("a.toml", CHILD), ("base.toml", BASE)];
    let options =
        Options { profile: Some("quick".into()), set: vec!["rank=128".into(), "embed.dim=4".into()] };
    let sources = sources(&files, &options);
    let (manifest, faults) = Manifest::parse(&sources);
    assert!(faults.is_empty(), "{faults:?}");
    let manifest = manifest.unwrap();
    assert_eq!((manifest.name.as_deref(), manifest.seed), (Some("base"), 7));
    let names: Vec<&str> = manifest.stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(names, ["corpus", "embed", "train"]);
    assert_eq!(json(&manifest.stage("corpus").unwrap().table)["words"], 2);
    assert_eq!(
        json(&manifest.stage("embed").unwrap().table),
        serde_json::json!({"texts": "corpus", "dim": 4})
    );
    let train = manifest.stage("train").unwrap();
    assert_eq!((train.kind.as_str(), train.salt.as_deref()), ("svd", Some("again")));
    assert_eq!(train.seed.as_ref().map(|seed| *seed.get_ref()), Some(3));
    assert_eq!(json(&train.table), serde_json::json!({"rank": 128}));
}

#[test]
fn without_a_profile_its_values_are_not_used() {
    let sources = sources(&[("base.toml", BASE)], &Options::default());
    let (manifest, _) = Manifest::parse(&sources);
    assert_eq!(json(&manifest.unwrap().stage("corpus").unwrap().table)["words"], 10);
}

#[test]
fn a_matrix_is_taken_out_with_its_labels() {
    let text =
        "[vars]\nranks = [64, 96]\n[stage.svd]\nmatrix = { rank = '${ranks}', layout = ['A', 'B'] }\nx = 1";
    let sources = sources(&[("m.toml", text)], &Options::default());
    let (manifest, faults) = Manifest::parse(&sources);
    assert!(faults.is_empty(), "{faults:?}");
    let manifest = manifest.unwrap();
    let svd = manifest.stage("svd").unwrap();
    let labels = |axis: &Axis<'_>| axis.values.iter().map(|(label, _)| label.clone()).collect::<Vec<_>>();
    let axes: Vec<_> = svd.matrix.iter().map(|a| (a.key.get_ref().to_string(), labels(a))).collect();
    let expected = [("rank".to_owned(), vec!["64".to_owned(), "96".into()])];
    assert_eq!(axes[0], expected[0]);
    assert_eq!(axes[1].1, ["A", "B"]);
    assert_eq!(json(&svd.table), serde_json::json!({"x": 1}));
}

#[test]
fn all_mistakes_of_a_manifest_come_at_once() {
    let text = "
[pipeline]
nam = 'x'
seed = -1
[stag]
[stage.'a b']
[stage.b]
kind = 3
matrix = { rank = [], seed = [1, 1], kind = ['x'], x = 1 }
y = '${no}'
";
    let own = |rows: &[(&str, &str)]| -> Vec<(String, String)> {
        rows.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    };
    let expected = own(&[
        ("unknown key `stag` in the manifest", "stag"),
        ("unknown key `nam` in [pipeline]", "nam"),
        ("`seed` must be a whole number from 0 to 2^64 - 1, found a negative number", "-1"),
        ("`a b` cannot be the name of a stage", "'a b'"),
        ("`kind` must be a string, found an integer", "3"),
        ("axis `rank` of the matrix has no values", "[]"),
        ("axis `seed` of the matrix lists 1 twice", "1"),
        ("axis `x` of the matrix must be an array of values, found one value", "1"),
        ("unknown variable `no`", "${no}"),
        ("`kind` cannot be an axis of a matrix", "kind"),
    ]);
    assert_eq!(faults(text), expected);
}

#[test]
fn syntax_errors_stop_the_reading_but_all_are_told() {
    let found = faults("[vars]\na = oops\nb = 1\nb = 2\n[stage.x]\nkind = 3\n");
    let twice = ("`b` is written twice".to_owned(), "b".to_owned());
    assert_eq!((found.len(), &found[1]), (2, &twice), "{found:?}");
}

#[test]
fn a_manifest_without_stages_and_wrong_sections_are_refused() {
    assert_eq!(faults("[vars]\na = 1")[0].0, "the manifest has no stage");
    assert_eq!(
        faults("stage = 3")[0],
        ("[stage] must be a table, found an integer".to_owned(), "3".to_owned())
    );
    assert_eq!(faults("vars = []\n[stage.a]")[0].0, "[vars] must be a table, found an array");
    assert_eq!(faults("[profile.p]\nx = 1\n[stage.a]")[0].0, "unknown key `x` in [profile.p]");
}

#[test]
fn an_unknown_profile_is_refused_with_a_suggestion() {
    let options = Options { profile: Some("quik".into()), set: vec![] };
    let sources = sources(&[("base.toml", BASE)], &options);
    let (_, faults) = Manifest::parse(&sources);
    assert_eq!(faults[0].error.to_string(), "unknown profile `quik`");
    assert_eq!(faults[0].hint.as_deref(), Some("did you mean `quick`?"));
    assert_eq!(sources.locate(faults[0].place.as_ref().unwrap()).unwrap().0.name, "--profile");
}

#[test]
fn a_parameter_that_is_also_an_axis_is_refused_within_one_file() {
    let found = faults("[stage.svd]\nrank = 1\nmatrix.rank = [2]");
    assert_eq!(found, [("parameter `rank` is also an axis of the matrix".to_owned(), "rank".to_owned())]);
    let found = faults("[stage.svd]\nseed = 1\nmatrix.seed = [2]");
    assert_eq!(found, [("parameter `seed` is also an axis of the matrix".to_owned(), "1".to_owned())]);
}
