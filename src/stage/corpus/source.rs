//! One source of documents: its parameters, its files, and what becomes of each of its documents. Knows no other source.

use std::sync::Arc;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    chat::{self, Chat, Format},
    decontaminate, files, language,
    near::NearDuplicates,
    quality::Quality,
    rows::{Batch, Fields, Raw, Sink},
    spool::Judged,
    synthetic::{self, Synthetic},
};
use crate::{
    artifact::{drops::Drop, texts::Text},
    engine::action::{Cx, Failure, Repo},
    stage::{
        Invalid, UserPath,
        hub::{self, Address},
    },
};

/// One source of documents.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Source {
    /// Glob of text files, relative to the manifest: one document each. Symbolic links are not followed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<UserPath>,
    /// Glob of JSONL files, relative to the manifest: one document a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jsonl: Option<UserPath>,
    /// Glob of Parquet files, relative to the manifest: one document a row, the text in a column of strings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parquet: Option<UserPath>,
    /// A dataset of the Hugging Face hub, such as `openai/gsm8k`: the glob of `files`, `jsonl` or `parquet` then names files there. They
    /// are fetched into the cache that all tools of the hub share (`HF_HOME`), unless they are there. `HF_ENDPOINT`, `HF_TOKEN` and
    /// `HF_HUB_OFFLINE` count.
    #[serde(default, skip_serializing)]
    pub hub: Option<Address>,
    /// With `hub`: a commit, which needs no network once the files are here, a tag or a branch. Default: `main`. Of most datasets the hub
    /// has Parquet at `refs/convert/parquet`.
    #[serde(default, skip_serializing)]
    pub revision: Option<Address>,
    /// With `jsonl` or `parquet`: what a row holds, `text` or `chat`. Default: `text`.
    #[serde(default, skip_serializing_if = "crate::stage::is_default")]
    pub format: Format,
    /// With `format = "chat"`: where the messages are and how they are rendered, as `chat = { messages = "conversations" }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<Chat>,
    /// Documents made from the stage's seed: `synthetic = { prose = 100 }`. At most one such source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<Synthetic>,
    /// With `jsonl` or `parquet`: the field or column that holds the text. Default: `text`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// With `jsonl` or `parquet`: the field or column that holds the row's licence. Where it is `null` or empty, `licence` holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub licence_field: Option<String>,
    /// With `jsonl` or `parquet`: the field or column that says where the row is from. The `source` of the document is then
    /// `name/` and this, in place of the file's name; where it is `null` or empty, the file's name stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_field: Option<String>,
    /// The first part of the `source` of every document from here, and the group that quotas count. Default: `sources.N`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Licence of these documents, written into every row.
    #[serde(default)]
    pub licence: String,
    /// Documents with fewer characters are dropped.
    #[serde(default = "one")]
    pub min_chars: usize,
    /// Documents with more characters are dropped. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_chars: Option<usize>,
    /// Languages that documents may be written in, by their two letters: `["en", "fr"]`. A document in another one, or in none that
    /// can be told, is dropped. Meant for prose. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub languages: Option<Vec<String>>,
    /// Drops documents that do not look like prose; `quality = {}` turns it on with the usual figures. Default: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
}

fn one() -> usize {
    1
}

/// What documents are held against, and what is noted of them.
#[derive(Clone, Copy, Default)]
pub(super) struct Rules<'a> {
    pub(super) near: Option<&'a NearDuplicates>,
    pub(super) evaluation: Option<&'a decontaminate::Index>,
}

impl Source {
    pub(super) fn label(&self, i: usize) -> String {
        self.name.clone().unwrap_or_else(|| format!("sources.{i}"))
    }

    /// The globs of files on this machine, each with its parameter's name.
    pub(super) fn globs(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.all_globs().filter(|_| self.hub.is_none())
    }

    /// What it reads on the hub.
    pub(super) fn repo(&self, i: usize) -> Option<Repo> {
        let globs: Vec<&str> = self.all_globs().map(|(_, glob)| glob).collect();
        hub::dataset(&(self.label(i) + "/"), (self.hub.as_ref(), self.revision.as_ref()), &globs)
    }

