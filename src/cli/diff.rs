//! `diff`: how two runs differ. Knows what their summaries and the cache tell, and no stage.

mod scores;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use clap::Args;
use serde::Serialize;

use super::{
    args::Format,
    error::CliError,
    exit::Exit,
    output, project,
    runs::{Name, Output, Run, Runs, Stage},
};
use crate::{
    engine::{key::Key, reason},
    store::{Digest, Store},
};

/// Say how two runs differ: stages, keys with the reasons, outputs, times, memory and scores
///
/// A run is named by its name or a beginning of it, or as `last`, `last~1`, … among those that ended; `mla-run history` lists them.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// The run to start from
    #[arg(value_name = "RUN")]
    a: String,
    /// The run to compare it with
    #[arg(value_name = "RUN")]
    b: String,
    /// The cache folder [default: the nearest `cache` folder of a project at or above this folder, else ./cache]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// How to tell the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// How two runs differ.
#[derive(Debug, Serialize)]
struct Diff {
    a: Side,
    b: Side,
    only_a: Vec<String>,
    only_b: Vec<String>,
    /// The stages of both that are not the same, in the order of the second run.
    stages: Vec<Changed>,
    /// How many stages have one key and one set of outputs in both.
    same: usize,
}

/// One of the two runs.
#[derive(Debug, Serialize)]
struct Side {
    run: String,
    pipeline: String,
    started: String,
    status: String,
    seconds: f64,
}

/// A stage that is not the same in both.
#[derive(Debug, Serialize)]
struct Changed {
    name: String,
    a: Cost,
    b: Cost,
    /// Why the keys differ; empty where they are one.
    reasons: Vec<String>,
    outputs: Vec<Artifact>,
    scores: Vec<scores::Table>,
}

/// What a stage came to in one run, and what it cost: in this run, or when its record was made.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Cost {
    status: String,
    key: Option<Digest>,
    seconds: Option<f64>,
    peak_memory: Option<u64>,
}

/// An output with other bytes.
#[derive(Debug, PartialEq, Serialize)]
struct Artifact {
    port: String,
    a: Option<Digest>,
    b: Option<Digest>,
}

impl Command {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let cache = project::cache(self.cache.as_deref(), None);
        let runs = Runs::of(&cache)?;
        let (a, b) = (runs.find(&self.a)?, runs.find(&self.b)?);
        let diff = Diff::of(&Store::open(&cache)?, (a.0, &a.1), (b.0, &b.1))?;
        match self.format {
            Format::Json => output::json(&diff)?,
            Format::Text => output::text(&text::render(&diff, output::palette()))?,
        }
        Ok(Exit::OK)
    }
}

impl Diff {
    fn of(store: &Store, (a, run_a): (&Name, &Run), (b, run_b): (&Name, &Run)) -> Result<Self, CliError> {
        let names = |run: &Run| run.stages.iter().map(|stage| stage.name.clone()).collect::<BTreeSet<_>>();
        let (in_a, in_b) = (names(run_a), names(run_b));
        let only = |run: &Run, other: &BTreeSet<String>| {
            let stages = run.stages.iter().map(|stage| stage.name.clone());
            stages.filter(|name| !other.contains(name)).collect()
        };
        let before: BTreeMap<&str, &Stage> =
            run_a.stages.iter().map(|stage| (stage.name.as_str(), stage)).collect();
        let (mut stages, mut same) = (Vec::new(), 0);
        for now in &run_b.stages {
            let Some(old) = before.get(now.name.as_str()) else { continue };
            match Changed::of(store, old, now)? {
                Some(changed) => stages.push(changed),
                None => same += 1,
            }
        }
        let (only_a, only_b) = (only(run_a, &in_b), only(run_b, &in_a));
        Ok(Self { a: Side::of(a, run_a), b: Side::of(b, run_b), only_a, only_b, stages, same })
    }
}

impl Side {
    fn of(name: &Name, run: &Run) -> Self {
        Self {
            run: name.id.clone(),
            pipeline: run.pipeline.clone(),
            started: name.started.clone(),
            status: run.status.clone(),
            seconds: run.seconds,
        }
    }
}

impl Changed {
    fn of(store: &Store, a: &Stage, b: &Stage) -> Result<Option<Self>, CliError> {
        let outputs = ports(&a.outputs, &b.outputs);
        if a.key == b.key && outputs.is_empty() && ended(a) == ended(b) {
            return Ok(None);
        }
        let mut tables = Vec::new();
        for Artifact { port, .. } in &outputs {
            let side = |stage: &Stage| scores::read(store, stage, port);
            tables.extend(scores::Table::of(port, side(a)?, side(b)?));
        }
        let (name, reasons) = (b.name.clone(), reasons(store, a, b)?);
        Ok(Some(Self { name, a: cost(store, a)?, b: cost(store, b)?, reasons, outputs, scores: tables }))
    }
}

