//! The svd stage: turns grouped-query attention into latent attention, after proving that the factorisation itself is lossless.
//!
//! Rotated keys stay exact; keys whose rotation is given up share one latent with the values. What the latent keeps is decided by
//! calibration moments in the metric of the attention output. Knows no text and no training.

mod budget;
mod fold;
mod job;
mod measure;
mod report;
mod rotated;
mod save;
mod shared;
mod source;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{
    job::Job,
    source::{Options, Source},
};
use crate::{
    artifact::{
        Artifact,
        checkpoint::{Checkpoint, Owned},
        conversion::Conversion,
        moments::Moments,
    },
    engine::action::{Cx, Failure, OutputPort, Pool},
    math::linalg::LinalgError,
    model::{Config, ModelError, config::LayerKind},
    stage::{
        Finite, Input, InputPort, Invalid, Stage,
        code::{self, Code},
    },
};

/// Converts full-attention layers to Multi-Head Latent Attention without training. Sliding-window layers stay as they are: they
/// never hold more than their window.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Svd {
    /// The original model.
    pub model: Input<Checkpoint>,
    /// Its moments, from `analyze`.
    pub moments: Input<Moments>,
    /// `a` keeps every key rotated and exact, only values go through the latent; `b` puts keys that hardly turn, or whose turning
    /// matters least, into the latent too; `d` rotates what heads share: at each frequency the principal components across heads, as many
    /// as matter.
    #[serde(default = "layout_b")]
    pub layout: Layout,
    /// Cached elements per token of a converted layer: rotated keys and latent together. The split between the two is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_budget: Option<usize>,
    /// In place of `kv-budget`: the width of the latent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_lora_rank: Option<usize>,
    /// With `kv-lora-rank`: rotary pairs that stay rotated, per key/value head with layout `b`, shared by all heads with `d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_pairs: Option<usize>,
    /// The context in tokens that the model will serve.
    #[serde(default = "context")]
    pub context: usize,
    /// A pair that turns less than this over the whole context, in radians, is the first to go into the latent.
    #[serde(default = "angle")]
    pub angle: Finite,
    /// What stands in for a rotation that is given up: `one` (nothing), or the mean `real` or `complex` factor seen in calibration,
    /// folded into the queries.
    #[serde(default)]
    pub multiplier: Multiplier,
    /// How much a token counts: by the squared `attention` that it receives, equally (`none`), or the mean of `both`.
    #[serde(default)]
    pub token_weights: TokenWeights,
    /// What an error of keys and values costs: the change of the attention `output`, or `plain` squares.
    #[serde(default)]
    pub metric: Metric,
    /// Added to the metric's eigenvalues, as a share of their mean.
    #[serde(default = "damping")]
    pub damping: Finite,
    /// How many of the budget's splits are measured on held-out text; 0 trusts the prediction.
    #[serde(default = "measure")]
    pub measure: usize,
    /// Held-out tokens for that.
    #[serde(default = "measure_tokens")]
    pub measure_tokens: usize,
    /// Element type of the new tensors; all others are copied bit for bit.
    #[serde(default)]
    pub dtype: Dtype,
    /// Largest difference of a logit between the original and its lossless factorisation, as a share of the largest logit.
    #[serde(default = "parity_tolerance")]
    pub parity_tolerance: Finite,
    /// Converts sliding-window layers too.
    #[serde(default)]
    pub convert_swa: bool,
}

/// Which keys stay rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// All of them.
    A,
    /// Those whose rotation matters.
    B,
    /// Components that all heads share, those whose rotation matters.
    D,
}

/// What stands in for a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Multiplier {
    /// Nothing.
    One,
    /// The mean cosine of its angle.
    Real,
    /// The mean of cosine and sine.
    #[default]
    Complex,
}

/// How much a token counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TokenWeights {
    /// By the squared attention that it receives.
    #[default]
    Attention,
    /// All the same.
    None,
    /// The mean of the two.
    Both,
}

/// What an error costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// The squared change of the attention output.
    #[default]
    Output,
    /// Its own square.
    Plain,
}

/// Element type of new tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Dtype {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, rounded to nearest even.
    Bf16,
}

impl Dtype {
    fn store(self, shape: &[usize], values: &[f32]) -> Owned {
        match self {
            Self::F32 => Owned::f32(shape, values),
            Self::Bf16 => Owned::bf16(shape, values),
        }
    }
}

fn layout_b() -> Layout {
    Layout::B
}
fn context() -> usize {
    8192
}
fn angle() -> Finite {
    Finite(0.3)
}
fn damping() -> Finite {
    Finite(1e-3)
}
fn measure() -> usize {
    8
}
fn measure_tokens() -> usize {
    4096
}
fn parity_tolerance() -> Finite {
    Finite(1e-5)
}