    fn all_globs(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [("files", &self.files), ("jsonl", &self.jsonl), ("parquet", &self.parquet)];
        all.into_iter().filter_map(|(field, glob)| glob.as_ref().map(|glob| (field, glob.0.as_str())))
    }

    pub(super) fn check(&self, i: usize) -> Result<(), Invalid> {
        let invalid = |field: &str, why: &str| Err(Invalid::new(format!("sources.{i}{field}"), why));
        if self.all_globs().count() + usize::from(self.synthetic.is_some()) != 1 {
            return invalid("", "a source needs exactly one of `files`, `jsonl`, `parquet` and `synthetic`");
        }
        if self.hub.is_some() && self.synthetic.is_some() {
            return invalid(".hub", "a synthetic source reads nothing from the hub");
        }
        hub::check_dataset(self.hub.as_ref(), self.revision.as_ref(), &format!("sources.{i}."))?;
        if let Some(synthetic) = &self.synthetic {
            synthetic.check(&format!("sources.{i}.synthetic"))?;
            if self.name.is_some() {
                return invalid(
                    ".name",
                    "a synthetic source names its documents itself: `synthetic/prose` …",
                );
            }
        }
        if self.jsonl.is_none() && self.parquet.is_none() {
            let fields = [
                ("text", &self.text),
                ("licence-field", &self.licence_field),
                ("source-field", &self.source_field),
            ];
            if let Some((param, _)) = fields.iter().find(|(_, field)| field.is_some()) {
                let why =
                    format!("`{param}` names a field of rows, and this source has no `jsonl` or `parquet`");
                return invalid(&format!(".{param}"), &why);
            }
        }
        self.check_format(&format!("sources.{i}"))?;
        if self.max_chars.is_some_and(|max| max < self.min_chars) {
            return invalid(".max-chars", "`max-chars` is smaller than `min-chars`");
        }
        if let Some(languages) = &self.languages {
            language::check(languages, &format!("sources.{i}.languages"))?;
        }
        if let Some(quality) = &self.quality {
            quality.check(&format!("sources.{i}.quality"))?;
        }
        let reserved = |name: &str| {
            let taken = ["", "synthetic", decontaminate::LABEL];
            taken.contains(&name) || name.contains('/') || name.starts_with("sources.")
        };
        if self.name.as_deref().is_some_and(reserved) {
            return invalid(
                ".name",
                "a name is not empty, has no `/`, and is none of `synthetic`, `decontaminate` and `sources.…`",
            );
        }
        Ok(())
    }

    fn check_format(&self, at: &str) -> Result<(), Invalid> {
        let invalid = |param: &str, why: &str| Err(Invalid::new(format!("{at}.{param}"), why));
        match (self.format, &self.chat) {
            (Format::Text, None) => Ok(()),
            (Format::Text, Some(_)) => {
                invalid("chat", "`chat` is about conversations, and the rows of this source are texts")
                    .map_err(|e| e.hint("write `format = \"chat\"` too"))
            }
            (Format::Chat, _) if self.jsonl.is_none() && self.parquet.is_none() => {
                invalid("format", "conversations are rows, and this source has no `jsonl` or `parquet`")
            }
            (Format::Chat, _) if self.text.is_some() => invalid(
                "text",
                "`text` names the field of a text, and the rows of this source are conversations",
            )
            .map_err(|e| e.hint("name the field of the messages: `chat = { messages = \"…\" }`")),
            (Format::Chat, chat) => chat.as_ref().map_or(Ok(()), |chat| chat.check(&format!("{at}.chat"))),
        }
    }

