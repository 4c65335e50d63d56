//! Past runs of a cache, as their folders tell: the summary, or the journal where there is none. Writes nothing. Knows no
//! manifest.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::error::CliError;
use crate::{
    manifest::near,
    store::{self, Digest},
};

/// The runs of a cache, newest first.
pub(super) struct Runs {
    dir: PathBuf,
    names: Vec<Name>,
}

/// A run's name, and when it started.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name {
    /// `2026-11-23T15:25:18Z`.
    pub started: String,
    /// When its folder last changed, for those of one second.
    changed: (i64, i64),
    pub id: String,
}

/// What is known of a run. Older programs wrote less, so nothing but the stages must be there.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Run {
    #[serde(default)]
    pub pipeline: String,
    #[serde(default)]
    pub status: String,
    #[serde(default)]
    pub seconds: f64,
    pub stages: Vec<Stage>,
}

/// What is known of a stage of a run.
#[derive(Debug, Default, Clone, Deserialize)]
pub(super) struct Stage {
    pub name: String,
    #[serde(default)]
    pub status: String,
    #[serde(default)]
    pub seconds: f64,
    #[serde(default)]
    pub peak_memory: Option<u64>,
    #[serde(default)]
    pub why: String,
    #[serde(default)]
    pub key: Option<Digest>,
    #[serde(default)]
    pub outputs: BTreeMap<String, Output>,
}

/// An artifact of a stage.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Output {
    pub digest: Digest,
}

/// A line of a journal, as far as it matters for a run that has no summary.
#[derive(Deserialize)]
struct Line {
    at: f64,
    event: String,
    #[serde(default)]
    stage: String,
    #[serde(default)]
    pipeline: String,
    #[serde(default)]
    stages: Vec<String>,
    #[serde(default)]
    status: String,
    #[serde(default)]
    why: String,
}

/// The status of a run that has no summary: it goes on, or was killed.
pub(super) const UNFINISHED: &str = "unfinished";

impl Runs {
    /// Lists the runs of a cache.
    pub(super) fn of(cache: &Path) -> Result<Self, CliError> {
        if !cache.is_dir() {
            return Err(CliError::usage(format!("there is no cache `{}`", cache.display()))
                .hint("name one with --cache"));
        }
        let dir = cache.join("run");
        let failed =
            |error: std::io::Error| CliError::failed(format!("cannot list {}: {error}", dir.display()));
        let mut names = Vec::new();
        match fs::read_dir(&dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(entries) => {
                for entry in entries {
                    names.extend(Name::of(&entry.map_err(failed)?.path()));
                }
            }
        }
        names.sort_by(|a, b| b.cmp(a));
        Ok(Self { dir, names })
    }

    pub(super) fn names(&self) -> &[Name] {
        &self.names
    }

    /// Reads a run: its summary, else what its journal has so far.
    pub(super) fn read(&self, name: &Name) -> Run {
        self.summary(name).unwrap_or_else(|| {
            let journal = fs::read(self.dir.join(&name.id).join("events.jsonl")).unwrap_or_default();
            Run::from_journal(&journal)
        })
    }

    /// The summary of a run that ended. One that cannot be read is none.
    pub(super) fn summary(&self, name: &Name) -> Option<Run> {
        serde_json::from_slice(&fs::read(self.dir.join(&name.id).join("summary.json")).ok()?).ok()
    }