/// Why a model could not be converted.
#[derive(Debug, thiserror::Error)]
enum SvdError {
    #[error("layer {layer}: the moments are those of another model; give `svd` the model that `analyze` saw")]
    OtherModel { layer: usize },
    #[error("the moments lack the full-attention layers {0:?}; run `analyze` on all layers")]
    NoMoments(Vec<usize>),
    #[error("the model has no full-attention layer to convert")]
    NothingToConvert,
    #[error(
        "the lossless factorisation differs from the original by {measured:.3e} of the largest logit, more than `parity-tolerance` {tolerance:.0e}; this model has a part that the conversion does not know"
    )]
    Parity { measured: f64, tolerance: f64 },
    #[error(
        "`kv-budget` {budget} leaves no latent: {pairs} rotated pairs of {kv_heads} heads take {needed} elements"
    )]
    Budget { budget: usize, pairs: usize, kv_heads: usize, needed: usize },
    #[error("`rope-pairs` is {wanted}, but there are {has}")]
    Pairs { wanted: usize, has: usize },
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Linalg(#[from] LinalgError),
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Stage for Svd {
    const KIND: &'static str = "svd";
    const CODE: Code = code::of("svd");
    const POOL: Pool = Pool::Device;
    const OUTPUTS: &'static [OutputPort] = &[
        OutputPort { name: "checkpoint", kind: <Checkpoint as Artifact>::KIND },
        OutputPort { name: "report", kind: Conversion::KIND },
    ];

    fn inputs(&self) -> Vec<InputPort> {
        vec![self.model.port("model"), self.moments.port("moments")]
    }

    fn check(&self) -> Result<(), Invalid> {
        match (self.kv_budget, self.kv_lora_rank) {
            (Some(_), Some(_)) => {
                return Err(Invalid::new(
                    "kv-lora-rank",
                    "`kv-lora-rank` and `kv-budget` exclude each other",
                )
                .hint("a budget chooses the rank"));
            }
            (None, None) => {
                return Err(Invalid::new("kv-budget", "the size of the cache is missing")
                    .hint("give `kv-budget`, or `kv-lora-rank` with `rope-pairs`"));
            }
            (Some(0), _) | (_, Some(0)) => {
                return Err(Invalid::new("kv-budget", "the latent needs a width above 0"));
            }
            _ => {}
        }
        let explicit = self.layout != Layout::A && self.kv_lora_rank.is_some();
        if explicit != self.rope_pairs.is_some() {
            return Err(Invalid::new(
                "rope-pairs",
                "`rope-pairs` goes with `kv-lora-rank` and layout `b` or `d`",
            )
            .hint("layout `a` rotates all pairs, and `kv-budget` chooses their number"));
        }
        if self.convert_swa {
            return Err(Invalid::new(
                "convert-swa",
                "sliding-window layers cannot be converted in this version",
            )
            .hint("they hold at most their window, so they stay as they are"));
        }
        if self.damping.0 <= 0.0 || self.parity_tolerance.0 <= 0.0 {
            return Err(Invalid::new("damping", "`damping` and `parity-tolerance` must be positive"));
        }
        if self.angle.0 < 0.0 || self.context == 0 {
            return Err(Invalid::new("angle", "`angle` must not be negative, and `context` not 0"));
        }
        Ok(())
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        let checkpoint = self.model.load(cx, "model")?;
        let moments = self.moments.load(cx, "moments")?;
        let config = Config::parse(&checkpoint.config).map_err(Failure::stage)?;
        let sources = self.sources(cx, &checkpoint, &config, &moments)?;
        let job = Job { svd: self, cx, checkpoint: &checkpoint, config: &config, sources: &sources };
        let parity = job.parity()?;
        let mut splits = job.splits()?;
        if splits.len() > 1 {
            job.measure(&mut splits, &moments.held_out)?;
        }
        let best = budget::choose(&mut splits);
        let report = report::write(&job, &moments, parity, (&splits, best));
        report::say(cx, &report);
        save::save(&job, &job.variant(&splits[best]))?;
        report.save(&cx.output("report")).map_err(Failure::stage)
    }
}

impl Svd {
    fn sources(
        &self,
        cx: &Cx<'_>,
        checkpoint: &Checkpoint,
        config: &Config,
        moments: &Moments,
    ) -> Result<Vec<Source>, Failure> {
        let full = (0..config.layers.len()).filter(|&i| config.layers[i] == LayerKind::Full);
        let full: Vec<usize> = full.collect();
        let missing: Vec<usize> = full.iter().copied().filter(|i| !moments.layers.contains_key(i)).collect();
        if full.is_empty() {
            return Err(Failure::stage(SvdError::NothingToConvert));
        }
        if !missing.is_empty() {
            return Err(Failure::stage(SvdError::NoMoments(missing)));
        }
        let options = Options {
            layout: self.layout,
            metric: self.metric,
            tokens: self.token_weights,
            multiplier: self.multiplier,
            damping: self.damping.0,
        };
        cx.progress.phase("reading moments", Some(full.len() as u64), "layers");
        let read = |layer: usize| {
            cx.check_stop()?;
            let sums = moments.layer(layer).map_err(Failure::stage)?;
            let source = Source::read(checkpoint, config, (layer, &sums), options);
            cx.progress.advance(1);
            source.map_err(Failure::stage)
        };
        full.into_iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests;