    fn fields(&self) -> Fields<'_> {
        Fields {
            text: self.text.as_deref().unwrap_or("text"),
            licence: self.licence_field.as_deref(),
            source: self.source_field.as_deref(),
            chat: (self.format == Format::Chat).then(|| self.chat.as_ref().unwrap_or(&chat::DEFAULT)),
        }
    }

    /// Hands on all documents of this source, in batches of about `limit` bytes. Files come in the order of their names.
    pub(super) fn read(
        &self,
        i: usize,
        cx: &Cx<'_>,
        limit: u64,
        sink: &mut Sink<'_, Failure>,
    ) -> Result<(), Failure> {
        let mut batch = Batch::new(limit, sink);
        if let Some(params) = &self.synthetic {
            for text in synthetic::generate(params, cx.seed) {
                let bytes = text.text.len() as u64;
                batch.push(&text.source.as_str().into(), Raw::Made(text), bytes)?;
            }
        }
        for (name, path) in files::below(&cx.reads, &(self.label(i) + "/")) {
            cx.check_stop()?;
            let name: Arc<str> = name.as_str().into();
            if self.jsonl.is_some() {
                batch.lines(&name, path)?;
            } else if self.parquet.is_some() {
                batch.table(&name, path, self.fields())?;
            } else {
                batch.file(&name, path)?;
            }
            cx.progress.advance(1);
        }
        batch.flush()
    }

    /// Judges a batch on all threads. Of several faults, the first in the order of the files is the error.
    pub(super) fn judge(
        &self,
        i: usize,
        batch: Vec<(Arc<str>, Raw)>,
        rules: Rules<'_>,
    ) -> Result<Vec<Judged>, Failure> {
        let licence: Arc<str> = self.licence.as_str().into();
        let label = self.label(i);
        let judged: Vec<Result<Judged, Failure>> = batch
            .into_par_iter()
            .map(|(name, raw)| self.judge_one(&label, (name, licence.clone()), raw, rules))
            .collect();
        judged.into_iter().collect()
    }

    fn judge_one(
        &self,
        label: &str,
        (mut name, mut licence): (Arc<str>, Arc<str>),
        mut raw: Raw,
        rules: Rules<'_>,
    ) -> Result<Judged, Failure> {
        let mut marks = Vec::new();
        if let Raw::Made(text) = &mut raw {
            marks = std::mem::take(&mut text.marks);
            // The generator's licence gives way to the user's.
            if licence.is_empty() {
                licence = text.licence.as_str().into();
            }
        }
        let row = raw.parse(self.fields())?;
        let given = |name: Option<String>| name.filter(|name| !name.is_empty());
        if let Some(source) = given(row.source) {
            name = format!("{label}/{source}").into();
        }
        if let Some(given) = given(row.licence) {
            licence = given.into();
        }
        let Some(text) = row.text else {
            return Ok(Judged::Dropped(Drop::new(row.fault.unwrap_or("invalid-utf8"), &name)));
        };
        let special_tokens = row.said.is_some();
        let said = row.said.as_deref().unwrap_or(&text);
        if let Some(reason) = self.fault(said) {
            return Ok(Judged::Dropped(Drop::new(reason, &name)));
        }
        if let Some(file) = rules.evaluation.and_then(|index| index.source_of(said)) {
            return Ok(Judged::Dropped(Drop { by: file.to_owned(), ..Drop::new("contaminated", &name) }));
        }
        let signature = rules.near.map(|near| near.signature(said)).unwrap_or_default();
        let id = blake3::hash(text.as_bytes());
        let text = Text {
            id: id.to_hex().to_string(),
            source: name.to_string(),
            licence: licence.to_string(),
            text,
            special_tokens,
            marks,
        };
        Ok(Judged::kept(id, &text, [name, licence], signature))
    }

    /// Why a text is not wanted, if it is not.
    pub(super) fn fault(&self, text: &str) -> Option<&'static str> {
        let chars = text.chars().count();
        if text.trim().is_empty() {
            Some("empty")
        } else if chars < self.min_chars {
            Some("too-short")
        } else if self.max_chars.is_some_and(|max| chars > max) {
            Some("too-long")
        } else if self.languages.as_ref().is_some_and(|codes| !language::is_one_of(codes, text)) {
            Some("language")
        } else {
            self.quality.as_ref().and_then(|quality| quality.fault(text))
        }
    }
}
