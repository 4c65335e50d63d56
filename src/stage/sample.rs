//! The sample stage: documents that a model writes itself. Knows no calibration.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;

use crate::{
    artifact::{
        Artifact,
        checkpoint::Checkpoint,
        encoder::Encoder,
        texts::{Text, Texts},
    },
    engine::action::{Cx, Failure, OutputPort, Pool},
    model::{
        Model, ModelError,
        sample::{Limits, Sampling, sample},
    },
    stage::{
        Finite, Input, InputPort, Invalid, Stage,
        code::{self, Code},
        encode,
    },
};

/// Lets a model write documents, each from its begin token on: text of everything that the model was trained on, in about the shares that it
/// learnt, without any of the text itself (self-calibration: arXiv 2410.17170, LLM-QAT: arXiv 2305.17888). `analyze` takes it beside the
/// calibration texts.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Sample {
    /// The model, with its tokenizer.
    pub model: Input<Checkpoint>,
    /// How many documents.
    #[serde(default = "documents")]
    pub documents: usize,
    /// Tokens of a document at most; it ends before where the model ends it.
    #[serde(default = "max_tokens")]
    pub max_tokens: usize,
    /// Divides the logits; 1 is how the model itself speaks.
    #[serde(default = "one")]
    pub temperature: Finite,
    /// Only the most probable tokens that have this much of the probability together are drawn.
    #[serde(default = "one")]
    pub top_p: Finite,
    /// Documents that are written at one time; with more of them a token takes less time and the cache more memory. Changes no text.
    #[serde(default = "batch", skip_serializing)]
    pub batch: usize,
}

fn documents() -> usize {
    128
}
fn max_tokens() -> usize {
    512
}
fn one() -> Finite {
    Finite(1.0)
}
fn batch() -> usize {
    32
}

const OUTPUT: &str = "texts";

/// Why a model writes nothing.
#[derive(Debug, thiserror::Error)]
enum SampleError {
    #[error("the model: {0}")]
    Model(#[from] ModelError),
    #[error(
        "config.json has neither `bos_token_id` nor `eos_token_id`, and a document begins with one of them"
    )]
    NoBegin,
    #[error("all {0} documents are empty: the model ends them where they begin")]
    Empty(usize),
}

impl Stage for Sample {
    const KIND: &'static str = "sample";
    const CODE: Code = code::of("sample");
    const POOL: Pool = Pool::Device;
    const OUTPUTS: &'static [OutputPort] = &[OutputPort { name: OUTPUT, kind: Texts::KIND }];

    fn inputs(&self) -> Vec<InputPort> {
        vec![self.model.port("model")]
    }

    fn check(&self) -> Result<(), Invalid> {
        for (name, value) in
            [("documents", self.documents), ("max-tokens", self.max_tokens), ("batch", self.batch)]
        {
            if value == 0 {
                return Err(Invalid::new(name, "must be positive"));
            }
        }
        if self.temperature.0 <= 0.0 {
            return Err(Invalid::new("temperature", "must be positive")
                .hint("without chance all documents would be one and the same"));
        }
        if self.top_p.0 <= 0.0 || self.top_p.0 > 1.0 {
            return Err(Invalid::new("top-p", "must lie between 0 and 1"));
        }
        Ok(())
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        let checkpoint = self.model.load(cx, "model")?;
        let path = checkpoint.file("tokenizer.json").map_err(Failure::stage)?;
        let encoder = Encoder::from_file(path).map_err(Failure::stage)?;
        let ids = |name: &str| encode::token_ids(&checkpoint.config, name);
        let ends = ids("eos_token_id");
        let begin = ids("bos_token_id").first().or(ends.first()).copied();
        let begin = begin.ok_or_else(|| Failure::stage(SampleError::NoBegin))?;
        let model = Model::frozen(&checkpoint).map_err(|e| Failure::stage(SampleError::Model(e)))?;
        cx.progress.phase("writing", Some((self.documents * self.max_tokens) as u64), "tokens");
        // Every document, the empty ones too: their number says where a run goes on.
        let mut texts = match cx.checkpoints.latest().map_err(Failure::stage)? {
            Some(files) => Texts::load(&files).map_err(Failure::stage)?,
            None => Texts::default(),
        };
        cx.progress.advance((texts.0.len() * self.max_tokens) as u64);
        while texts.0.len() < self.documents {
            let n = self.batch.min(self.documents - texts.0.len());
            for ids in self.write(cx, &model, (texts.0.len(), n), (begin, &ends))? {
                texts.0.push(document(encoder.decode(&ids).map_err(Failure::stage)?.nfc().collect()));
            }
            keep(cx, &texts)?;
        }
        texts.0.retain(|text| !text.text.trim().is_empty());
        texts.0.sort_by(|a, b| a.id.cmp(&b.id));
        texts.0.dedup_by(|a, b| a.id == b.id);
        let (kept, asked) = (texts.0.len(), self.documents);
        if kept == 0 {
            return Err(Failure::stage(SampleError::Empty(asked)));
        }
        if kept < asked {
            cx.progress.say(&format!("{} of {asked} documents were empty or like another", asked - kept));
        }
        texts.save(&cx.output(OUTPUT)).map_err(Failure::stage)
    }
}

impl Sample {
    /// The tokens of documents `first..first + n`.
    fn write(
        &self,
        cx: &Cx<'_>,
        model: &Model,
        (first, n): (usize, usize),
        (begin, ends): (u32, &[u32]),
    ) -> Result<Vec<Vec<u32>>, Failure> {
        let prompt = [begin];
        let prompts: Vec<&[u32]> = vec![&prompt; n];
        let limits = Limits { max_new_tokens: self.max_tokens, ends };
        let sampling = Sampling { temperature: self.temperature.0, top_p: self.top_p.0, seed: cx.seed };
        let told = &mut |_, _| {
            cx.progress.advance(1);
            !cx.stop.is_raised()
        };
        let written = sample(model, &prompts, limits, (sampling, first as u64), told)
            .map_err(|e| Failure::stage(SampleError::Model(e)))?;
        cx.check_stop()?;
        let short: usize = written.iter().map(|ids| self.max_tokens - ids.len()).sum();
        cx.progress.advance(short as u64);
        Ok(written)
    }
}

/// Keeps what is written so far for a later run.
fn keep(cx: &Cx<'_>, texts: &Texts) -> Result<(), Failure> {
    let dir = cx.scratch.join("checkpoint");
    std::fs::create_dir_all(&dir).map_err(Failure::stage)?;
    texts.save(&dir).map_err(Failure::stage)?;
    cx.checkpoints.publish(&dir).map_err(Failure::stage)
}

fn document(text: String) -> Text {
    Text {
        id: blake3::hash(text.as_bytes()).to_hex().to_string(),
        source: "written by the model".to_owned(),
        licence: String::new(),
        text,
        special_tokens: false,
        marks: Vec::new(),
    }
}

#[cfg(test)]
mod tests;
