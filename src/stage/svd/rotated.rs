//! What of the keys stays rotated. Knows no weights.

use super::{shared::Component, source::Sizes};
use crate::model::config::Latent;

/// What stays rotated in one layer, or might.
#[derive(Debug, Clone)]
pub(super) enum Rotated {
    /// Pairs of every key/value head.
    Pairs(Vec<usize>),
    /// Components that all heads share.
    Shared {
        /// Those that are rotated.
        kept: Vec<Component>,
        /// The others.
        rest: Vec<Component>,
    },
    /// Nothing in the cache: keys are rotated after they were made.
    Recomputed,
}

impl Rotated {
    /// The layer that this makes, with a latent of the given width; ordinary attention where keys are made again.
    pub(super) fn latent(&self, kv_lora_rank: usize) -> Option<Latent> {
        let (rope_pairs, shared_rope) = match self {
            Self::Pairs(pairs) => (pairs.clone(), false),
            Self::Shared { kept, .. } => (kept.iter().map(|at| at.pair).collect(), true),
            Self::Recomputed => return None,
        };
        // Whether it slides is the layer's type to say.
        Some(Latent { kv_lora_rank, rope_pairs, shared_rope, sliding: false })
    }

    /// Cached elements per token, without the latent.
    pub(super) fn elements(&self, sizes: Sizes) -> usize {
        self.latent(0).map_or(0, |latent| latent.rope_elements(sizes.kv_heads))
    }
}
