//! The analyze stage: what a model's attention, keys, values and experts look like on calibration text, and the statistics that a
//! conversion needs, in one pass.
//!
//! A layer is loaded, all sequences go through it, it is dropped. Knows no conversion.

mod attention;
mod figures;
mod gradients;
mod observe;
mod pass;
mod picture;
mod sequences;
mod summary;

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::{
    gradients::{Draw, Gradients},
    pass::Pass,
    sequences::{Limits, Sequences},
};
use crate::{
    artifact::{
        Artifact,
        analysis::{Analysis, Figures},
        checkpoint::Checkpoint,
        moments::{About, Model, Moments, file_of},
        splits::Split,
        texts::Texts,
    },
    engine::action::{Cx, Failure, OutputPort, Pool},
    math::random::shuffle,
    model::Config,
    stage::{
        Finite, Input, InputPort, Invalid, Stage,
        code::{self, Code},
        encode::{Document, encode},
        shards::{self, Shard, Sharded},
    },
};

/// Pushes calibration text through the model, layer by layer, and records sinks, routing, geometry and spectra, and the moments
/// that `svd` needs. Then goes back through the layers with a part of it, for what a change of keys and values does to the prediction.
///
/// Of the `analysis`, `summary.md` is a page in words, which states every threshold; `analysis.json` has all figures, by layer, head, expert
/// and rotary pair: attention to sinks and the first token by position, lengths of keys, attention by distance, loads and pairs of experts,
/// spectra of keys and values; the SVGs are maps of them. Give each split its own stage to compare splits.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Analyze {
    /// The model.
    pub model: Input<Checkpoint>,
    /// The calibration split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Input<Split>>,
    /// Plain texts in place of a split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<Input<Texts>>,
    /// Text that the model wrote itself (stage `sample`). All of it counts, beside `max-tokens` of the calibration text, and it has its share
    /// of what is held out. It shows what calibration text of one kind never does, so that a conversion keeps more of what the model can do
    /// elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<Input<Texts>>,
    /// Tokens in the sums, over all sequences of calibration text.
    #[serde(default = "max_tokens")]
    pub max_tokens: usize,
    /// Takes documents in the order they are `given`, or `shuffled` by the stage's seed: another seed is another sample.
    #[serde(default)]
    pub order: Order,
    /// Puts a random token, drawn by the stage's seed, in the place of every calibration token: what calibrating on nothing gives.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub noise: bool,
    /// Sequences are cut after this many tokens.
    #[serde(default = "max_length")]
    pub max_length: usize,
    /// Tokens, as whole sequences, that gradients are taken of, for `metric = "fisher"` of `svd`; 0 for none. The streams that enter all layers
    /// are kept for them, in memory or in a file.
    #[serde(default = "fisher_tokens")]
    pub fisher_tokens: usize,
    /// What logits are divided by before next tokens are drawn and gradients taken. A model that is sure of a token hardly moves its
    /// prediction for a small change, although a large one costs much; the higher this is, the more such tokens count.
    #[serde(default = "fisher_temperature")]
    pub fisher_temperature: Finite,
    /// Tokens set aside, as whole sequences, for measuring a conversion.
    #[serde(default = "held_out_tokens")]
    pub held_out_tokens: usize,
    /// Also sums what the conversion of sliding-window layers needs (`convert-swa` of `svd`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub convert_swa: bool,
    /// The layers to analyse, by index. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
}

fn max_tokens() -> usize {
    131_072
}
fn max_length() -> usize {
    4096
}
fn held_out_tokens() -> usize {
    8192
}
fn fisher_tokens() -> usize {
    16_384
}
fn fisher_temperature() -> Finite {
    Finite(2.0)
}

/// In which order documents are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// As they come.
    #[default]
    Given,
    /// At random.
    Shuffled,
}

/// Why a model could not be analysed.
#[derive(Debug, thiserror::Error)]
enum AnalyzeError {
    #[error("the {0} documents hold no token; give a split with text in it")]
    Empty(usize),
    #[error("{shards} shards share {sequences} sequences, and shard {index} has none; give fewer `shards`")]
    EmptyShard { index: usize, shards: usize, sequences: usize },
    #[error("layer {layer}: {what} of two shards differ; was the model changed between them?")]
    Shards { layer: usize, what: &'static str },
    #[error("`layers` names layer {layer}, but the model has {count} layers")]
    NoLayer { layer: usize, count: usize },
}

impl Stage for Analyze {
    const KIND: &'static str = "analyze";
    const CODE: Code = code::of("analyze");
    const POOL: Pool = Pool::Device;
    const OUTPUTS: &'static [OutputPort] = &[
        OutputPort { name: "analysis", kind: Analysis::KIND },
        OutputPort { name: "moments", kind: Moments::KIND },
    ];

