//! The model source: a checkpoint of the user's, checked before anything is computed with it. Knows no conversion.

mod random;

use std::{fs, path::Path};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::random::Random;
use crate::{
    artifact::{Artifact, checkpoint::Checkpoint},
    engine::action::{Cx, Failure, Numerics, OutputPort, Repo, RepoKind},
    model::{Config, Layer, ModelError, Shell},
    stage::{
        Base, Invalid, Read, Stage, UserPath,
        code::{self, Code},
        hub::{self, Address},
    },
};

/// Gives a model to the stages that need one: a folder in Hugging Face layout (`config.json`, tokenizer, `*.safetensors`).
/// Every tensor's name, shape and element type is checked here.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ModelSource {
    /// The model's folder, relative to the manifest.
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
    /// With `random`: the `tokenizer.json` to put beside the weights, relative to the manifest. Its vocabulary may be a smaller one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<UserPath>,
}

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    #[error("cannot copy `{file}`: {source}")]
    Copy { file: String, source: std::io::Error },
}

/// What belongs to a model besides its weights and configuration, by the end of the file's name.
const SIDE_FILES: &[&str] = &[".json", ".jinja", ".txt", ".model", "LICENSE"];

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
        if self.tokenizer.is_some() {
            return Err(Invalid::new("tokenizer", "`tokenizer` goes with `random`")
                .hint("another model has its own in its folder"));
        }
        match (&self.path, &self.hub) {
            (Some(_), Some(_)) => Err(Invalid::new("hub", "`hub` and `path` exclude each other")
                .hint("keep `path` for a folder on this machine")),
            (None, None) => Err(Invalid::new("path", "a model needs `path`, `hub` or `random`")
                .hint("`path` is a folder with config.json and *.safetensors")),
            (Some(_), None) if self.revision.is_some() => {
                Err(Invalid::new("revision", "`revision` goes with `hub`")
                    .hint("a folder is identified by its content; remove `revision`"))
            }
            (None, Some(id)) => hub::check(("hub", &id.0), self.revision.as_ref(), ""),
            (Some(_), None) => Ok(()),
        }
    }

    fn reads(&self, base: &Base<'_>) -> Result<Vec<Read>, Invalid> {
        if let Some(tokenizer) = &self.tokenizer {
            let path = base("tokenizer").join(&tokenizer.0);
            if !path.is_file() {
                return Err(Invalid::new("tokenizer", format!("there is no file `{}`", path.display())));
            }
            return Ok(vec![Read { name: "tokenizer.json".to_owned(), path }]);
        }
        self.path.as_ref().map_or_else(|| Ok(Vec::new()), |path| model_files(&base("path").join(&path.0)))
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
        if let Some(random) = self.random {
            random.write(&out, cx)?;
        } else {
            validate(&Checkpoint::load(&cx.reads).map_err(Failure::stage)?, cx)?;
        }
        for (file, path) in &cx.reads {
            cx.check_stop()?;
            fs::copy(path, out.join(file))
                .map_err(|source| Failure::stage(SourceError::Copy { file: file.clone(), source }))?;
        }
        Ok(())
    }
}

/// The files of a model's folder, under their own names.
fn model_files(folder: &Path) -> Result<Vec<Read>, Invalid> {
    let fault = |what: &str| Invalid::new("path", format!("{what} `{}`", folder.display()));
    let hint = "a model's folder holds config.json and *.safetensors; it is relative to the manifest";
    let entries = fs::read_dir(folder).map_err(|_| fault("there is no folder").hint(hint))?;
    let mut reads = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| fault(&format!("cannot list ({e})")))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let wanted = name.ends_with(".safetensors") || SIDE_FILES.iter().any(|end| name.ends_with(end));
        if wanted && !name.starts_with('.') && path.is_file() {
            reads.push(Read { name: name.to_owned(), path: path.clone() });
        }
    }
    reads.sort();
    if !reads.iter().any(|read| read.name == "config.json") {
        return Err(fault("there is no config.json in").hint(hint));
    }
    if !reads.iter().any(|read| read.name.ends_with(".safetensors")) {
        return Err(fault("there is no *.safetensors in").hint(hint));
    }
    Ok(reads)
}

