//! The model source: a checkpoint of the user's in any of several forms, checked before anything is computed with it. Knows no conversion
//! of attention.

mod check;
mod folder;
mod gguf;
mod original;
mod quantize;
mod random;

use std::{fs, path::Path};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{quantize::Quantize, random::Random};
use crate::{
    artifact::{
        Artifact, ArtifactError, Files,
        checkpoint::{Checkpoint, files_in},
    },
    engine::action::{Cx, Failure, Numerics, OutputPort, Repo, RepoKind},
    stage::{
        Base, Invalid, Read, Stage, UserPath,
        code::{self, Code},
        hub::{self, Address},
    },
};

/// Gives a model to the stages that need one, from a folder in Hugging Face layout (`config.json`, tokenizer, `*.safetensors`), from the
/// `original/` folder of a GPT-OSS, or from a GGUF file of a Llama. Every tensor's name, shape and element type is checked here before any
/// of them is read, and then that all values are finite.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ModelSource {
    /// The model's folder, or a `.gguf` file, relative to the manifest. The folder is in Hugging Face layout, or OpenAI's `original/` of
    /// GPT-OSS, or it holds one GGUF file. OpenAI's names become those of Hugging Face. Of a GGUF the architecture `llama` is taken; its
    /// blocks are unpacked to F32, and its tokenizer is made from what the file says of it, where it is byte-level BPE of a known kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<UserPath>,
    /// A model of the Hugging Face hub in place of `path`, such as `openai/gpt-oss-20b`. It is fetched into the cache that all tools of
    /// the hub share (`HF_HOME`), unless it is there. `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` count.
    #[serde(default, skip_serializing)]
    pub hub: Option<Address>,
    /// With `hub`: a commit, which needs no network once the model is here, a tag or a branch. Default: `main`.
    #[serde(default, skip_serializing)]
    pub revision: Option<Address>,
    /// In place of `path` and `hub`: random weights in the shape of a published model, made from the stage's seed. What a pipeline costs in
    /// time and memory can be seen with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random: Option<Random>,
    /// With `random`, or with a `path` where there is none: the `tokenizer.json` to put beside the weights, relative to the manifest. Its
    /// vocabulary may be a smaller one. In place of a GGUF file's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<UserPath>,
    /// Stores attention, embedding and head, and the MLPs where a layer has one only, in four bits: NF4 with double quantisation, under the
    /// names that bitsandbytes has. This changes the model: later stages see the weights as they were rounded. Experts stay in MXFP4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantize>,
}

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    #[error("cannot copy `{file}`: {source}")]
    Copy { file: String, source: std::io::Error },
    #[error("the model's files do not belong together:\n  {}", .0.join("\n  "))]
    Files(Vec<String>),
    #[error("the weights cannot be used:\n  {}", .0.join("\n  "))]
    Values(Vec<String>),
}

/// What belongs to a model besides its weights and configuration, by the end of the file's name.
const SIDE_FILES: &[&str] = &[".json", ".jinja", ".txt", ".model", "LICENSE"];
/// The name under which a GGUF file is read, whatever its own.
const GGUF: &str = "model.gguf";
const TOKENIZER: &str = "tokenizer.json";

impl Stage for ModelSource {
    const KIND: &'static str = "model";
    const CODE: Code = code::of("model");
    const NUMERICS: Numerics = Numerics::Bitwise;
    const OUTPUTS: &'static [OutputPort] =
        &[OutputPort { name: "checkpoint", kind: <Checkpoint as Artifact>::KIND }];

    fn check(&self) -> Result<(), Invalid> {
        if self.random.is_some() {
            let others = [
                ("path", self.path.is_some()),
                ("hub", self.hub.is_some()),
                ("revision", self.revision.is_some()),
            ];
            return others.into_iter().find(|other| other.1).map_or(Ok(()), |(name, _)| {
                Err(Invalid::new(name, format!("`{name}` and `random` exclude each other")))
            });
        }
        if self.tokenizer.is_some() && self.path.is_none() {
            return Err(Invalid::new("tokenizer", "`tokenizer` goes with `random` or `path`")
                .hint("another model has its own in its folder"));
        }
        match (&self.path, &self.hub) {
            (Some(_), Some(_)) => Err(Invalid::new("hub", "`hub` and `path` exclude each other")
                .hint("keep `path` for a folder on this machine")),
            (None, None) => Err(Invalid::new("path", "a model needs `path`, `hub` or `random`")
                .hint("`path` is a folder with config.json and *.safetensors, or a .gguf file")),
            (Some(_), None) if self.revision.is_some() => {
                Err(Invalid::new("revision", "`revision` goes with `hub`")
                    .hint("a folder is identified by its content; remove `revision`"))
            }
            (None, Some(id)) => hub::check(("hub", &id.0), self.revision.as_ref(), ""),
            (Some(_), None) => Ok(()),
        }
    }

