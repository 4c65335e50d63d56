//! Linear maps and norms of one part of a layer, read by their names. Knows no layer.

use super::{
    block::{RmsNorm, linear::Linear},
    config::Config,
    params::Params,
};

/// Reads linear maps of one part of a layer.
pub(super) struct Maps<'a> {
    pub(super) params: &'a Params<'a>,
    /// Of their names, without the point behind it.
    pub(super) prefix: String,
}

impl Maps<'_> {
    pub(super) fn linear(&self, name: &str, shape: [usize; 2], bias: bool) -> Linear {
        let at = format!("{}.{name}", self.prefix);
        let bias = bias.then(|| self.params.get(&format!("{at}.bias"), &shape[..1]));
        Linear { weight: self.params.get(&format!("{at}.weight"), &shape), bias }
    }

    pub(super) fn norm(&self, name: &str, width: usize, config: &Config) -> RmsNorm {
        let weight = self.params.get(&format!("{}.{name}.weight", self.prefix), &[width]);
        RmsNorm { weight, eps: config.rms_norm_eps }
    }
}
