//! The export stage: a checkpoint, its figures and its calibration texts become a folder that a model hub takes.
//!
//! Knows file names and what a reader must be told; converts nothing and uploads nothing.

mod card;
mod check;
mod hub;
mod shards;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    artifact::{
        Artifact, bundle::Bundle, checkpoint::Checkpoint, conversion::Conversion, files::FileSet,
        scores::Scores,
    },
    engine::action::{Cx, Failure, OutputPort},
    model::config::{Config, ConfigError},
    stage::{
        Input, InputPort, Invalid, Stage,
        code::{self, Code},
    },
};

/// Writes a model folder in Hugging Face layout: safetensors shards with their index, `config.json`, tokenizer and generation config,
/// the modelling code for transformers (`trust_remote_code=True`) where stock transformers lacks the architecture, a model card with the
/// measured table, `conversion_report.json`, and the calibration texts in `data/`.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Export {
    /// The model to publish.
    pub checkpoint: Input<Checkpoint>,
    /// The figures for the model card.
    pub scores: Input<Scores>,
    /// What the conversion kept, dropped and measured, for the card and `conversion_report.json`: `conversion = "svd"`.
    #[serde(default)]
    pub conversion: Option<Input<Conversion>>,
    /// The dataset folder of the calibration texts, to publish with it under `data/`: `dataset = "select.dataset"`.
    #[serde(default)]
    pub dataset: Option<Input<FileSet>>,
    /// The model's name in its card, as `owner/name` or `name`.
    #[serde(default = "name")]
    pub name: String,
    /// Hub name of the model that it was made from, such as `openai/gpt-oss-20b`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// Licence of the weights as the hub spells it; that of the base model where there is one.
    #[serde(default = "licence")]
    pub licence: String,
    /// Largest size of a shard in bytes. A single tensor may be larger.
    #[serde(default = "shard_bytes")]
    pub shard_bytes: u64,
    /// Length of the prompt of `check.safetensors`, which holds our logits for other programs to compare with; 0 leaves it out.
    #[serde(default = "check_tokens")]
    pub check_tokens: usize,
}

fn name() -> String {
    "gpt-oss-mla".to_owned()
}
fn licence() -> String {
    "apache-2.0".to_owned()
}
fn shard_bytes() -> u64 {
    4_800_000_000
}
fn check_tokens() -> usize {
    160
}

/// Why a bundle could not be made.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("card: {0}")]
    Card(#[from] minijinja::Error),
}

impl Stage for Export {
    const KIND: &'static str = "export";
    const CODE: Code = code::of("export");
    const OUTPUTS: &'static [OutputPort] = &[OutputPort { name: "bundle", kind: Bundle::KIND }];

    fn inputs(&self) -> Vec<InputPort> {
        let dataset = self.dataset.as_ref().map(|input| input.port("dataset"));
        let conversion = self.conversion.as_ref().map(|input| input.port("conversion"));
        let always = [self.checkpoint.port("checkpoint"), self.scores.port("scores")];
        always.into_iter().chain(conversion).chain(dataset).collect()
    }

    fn check(&self) -> Result<(), Invalid> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if self.name.is_empty()
            || self.name.split('/').count() > 2
            || !self.name.chars().all(|c| plain(c) || c == '/')
        {
            return Err(Invalid::new("name", "must be `name` or `owner/name`")
                .hint("use letters, digits, `.`, `_`, `-`"));
        }
        if self.shard_bytes == 0 {
            return Err(Invalid::new("shard-bytes", "must be positive"));
        }
        Ok(())
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        let checkpoint = self.checkpoint.load(cx, "checkpoint")?;
        let scores = self.scores.load(cx, "scores")?;
        let conversion = self.conversion.as_ref().map(|input| input.load(cx, "conversion")).transpose()?;
        let config = Config::parse(&checkpoint.config).map_err(Failure::stage)?;
        let dir = cx.output("bundle");
        if let Some(dataset) = &self.dataset {
            dataset.load(cx, "dataset")?.save(&dir.join("data")).map_err(Failure::stage)?;
        }
        cx.check_stop()?;

        let written = {
            let total =
                checkpoint.names().filter_map(|name| checkpoint.raw(name)).map(|raw| raw.bytes.len() as u64);
            cx.progress.phase("weights", Some(total.sum()), "bytes");
            let mut advance = |bytes| cx.progress.advance(bytes);
            shards::write(&checkpoint, self.shard_bytes, &dir, &mut advance).map_err(Failure::stage)?
        };
        if self.check_tokens > 0 {
            let path = dir.join("check.safetensors");
            check::write(&checkpoint, &config, self.check_tokens, cx, &path)?;
        }
        let report = card::Report::new(&config, self.base_model.as_deref(), (&scores, conversion.as_ref()));
        self.write_texts(&checkpoint, &report, &dir).map_err(Failure::stage)?;
        cx.progress.say(&format!("{} in {} shards, {} bytes", self.name, written.shards, written.bytes));
        Ok(())
    }
}

impl Export {
    /// Everything that is neither a tensor nor a calibration text.
    fn write_texts(
        &self,
        checkpoint: &Checkpoint,
        report: &card::Report<'_>,
        dir: &Path,
    ) -> Result<(), ExportError> {
        let mut carried = BTreeMap::new();
        for (name, path) in checkpoint.side_files().filter(|(name, _)| hub::CARRIED.contains(name)) {
            carried.insert(name.to_owned(), fs::read(path).map_err(io(path))?);
        }
        let code = hub::needs_code(&checkpoint.config);
        let tokenizer = carried.contains_key("tokenizer.json");
        let parts = [
            ("code", code),
            ("tokenizer", tokenizer),
            ("check", self.check_tokens > 0),
            ("dataset", self.dataset.is_some()),
        ];
        let facts = card::Facts {
            name: &self.name,
            licence: &self.licence,
            base_model: self.base_model.as_deref(),
            parts: parts.into_iter().filter_map(|(part, there)| there.then_some(part)).collect(),
        };
        let mut files = BTreeMap::from([
            ("README.md".to_owned(), card::model_card(&facts, report)?.into_bytes()),
            ("LICENSE".to_owned(), card::licence(&facts)?.into_bytes()),
            ("config.json".to_owned(), pretty(&hub::config(&checkpoint.config))),
            ("generation_config.json".to_owned(), pretty(&hub::generation_config(&checkpoint.config))),
            ("conversion_report.json".to_owned(), pretty(report)),
        ]);
        if tokenizer {
            files.insert(
                "tokenizer_config.json".to_owned(),
                pretty(&hub::tokenizer_config(&checkpoint.config)),
            );
        }
        if code {
            files.insert("modeling_gpt_oss_mla.py".to_owned(), hub::MODELING.into());
            files.insert("configuration_gpt_oss_mla.py".to_owned(), hub::CONFIGURATION.into());
        }
        files.extend(carried);
        files.iter().try_for_each(|(name, bytes)| {
            let path = dir.join(name);
            fs::write(&path, bytes).map_err(io(&path))
        })
    }
}

fn pretty(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("string keys and finite numbers");
    bytes.push(b'\n');
    bytes
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ExportError + '_ {
    move |source| ExportError::Io { path: path.to_owned(), source }
}