    fn reads(&self, base: &Base<'_>) -> Result<Vec<Read>, Invalid> {
        let mut reads = match &self.path {
            Some(path) => folder::reads(&base("path").join(&path.0))?,
            None => Vec::new(),
        };
        let Some(tokenizer) = &self.tokenizer else { return Ok(reads) };
        let path = base("tokenizer").join(&tokenizer.0);
        if !path.is_file() {
            return Err(Invalid::new("tokenizer", format!("there is no file `{}`", path.display())));
        }
        if reads.iter().any(|read| read.name == TOKENIZER) {
            return Err(Invalid::new("tokenizer", "the model's folder has a tokenizer.json of its own")
                .hint("remove `tokenizer`, or that file"));
        }
        reads.push(Read { name: TOKENIZER.to_owned(), path });
        reads.sort();
        Ok(reads)
    }

    fn repos(&self) -> Vec<Repo> {
        // Only what lies at the top: below are other forms of the same weights.
        let side = SIDE_FILES.iter().map(|end| format!("*{end}"));
        let globs: Vec<String> = side.chain(["*.safetensors".to_owned()]).collect();
        let globs: Vec<&str> = globs.iter().map(String::as_str).collect();
        let repo = |id: &Address| hub::repo("", (RepoKind::Model, &id.0, self.revision.as_ref()), &globs);
        self.hub.iter().map(repo).collect()
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        let out = cx.output("checkpoint");
        if self.quantize.is_none() {
            let files = self.layout(&out, cx)?;
            return check::whole(&files, cx).and_then(|()| copy(&files, &out, cx));
        }
        let dir = cx.scratch.join("plain");
        fs::create_dir_all(&dir).map_err(|e| Failure::stage(ArtifactError::io(&dir)(e)))?;
        let files = self.layout(&dir, cx)?;
        check::whole(&files, cx)?;
        let checkpoint = Checkpoint::load(&files).map_err(Failure::stage)?;
        quantize::write(&checkpoint, &out, cx)?;
        copy(&sides(&checkpoint), &out, cx)
    }
}

impl ModelSource {
    /// The files of the model in Hugging Face layout: those that are read, or others that are made of them in `dir`.
    fn layout(&self, dir: &Path, cx: &Cx<'_>) -> Result<Files, Failure> {
        let made = || files_in(dir).map_err(Failure::stage);
        if let Some(random) = self.random {
            random.write(dir, cx)?;
            copy(&cx.reads, dir, cx)?;
            return made();
        }
        if let Some(path) = cx.reads.get(GGUF) {
            gguf::import(path, dir, cx.reads.contains_key(TOKENIZER), cx)?;
            let others = cx.reads.iter().filter(|(name, _)| *name != GGUF);
            copy(&others.map(|(name, path)| (name.clone(), path.clone())).collect(), dir, cx)?;
            return made();
        }
        check::index(&cx.reads)?;
        let checkpoint = Checkpoint::load(&cx.reads).map_err(Failure::stage)?;
        if !original::recognised(&checkpoint) {
            return Ok(cx.reads.clone());
        }
        original::write(&checkpoint, dir, cx)?;
        copy(&sides(&checkpoint), dir, cx)?;
        made()
    }
}

/// What belongs to a checkpoint besides weights and configuration; OpenAI's list of element types is about weights.
fn sides(checkpoint: &Checkpoint) -> Files {
    let sides = checkpoint.side_files().filter(|(name, _)| *name != "dtypes.json");
    sides.map(|(name, path)| (name.to_owned(), path.to_owned())).collect()
}

/// Copies files into `dir`, except those that lie there.
fn copy(files: &Files, dir: &Path, cx: &Cx<'_>) -> Result<(), Failure> {
    for (file, from) in files {
        let to = dir.join(file);
        if *from == to {
            continue;
        }
        cx.check_stop()?;
        fs::copy(from, to)
            .map_err(|source| Failure::stage(SourceError::Copy { file: file.clone(), source }))?;
    }
    Ok(())
}

fn write_config(dir: &Path, config: &serde_json::Value) -> Result<(), Failure> {
    let path = dir.join("config.json");
    fs::write(&path, format!("{config:#}\n")).map_err(|e| Failure::stage(ArtifactError::io(&path)(e)))
}

/// Tensors that are named here one by one; the rest are counted.
const NAMED: usize = 8;

/// Tells of tensors that nothing reads.
fn say_unread<'a>(names: impl Iterator<Item = &'a str>, cx: &Cx<'_>) {
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    if names.is_empty() {
        return;
    }
    let rest = match names.len().saturating_sub(NAMED) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let shown = names[..names.len().min(NAMED)].join(", ");
    cx.progress.say(&format!("the model does not read {} of the tensors: {shown}{rest}", names.len()));
}

#[cfg(test)]
mod tests;
