//! `exec`: the user's own command, cached like every other stage. Knows nothing of what the command does.

mod files;
mod process;
mod saved;
mod shards;
mod template;

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::symlink,
    path::{Component, Path, PathBuf},
    process::Command,
};

use globset::GlobMatcher;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use walkdir::WalkDir;

use self::{
    files::{expand, matcher},
    process::failure,
    saved::Saved,
    template::{Piece, parse},
};
use super::{Base, Input, InputPort, Invalid, Read, Stage, UserPath, code::Code, shards::Shard};
use crate::{
    artifact::{
        Artifact, Files,
        files::{Any, FileSet},
    },
    engine::action::{Cx, Failure, Numerics, OutputPort},
};

/// Runs your own command on declared files and keeps the declared files that it writes.
///
/// The command starts in an empty private folder in which the declared `files` lie at their paths as seen from the
/// manifest. It sees the environment variables `PATH`, `HOME`, `LANG=C` and those in `env`, nothing else. What it prints goes
/// to a log, whose end is shown if it fails. A long command can go on where it was: what it leaves in the folder `$MLA_CKPT_DIR`
/// when it is stopped (it gets SIGTERM and has five seconds), or when it ends with exit code 75, is kept, and the next attempt finds
/// it in the folder `$MLA_RESUME_FROM`, which is set only then. The program itself is not part of the key: list scripts in `files`, and change
/// `salt` when a program changed.
///
/// ```toml
/// [stage.count]
/// kind = "exec"
/// argv = ["sh", "-c", "wc -w {in.texts}/texts.jsonl > {out}/words.txt"]
/// inputs = { texts = "corpus" }
/// outputs = ["words.txt"]
/// ```
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Exec {
    /// The program and its arguments; no shell is involved. `{out}` is the folder for outputs, `{in.NAME}` the folder with
    /// the files of an input, `{work}` the working directory, `{seed}` the seed, `{device}` the device, and with `shards = N`, `{shard}` the
    /// number of the shard (from 0) and `{shards}` how many there are; `{{` is a brace.
    pub argv: Vec<String>,
    /// Artifacts of other stages, each under a name of your choice: `{ texts = "corpus" }`.
    #[serde(default)]
    pub inputs: BTreeMap<String, Input<Any>>,
    /// Your files that the command reads: paths or globs, relative to the manifest. Their contents enter the key.
    #[serde(default)]
    pub files: Vec<UserPath>,
    /// The files that it writes under `{out}`: names or globs. Each must match at least one file; others are left out.
    pub outputs: Vec<String>,
    /// Whether output files may be empty.
    #[serde(default)]
    pub allow_empty: bool,
    /// Environment variables that the command may see. Their values (or their absence) enter the key as a hash.
    #[serde(default)]
    pub env: Vec<EnvVar>,
    /// Whether its bytes are the same on every machine (`bitwise`) or only on the same kind of device (`per-device`).
    #[serde(default)]
    pub numerics: Portability,
}

/// How far the bytes of a command can be trusted on another machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Portability {
    /// The same bytes everywhere.
    #[default]
    Bitwise,
    /// The same bytes on the same kind of device only.
    PerDevice,
}

/// A declared environment variable, read once when the manifest is decoded.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(transparent)]
pub struct EnvVar {
    name: String,
    #[schemars(skip)]
    value: Option<String>,
}

impl<'de> Deserialize<'de> for EnvVar {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let name = String::deserialize(d)?;
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(serde::de::Error::custom("expected the name of an environment variable"));
        }
        let value = match std::env::var_os(&name).map(std::ffi::OsString::into_string) {
            None => None,
            Some(Ok(value)) => Some(value),
            Some(Err(_)) => {
                let why = format!("the environment variable `{name}` is not UTF-8");
                return Err(serde::de::Error::custom(why));
            }
        };
        Ok(Self { name, value })
    }
}

impl Serialize for EnvVar {
    /// Keys are stored and shown, so a value enters as a hash: it may be a secret.
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let hash = self.value.as_ref().map(|value| blake3::hash(value.as_bytes()).to_hex().to_string());
        (&self.name, hash).serialize(s)
    }
}