    fn inputs(&self) -> Vec<InputPort> {
        let mut ports = vec![self.model.port("model")];
        ports.extend(self.split.as_ref().map(|split| split.port("split")));
        ports.extend(self.texts.as_ref().map(|texts| texts.port("texts")));
        ports.extend(self.samples.as_ref().map(|samples| samples.port("samples")));
        ports
    }

    fn check(&self) -> Result<(), Invalid> {
        match (&self.split, &self.texts) {
            (Some(_), Some(_)) => {
                return Err(Invalid::new("texts", "`texts` and `split` exclude each other"));
            }
            (None, None) => {
                return Err(Invalid::new("split", "calibration text is missing")
                    .hint("name the stage that makes a split, or give `texts`"));
            }
            _ => {}
        }
        if self.max_tokens == 0 {
            return Err(Invalid::new("max-tokens", "`max-tokens` is 0"));
        }
        if self.max_length < 2 {
            return Err(Invalid::new("max-length", "`max-length` is below 2"));
        }
        if self.fisher_temperature.0 <= 0.0 {
            return Err(Invalid::new("fisher-temperature", "`fisher-temperature` must be positive"));
        }
        if self.layers.as_ref().is_some_and(Vec::is_empty) {
            return Err(Invalid::new("layers", "`layers` is empty").hint("leave it out for all layers"));
        }
        Ok(())
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        self.analyse(None, cx)
    }
}

impl Sharded for Analyze {
    fn shard_params(&self, shard: Shard) -> Value {
        json!({ "params": self, "shard": shard.index, "of": shard.of })
    }

    fn run_shard(&self, shard: Shard, cx: &Cx<'_>) -> Result<(), Failure> {
        self.analyse(Some(shard), cx)
    }

    /// The sums say everything, whatever made them.
    fn merge_params(&self) -> Value {
        Value::Null
    }

    fn merge(&self, of: usize, cx: &Cx<'_>) -> Result<(), Failure> {
        let part =
            |shard| Moments::load(cx.input(&shards::merge_port("moments", shard))?).map_err(Failure::stage);
        let parts = (0..of).map(part).collect::<Result<Vec<Moments>, Failure>>()?;
        let calibration = parts.iter().flat_map(|part| part.calibration.clone()).collect();
        let mut whole = Moments { calibration, held_out: parts[0].held_out.clone(), ..Moments::default() };
        whole.about.clone_from(&parts[0].about);
        whole.about.sequences = parts.iter().map(|part| part.about.sequences).sum();
        whole.about.tokens = parts.iter().map(|part| part.about.tokens).sum();
        whole.about.fisher_tokens = parts.iter().map(|part| part.about.fisher_tokens).sum();
        for &layer in parts[0].layers.keys() {
            cx.check_stop()?;
            let mut sum = parts[0].layer(layer).map_err(Failure::stage)?;
            for part in &parts[1..] {
                let more = part.layer(layer).map_err(Failure::stage)?;
                let differ = |what| Failure::stage(AnalyzeError::Shards { layer, what });
                sum.add(more).map_err(differ)?;
            }
            let path = cx.output("moments").join(file_of(layer));
            sum.save(&path).map_err(Failure::stage)?;
            whole.layers.insert(layer, path);
        }
        finish(&whole, cx)
    }
}

/// Describes the moments, whose layers are written, and writes what they say.
fn finish(moments: &Moments, cx: &Cx<'_>) -> Result<(), Failure> {
    cx.progress.phase("figures", Some(moments.layers.len() as u64), "layers");
    let mut layers = Vec::new();
    for &index in moments.layers.keys() {
        cx.check_stop()?;
        let sums = moments.layer(index).map_err(Failure::stage)?;
        layers.push(figures::layer(&moments.about, index, &sums).map_err(Failure::stage)?);
        cx.progress.advance(1);
    }
    let figures = Figures { protocol: figures::protocol(&moments.about), layers };
    let summary = summary::write(&figures);
    let pictures = picture::draw(&figures).map_err(Failure::stage)?;
    Analysis { figures, summary, pictures }.save(&cx.output("analysis")).map_err(Failure::stage)?;
    moments.describe(&cx.output("moments")).map_err(Failure::stage)
}