    /// The run that a word means: its name, the beginning of it, or `last` and `last~1` among those that ended.
    pub(super) fn find(&self, word: &str) -> Result<(&Name, Run), CliError> {
        if let Some(back) = back(word) {
            let mut ended = self.names.iter().filter_map(|name| Some((name, self.summary(name)?)));
            return ended.nth(back).ok_or_else(|| {
                let count = self.names.iter().filter(|name| self.summary(name).is_some()).count();
                let error = CliError::usage(format!("there is no run `{word}`"));
                error.hint(if count == 1 {
                    "one run ended so far".into()
                } else {
                    format!("{count} runs ended so far")
                })
            });
        }
        let exact = self.names.iter().find(|name| name.id == word);
        let begins: Vec<&Name> = self.names.iter().filter(|name| name.id.starts_with(word)).collect();
        let found = match (exact, &begins[..]) {
            (Some(name), _) => name,
            (None, [one]) => one,
            (None, []) => {
                let hint = near::suggest(word, "runs", self.names.iter().map(|name| name.id.as_str()));
                return Err(CliError::usage(format!("there is no run `{word}`"))
                    .hint(format!("{hint}; or say `last`, `last~1`")));
            }
            (None, several) => {
                let ids: Vec<&str> = several.iter().map(|name| name.id.as_str()).collect();
                return Err(CliError::usage(format!("several runs begin with `{word}`"))
                    .hint(format!("name one: {}", near::list(&ids))));
            }
        };
        let run = self.summary(found).ok_or_else(|| {
            CliError::usage(format!("the run `{}` has no summary", found.id))
                .hint("it still goes on, or it was killed; see `mla-run history`")
        })?;
        Ok((found, run))
    }
}

/// How many runs before the last one `last`, `last~2` means.
fn back(word: &str) -> Option<usize> {
    match word.strip_prefix("last")? {
        "" => Some(0),
        rest => rest.strip_prefix('~')?.parse().ok(),
    }
}

impl Name {
    /// The run whose folder this is, if it is one.
    fn of(dir: &Path) -> Option<Self> {
        let id = dir.file_name()?.to_str()?.to_owned();
        let kept = ["events.jsonl", "summary.json"].map(|file| fs::metadata(dir.join(file)).ok());
        let meta = kept.into_iter().flatten().next()?;
        let started = time(&id).or_else(|| time(&store::utc(meta.mtime())))?;
        Some(Self { started, changed: (meta.mtime(), meta.mtime_nsec()), id })
    }
}

/// The time that a run's name begins with: `20261123-152518…` is `2026-11-23T15:25:18Z`.
fn time(id: &str) -> Option<String> {
    let fits = |(i, c): (usize, char)| if i == 8 || i == 15 { c == '-' } else { c.is_ascii_digit() };
    let whole = id.is_ascii() && id.len() >= 15 && id.chars().take(16).enumerate().all(fits);
    let part = |from: usize, to: usize| &id[from..to];
    whole.then(|| {
        let date = [part(0, 4), part(4, 6), part(6, 8)].join("-");
        format!("{date}T{}Z", [part(9, 11), part(11, 13), part(13, 15)].join(":"))
    })
}

impl Run {
    /// The names of the stages with a status.
    pub(super) fn with(&self, status: &str) -> Vec<&str> {
        self.stages.iter().filter(|stage| stage.status == status).map(|stage| stage.name.as_str()).collect()
    }

    /// What a journal tells. The last line may be cut; hits are in no journal.
    fn from_journal(journal: &[u8]) -> Self {
        let (mut pipeline, mut order, mut seconds) = (String::new(), Vec::new(), 0.0);
        let mut stages: BTreeMap<String, Stage> = BTreeMap::new();
        let lines =
            journal.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice::<Line>(line).ok());
        for line in lines {
            seconds = line.at;
            let status = match line.event.as_str() {
                "run-started" => {
                    (pipeline, order) = (line.pipeline, line.stages);
                    continue;
                }
                "stage-started" => "running".to_owned(),
                "stage-finished" => line.status,
                _ => continue,
            };
            let stage = Stage { name: line.stage.clone(), status, why: line.why, ..Stage::default() };
            stages.insert(line.stage, stage);
        }
        let known: BTreeSet<&String> = stages.keys().collect();
        let unknown = |name: &String| Stage { name: name.clone(), ..Stage::default() };
        let rest: Vec<Stage> = order.iter().filter(|name| !known.contains(name)).map(unknown).collect();
        let stages = stages.into_values().chain(rest).collect();
        Self { pipeline, status: UNFINISHED.to_owned(), seconds, stages }
    }
}

#[cfg(test)]
mod tests;
