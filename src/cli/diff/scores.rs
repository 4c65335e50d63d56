//! Tables of figures that two runs made: the numbers of a JSON file by dotted name. Knows no protocol and no model.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use serde::Serialize;
use serde_json::Value;

use crate::{
    cli::{error::CliError, runs::Stage},
    store::{Digest, Store},
};

/// The file that holds figures.
const FILE: &str = "scores.json";
/// Longer files are no tables of figures.
const LONGEST: u64 = 16 << 20;

/// The figures of one output that differ.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Table {
    pub port: String,
    pub values: Vec<Figure>,
}

/// One figure in both runs.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Figure {
    pub name: String,
    pub a: Option<f64>,
    pub b: Option<f64>,
    /// `b - a`.
    pub change: Option<f64>,
}

impl Table {
    /// The figures that differ, if both sides hold any.
    pub(super) fn of(port: &str, a: Option<Value>, b: Option<Value>) -> Option<Self> {
        let (a, b) = (numbers(&a?), numbers(&b?));
        let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        let figure = |name: &String| {
            let (a, b) = (a.get(name).copied(), b.get(name).copied());
            Figure { name: name.clone(), a, b, change: a.zip(b).map(|(a, b)| b - a) }
        };
        let values: Vec<Figure> =
            names.into_iter().map(figure).filter(|figure| figure.a != figure.b).collect();
        (!values.is_empty()).then(|| Self { port: port.to_owned(), values })
    }
}

/// The figures of an output: `scores.json` in it, or its only file where the port is called `scores`. `None` where there are none, or
/// a clean-up took them.
pub(super) fn read(store: &Store, stage: &Stage, port: &str) -> Result<Option<Value>, CliError> {
    let Some(digest) = stage.outputs.get(port).map(|output| output.digest) else { return Ok(None) };
    let Some(file) = file(store, stage.key, port, digest)? else { return Ok(None) };
    if fs::metadata(&file).is_ok_and(|meta| meta.len() > LONGEST) {
        return Ok(None);
    }
    Ok(fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

fn file(
    store: &Store,
    key: Option<Digest>,
    port: &str,
    digest: Digest,
) -> Result<Option<std::path::PathBuf>, CliError> {
    let record = key.map(|key| store.record(&key)).transpose()?.flatten();
    // The record may be of a later run of the same key, with other bytes.
    let Some(tree) = record.and_then(|mut record| record.outputs.remove(port)).filter(|t| t.digest == digest)
    else {
        let left = store.root().join("view").join(digest.to_string()).join(FILE);
        return Ok(left.exists().then_some(left));
    };
    let named = |name: &str| name == FILE || (port == "scores" && tree.files.len() == 1);
    if !tree.files.iter().any(|file| named(&file.name)) {
        return Ok(None);
    }
    Ok(store.files(&tree)?.into_iter().find(|(name, _)| named(name)).map(|(_, path)| path))
}

/// Every number in a value, by the names that lead to it.
fn numbers(value: &Value) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    collect("", value, &mut found);
    found
}

fn collect(name: &str, value: &Value, found: &mut BTreeMap<String, f64>) {
    let join = |part: &str| if name.is_empty() { part.to_owned() } else { format!("{name}.{part}") };
    match value {
        Value::Number(number) => found.extend(number.as_f64().map(|x| (name.to_owned(), x))),
        Value::Object(map) => map.iter().for_each(|(part, value)| collect(&join(part), value, found)),
        Value::Array(items) => {
            let labels = labels(items).unwrap_or_else(|| (0..items.len()).map(|i| i.to_string()).collect());
            labels.iter().zip(items).for_each(|(part, value)| collect(&join(part), value, found));
        }
        _ => {}
    }
}

/// What the rows of a list call themselves, if they all do: a row that moved is then still the same row.
fn labels(items: &[Value]) -> Option<Vec<String>> {
    let label = |item: &Value| {
        let text = ["model", "name", "id"].iter().find_map(|field| item.get(field)?.as_str());
        let range = || Some(format!("{}-{}", item.get("from")?.as_u64()?, item.get("to")?));
        text.map(str::to_owned).or_else(range)
    };
    let labels: Vec<String> = items.iter().map(label).collect::<Option<_>>()?;
    let different = labels.iter().collect::<BTreeSet<_>>().len() == labels.len();
    different.then(|| labels.into_iter().map(|label| label.replace("-null", "+")).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(value: &Value) -> Vec<String> {
        numbers(value).into_iter().map(|(name, x)| format!("{name}={x}")).collect()
    }

    #[test]
    fn numbers_have_dotted_names() {
        let value = json!({ "loss": 0.5, "text": "x", "none": null, "yes": true, "deep": { "er": { "n": -3 } }, "list": [1, [2]] });
        assert_eq!(names(&value), ["deep.er.n=-3", "list.0=1", "list.1.0=2", "loss=0.5"]);
        assert_eq!(names(&json!(7)), ["=7"]);
    }

    #[test]
    fn rows_are_called_what_they_call_themselves() {
        let rows = json!([{ "model": "original", "kl": 0 }, { "model": "healed", "kl": 0.5 }]);
        assert_eq!(names(&rows), ["healed.kl=0.5", "original.kl=0"]);
        let ranges = json!([{ "from": 0, "to": 128, "n": 1 }, { "from": 128, "to": null, "n": 2 }]);
        assert_eq!(names(&ranges)[..2], ["0-128.from=0", "0-128.n=1"]);
        assert!(names(&ranges).contains(&"128+.n=2".to_owned()), "{:?}", names(&ranges));
        let twice = json!([{ "name": "x", "n": 1 }, { "name": "x", "n": 2 }]);
        assert_eq!(names(&twice), ["0.n=1", "1.n=2"], "a name that stands twice is none");
        assert_eq!(names(&json!([{ "name": "x", "n": 1 }, { "n": 2 }])), ["0.n=1", "1.n=2"]);
    }

    #[test]
    fn only_what_differs_is_in_the_table() {
        let (a, b) = (json!({ "same": 1, "up": 1.5, "gone": 1 }), json!({ "same": 1, "up": 2, "new": 0 }));
        let table = Table::of("scores", Some(a.clone()), Some(b)).unwrap();
        let figure = |name: &str, a, b, change| Figure { name: name.to_owned(), a, b, change };
        assert_eq!(
            table.values,
            [
                figure("gone", Some(1.0), None, None),
                figure("new", None, Some(0.0), None),
                figure("up", Some(1.5), Some(2.0), Some(0.5)),
            ]
        );
        assert_eq!(Table::of("scores", Some(a.clone()), Some(a.clone())), None);
        assert_eq!(Table::of("scores", Some(a), None), None);
    }
}
