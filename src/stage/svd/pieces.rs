//! What the user can choose: the pieces of a conversion, and which of them each published method takes. Knows no arithmetic.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact::checkpoint::Owned;

/// Whose conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// This project's: what an error does to the prediction decides everything.
    #[default]
    Metric,
    /// TransMLA (arXiv 2502.07864): real components across heads, the same number at each frequency, keys and values balanced by their norms.
    Transmla,
    /// MHA2MLA (arXiv 2502.14837): each head keeps its pairs with the largest norms rotated; the SVD sees weights only.
    Mha2mla,
    /// CARE (arXiv 2603.17946): TransMLA's rotated key; keys and values in latents of their own, by the covariance of the inputs.
    Care,
    /// Palu (arXiv 2407.21118): latents of keys and values whose keys are made again, and only then rotated. The checkpoint has ordinary
    /// attention with projections of low rank, so it shows the quality of that cache and not its size.
    Palu,
}

/// Which keys stay rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// All of them.
    A,
    /// Those pairs of every head whose rotation matters.
    B,
    /// Components that all heads share, those whose rotation matters.
    D,
    /// None: keys are rotated after they were made from their latent.
    Recompute,
}

/// Of what the heads' keys at one frequency are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RotaryBasis {
    /// Principal components with complex factors: heads may differ by an angle.
    Complex,
    /// Principal components with real factors.
    Real,
    /// Each head's own key: nothing is shared.
    Heads,
}

/// Which components stay rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RotaryChoice {
    /// Those for which giving up the rotation costs most.
    Free,
    /// The first of each group of frequencies, the same number everywhere.
    Uniform,
    /// In each key/value head those with the largest product of query norm and key norm, the same number everywhere.
    Norm,
}

/// What stands in for a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Multiplier {
    /// Nothing.
    One,
    /// The mean cosine of its angle.
    Real,
    /// The mean of cosine and sine.
    Complex,
}

/// How much a token counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TokenWeights {
    /// By the squared attention that it receives.
    Attention,
    /// All the same.
    None,
    /// The mean of the two.
    Both,
    /// No token is looked at: the rows of the weights stand for keys and values.
    Weights,
}

/// What an error costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// The change of the model's prediction, by the gradients that `analyze` took.
    Fisher,
    /// The squared change of the attention output.
    Output,
    /// Its own square.
    Plain,
    /// Its own square, keys divided by what their mean norm is to that of the values.
    Balanced,
}

/// How keys and values share the latent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LatentKind {
    /// Each channel may hold something of both.
    Joint,
    /// Channels of its own for each, half of them where nothing else divides them.
    Separate,
}

/// In which basis the latent is cached; the model computes the same in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LatentBasis {
    /// One channel for each component.
    #[default]
    Components,
    /// Groups of 32 channels in which strong and weak components are mixed evenly, so that none stands out: for a cache of few bits.
    Mixed,
}

/// Budgets beside the one that is converted to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Search {
    /// Cached elements per token of a converted layer.
    pub kv_budget: Vec<usize>,
}

/// How a budget is divided among layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LayerBudgets {
    /// Equally.
    #[default]
    Uniform,
    /// In two sizes.
    TwoLevel,
    /// In any sizes.
    Free,
    /// By the gradients of key and value projections, each of which gets channels of its own.
    Fisher,
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
    pub(super) fn store(self, shape: &[usize], values: &[f32]) -> Owned {
        match self {
            Self::F32 => Owned::f32(shape, values),
            Self::Bf16 => Owned::bf16(shape, values),
        }
    }
}

/// A whole method, piece by piece.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is there or left off by itself")]
pub(super) struct Pieces {
    pub(super) layout: Layout,
    pub(super) rotary_basis: RotaryBasis,
    pub(super) rotary_choice: RotaryChoice,
    /// Numbers of adjacent frequencies that are treated as one, to be tried.
    pub(super) freqfold: Vec<usize>,
    /// Whether components are weighted by what queries make of them.
    pub(super) query_weights: bool,
    pub(super) multiplier: Multiplier,
    pub(super) token_weights: TokenWeights,
    /// Added to the eigenvalues of the inputs' second moment, as a share of their mean.
    pub(super) input_damping: f64,
    pub(super) metric: Metric,
    pub(super) latent: LatentKind,
    /// Whether each layer may divide its elements between rotated keys and latent in its own way.
    pub(super) own_splits: bool,
    /// Whether content is compressed for what layers see once rotations are given up.
    pub(super) recalibrate: bool,
    /// Whether output projections are fitted anew.
    pub(super) refit: bool,
    pub(super) latent_basis: LatentBasis,
    pub(super) layer_budgets: LayerBudgets,
}

impl Method {
    /// The pieces of the method as published.
    pub(super) fn pieces(self) -> Pieces {
        let metric = Pieces {
            layout: Layout::D,
            rotary_basis: RotaryBasis::Complex,
            rotary_choice: RotaryChoice::Free,
            freqfold: vec![1],
            query_weights: true,
            multiplier: Multiplier::Complex,
            token_weights: TokenWeights::Attention,
            input_damping: 0.0,
            metric: Metric::Fisher,
            latent: LatentKind::Joint,
            own_splits: true,
            recalibrate: false,
            refit: true,
            latent_basis: LatentBasis::Components,
            layer_budgets: LayerBudgets::Uniform,
        };
        let plain = Pieces {
            rotary_basis: RotaryBasis::Real,
            rotary_choice: RotaryChoice::Uniform,
            query_weights: false,
            multiplier: Multiplier::One,
            token_weights: TokenWeights::None,
            metric: Metric::Plain,
            own_splits: false,
            refit: false,
            ..metric.clone()
        };
        let freqfold = vec![1, 2, 4, 8];
        match self {
            Self::Metric => metric,
            Self::Transmla => Pieces { metric: Metric::Balanced, recalibrate: true, freqfold, ..plain },
            Self::Care => Pieces { latent: LatentKind::Separate, input_damping: 0.01, freqfold, ..plain },
            Self::Mha2mla => Pieces {
                rotary_basis: RotaryBasis::Heads,
                rotary_choice: RotaryChoice::Norm,
                token_weights: TokenWeights::Weights,
                ..plain
            },
            Self::Palu => Pieces {
                layout: Layout::Recompute,
                latent: LatentKind::Separate,
                layer_budgets: LayerBudgets::Fisher,
                ..plain
            },
        }
    }

    /// Its name in manifests.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Metric => "metric",
            Self::Transmla => "transmla",
            Self::Mha2mla => "mha2mla",
            Self::Care => "care",
            Self::Palu => "palu",
        }
    }
}