impl Analyze {
    fn analyse(&self, shard: Option<Shard>, cx: &Cx<'_>) -> Result<(), Failure> {
        let checkpoint = self.model.load(cx, "model")?;
        let config = Config::parse(&checkpoint.config).map_err(Failure::stage)?;
        let mut sequences = self.sequences(cx, &checkpoint)?;
        if self.noise {
            sequences.drown(config.vocab_size, cx.seed);
        }
        let mut spread = sequences.spread(self.fisher_tokens);
        if let Some(Shard { index, of }) = shard {
            spread = spread.into_iter().skip(index).step_by(of).collect();
            let all = sequences.calibration.len();
            sequences.keep_share(index, of);
            if sequences.calibration.is_empty() {
                let error = AnalyzeError::EmptyShard { index, shards: of, sequences: all };
                return Err(Failure::stage(error));
            }
        }
        let count = config.layers.len();
        let wanted = self.layers.clone().unwrap_or_else(|| (0..count).collect());
        if let Some(&layer) = wanted.iter().find(|&&layer| layer >= count) {
            return Err(Failure::stage(AnalyzeError::NoLayer { layer, count }));
        }
        let pass = Pass {
            cx,
            checkpoint: &checkpoint,
            config: &config,
            convert_swa: self.convert_swa,
            dir: cx.output("moments"),
        };
        let chosen = sequences.calibration.iter().zip(spread).filter(|(_, chosen)| *chosen);
        let chosen: Vec<&[u32]> = chosen.map(|(ids, _)| ids.as_slice()).collect();
        let (dir, mut converted) = (cx.output("moments"), wanted.clone());
        converted
            .retain(|&layer| self.fisher_tokens > 0 && config.layers[layer].is_grouped(self.convert_swa));
        converted.sort_unstable();
        let draw = Draw { temperature: self.fisher_temperature.0, seed: cx.seed };
        let gradients = Gradients { cx, checkpoint: &checkpoint, config: &config, draw, dir };
        if let Some(&first) = converted.first() {
            gradients.check(&chosen, first)?;
        }
        let layers = pass.run(&sequences, &wanted)?;
        if !converted.is_empty() {
            gradients.run(&chosen, &converted)?;
        }
        let about = About {
            fisher_tokens: chosen.iter().map(|ids| ids.len()).sum(),
            fisher_temperature: self.fisher_temperature.0,
            sequences: sequences.calibration.len(),
            tokens: sequences.calibration.iter().map(Vec::len).sum(),
            max_length: self.max_length,
            model: model(&config),
        };
        let Sequences { calibration, held_out } = sequences;
        finish(&Moments { about, calibration, held_out, layers }, cx)
    }

    fn sequences(&self, cx: &Cx<'_>, checkpoint: &Checkpoint) -> Result<Sequences, Failure> {
        let texts: Vec<Document> = match (&self.split, &self.texts) {
            (Some(split), _) => split.load(cx, "split")?.0.into_iter().map(Document::from).collect(),
            (None, Some(texts)) => texts.load(cx, "texts")?.0.into_iter().map(Document::from).collect(),
            (None, None) => Vec::new(),
        };
        let mut ids = encode(cx, checkpoint, &texts)?;
        if self.order == Order::Shuffled {
            shuffle(&mut ids, &mut ChaCha8Rng::seed_from_u64(cx.seed));
        }
        let own: Vec<Vec<u32>> = match &self.samples {
            Some(samples) => {
                let texts: Vec<Document> =
                    samples.load(cx, "samples")?.0.into_iter().map(Document::from).collect();
                encode(cx, checkpoint, &texts)?
            }
            None => Vec::new(),
        };
        let tokens = |ids: &[Vec<u32>]| ids.iter().map(|ids| ids.len().min(self.max_length)).sum::<usize>();
        let (given, written) = (tokens(&ids).min(self.max_tokens), tokens(&own));
        let held_out = self.held_out_tokens * given / (given + written).max(1);
        let limits = |max_tokens, held_out| Limits { max_tokens, max_length: self.max_length, held_out };
        let mut sequences = Sequences::divide(ids, &limits(self.max_tokens, held_out));
        if sequences.calibration.is_empty() {
            return Err(Failure::stage(AnalyzeError::Empty(texts.len())));
        }
        sequences.mix_in(Sequences::divide(own, &limits(written, self.held_out_tokens - held_out)));
        Ok(sequences)
    }
}

fn model(config: &Config) -> Model {
    Model {
        num_attention_heads: config.num_attention_heads,
        num_key_value_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
        sliding_window: config.sliding_window,
        num_local_experts: config.experts.map_or(0, |of| of.num_local_experts),
        num_experts_per_tok: config.experts.map_or(0, |of| of.num_experts_per_tok),
        inv_freq: config.rope.inv_freq(config.head_dim),
        concentration: config.rope.concentration,
    }
}

#[cfg(test)]
pub(crate) mod tests;
