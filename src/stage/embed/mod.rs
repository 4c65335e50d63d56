//! The embed stage: one grid vector per document. Knows no clustering.

mod files;
mod lexical;
#[cfg(test)]
mod tests;
mod transformer;

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::{lexical::Lexical, transformer::Transformer};
use crate::{
    artifact::{
        Artifact,
        embeddings::{About, Embeddings},
        texts::{Text, Texts},
    },
    engine::action::{Cx, Failure, Numerics, OutputPort, Repo, RepoKind},
    math::grid,
    model::text_encoder::Pooling,
    stage::{
        Base, Input, InputPort, Invalid, Read, Stage, UserPath,
        code::{self, Code},
        hub::{self, Address},
        shards::{self, Shard, Sharded, Split},
    },
};

/// Turns documents into unit vectors on an integer grid, so that everything that is decided from them is exact.
///
/// With `path`, a transformer embeds: BERT (MiniLM, bge-*) or gte-*-v1.5. Its tokens lie packed without padding. Every machine, number
/// of threads and batch gives the same bytes, and there is no faster form to choose: the products of fixed order are the fastest.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Embed {
    /// The documents.
    pub texts: Input<Texts>,
    /// The embedder: `lexical` (hashed n-grams and a seeded random projection, no download), a model of the Hugging Face hub, such as
    /// `Alibaba-NLP/gte-large-en-v1.5`, or with `path` any name for it. What the hub has is fetched into the cache that all its tools
    /// share (`HF_HOME`), unless it is there; `HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` count.
    #[serde(default = "lexical_name")]
    pub model: String,
    /// A transformer's folder in Hugging Face layout (`config.json`, `tokenizer.json`, `*.safetensors`), relative to the manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<UserPath>,
    /// With a model of the hub: a commit, which needs no network once the model is here, a tag or a branch. Default: `main`.
    #[serde(default, skip_serializing)]
    pub revision: Option<Address>,
    /// With `path`: the vector of the first token (`cls`) or the mean of all (`mean`). Default: what `1_Pooling/config.json` says,
    /// else `cls` for gte-*-v1.5 and `mean` for BERT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<Pooling>,
    /// With `path`: the most tokens that the model sees at once, special ones included. Default: what `sentence_bert_config.json`
    /// says, else all that the model can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// With `path`: what becomes of longer documents.
    #[serde(default, skip_serializing_if = "crate::stage::is_default")]
    pub windows: Windows,
    /// With `path`: text that is put before every document, such as `query: `.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
    /// With `lexical`: coordinates per vector, 8 to 1024.
    #[serde(default = "dim")]
    pub dim: usize,
    /// With `lexical`: the longest run of words that counts as one feature, 1 to 3.
    #[serde(default = "word_ngrams")]
    pub word_ngrams: usize,
    /// With `lexical`: bytes in an n-gram inside a word; 0 turns these off.
    #[serde(default = "char_ngrams")]
    pub char_ngrams: usize,
    /// Subtracts the mean of all vectors, which takes out what every document has in common.
    #[serde(default = "yes")]
    pub centre: bool,
}

/// What becomes of a document that is longer than the model sees at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Windows {
    /// Its first window counts.
    #[default]
    First,
    /// The mean of the unit vectors of all its windows counts.
    Mean,
}

const LEXICAL: &str = "lexical";
const OUTPUT: &str = "embeddings";

fn lexical_name() -> String {
    LEXICAL.to_owned()
}
fn dim() -> usize {
    256
}
fn word_ngrams() -> usize {
    2
}
fn char_ngrams() -> usize {
    4
}
fn yes() -> bool {
    true
}

impl Stage for Embed {
    const KIND: &'static str = "embed";
    const CODE: Code = code::of("embed");
    const NUMERICS: Numerics = Numerics::Bitwise;
    const OUTPUTS: &'static [OutputPort] = &[OutputPort { name: OUTPUT, kind: Embeddings::KIND }];

    fn inputs(&self) -> Vec<InputPort> {
        vec![self.texts.port("texts")]
    }

    fn reads(&self, base: &Base<'_>) -> Result<Vec<Read>, Invalid> {
        self.path.as_ref().map_or_else(|| Ok(Vec::new()), |path| files::of_model(&base("path").join(&path.0)))
    }

    fn repos(&self) -> Vec<Repo> {
        if !self.is_on_hub() {
            return Vec::new();
        }
        let repo = (RepoKind::Model, &*self.model, self.revision.as_ref());
        vec![hub::repo("", repo, &files::GLOBS)]
    }

    fn check(&self) -> Result<(), Invalid> {
        if !(8..=grid::MAX_DIM).contains(&self.dim) {
            return Err(Invalid::new(
                "dim",
                format!("`dim` is {}, outside 8 to {}", self.dim, grid::MAX_DIM),
            )
            .hint("up to 1024 coordinates, similarities are exact"));
        }
        if !(1..=3).contains(&self.word_ngrams) {
            return Err(Invalid::new("word-ngrams", "`word-ngrams` is outside 1 to 3"));
        }
        if self.char_ngrams > 8 {
            return Err(Invalid::new("char-ngrams", "`char-ngrams` is larger than 8"));
        }
        if self.model.is_empty() {
            return Err(Invalid::new("model", "`model` is empty").hint("`lexical` needs no download"));
        }
        self.check_transformer()
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        let embeddings = self.embed(cx)?;
        self.finish(embeddings, cx)
    }
}