/// Why a command's outputs cannot be kept.
#[derive(Debug, thiserror::Error)]
enum ExecError {
    #[error("the command did not write `{0}` into `{{out}}`")]
    Missing(String),
    #[error("the command left `{0}` empty; if that is right, set `allow-empty = true`")]
    Empty(String),
    #[error("`{0}` in `{{out}}` is neither a file nor a folder")]
    NotAFile(String),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> Failure + '_ {
    move |source| Failure::stage(ExecError::Io { path: path.to_owned(), source })
}

impl Stage for Exec {
    const KIND: &'static str = "exec";
    // Its bytes are those of the command; raise this when the command sees something else.
    const CODE: Code = &[("exec", "2")];
    const NUMERICS: Numerics = Numerics::Bitwise;
    const OUTPUTS: &'static [OutputPort] = &[OutputPort { name: "out", kind: FileSet::KIND }];

    fn inputs(&self) -> Vec<InputPort> {
        self.inputs.iter().map(|(name, input)| input.port(format!("inputs.{name}"))).collect()
    }

    fn reads(&self, base: &Base<'_>) -> Result<Vec<Read>, Invalid> {
        let mut found = BTreeMap::new();
        for (i, pattern) in self.files.iter().enumerate() {
            let param = format!("files.{i}");
            let files = expand(&base(&param), &pattern.0).map_err(|why| Invalid::new(&param, why))?;
            if files.is_empty() {
                let why = format!("no file matches `{}`", pattern.0);
                return Err(Invalid::new(&param, why).hint("paths are relative to the manifest"));
            }
            for (name, path) in files {
                if let Some(other) = found.insert(name.clone(), path.clone()).filter(|other| *other != path) {
                    let why =
                        format!("`{}` and `{}` would both lie at `{name}`", other.display(), path.display());
                    return Err(
                        Invalid::new(&param, why).hint("move one of them, or name it by a longer path")
                    );
                }
            }
        }
        Ok(found.into_iter().map(|(name, path)| Read { name, path }).collect())
    }

    fn check(&self) -> Result<(), Invalid> {
        self.check_for(false)
    }

    fn numerics(&self) -> Numerics {
        match self.numerics {
            Portability::Bitwise => Numerics::Bitwise,
            Portability::PerDevice => Numerics::PerDevice,
        }
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        self.run_as(None, cx)
    }
}

impl Exec {
    /// Checks the parameters of a command without or with shards.
    fn check_for(&self, sharded: bool) -> Result<(), Invalid> {
        if self.argv.is_empty() {
            return Err(Invalid::new("argv", "is empty").hint("give the program and its arguments"));
        }
        for (i, word) in self.argv.iter().enumerate() {
            self.check_word(word, sharded).map_err(|why| {
                Invalid::new(format!("argv.{i}"), why)
                    .hint("write `{{` and `}}` for braces that are no placeholder")
            })?;
        }
        if self.outputs.is_empty() {
            return Err(Invalid::new("outputs", "is empty").hint("name the files that the command writes"));
        }
        for (i, pattern) in self.outputs.iter().enumerate() {
            let param = format!("outputs.{i}");
            if !Path::new(pattern).components().all(|part| matches!(part, Component::Normal(_))) {
                let why = format!("`{pattern}` does not stay inside `{{out}}`");
                return Err(Invalid::new(param, why).hint("give a relative path without `..`"));
            }
            // Compiling a glob is the dearest part of planning a large pipeline, and most names are none.
            if pattern.contains(['*', '?', '[', ']', '{', '}', '\\']) {
                matcher(pattern).map_err(|why| Invalid::new(param, why))?;
            }
        }
        Ok(())
    }

    fn run_as(&self, shard: Option<Shard>, cx: &Cx<'_>) -> Result<(), Failure> {
        let folders = Folders::prepare(self, cx)?;
        let mut words = self.argv.iter().map(|word| folders.fill(word, shard, cx));
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).current_dir(&folders.work).env_clear().env("LANG", "C");
        for name in ["PATH", "HOME"] {
            // Where programs and their own settings lie is the machine's business, like the programs themselves.
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command.envs(self.env.iter().filter_map(|var| Some((&var.name, var.value.as_ref()?))));
        let saved = Saved::prepare(cx)?;
        command.envs(saved.env());
        match process::run(command, &cx.log, cx.stop, cx.progress) {
            Ok(()) => self.keep_declared(cx),
            Err(error) => {
                saved.publish(cx, &error)?;
                Err(failure(error))
            }
        }
    }