/// Reads every tensor once, a layer at a time, and reports all that is missing or malformed in one error.
fn validate(checkpoint: &Checkpoint, cx: &Cx<'_>) -> Result<(), Failure> {
    let config = Config::parse(&checkpoint.config).map_err(Failure::stage)?;
    let layers = config.layers.len();
    cx.progress.phase("checking", Some(layers as u64 + 1), "layers");
    let mut problems = Vec::new();
    for part in 0..=layers {
        cx.check_stop()?;
        let loaded = match part.checked_sub(1) {
            None => Shell::load(checkpoint, &config).map(drop),
            Some(index) => Layer::load(checkpoint, &config, index).map(drop),
        };
        match loaded {
            Ok(()) => {}
            Err(ModelError::Tensors(found)) => problems.extend(found),
            Err(error) => return Err(Failure::stage(error)),
        }
        match part.checked_sub(1) {
            None => Shell::release(checkpoint),
            Some(index) => Layer::release(checkpoint, index),
        }
        cx.progress.advance(1);
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::stage(ModelError::Tensors(problems))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        artifact::checkpoint::{Draft, Owned, files_in},
        stage::testing::Bench,
    };

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

    fn source(toml: &str) -> ModelSource {
        toml::from_str(toml).unwrap()
    }

    fn broken(change: impl Fn(&mut Draft)) -> (tempfile::TempDir, ModelSource) {
        let folder = Path::new(GOLDEN).join("gptoss-dense");
        let mut files = files_in(&folder).unwrap();
        files.remove("expected.safetensors");
        let mut draft = Draft::copy_of(&Checkpoint::load(&files).unwrap()).unwrap();
        change(&mut draft);
        let dir = tempfile::tempdir().unwrap();
        draft.save(dir.path()).unwrap();
        let stage = source(&format!("path = {:?}", dir.path()));
        (dir, stage)
    }

    fn run(stage: &ModelSource) -> Result<Bench, Failure> {
        let bench = Bench::new().reads(stage.reads(&|_| "".into()).unwrap());
        bench.run(stage).map(|()| bench)
    }

    #[test]
    fn a_sound_model_passes_with_its_side_files() {
        let (_dir, stage) = broken(|draft| {
            draft.side_files.insert("tokenizer.json".into(), b"{}".to_vec());
        });
        let bench = run(&stage).unwrap();
        let checkpoint: Checkpoint = bench.load("checkpoint");
        assert!(checkpoint.raw("model.layers.0.self_attn.sinks").is_some());
        assert_eq!(
            bench.files("checkpoint").keys().collect::<Vec<_>>(),
            ["config.json", "model.safetensors", "tokenizer.json", "tokens.json"]
        );
    }

    #[test]
    fn every_fault_is_reported_in_one_error() {
        let (_dir, stage) = broken(|draft| {
            draft.tensors.remove("model.norm.weight");
            draft.tensors.remove("model.layers.3.self_attn.sinks");
            draft.tensors.insert("model.layers.1.self_attn.q_proj.bias".into(), Owned::f32(&[1], &[0.0]));
        });
        let error = run(&stage).err().unwrap().to_string();
        for part in [
            "`model.norm.weight` is missing",
            "`model.layers.3.self_attn.sinks` is missing",
            "`model.layers.1.self_attn.q_proj.bias` has shape [1], expected [128]",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn an_unknown_architecture_is_named() {
        let (_dir, stage) = broken(|draft| draft.config["model_type"] = "gpt9".into());
        let error = run(&stage).err().unwrap().to_string();
        assert!(error.contains("model_type `gpt9` is not supported"), "{error}");
    }

    #[test]
    fn folders_that_are_no_model_are_refused_at_path() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("empty")).unwrap();
        fs::create_dir(dir.path().join("half")).unwrap();
        fs::write(dir.path().join("half/config.json"), "{}").unwrap();
        for (folder, message) in [
            ("missing", "there is no folder `"),
            ("empty", "there is no config.json in `"),
            ("half", "there is no *.safetensors in `"),
        ] {
            let error = source(&format!("path = {folder:?}")).reads(&|_| dir.path().to_owned()).unwrap_err();
            assert_eq!(error.param, "path");
            assert!(error.message.starts_with(message), "{error}");
        }
    }

    #[test]
    fn random_weights_come_alone_and_with_a_tokenizer_that_is_there() {
        for (toml, param) in [
            ("random = 'gpt-oss-20b'\npath = 'm'", "path"),
            ("random = 'gpt-oss-20b'\nhub = 'a/b'", "hub"),
            ("random = 'gpt-oss-20b'\nrevision = 'v1'", "revision"),
            ("path = 'm'\ntokenizer = 't.json'", "tokenizer"),
        ] {
            assert_eq!(source(toml).check().unwrap_err().param, param, "{toml}");
        }
        let stage = source("random = 'gpt-oss-120b'\ntokenizer = 't.json'");
        assert_eq!((stage.check(), stage.repos()), (Ok(()), vec![]));
        let dir = tempfile::tempdir().unwrap();
        let reads = || stage.reads(&|_| dir.path().to_owned());
        assert_eq!(reads().unwrap_err().param, "tokenizer");
        fs::write(dir.path().join("t.json"), "{}").unwrap();
        assert_eq!(reads().unwrap()[0].name, "tokenizer.json");
        assert_eq!(
            serde_json::to_value(source("random = 'gpt-oss-20b'")).unwrap(),
            serde_json::json!({"random": "gpt-oss-20b"})
        );
    }

    #[test]
    fn of_the_hub_only_what_lies_at_the_top_is_read() {
        let stage = source("hub = 'openai/gpt-oss-20b'\nrevision = 'v1'");
        assert_eq!((stage.check(), stage.reads(&|_| "".into())), (Ok(()), Ok(vec![])));
        let repos = stage.repos();
        assert_eq!((&*repos[0].id, &*repos[0].revision), ("openai/gpt-oss-20b", "v1"));
        assert!(repos[0].files.iter().all(|glob| glob.starts_with('*') && !glob.contains('/')));
        assert_eq!(
            serde_json::to_value(&stage).unwrap(),
            serde_json::json!({}),
            "object ids are in the key instead"
        );
        assert!(Bench::new().run(&stage).unwrap_err().to_string().contains("config.json"));
    }

    #[test]
    fn combinations_that_make_no_sense() {
        for (toml, param) in [
            ("", "path"),
            ("path = 'a'\nhub = 'b/c'", "hub"),
            ("path = 'a'\nrevision = 'x'", "revision"),
            ("hub = 'gpt'", "hub"),
        ] {
            assert_eq!(source(toml).check().unwrap_err().param, param, "{toml}");
        }
    }
}