impl Sharded for Embed {
    const SPLIT: Option<Split> = Some(shards::texts::by_id("texts"));

    /// A shard cannot know the mean of all vectors, so the merge subtracts it.
    fn shard_params(&self, _: Shard) -> Value {
        let mut params = serde_json::to_value(self).expect("parameters are plain data with string keys");
        params.as_object_mut().expect("a struct").remove("centre");
        params
    }

    fn run_shard(&self, _: Shard, cx: &Cx<'_>) -> Result<(), Failure> {
        self.embed(cx)?.save(&cx.output(OUTPUT)).map_err(Failure::stage)
    }

    fn merge_params(&self) -> Value {
        serde_json::json!({ "centre": self.centre })
    }

    fn merge(&self, of: usize, cx: &Cx<'_>) -> Result<(), Failure> {
        let mut whole = Embeddings::default();
        for shard in 0..of {
            let files = cx.input(&shards::merge_port(OUTPUT, shard))?;
            let mut part = Embeddings::load(files).map_err(Failure::stage)?;
            whole.about = part.about;
            whole.ids.append(&mut part.ids);
            whole.vectors.append(&mut part.vectors);
            whole.windows.append(&mut part.windows);
        }
        self.finish(whole, cx)
    }
}

impl Embed {
    fn check_transformer(&self) -> Result<(), Invalid> {
        if let Some(revision) = self.revision.as_ref().filter(|_| !self.is_on_hub()) {
            let what = format!("`revision` is `{}`, and there is no model of the hub", revision.0);
            return Err(Invalid::new("revision", what)
                .hint("a folder is identified by its content; remove `revision`"));
        }
        if self.is_on_hub() {
            hub::check(("model", &self.model), self.revision.as_ref(), "").map_err(|invalid| {
                invalid.hint(
                    "`lexical`, a model of the hub as owner/name, or any name with the `path` of its folder",
                )
            })?;
        }
        if self.is_transformer() {
            let short = self.max_tokens.filter(|&most| most < 8);
            let fault = |most| Invalid::new("max-tokens", format!("`max-tokens` is {most}, below 8"));
            return short.map_or(Ok(()), |most| Err(fault(most)));
        }
        let given = [
            ("pooling", self.pooling.is_some()),
            ("max-tokens", self.max_tokens.is_some()),
            ("windows", self.windows != Windows::default()),
            ("prefix", !self.prefix.is_empty()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((name, _)) => Err(Invalid::new(name, format!("`{name}` goes with a transformer"))
                .hint("set `path` or `model`; the lexical embedder has no such thing")),
        }
    }

    fn is_transformer(&self) -> bool {
        self.path.is_some() || self.model != LEXICAL
    }

    fn is_on_hub(&self) -> bool {
        self.path.is_none() && self.model != LEXICAL
    }

    /// One vector per document, each from its own text only.
    fn embed(&self, cx: &Cx<'_>) -> Result<Embeddings, Failure> {
        // Read before the texts: what is wrong with the model shows at once.
        let transformer = self.is_transformer().then(|| Transformer::load(self, &cx.reads)).transpose()?;
        let texts = self.texts.load(cx, "texts")?.0;
        let (dim, vectors, windows) = match transformer {
            Some(transformer) => transformer.embed(&texts, cx)?,
            None => (self.dim, self.lexical(&texts, cx)?, Vec::new()),
        };
        let model = if self.path.is_some() && self.model == LEXICAL { "transformer" } else { &self.model };
        let about = About { model: model.to_owned(), dim, scale: grid::SCALE, centred: false };
        let ids = texts.into_iter().map(|text| text.id).collect();
        Ok(Embeddings { about, ids, vectors, windows })
    }

    fn lexical(&self, texts: &[Text], cx: &Cx<'_>) -> Result<Vec<i16>, Failure> {
        cx.progress.phase("embedding", Some(texts.len() as u64), "docs");
        let lexical = Lexical {
            dim: self.dim,
            word_ngrams: self.word_ngrams,
            char_ngrams: self.char_ngrams,
            seed: cx.seed,
        };
        let mut vectors = vec![0_i16; texts.len() * self.dim];
        texts.par_iter().zip(vectors.par_chunks_exact_mut(self.dim)).try_for_each(|(text, row)| {
            cx.check_stop()?;
            lexical.embed(&text.text, row);
            cx.progress.advance(1);
            Ok::<_, Failure>(())
        })?;
        Ok(vectors)
    }

    /// What only the whole corpus tells.
    fn finish(&self, mut whole: Embeddings, cx: &Cx<'_>) -> Result<(), Failure> {
        if self.centre && !whole.ids.is_empty() {
            grid::centre(whole.about.dim, &mut whole.vectors);
        }
        whole.about.centred = self.centre;
        whole.save(&cx.output(OUTPUT)).map_err(Failure::stage)
    }
}
