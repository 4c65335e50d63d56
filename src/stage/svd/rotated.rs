//! What of the keys stays rotated. Knows no weights.

use super::{shared::Component, source::Sizes};

/// What stays rotated in one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Rotated {
    /// Pairs of every key/value head, ascending.
    Pairs(Vec<usize>),
    /// Components that all heads share, ascending.
    Shared(Vec<Component>),
}

impl Rotated {
    /// The frequencies, one for each pair or component.
    pub(super) fn pairs(&self) -> Vec<usize> {
        match self {
            Self::Pairs(pairs) => pairs.clone(),
            Self::Shared(components) => components.iter().map(|at| at.pair).collect(),
        }
    }

    /// Cached elements per token.
    pub(super) fn elements(&self, sizes: Sizes) -> usize {
        match self {
            Self::Pairs(pairs) => 2 * pairs.len() * sizes.kv_heads,
            Self::Shared(components) => 2 * components.len(),
        }
    }

    /// Whether all heads share it.
    pub(super) fn is_shared(&self) -> bool {
        matches!(self, Self::Shared(_))
    }
}
