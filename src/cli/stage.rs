//! One stage of a pipeline, found from the words of a command: the part that `why`, `show` and `checkout` share.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    args::{ChangeArgs, SelectArgs, StageArgs, Words},
    error::CliError,
    project::{self, Project},
};
use crate::{
    engine::{state::Status, summary::StageSummary},
    store::{Record, Store},
};

/// The manifest of the last run in a cache, so that `why svd` needs no more words.
#[derive(Debug, Serialize, Deserialize)]
struct Last {
    pipeline: PathBuf,
    change: ChangeArgs,
}

/// Remembers what was run.
pub(super) fn remember(store: &Store, pipeline: &Path, change: &ChangeArgs) -> Result<(), CliError> {
    let pipeline = std::path::absolute(pipeline).unwrap_or_else(|_| pipeline.to_owned());
    let last = serde_json::to_vec(&Last { pipeline, change: change.clone() }).expect("words are plain data");
    let path = store.root().join("run").join("last.json");
    // The file is rewritten only when it changes, because a run that finds everything should write nothing.
    if std::fs::read(&path).is_ok_and(|old| old == last) {
        return Ok(());
    }
    Ok(store.replace_file(&path, &last)?)
}

/// The last run's manifest and what changed it; changes given now take the place of those.
pub(super) fn recall(cache: Option<&Path>, own: &ChangeArgs) -> Result<(PathBuf, ChangeArgs), CliError> {
    let last = read_last(&project::cache(cache, None))?;
    let change = if *own == ChangeArgs::default() { last.change } else { own.clone() };
    Ok((last.pipeline, change))
}

fn read_last(cache: &Path) -> Result<Last, CliError> {
    let found = std::fs::read(cache.join("run").join("last.json")).ok();
    found.and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or_else(|| {
        let message = format!("nothing was run with the cache `{}` yet", cache.display());
        CliError::usage(message).hint("name the manifest too, or the cache with --cache")
    })
}

/// A stage, and what the cache has of it as the manifest stands.
pub(super) struct Found {
    pub store: Store,
    pub stage: StageSummary,
}

impl Found {
    /// Finds the stage that the first word names, in the manifest that another word names. Returns the other words too, at
    /// most `more` of them.
    pub(super) fn open(
        words: &[String],
        more: usize,
        args: &StageArgs,
    ) -> Result<(Self, Vec<String>), CliError> {
        let words = Words::new(words);
        let (pipeline, change) = if let Some(pipeline) = words.pipeline {
            (pipeline, args.change.clone())
        } else {
            recall(args.place.cache.as_deref(), &args.change)?
        };
        let mut rest = words.rest.into_iter();
        let name = rest.next().ok_or_else(|| CliError::usage("no stage was named"))?;
        if let Some(extra) = rest.as_slice().get(more) {
            let hint = "a manifest is told by its ending `.toml`";
            return Err(CliError::usage(format!("`{extra}` is one word too many")).hint(hint));
        }
        let select = SelectArgs { until: vec![name.clone()], ..SelectArgs::default() };
        let mut project = Project::open(&pipeline, &change, &args.place, &select)?;
        project.require_reads()?;
        let name = project.names.one(&name)?;
        let stages = project.engine().plan()?.stages;
        let stage = stages.into_iter().find(|stage| stage.name == name).expect("a plan has every stage");
        Ok((Self { store: project.store, stage }, rest.collect()))
    }

    /// What the cache has of it.
    pub(super) fn record(&self) -> Result<&Record, CliError> {
        self.stage.record.as_deref().filter(|_| self.stage.status == Status::Cached).ok_or_else(|| {
            let StageSummary { name, why, .. } = &self.stage;
            CliError::failed(format!(
                "stage `{name}` is not in the cache as the manifest stands: {why}; run it first"
            ))
        })
    }
}