/// The outputs that are not the same. A stage that has none on one side says so by its status.
fn ports(a: &BTreeMap<String, Output>, b: &BTreeMap<String, Output>) -> Vec<Artifact> {
    if a.is_empty() || b.is_empty() {
        return Vec::new();
    }
    let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let digest = |side: &BTreeMap<String, Output>, port: &String| side.get(port).map(|output| output.digest);
    let all =
        names.into_iter().map(|port| Artifact { port: port.clone(), a: digest(a, port), b: digest(b, port) });
    all.filter(|port| port.a != port.b).collect()
}

/// What kept a side from ending, then why the keys differ; one sentence each.
fn reasons(store: &Store, a: &Stage, b: &Stage) -> Result<Vec<String>, CliError> {
    let sides = [("a", a), ("b", b)];
    let unended = sides.into_iter().filter(|(_, stage)| !ended(stage));
    let line = |(side, stage): (&str, &Stage)| format!("{} in {side}: {}", stage.status, first(&stage.why));
    let mut lines: Vec<String> = unended.map(line).collect();
    let (Some(old), Some(new)) = (a.key, b.key) else { return Ok(lines) };
    if old == new {
        return Ok(lines);
    }
    let key = |digest: &Digest| Ok::<_, CliError>(store.key(digest)?.and_then(|json| Key::from_json(&json)));
    match (key(&old)?, key(&new)?) {
        (Some(old), Some(new)) => lines.extend(reason::diff(&old, &new).iter().map(ToString::to_string)),
        // A stage that failed has no record, and that line is there; a clean-up may have taken one.
        (old, _) if lines.is_empty() => {
            lines.push(format!("the key of {} is not in the cache", if old.is_none() { "a" } else { "b" }));
        }
        _ => {}
    }
    Ok(lines)
}

/// Whether a stage has its outputs.
fn ended(stage: &Stage) -> bool {
    ["ran", "cached"].contains(&stage.status.as_str())
}

fn first(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// What a stage cost: now if it ran, else what its record says.
fn cost(store: &Store, stage: &Stage) -> Result<Cost, CliError> {
    let Stage { status, key, peak_memory, .. } = stage.clone();
    if matches!(status.as_str(), "ran" | "failed") {
        return Ok(Cost { status, key, seconds: Some(stage.seconds), peak_memory });
    }
    let record = key.map(|key| store.record(&key)).transpose()?.flatten();
    let seconds = record.as_ref().map(|record| record.seconds);
    Ok(Cost { status, key, seconds, peak_memory: record.and_then(|record| record.peak_memory) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(ports: &[(&str, &str)]) -> BTreeMap<String, Output> {
        ports
            .iter()
            .map(|(port, text)| ((*port).to_owned(), Output { digest: Digest::of(text.as_bytes()) }))
            .collect()
    }

    #[test]
    fn ports_with_other_bytes_are_told_and_a_side_without_outputs_is_not() {
        let (a, b) = (
            outputs(&[("x", "1"), ("y", "1"), ("old", "1")]),
            outputs(&[("x", "1"), ("y", "2"), ("new", "1")]),
        );
        let found = ports(&a, &b);
        let found: Vec<(&str, bool, bool)> =
            found.iter().map(|port| (port.port.as_str(), port.a.is_some(), port.b.is_some())).collect();
        assert_eq!(found, [("new", false, true), ("old", true, false), ("y", true, true)]);
        assert_eq!(ports(&a, &BTreeMap::new()), []);
    }

    #[test]
    fn a_key_that_is_not_there_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let stage = |key: Option<&str>, status: &str, why: &str| Stage {
            key: key.map(|key| Digest::of(key.as_bytes())),
            status: status.to_owned(),
            why: why.to_owned(),
            ..Stage::default()
        };
        let (ran, failed) = (stage(Some("1"), "ran", ""), stage(Some("2"), "failed", "no luck"));
        let blocked = stage(None, "blocked", "needs `x`\nmore");
        let told = |a: &Stage, b: &Stage| reasons(&store, a, b).unwrap();
        assert_eq!(told(&ran, &ran), [""; 0]);
        assert_eq!(told(&ran, &failed), ["failed in b: no luck"]);
        let other = Stage { key: Some(Digest::of(b"3")), ..ran.clone() };
        assert_eq!(told(&ran, &other), ["the key of a is not in the cache"]);
        let again = Stage { key: ran.key, ..failed.clone() };
        assert_eq!(told(&again, &ran), ["failed in a: no luck"], "of one key");
        assert_eq!(told(&ran, &blocked), ["blocked in b: needs `x`"]);
        assert_eq!(told(&blocked, &blocked), ["blocked in a: needs `x`", "blocked in b: needs `x`"]);
        assert!(Changed::of(&store, &blocked, &blocked).unwrap().is_none(), "the same as before");
        assert!(
            Changed::of(&store, &ran, &Stage { status: "cached".into(), ..ran.clone() }).unwrap().is_none()
        );
        assert!(
            Changed::of(&store, &ran, &Stage { status: "failed".into(), ..ran.clone() }).unwrap().is_some()
        );
    }
}