    fn check_word(&self, word: &str, sharded: bool) -> Result<(), String> {
        for piece in parse(word)? {
            match piece {
                Piece::Input(name) if !self.inputs.contains_key(name) => {
                    return Err(format!("`{{in.{name}}}` is not in `inputs`"));
                }
                Piece::Device if self.numerics == Portability::Bitwise => {
                    return Err("`{device}` needs `numerics = \"per-device\"`".to_owned());
                }
                Piece::Shard | Piece::Shards if !sharded => {
                    return Err(format!(
                        "`{{{}}}` needs `shards = N`",
                        if piece == Piece::Shard { "shard" } else { "shards" }
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Checks the declared outputs and removes everything else from the output folder.
    fn keep_declared(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        let out = cx.output("out");
        let matchers: Vec<GlobMatcher> =
            self.outputs.iter().map(|pattern| matcher(pattern).expect("checked with the manifest")).collect();
        let mut hit = vec![false; matchers.len()];
        for entry in WalkDir::new(&out).min_depth(1).contents_first(true).sort_by_file_name() {
            let entry = entry.map_err(Failure::stage)?;
            let path = entry.path();
            let name = path.strip_prefix(&out).unwrap_or(path).to_string_lossy().into_owned();
            if entry.file_type().is_dir() {
                // Folders are no outputs: one that holds nothing any more goes, the others stay.
                let _holds_outputs = fs::remove_dir(path);
                continue;
            }
            let matching: Vec<usize> = (0..matchers.len()).filter(|&i| matchers[i].is_match(&name)).collect();
            for &i in &matching {
                hit[i] = true;
            }
            if matching.is_empty() {
                cx.progress.say(&format!("left out `{name}`, which is not in `outputs`"));
                fs::remove_file(path).map_err(at(path))?;
            } else if !entry.file_type().is_file() {
                return Err(Failure::stage(ExecError::NotAFile(name)));
            } else if !self.allow_empty && entry.metadata().map_err(Failure::stage)?.len() == 0 {
                return Err(Failure::stage(ExecError::Empty(name)));
            }
        }
        match hit.iter().position(|hit| !hit) {
            Some(i) => Err(Failure::stage(ExecError::Missing(self.outputs[i].clone()))),
            None => Ok(()),
        }
    }
}

/// The private folders that a command sees. Everything in them is a link to immutable bytes.
struct Folders {
    work: PathBuf,
    inputs: PathBuf,
}

impl Folders {
    fn prepare(exec: &Exec, cx: &Cx<'_>) -> Result<Self, Failure> {
        let folders = Self { work: cx.scratch.join("work"), inputs: cx.scratch.join("in") };
        link(&cx.reads, &folders.work)?;
        for name in exec.inputs.keys() {
            let files = exec.inputs[name].load(cx, &format!("inputs.{name}"))?;
            link(&files.0, &folders.inputs.join(name))?;
        }
        Ok(folders)
    }

    fn fill(&self, word: &str, shard: Option<Shard>, cx: &Cx<'_>) -> String {
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        let piece = |piece| match piece {
            Piece::Text(text) => text.to_owned(),
            Piece::Input(name) => path(self.inputs.join(name)),
            Piece::Out => path(cx.output("out")),
            Piece::Work => path(self.work.clone()),
            Piece::Seed => cx.seed.to_string(),
            Piece::Device => cx.device.clone(),
            Piece::Shard => shard.map(|shard| shard.index.to_string()).unwrap_or_default(),
            Piece::Shards => shard.map(|shard| shard.of.to_string()).unwrap_or_default(),
        };
        parse(word).expect("checked when the manifest was decoded").into_iter().map(piece).collect()
    }
}

fn link(files: &Files, folder: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(at(folder))?;
    for (name, target) in files {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).map_err(at(parent))?;
        let target = fs::canonicalize(target).map_err(at(target))?;
        symlink(target, &path).map_err(at(&path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
