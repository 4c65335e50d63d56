//! What can go wrong in a conversion, in the user's words. Knows no way to convert.

use crate::{math::linalg::LinalgError, model::ModelError};

/// Why a model could not be converted.
#[derive(Debug, thiserror::Error)]
pub(super) enum SvdError {
    #[error("layer {layer}: the moments are those of another model; give `svd` the model that `analyze` saw")]
    OtherModel { layer: usize },
    #[error("the moments lack the layers {0:?}; run `analyze` on all layers")]
    NoMoments(Vec<usize>),
    #[error(
        "layer {0}: the moments hold nothing that its conversion needs; set `convert-swa` in `analyze` too, where sliding-window layers are converted"
    )]
    NoSums(usize),
    #[error(
        "layer {0}: the moments hold no gradients; give `analyze` a `fisher-tokens` above 0, or `svd` the `metric = \"output\"`"
    )]
    NoGradients(usize),
    #[error(
        "layer {0}: the moments hold no gradients of its projections; give `analyze` a `fisher-tokens` above 0, or `svd` the `layer-budgets = \"uniform\"`"
    )]
    NoRanks(usize),
    #[error(
        "layer {layer}: the moments are not finite, so calibration met NaN or infinity; check the model's weights"
    )]
    NotFinite { layer: usize },
    #[error(
        "`kv-budget` {budget} is above the {original} elements that the original caches per token and layer"
    )]
    TooLarge { budget: usize, original: usize },
    #[error(
        "this model normalises queries and keys per head (QK-norm), so keys are no linear map of the input and stay as they are: set `layout = \"a\"`, which takes values alone into the latent"
    )]
    QkNorm,
    #[error("the model has no full-attention layer to convert")]
    NothingToConvert,
    #[error(
        "the lossless factorisation differs from the original by {measured:.3e} of the largest logit, more than `parity-tolerance` {tolerance:.0e}; this model has a part that the conversion does not know"
    )]
    Parity { measured: f64, tolerance: f64 },
    #[error("`kv-budget` {budget} leaves no latent: {pairs} rotated pairs take {needed} elements")]
    Budget { budget: usize, pairs: usize, needed: usize },
    #[error(
        "`rope-pairs` {wanted} cannot be spread evenly over heads or frequencies; leave it out to see what can"
    )]
    Uneven { wanted: usize },
    #[error("`freqfold` {0} does not divide the {1} frequencies of a head")]
    Freqfold(usize, usize),
    #[error("`rope-pairs` is {wanted}, but there are {has}")]
    Pairs { wanted: usize, has: usize },
    #[error("layer {layer}: the file of its refitted projection: {why}")]
    Refit { layer: usize, why: String },
    #[error("layer {layer}: the file of its second moments: {why}")]
    Recalibrated { layer: usize, why: String },
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Linalg(#[from] LinalgError),
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}
