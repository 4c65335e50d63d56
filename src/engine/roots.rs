//! What pipelines still refer to: the keys of their stages now and in their last runs. For a clean-up. Knows no policy.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::Path};

use serde::Deserialize;

use super::latest;
use crate::store::{self, Digest, Store, StoreError};

/// The keys that pipelines refer to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// Keys to keep, each with the reason.
    pub keep: BTreeMap<Digest, String>,
    /// When each key was last part of a run: seconds since 1970.
    pub used: BTreeMap<Digest, i64>,
    /// Runs that are none of the last of their pipeline.
    pub old_runs: Vec<String>,
}

/// The part of a run's summary that matters here.
#[derive(Deserialize)]
struct Run {
    #[serde(default)]
    pipeline: String,
    stages: Vec<Stage>,
}

#[derive(Deserialize)]
struct Stage {
    key: Option<Digest>,
}

/// What the pipelines of a cache refer to: the last key of each stage, and all keys of the last `runs` runs of each pipeline.
pub fn in_use(store: &Store, runs: usize) -> store::Result<InUse> {
    let mut found = InUse::default();
    let root = store.root().join("run");
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut ended: Vec<((i64, i64), String)> = Vec::new();
    for name in names(&root)? {
        // A run that goes on has no summary yet.
        if let Ok(meta) = fs::metadata(root.join(&name).join("summary.json")) {
            ended.push(((meta.mtime(), meta.mtime_nsec()), name));
        }
    }
    ended.sort();
    for ((time, _), name) in ended.into_iter().rev() {
        let bytes = store::read_if_present(&root.join(&name).join("summary.json"))?.unwrap_or_default();
        let Ok(run) = serde_json::from_slice::<Run>(&bytes) else { continue };
        let count = seen.entry(run.pipeline).or_default();
        *count += 1;
        for key in run.stages.iter().filter_map(|stage| stage.key) {
            let last = found.used.entry(key).or_insert(time);
            *last = time.max(*last);
            if *count <= runs {
                found.keep.entry(key).or_insert_with(|| "part of a pipeline's last runs".to_owned());
            }
        }
        if *count > runs {
            found.old_runs.push(name);
        }
    }
    for name in names(&root.join("latest"))? {
        for key in latest::read(&root.join("latest").join(name))?.into_values() {
            found.keep.insert(key, "what a pipeline's stages are now".to_owned());
        }
    }
    Ok(found)
}

/// The names in a folder, sorted; none when it is not there.
fn names(dir: &Path) -> store::Result<Vec<String>> {
    let failed = |source| StoreError::Io { doing: "list", path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
