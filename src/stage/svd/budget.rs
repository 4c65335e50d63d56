//! Splits a cache budget between rotated pairs and latent width: every split's predicted error, and measured divergence for the
//! best of them. Knows no tensor of the checkpoint.

use crate::{artifact::conversion::Candidate, math::linalg::LinalgError};

use super::{rotated::Rotated, source::Source};

/// One layer's share of a split.
pub(super) struct Part {
    /// What stays rotated.
    pub(super) rotated: Rotated,
    /// Error of a latent of no width at all.
    pub(super) content: f64,
    /// Latent error at the split's rank, summed over tokens.
    pub(super) latent_error: f64,
    /// Error of what is not rotated.
    pub(super) rope_error: f64,
}

/// One split for all layers.
pub(super) struct Split {
    pub(super) rank: usize,
    /// One per source, in their order.
    pub(super) parts: Vec<Part>,
    pub(super) candidate: Candidate,
}

/// What a layer would keep rotated, best first: shared components by what un-rotating them costs; pairs that turn within the context before
/// those that hardly do, and by what un-rotating them costs.
pub(super) fn ranking(source: &Source, frequencies: &[f64], least_turn: f64) -> Rotated {
    if let Some(shared) = &source.shared {
        return Rotated::Shared(shared.ranking());
    }
    let mut order: Vec<usize> = (0..frequencies.len()).collect();
    let turns = |pair: usize| frequencies[pair] > least_turn;
    order.sort_by(|&a, &b| {
        turns(b).cmp(&turns(a)).then(source.turning[b].total_cmp(&source.turning[a])).then(a.cmp(&b))
    });
    Rotated::Pairs(order)
}

/// What a split of `pairs` rotated pairs or components and at most `rank` latent channels does to every layer.
pub(super) fn split(
    sources: &[Source],
    rankings: &[Rotated],
    (pairs, rank): (usize, usize),
) -> Result<Split, LinalgError> {
    let mut parts = Vec::new();
    let (mut predicted, mut everything) = (0.0, 0.0);
    let (mut useful, mut elements) = (0, 0);
    for (source, ranking) in sources.iter().zip(rankings) {
        let rotated = ranking.first(pairs);
        elements = rotated.elements(source.sizes);
        useful = useful.max(source.useful_rank(&rotated));
        let rank = rank.min(useful);
        let components = source.components(&rotated)?;
        let part = Part {
            latent_error: components.error(rank),
            rope_error: source.rope_error(&rotated),
            content: components.error(0),
            rotated,
        };
        predicted += part.latent_error + part.rope_error;
        everything += source.everything;
        parts.push(part);
    }
    let rank = rank.min(useful);
    let kv_elements = rank + elements;
    let predicted = predicted / everything.max(f64::MIN_POSITIVE);
    let candidate =
        Candidate { rope_pairs: pairs, kv_lora_rank: rank, kv_elements, predicted, kl: None, chosen: false };
    Ok(Split { rank, parts, candidate })
}

/// Marks and returns the best of `splits`: the least measured divergence, or the least predicted error where none was measured.
pub(super) fn choose(splits: &mut [Split]) -> usize {
    let key = |split: &Split| (split.candidate.kl.unwrap_or(f64::INFINITY), split.candidate.predicted);
    let best = (0..splits.len())
        .min_by(|&a, &b| {
            let (a, b) = (key(&splits[a]), key(&splits[b]));
            a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
        })
        .expect("at least one split is feasible");
    splits[best].candidate.chosen = true;
    best
}

/// The indices of the `count` splits with the least predicted error, ascending.
pub(super) fn promising(splits: &[Split], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..splits.len()).collect();
    order.sort_by(|&a, &b| splits[a].candidate.predicted.total_cmp(&splits[b].candidate.predicted));
    order.truncate(count);
    order.sort_unstable();
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A split of which only these figures matter.
    fn split(predicted: f64, kl: Option<f64>) -> Split {
        Split { rank: 1, parts: vec![], candidate: Candidate { predicted, kl, ..Candidate::default() } }
    }

    #[test]
    fn what_was_measured_decides_before_what_was_predicted() {
        for (splits, best) in [
            (&[(0.3, None), (0.1, None), (0.2, None)][..], 1),
            (&[(0.3, Some(0.01)), (0.1, None), (0.2, Some(0.02))], 0),
            (&[(0.3, Some(0.02)), (0.2, Some(0.02))], 1),
            (&[(0.2, None), (0.2, None)], 0),
            (&[(0.5, Some(0.0))], 0),
        ] {
            let mut splits: Vec<Split> = splits.iter().map(|&(p, kl)| split(p, kl)).collect();
            assert_eq!(choose(&mut splits), best);
            let chosen: Vec<usize> = (0..splits.len()).filter(|&i| splits[i].candidate.chosen).collect();
            assert_eq!(chosen, [best], "one is marked");
        }
    }

    #[test]
    fn the_promising_ones_are_those_with_the_least_predicted_error() {
        let splits: Vec<Split> = [0.5, 0.1, 0.4, 0.2, 0.2].map(|p| split(p, None)).into();
        for (count, expected) in
            [(0, &[][..]), (1, &[1]), (2, &[1, 3]), (3, &[1, 3, 4]), (9, &[0, 1, 2, 3, 4])]
        {
            assert_eq!(promising(&splits, count), expected);
        }
    }
}
