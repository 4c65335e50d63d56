//! The needle stage: facts hidden in long texts, with the question at the end. Knows no model and no score.

mod haystack;

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::haystack::{Fact, Haystack, hide};
use crate::{
    artifact::{
        Artifact,
        checkpoint::Checkpoint,
        encoder::{Encoder, EncoderError},
        texts::{Text, Texts},
    },
    engine::action::{Cx, Failure, Numerics, OutputPort},
    math::random::below,
    stage::{
        Finite, Input, InputPort, Invalid, Stage,
        code::{self, Code},
    },
};

/// Makes needle-in-a-haystack texts: in held-out text of a given length one sentence states a number for a name, at a given depth, and the
/// last sentence asks for it. `evaluate` then measures, as recall by distance, how often a model continues with every token of the number.
///
/// A text is at most `lengths` tokens long and seldom more than a line shorter. Other names with other numbers can stand around it.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct MakeNeedles {
    /// The text that hides the sentence; its documents are joined in the order of their ids.
    pub texts: Input<Texts>,
    /// The model whose tokens are counted.
    pub model: Input<Checkpoint>,
    /// Tokens of the whole text.
    #[serde(default = "lengths")]
    pub lengths: Vec<usize>,
    /// Where the sentence stands, as a share of the text before it.
    #[serde(default = "depths")]
    pub depths: Vec<Finite>,
    /// Texts of each length and depth.
    #[serde(default = "samples")]
    pub samples: usize,
    /// Sentences that state other numbers for other names, anywhere in the text.
    #[serde(default)]
    pub distractors: usize,
}

fn lengths() -> Vec<usize> {
    vec![512, 2048, 8192]
}
fn depths() -> Vec<Finite> {
    [0.0, 0.25, 0.5, 0.75, 1.0].map(Finite).into()
}
fn samples() -> usize {
    4
}

/// Why texts could not be made.
#[derive(Debug, thiserror::Error)]
enum NeedleError {
    #[error("the model: {0}")]
    Encoder(#[from] EncoderError),
    #[error(
        "the texts have {has} tokens, fewer than a text of {wanted} tokens needs; give more text or a smaller `lengths`"
    )]
    TooLittle { has: usize, wanted: usize },
    #[error("the sentences alone have {needed} tokens, more than `lengths` {wanted}")]
    TooShort { needed: usize, wanted: usize },
}

impl Stage for MakeNeedles {
    const KIND: &'static str = "needle";
    const CODE: Code = code::of("needle");
    const NUMERICS: Numerics = Numerics::Bitwise;
    const OUTPUTS: &'static [OutputPort] = &[OutputPort { name: "texts", kind: Texts::KIND }];

    fn inputs(&self) -> Vec<InputPort> {
        vec![self.texts.port("texts"), self.model.port("model")]
    }

    fn check(&self) -> Result<(), Invalid> {
        for (param, empty) in [("lengths", self.lengths.is_empty()), ("depths", self.depths.is_empty())] {
            if empty {
                return Err(Invalid::new(param, format!("`{param}` is empty")));
            }
        }
        if self.samples == 0 {
            return Err(Invalid::new("samples", "`samples` is 0"));
        }
        if self.depths.iter().any(|depth| !(0.0..=1.0).contains(&depth.0)) {
            return Err(Invalid::new("depths", "a depth is a share between 0 and 1"));
        }
        if self.distractors >= haystack::NAMES {
            return Err(Invalid::new("distractors", format!("there are {} names", haystack::NAMES)));
        }
        Ok(())
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        let failed = |e: EncoderError| Failure::stage(NeedleError::Encoder(e));
        let texts = self.texts.load(cx, "texts")?;
        let model = self.model.load(cx, "model")?;
        let encoder =
            Encoder::from_file(model.file("tokenizer.json").map_err(Failure::stage)?).map_err(failed)?;
        let longest = self.lengths.iter().copied().max().unwrap_or_default();
        let haystack = Haystack::new(&texts.0, &encoder, SPARE * longest).map_err(failed)?;
        let mut random = ChaCha8Rng::seed_from_u64(cx.seed);
        let mut made = Vec::new();
        let total = self.lengths.len() * self.depths.len() * self.samples;
        cx.progress.phase("hiding needles", Some(total as u64), "texts");
        for &length in &self.lengths {
            for depth in self.depths.iter().flat_map(|depth| vec![depth.0; self.samples]) {
                cx.check_stop()?;
                let text = self.text((&haystack, &encoder), (length, depth), &mut random);
                made.push(text.map_err(Failure::stage)?);
                cx.progress.advance(1);
            }
        }
        made.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        made.dedup_by(|a, b| a.id == b.id);
        Texts(made).save(&cx.output("texts")).map_err(Failure::stage)
    }
}

/// The haystack is so many times as long as the longest text, so that texts differ.
const SPARE: usize = 8;

impl MakeNeedles {
    /// A text of at most `length` tokens.
    fn text(
        &self,
        (haystack, encoder): (&Haystack, &Encoder),
        (length, depth): (usize, f64),
        random: &mut ChaCha8Rng,
    ) -> Result<Text, NeedleError> {
        let facts = Fact::draw(1 + self.distractors, random);
        let sentences: String = facts.iter().map(Fact::sentence).chain([facts[0].question()]).collect();
        let needed = encoder.count(&sentences)?;
        let room = length.checked_sub(needed).ok_or(NeedleError::TooShort { needed, wanted: length })?;
        let mut depths = vec![depth];
        depths.extend((0..self.distractors).map(|_| below(random, 1 << 20) as f64 / f64::from(1 << 20)));
        let mut pieces = haystack.draw(room, random);
        if pieces.is_empty() && room > 0 {
            return Err(NeedleError::TooLittle { has: haystack.tokens(), wanted: length });
        }
        let (mut text, mut mark) = hide(pieces, &facts, &depths);
        // Joined pieces may have a few tokens more than they have apart.
        while encoder.count(&text)? > length && !pieces.is_empty() {
            pieces = &pieces[..pieces.len() - 1];
            (text, mark) = hide(pieces, &facts, &depths);
        }
        Ok(Text {
            id: blake3::hash(text.as_bytes()).to_hex().to_string(),
            source: format!("needle-{length}/{depth}"),
            licence: String::new(),
            text,
            special_tokens: false,
            marks: vec![mark],
        })
    }
}

#[cfg(test)]
mod tests;
