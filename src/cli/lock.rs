//! The lock file: the key and the output digests of every stage, beside the manifest, `full.lock.toml` for `full.toml`.
//!
//! Each whole run of the manifest as it stands writes it; a run with `--set`, `--profile` or a choice of stages leaves it alone.
//! `--locked` holds a run to it: a stage whose key or outputs differ is an error. `--frozen` runs nothing at all on top of that.
//! Sorted, without times, hosts or paths, so that it can be committed and a change of it can be read.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::{Deserialize, Serialize};

use super::error::CliError;
use crate::{
    engine::{
        options::Gate,
        state::Status,
        summary::{RunSummary, StageSummary},
    },
    store::Digest,
};

const FORMAT: u32 = 1;

/// How strictly a run is held to the lock file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strictness {
    /// Keys and outputs must be those of the lock file.
    Locked,
    /// And nothing may run.
    Frozen,
}

/// What the lock file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lock {
    format: u32,
    #[serde(default)]
    stage: BTreeMap<String, Locked>,
}

/// What it says of a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Locked {
    kind: String,
    key: Digest,
    outputs: BTreeMap<String, Digest>,
}

/// Where the lock file of a manifest lies.
pub(super) fn path(pipeline: &Path) -> PathBuf {
    pipeline.with_extension("lock.toml")
}

impl Lock {
    /// What a run came to.
    pub(super) fn of(summary: &RunSummary) -> Self {
        let locked = |stage: &StageSummary| {
            let outputs = stage.outputs.iter().map(|(port, output)| (port.clone(), output.digest)).collect();
            let locked = Locked { kind: stage.kind.to_owned(), key: stage.key?, outputs };
            Some((stage.name.clone(), locked))
        };
        Self { format: FORMAT, stage: summary.stages.iter().filter_map(locked).collect() }
    }

