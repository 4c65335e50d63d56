//! Which pairs or components a layer keeps rotated, for any number of them. Knows no latent.

use super::{
    pieces::{Layout, RotaryChoice},
    rotated::Rotated,
    shared::Component,
    source::Source,
};

/// What a layer would keep rotated, best first.
#[derive(Debug, Clone)]
pub(super) enum Ranking {
    /// Pairs of every head, with what un-rotating each costs.
    Pairs(Vec<(usize, f64)>),
    /// Components.
    Shared(Vec<Component>),
    /// Components of each group of frequencies: each keeps the same number.
    Uniform(Vec<Vec<Component>>),
    /// Nothing.
    Recomputed,
}

impl Ranking {
    /// What `source` would keep with frequencies folded in groups of `freqfold`. With layout `b`, pairs that turn within the context stand
    /// before those that hardly do.
    pub(super) fn new(source: &Source, freqfold: usize, (frequencies, least_turn): (&[f64], f64)) -> Self {
        let groups = || &source.shared[&freqfold];
        match (source.pieces.layout, source.pieces.rotary_choice) {
            (Layout::A | Layout::B, _) => {
                let mut order: Vec<(usize, f64)> = source.turning.iter().copied().enumerate().collect();
                let turns = |pair: usize| frequencies[pair] > least_turn;
                order.sort_by(|a, b| {
                    turns(b.0).cmp(&turns(a.0)).then(b.1.total_cmp(&a.1)).then(a.0.cmp(&b.0))
                });
                Self::Pairs(order)
            }
            (Layout::D, RotaryChoice::Free) => {
                let mut all: Vec<Component> = groups().iter().flatten().cloned().collect();
                all.sort_by(|a, b| {
                    b.gain().total_cmp(&a.gain()).then((a.first, a.index).cmp(&(b.first, b.index)))
                });
                Self::Shared(all)
            }
            (Layout::D, RotaryChoice::Uniform) => Self::Uniform(groups().clone()),
            (Layout::D, RotaryChoice::Norm) => Self::Shared(by_norm(source, groups().iter().flatten())),
            (Layout::Recompute, _) => Self::Recomputed,
        }
    }

    /// The numbers that can be kept, ascending.
    pub(super) fn counts(&self, kv_heads: usize, choice: RotaryChoice) -> Vec<usize> {
        match self {
            Self::Pairs(all) => (0..=all.len()).collect(),
            Self::Shared(all) if choice == RotaryChoice::Norm => (0..=all.len()).step_by(kv_heads).collect(),
            Self::Shared(all) => (0..=all.len()).collect(),
            Self::Uniform(groups) => {
                // A group of adjacent frequencies keeps every first, second, fourth, …, as TransMLA's tables do.
                let folded = groups[0].len() / kv_heads;
                (1..=folded)
                    .filter(|kept| folded.is_multiple_of(*kept))
                    .map(|kept| kept * groups.len())
                    .collect()
            }
            Self::Recomputed => vec![0],
        }
    }

    /// Rotates the first `n`; returns the predicted error of what is not rotated, or not as it was.
    pub(super) fn first(&self, n: usize) -> (Rotated, f64) {
        match self {
            Self::Pairs(all) => {
                let mut kept: Vec<usize> = all[..n].iter().map(|&(pair, _)| pair).collect();
                kept.sort_unstable();
                (Rotated::Pairs(kept), all[n..].iter().map(|&(_, cost)| cost).sum())
            }
            Self::Shared(all) => {
                let (kept, rest) = all.split_at(n);
                shared(kept.to_vec(), rest.to_vec())
            }
            Self::Uniform(groups) => {
                let each = n / groups.len();
                let (mut kept, mut rest) = (Vec::new(), Vec::new());
                for group in groups {
                    let folded = group[0].turned.len();
                    let turn = |i: usize| group[i].with_frequency(i * folded / each.max(1) % folded);
                    kept.extend((0..each).map(turn));
                    rest.extend_from_slice(&group[each..]);
                }
                shared(kept, rest)
            }
            Self::Recomputed => (Rotated::Recomputed, 0.0),
        }
    }
}

fn shared(mut kept: Vec<Component>, rest: Vec<Component>) -> (Rotated, f64) {
    let error = kept.iter().map(Component::error).chain(rest.iter().map(|at| at.cost)).sum();
    kept.sort_by_key(|at| (at.pair, at.first, at.index));
    (Rotated::Shared { kept, rest }, error)
}

/// Components of one head each: first the one with the largest norm of every head, then the second.
fn by_norm<'a>(source: &Source, components: impl Iterator<Item = &'a Component>) -> Vec<Component> {
    let mut heads: Vec<Vec<Component>> = vec![Vec::new(); source.sizes.kv_heads];
    for component in components {
        let own = component.terms.iter().find(|term| term.down.norm_sqr() > 0.5);
        heads[own.expect("a component of one head").head].push(component.clone());
    }
    for (head, components) in heads.iter_mut().enumerate() {
        let norm = |at: &Component| source.norms[head][at.pair];
        components.sort_by(|a, b| norm(b).total_cmp(&norm(a)).then(a.pair.cmp(&b.pair)));
    }
    let pairs = source.sizes.pairs();
    (0..pairs).flat_map(|place| heads.iter().map(move |head| head[place].clone())).collect()
}
