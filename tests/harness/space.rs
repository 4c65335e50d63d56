//! A small project in a temporary folder, and what a command does in it. Knows the program from outside only.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;
use tempfile::TempDir;

/// A folder with a manifest `p.toml`, a cache, and whatever a test puts there.
pub(crate) struct Space {
    dir: TempDir,
}

/// What a command printed and how it ended.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Space {
    /// A folder with this manifest.
    pub(crate) fn new(manifest: &str) -> Self {
        let space = Self { dir: tempfile::tempdir().unwrap() };
        space.file("cache/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n");
        space.file("p.toml", manifest);
        space
    }

    /// Writes a file.
    pub(crate) fn file(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Replaces a part of the manifest, which must be there.
    pub(crate) fn edit(&self, from: &str, to: &str) {
        let text = self.read("p.toml");
        assert!(text.contains(from), "`{from}` is not in the manifest:\n{text}");
        self.file("p.toml", &text.replace(from, to));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// The program with these words, an empty environment and the folder as its working directory.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mla-run"));
        command.args(words).current_dir(self.dir.path()).env_clear();
        command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command
    }

    /// Does a command; its words are separated by blanks.
    pub(crate) fn does(&self, words: &str) -> Ran {
        Ran::new(&self.command(&words.split_whitespace().collect::<Vec<_>>()).output().unwrap())
    }

    /// Runs `p.toml` with `--format json` and more words.
    pub(crate) fn run(&self, words: &str) -> Ran {
        self.does(&format!("run p.toml --format json {words}"))
    }

    /// All files below a folder, with their bytes; without those that a run in progress takes away meanwhile.
    pub(crate) fn tree(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let root = self.path(folder);
        let there = |error: &std::io::Error| error.kind() != std::io::ErrorKind::NotFound;
        let walk = walkdir::WalkDir::new(&root).into_iter().filter_map(|entry| match entry {
            Err(error) => error.into_io_error().filter(there).map(|error| panic!("{error}")),
            Ok(entry) => entry.file_type().is_file().then(|| entry.into_path()),
        });
        let name = |path: &Path| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        walk.filter_map(|path| match fs::read(&path) {
            Err(error) if !there(&error) => None,
            bytes => Some((name(&path), bytes.unwrap())),
        })
        .collect()
    }
}

impl Ran {
    pub(crate) fn new(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// It must have ended with this exit code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// It must have ended well.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.exits(0)
    }

    /// The one object of `--format json`.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.stdout.lines().count(), 1, "one line: {}\nstderr:\n{}", self.stdout, self.stderr);
        serde_json::from_str(&self.stdout).unwrap()
    }

    #[track_caller]
    fn stages(&self) -> Vec<Value> {
        self.json()["stages"].as_array().unwrap().clone()
    }

    /// The names of the stages with a status, in the order told.
    #[track_caller]
    pub(crate) fn with_status(&self, status: &str) -> Vec<String> {
        let stages = self.stages().into_iter().filter(|stage| stage["status"] == status);
        stages.map(|stage| stage["name"].as_str().unwrap().to_owned()).collect()
    }

    /// These stages must have run, and no others.
    #[track_caller]
    pub(crate) fn ran<const N: usize>(self, names: [&str; N]) -> Self {
        assert_eq!(self.with_status("ran"), names, "stderr:\n{}", self.stderr);
        self
    }

    /// So many stages must have been found in the cache.
    #[track_caller]
    pub(crate) fn hits(self, count: usize) -> Self {
        assert_eq!(self.with_status("cached").len(), count, "{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Why a stage ran.
    #[track_caller]
    pub(crate) fn why(&self, stage: &str) -> String {
        self.stage(stage)["why"].as_str().unwrap_or_default().to_owned()
    }

    /// What is told of a stage.
    #[track_caller]
    pub(crate) fn stage(&self, name: &str) -> Value {
        self.stages()
            .into_iter()
            .find(|stage| stage["name"] == name)
            .unwrap_or_else(|| panic!("no stage {name}"))
    }

    /// Digests of all outputs by stage and port.
    #[track_caller]
    pub(crate) fn digests(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for stage in self.stages() {
            for (port, output) in stage["outputs"].as_object().unwrap() {
                let name = format!("{}.{port}", stage["name"].as_str().unwrap());
                all.insert(name, output["digest"].as_str().unwrap().to_owned());
            }
        }
        all
    }
}
