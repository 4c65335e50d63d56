//! The svd stage: turns grouped-query attention into latent attention, after proving that the factorisation itself is lossless.
//!
//! Rotated keys stay exact; keys whose rotation is given up share one latent with the values. What the latent keeps is decided by
//! calibration moments weighed by what errors do to the prediction. Knows no text and no training.

mod budget;
mod check;
mod content;
mod divide;
mod error;
mod fold;
mod job;
mod layers;
mod measure;
mod metric;
mod passes;
mod pieces;
mod ranking;
mod ranks;
mod recalibrate;
mod refit;
mod report;
mod rotated;
mod save;
mod shared;
mod source;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{
    error::SvdError,
    job::Job,
    passes::Passes,
    pieces::{
        Dtype, LatentBasis, LatentKind, LayerBudgets, Layout, Method, Metric, Multiplier, Pieces,
        RotaryBasis, RotaryChoice, Search, TokenWeights,
    },
    source::Source,
};
use crate::{
    artifact::{Artifact, checkpoint::Checkpoint, conversion::Conversion, moments::Moments},
    engine::action::{Cx, Failure, OutputPort, Pool},
    model::Config,
    stage::{
        Finite, Input, InputPort, Invalid, Stage,
        code::{self, Code},
        is_default,
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
    /// Whose conversion: `metric` is this project's; `transmla`, `mha2mla`, `care` and `palu` are published ones, for comparison. It sets the
    /// defaults of `layout`, `rotary-basis`, `rotary-choice`, `freqfold`, `query-weights`, `multiplier`, `token-weights`, `metric`,
    /// `latent`, `own-splits`, `layer-budgets` and `refit`, each of which can be set by itself.
    #[serde(default)]
    pub method: Method,
    /// `a` keeps every key rotated and exact, only values go through the latent; `b` puts keys that hardly turn, or whose turning
    /// matters least, into the latent too; `d` rotates what heads share: at each frequency the components across heads, as many as matter;
    /// `recompute` rotates keys after they were made from their latent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<Layout>,
    /// Cached elements per token of a converted layer: rotated keys and latent together. The split between the two is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_budget: Option<usize>,
    /// In place of `kv-budget`: the width of the latent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_lora_rank: Option<usize>,
    /// Rotary pairs that stay rotated, per key/value head with layout `b`, shared by all heads with `d`; chosen where only `kv-budget` is
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_pairs: Option<usize>,
    /// The context in tokens that the model will serve.
    #[serde(default = "context")]
    pub context: usize,
    /// A pair that turns less than this over the whole context, in radians, is the first to go into the latent.
    #[serde(default = "angle")]
    pub angle: Finite,
    /// With layout `d`: components across heads with `complex` or `real` factors, or the `heads`' own keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotary_basis: Option<RotaryBasis>,
    /// With layout `d`: the `free` choice of those whose rotation matters most, a `uniform` number at each frequency, or by `norm` in each
    /// head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotary_choice: Option<RotaryChoice>,
    /// With layout `d`: how many adjacent frequencies are treated as one; of several numbers the best one is taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freqfold: Vec<usize>,
    /// Whether components are weighted by what queries make of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_weights: Option<bool>,
    /// What stands in for a rotation that is given up: `one` (nothing), or the mean `real` or `complex` factor seen in calibration,
    /// folded into the queries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multiplier: Option<Multiplier>,
    /// How much a token counts: by the squared `attention` that it receives, equally (`none`), or the mean of `both`; `weights` looks at no
    /// token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_weights: Option<TokenWeights>,
    /// Added to the eigenvalues of the inputs' second moment, as a share of their mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_damping: Option<Finite>,
    /// What an error of keys and values costs: the change of the prediction by its gradients (`fisher`), the change of the attention `output`,
    /// `plain` squares, or squares `balanced` by mean norms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<Metric>,
    /// Whether keys and values share their channels (`joint`) or have half of them each (`separate`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latent: Option<LatentKind>,
    /// Whether each layer may divide its elements between rotated keys and latent in its own way, by the predicted error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_splits: Option<bool>,
    /// Whether content is compressed for what layers see once rotations are given up, not for what the original gives them. That takes
    /// a second pass, through `refit-tokens` of the calibration text. Goes with `token-weights = "none"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recalibrate: Option<bool>,
    /// Whether the output projections of converted layers are fitted anew, in closed form, to what their heads give behind converted layers.
    /// Each layer, and all of them together, must be better for it on held-out text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refit: Option<bool>,
    /// Calibration tokens that they are fitted to, and that `recalibrate` sees.
    #[serde(default = "refit_tokens")]
    pub refit_tokens: usize,
    /// Whether a cached channel is a component (`components`), or a mixture of strong and weak ones (`mixed`), which stores better in few bits.
    /// The model computes the same.
    #[serde(default, skip_serializing_if = "is_default")]
    pub latent_basis: LatentBasis,
    /// Added to the metric's eigenvalues, as a share of their mean.
    #[serde(default = "damping")]
    pub damping: Finite,
    /// How many of the budget's splits are measured on held-out text; 0 trusts the prediction.
    #[serde(default = "measure")]
    pub measure: usize,
    /// How `kv-budget` is divided among layers: the same for all (`uniform`), or by the divergence that converting each layer alone makes on
    /// held-out text, in two sizes (`two-level`) or any (`free`), where that measures better than `uniform`. With layout `recompute`, also by
    /// the gradients of each key and value projection (`fisher`), which is what `palu` does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_budgets: Option<LayerBudgets>,
    /// `search = { kv-budget = [128, 192, 256] }` looks for the best split of these budgets too, with the same moments and on the same
    /// held-out text, and puts quality by size into the report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<Search>,
    /// Held-out tokens that splits and budgets are measured on; half of them where each layer is measured by itself.
    #[serde(default = "measure_tokens")]
    pub measure_tokens: usize,
    /// Element type of the new tensors; all others are copied bit for bit.
    #[serde(default)]
    pub dtype: Dtype,
    /// Largest difference of a logit between the original and its lossless factorisation, as a share of the largest logit.
    #[serde(default = "parity_tolerance")]
    pub parity_tolerance: Finite,
    /// Converts sliding-window layers too. They never hold more than their window, so that saves next to nothing; it is for runtimes that
    /// need one layout of cache pages, or keep such layers at full length. Needs `convert-swa` in `analyze`.
    #[serde(default)]
    pub convert_swa: bool,
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
fn refit_tokens() -> usize {
    32768
}
fn parity_tolerance() -> Finite {
    Finite(1e-5)
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
        self.check_together()
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        let checkpoint = self.model.load(cx, "model")?;
        let moments = self.moments.load(cx, "moments")?;
        let config = Config::parse(&checkpoint.config).map_err(Failure::stage)?;
        let original = 2 * config.num_key_value_heads * config.head_dim;
        let budgets = self.search.iter().flat_map(|search| &search.kv_budget).chain(&self.kv_budget);
        if let Some(&budget) = budgets.into_iter().find(|&&budget| budget > original) {
            return Err(Failure::stage(SvdError::TooLarge { budget, original }));
        }
        let pieces = self.pieces_of(config.head_dim / 2).map_err(Failure::stage)?;
        if config.parts.qk_norm && pieces.layout != Layout::A {
            return Err(Failure::stage(SvdError::QkNorm));
        }
        if moments.about.tokens <= config.hidden_size {
            cx.progress.say(&format!(
                "the moments rest on {} tokens, fewer than the {} inputs of a layer: raise `max-tokens` of `analyze`",
                moments.about.tokens, config.hidden_size
            ));
        }
        let sources = self.sources(cx, (&checkpoint, &config), &pieces, &moments)?;
        let mut job = Job {
            svd: self,
            cx,
            checkpoint: &checkpoint,
            config: &config,
            sources: &sources,
            pieces: &pieces,
            passes: &Passes::open(cx)?,
        };
        let parity = job.parity()?;
        let mut splits = job.splits(self.kv_budget)?;
        if splits.len() > 1 || self.search.is_some() {
            job.measure(&mut splits, &moments.held_out)?;
        }
        let mut best = budget::choose(&mut splits);
        let curve = job.curve(&splits[best].candidate, &moments.held_out)?;
        let recalibrated;
        if pieces.recalibrate && job.cuts(&splits[best]) {
            recalibrated = recalibrate::recalibrated(&job, &splits[best], &moments)?;
            job.sources = &recalibrated;
            splits[best] = recalibrate::again(&job, &splits[best], &moments.held_out)?;
        }
        if matches!(pieces.layer_budgets, LayerBudgets::TwoLevel | LayerBudgets::Free) {
            best = divide::redivide(&job, &mut splits, best, &moments.held_out)?;
        }
        let refit = refit::refit(&job, &splits[best], &moments)?;
        let mut report = report::write(&job, &moments, (parity, curve), (&splits, best));
        report.refit = refit;
        report::say(cx, &report);
        let mut variant = job.variant(&splits[best]);
        if report.refit.as_ref().is_some_and(|refit| refit.taken) {
            variant = refit::refitted(&job, variant);
        }
        save::save(&job, &variant)?;
        report.save(&cx.output("report")).map_err(Failure::stage)
    }
}

impl Svd {
    /// The method's pieces with what the user set in their place.
    fn pieces(&self) -> Pieces {
        let published = self.method.pieces();
        let token_weights = self.token_weights.unwrap_or(published.token_weights);
        let alike = token_weights == TokenWeights::None;
        Pieces {
            layout: self.layout.unwrap_or(published.layout),
            rotary_basis: self.rotary_basis.unwrap_or(published.rotary_basis),
            rotary_choice: self.rotary_choice.unwrap_or(published.rotary_choice),
            freqfold: if self.freqfold.is_empty() { published.freqfold } else { self.freqfold.clone() },
            query_weights: self.query_weights.unwrap_or(published.query_weights),
            multiplier: self.multiplier.unwrap_or(published.multiplier),
            token_weights,
            input_damping: self.input_damping.as_ref().map_or(published.input_damping, |share| share.0),
            metric: self.metric.unwrap_or(published.metric),
            latent: self.latent.unwrap_or(published.latent),
            own_splits: self.own_splits.unwrap_or(published.own_splits),
            recalibrate: self.recalibrate.unwrap_or(published.recalibrate && alike),
            refit: self.refit.unwrap_or(published.refit),
            latent_basis: self.latent_basis,
            layer_budgets: self.layer_budgets.unwrap_or(published.layer_budgets),
        }
    }

    /// The pieces for heads of so many rotary pairs: of a method's numbers of folded frequencies those that divide them.
    fn pieces_of(&self, pairs: usize) -> Result<Pieces, SvdError> {
        if let Some(&fold) = self.freqfold.iter().find(|&&fold| !pairs.is_multiple_of(fold)) {
            return Err(SvdError::Freqfold(fold, pairs));
        }
        let mut pieces = self.pieces();
        pieces.freqfold.retain(|&fold| pairs.is_multiple_of(fold));
        Ok(pieces)
    }

    fn sources(
        &self,
        cx: &Cx<'_>,
        (checkpoint, config): (&Checkpoint, &Config),
        pieces: &Pieces,
        moments: &Moments,
    ) -> Result<Vec<Source>, Failure> {
        let wanted = |&i: &usize| config.layers[i].is_grouped(self.convert_swa);
        let wanted: Vec<usize> = (0..config.layers.len()).filter(wanted).collect();
        let missing: Vec<usize> =
            wanted.iter().copied().filter(|i| !moments.layers.contains_key(i)).collect();
        if wanted.is_empty() {
            return Err(Failure::stage(SvdError::NothingToConvert));
        }
        if !missing.is_empty() {
            return Err(Failure::stage(SvdError::NoMoments(missing)));
        }
        cx.progress.phase("reading moments", Some(wanted.len() as u64), "layers");
        let read = |layer: usize| {
            cx.check_stop()?;
            let sums = moments.layer(layer).map_err(Failure::stage)?;
            let source = Source::read(checkpoint, config, (layer, sums), (pieces, self.damping.0));
            cx.progress.advance(1);
            source.map_err(Failure::stage)
        };
        wanted.into_iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests;