    /// Reads a lock file.
    pub(super) fn read(path: &Path) -> Result<Self, CliError> {
        let name = path.display();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(CliError::locked(format!("there is no lock file `{name}`"))
                    .hint("a whole run without `--locked` writes it"));
            }
            Err(error) => {
                return Err(CliError::locked(format!("cannot read the lock file `{name}`: {error}")));
            }
        };
        let hint = "take it from version control, or let a run without `--locked` write it anew";
        let lock: Self = toml::from_str(&text).map_err(|error| {
            let line =
                error.span().map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
            let why = error.message().lines().next().unwrap_or_default().to_owned();
            CliError::locked(format!("the lock file is damaged: {name}:{line}: {why}")).hint(hint)
        })?;
        if lock.format != FORMAT {
            let why =
                format!("the lock file `{name}` has format {}, this program knows {FORMAT}", lock.format);
            return Err(CliError::locked(why).hint(hint));
        }
        Ok(lock)
    }

    /// Writes it, unless the file says the same already.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let text = self.text();
        if fs::read_to_string(path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        // Whole and on disk under its name, or not at all: people commit it.
        let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(".mla-run-lock-").tempfile_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        fs::File::open(folder)?.sync_all()
    }

    fn text(&self) -> String {
        let body = toml::to_string(self).expect("digests and names are plain TOML");
        format!(
            "# Written by mla-run. Commit it, and `--locked` holds every run to these keys and outputs.\n{body}"
        )
    }

    /// Refuses stages before they run. The flag is raised when it did.
    pub(super) fn gate(&self, strictness: Strictness, refused: Arc<AtomicBool>) -> Box<Gate> {
        let keys: BTreeMap<String, Digest> =
            self.stage.iter().map(|(name, locked)| (name.clone(), locked.key)).collect();
        Box::new(move |name, key| {
            let fits = match keys.get(name) {
                None => Err("is not in the lock file".to_owned()),
                Some(locked) if locked != key => {
                    Err("has another key than in the lock file; `mla-run why` says what changed".to_owned())
                }
                Some(_) if strictness == Strictness::Frozen => {
                    Err("is not in the cache, and `--frozen` runs nothing".to_owned())
                }
                Some(_) => Ok(()),
            };
            if fits.is_err() {
                refused.store(true, Ordering::Relaxed);
            }
            fits
        })
    }

    /// What a run came to against what is locked: one line for each difference.
    pub(super) fn differences(&self, summary: &RunSummary) -> String {
        let mut text = String::new();
        let known = |name: &String| summary.stages.iter().any(|stage| stage.name == *name);
        for name in self.stage.keys().filter(|name| !known(name)) {
            let _infallible = writeln!(text, "  `{name}` is in the lock file, and no stage of the manifest");
        }
        for stage in
            summary.stages.iter().filter(|stage| matches!(stage.status, Status::Cached | Status::Ran))
        {
            let Some(locked) = self.stage.get(&stage.name) else {
                let _infallible = writeln!(text, "  `{}` is not in the lock file", stage.name);
                continue;
            };
            if stage.key != Some(locked.key) {
                let _infallible = writeln!(text, "  `{}` has another key than in the lock file", stage.name);
                continue;
            }
            for (port, output) in &stage.outputs {
                if locked.outputs.get(port) != Some(&output.digest) {
                    let name = &stage.name;
                    let _infallible = writeln!(text, "  `{name}` made other bytes than locked in `{port}`");
                }
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::summary::{OutputSummary, RunStatus};

    fn summary(stages: &[(&str, Status, &[u8], &[u8])]) -> RunSummary {
        let stage = |&(name, status, key, bytes): &(&str, Status, &[u8], &[u8])| {
            let output = OutputSummary { digest: Digest::of(bytes), bytes: 1, path: PathBuf::new() };
            StageSummary {
                seconds: 1.5,
                key: Some(Digest::of(key)),
                outputs: [("out".to_owned(), output)].into(),
                ..StageSummary::new(name, "exec", status, "")
            }
        };
        RunSummary {
            run: "20260102-1".to_owned(),
            pipeline: "p".to_owned(),
            status: RunStatus::Ok,
            seconds: 2.0,
            stages: stages.iter().map(stage).collect(),
            interrupted: false,
            checkpointed: false,
        }
    }

    #[test]
    fn the_file_is_sorted_has_a_block_a_stage_and_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.lock.toml");
        let lock = Lock::of(&summary(&[
            ("svd[rank=64]", Status::Ran, b"k1", b"x"),
            ("corpus", Status::Cached, b"k2", b"y"),
        ]));
        lock.write(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let headers: Vec<&str> = text.lines().filter(|line| line.starts_with('[')).collect();
        assert_eq!(
            headers,
            [
                "[stage.corpus]",
                "[stage.corpus.outputs]",
                "[stage.\"svd[rank=64]\"]",
                "[stage.\"svd[rank=64]\".outputs]"
            ]
        );
        assert!(!text.contains("1.5") && !text.contains("2026"), "{text}");
        assert_eq!(Lock::read(&path).unwrap(), lock);
    }

    #[test]
    fn a_file_that_says_the_same_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.lock.toml");
        let lock = Lock::of(&summary(&[("a", Status::Ran, b"k", b"x")]));
        lock.write(&path).unwrap();
        let old = std::time::SystemTime::UNIX_EPOCH;
        fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
        lock.write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), old);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_gate_knows_names_keys_and_whether_anything_may_run() {
        let lock = Lock::of(&summary(&[("a", Status::Ran, b"k", b"x")]));
        for (strictness, name, key, expected) in [
            (Strictness::Locked, "a", b"k", ""),
            (Strictness::Locked, "a", b"l", "has another key"),
            (Strictness::Locked, "b", b"k", "is not in the lock file"),
            (Strictness::Frozen, "a", b"k", "is not in the cache"),
            (Strictness::Frozen, "b", b"k", "is not in the lock file"),
        ] {
            let refused = Arc::new(AtomicBool::new(false));
            let told =
                lock.gate(strictness, refused.clone())(name, &Digest::of(key)).err().unwrap_or_default();
            assert!(told.starts_with(expected) && told.is_empty() == expected.is_empty(), "{told}");
            assert_eq!(refused.load(Ordering::Relaxed), !expected.is_empty());
        }
    }

    #[test]
    fn differences_are_told_by_stage_and_output() {
        let lock = Lock::of(&summary(&[
            ("a", Status::Ran, b"k", b"x"),
            ("b", Status::Ran, b"k", b"x"),
            ("c", Status::Ran, b"k", b"x"),
            ("gone", Status::Ran, b"k", b"x"),
        ]));
        let found = lock.differences(&summary(&[
            ("a", Status::Cached, b"k", b"x"),
            ("b", Status::Cached, b"l", b"x"),
            ("c", Status::Ran, b"k", b"z"),
            ("d", Status::Ran, b"k", b"x"),
            ("e", Status::Skipped, b"k", b"x"),
        ]));
        let expected = "  `gone` is in the lock file, and no stage of the manifest\n  `b` has another key than in the lock file\n  `c` made other bytes than locked in `out`\n  \
                        `d` is not in the lock file\n";
        assert_eq!(found, expected);
    }

    #[test]
    fn a_damaged_or_foreign_file_is_told_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.lock.toml");
        let check = |text: Option<&str>, expected: &str| {
            text.map_or(Ok(()), |text| fs::write(&path, text)).unwrap();
            let error = Lock::read(&path).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(error.exit(), super::super::exit::Exit::LOCKED);
        };
        check(None, "there is no lock file");
        check(Some("format = 2\n"), "has format 2, this program knows 1");
        check(Some("format = 1\n[stage.a]\nkind = 'x'\nkey = 'abc'\noutputs = {}\n"), "p.lock.toml:4: ");
        check(Some("format = 1\n[stage.a\n"), "p.lock.toml:2: ");
    }
}
