//! What of the keys stays rotated. Knows no weights.

use super::{shared::Component, source::Sizes};
use crate::model::config::Latent;

/// What stays rotated in one layer, or might.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rotated {
    /// Pairs of every key/value head.
    Pairs(Vec<usize>),
    /// Components that all heads share.
    Shared(Vec<Component>),
}

impl Rotated {
    /// The first `n`, ascending.
    pub(super) fn first(&self, n: usize) -> Self {
        fn sorted<T: Ord + Copy>(first: &[T]) -> Vec<T> {
            let mut first = first.to_vec();
            first.sort_unstable();
            first
        }
        match self {
            Self::Pairs(all) => Self::Pairs(sorted(&all[..n])),
            Self::Shared(all) => Self::Shared(sorted(&all[..n])),
        }
    }

    /// The layer that this makes, with a latent of the given width.
    pub(super) fn latent(&self, kv_lora_rank: usize) -> Latent {
        let (rope_pairs, shared_rope) = match self {
            Self::Pairs(pairs) => (pairs.clone(), false),
            Self::Shared(components) => (components.iter().map(|at| at.pair).collect(), true),
        };
        Latent { kv_lora_rank, rope_pairs, shared_rope }
    }

    /// Cached elements per token.
    pub(super) fn elements(&self, sizes: Sizes) -> usize {
        self.latent(0).rope_elements(sizes.kv_heads)
    }
}
