//! Candidates for a cache budget: how much stays rotated, how wide the latent is, every candidate's predicted error, and the choice by
//! measured divergence. Knows no tensor of the checkpoint.

use crate::{artifact::conversion::Candidate, math::linalg::LinalgError};

use super::{error::SvdError, job::Job, pieces::Layout, ranking::Ranking, rotated::Rotated, source::Source};

/// Splits of a budget between shared components and the latent that are looked at.
const SPLITS: usize = 16;

/// What is tried in all layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    /// Adjacent frequencies that are treated as one.
    pub(super) freqfold: usize,
    /// Rotated pairs per head, or rotated components.
    pub(super) pairs: usize,
    /// At most as many latent channels.
    pub(super) rank: usize,
    /// How many of them are of keys, where keys and values have their own and not half of them each.
    pub(super) keys: Option<usize>,
}

/// How much the error of what is not rotated counts in a layer's own choice, to be tried: in the divergence of SmolLM2-135M it weighs about
/// twice what is predicted, in that of the embedded model less.
const ROPE_WEIGHTS: [f64; 3] = [0.5, 1.0, 2.0];

/// One layer's share of a split.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// What was asked for.
    pub(super) choice: Choice,
    /// What stays rotated.
    pub(super) rotated: Rotated,
    /// Width of the latent.
    pub(super) rank: usize,
    /// Error of a latent of no width at all.
    pub(super) content: f64,
    /// Latent error at the split's rank, summed over tokens.
    pub(super) latent_error: f64,
    /// Error of what is not rotated.
    pub(super) rope_error: f64,
}

/// One split for all layers.
pub(super) struct Split {
    /// One per source, in their order.
    pub(super) parts: Vec<Part>,
    pub(super) candidate: Candidate,
}

/// What can be tried with the given ranking, within the budget or as the user wants it; empty where `rope-pairs` is not to be had.
pub(super) fn choices(
    job: &Job<'_>,
    budget: Option<usize>,
    (freqfold, ranking): (usize, &Ranking),
    turning: usize,
) -> Result<Vec<Choice>, SvdError> {
    let (svd, pieces) = (job.svd, job.pieces);
    let kv_heads = job.config.num_key_value_heads;
    let mut counts = counts(job, ranking);
    let has = *counts.last().expect("nothing rotated is a choice too");
    match (pieces.layout, svd.rope_pairs) {
        (_, Some(wanted)) if wanted > has => return Err(SvdError::Pairs { wanted, has }),
        (_, Some(wanted)) => counts.retain(|&count| count == wanted),
        (Layout::B, None) => counts.truncate(turning + 1),
        _ => {}
    }
    let choice = |pairs: usize, rank: usize| Choice { freqfold, pairs, rank, keys: None };
    let Some(budget) = budget else {
        let rank = svd.kv_lora_rank.expect("checked: one of the two is there");
        return Ok(counts.into_iter().map(|pairs| choice(pairs, rank)).collect());
    };
    let Some(&least) = counts.first() else { return Ok(vec![]) };
    let each = each(pieces.layout, kv_heads);
    counts.retain(|pairs| pairs * each < budget);
    if counts.is_empty() {
        return Err(SvdError::Budget { budget, pairs: least, needed: least * each });
    }
    let step = if pieces.layout == Layout::D { counts.len().div_ceil(SPLITS + 1) } else { 1 };
    Ok(counts.into_iter().step_by(step).map(|pairs| choice(pairs, budget - pairs * each)).collect())
}

/// The numbers of pairs or components that can be rotated, ascending; layout `a` rotates all.
pub(super) fn counts(job: &Job<'_>, ranking: &Ranking) -> Vec<usize> {
    let mut counts = ranking.counts(job.config.num_key_value_heads, job.pieces.rotary_choice);
    if job.pieces.layout == Layout::A {
        counts.drain(..counts.len() - 1);
    }
    counts
}

/// Elements of one pair of all heads, or of one component that they share.
pub(super) fn each(layout: Layout, kv_heads: usize) -> usize {
    match layout {
        Layout::A | Layout::B => 2 * kv_heads,
        Layout::D => 2,
        Layout::Recompute => 0,
    }
}

/// What choices do to the layers, one choice for each source.
pub(super) fn split(
    sources: &[Source],
    rankings: &[Ranking],
    choices: &[Choice],
) -> Result<Split, LinalgError> {
    let parts: Vec<Part> = sources
        .iter()
        .zip(rankings)
        .zip(choices)
        .map(|((source, ranking), choice)| part(source, ranking, *choice))
        .collect::<Result<_, _>>()?;
    Ok(assemble(sources, parts))
}

/// Splits in which each layer has the part, out of those of `splits`, that is best for it by prediction.
pub(super) fn mixed(sources: &[Source], splits: &[Split]) -> Vec<Split> {
    let one_fold = splits.iter().all(|split| split.candidate.freqfold == splits[0].candidate.freqfold);
    if splits.len() < 2 || !one_fold {
        return Vec::new();
    }
    let of = |weight: f64| {
        let error = |part: &Part| part.latent_error + weight * part.rope_error;
        let best = |layer: usize| {
            let parts = splits.iter().map(|split| &split.parts[layer]);
            parts.min_by(|a, b| error(a).total_cmp(&error(b))).expect("more than one split").clone()
        };
        assemble(sources, (0..sources.len()).map(best).collect())
    };
    ROPE_WEIGHTS.map(of).into()
}

fn assemble(sources: &[Source], parts: Vec<Part>) -> Split {
    let everything: f64 = sources.iter().map(|source| source.everything).sum();
    let predicted: f64 = parts.iter().map(|part| part.latent_error + part.rope_error).sum();
    let elements = |(source, part): (&Source, &Part)| part.rank + part.rotated.elements(source.sizes);
    let elements: Vec<usize> = sources.iter().zip(&parts).map(elements).collect();
    let mean = |of: &dyn Fn(usize) -> usize| (0..parts.len()).map(of).sum::<usize>() / parts.len();
    let differ = |all: Vec<usize>| if all.iter().all(|&n| n == all[0]) { Vec::new() } else { all };
    let candidate = Candidate {
        freqfold: parts[0].choice.freqfold,
        rope_pairs: mean(&|i| parts[i].choice.pairs),
        pairs_by_layer: differ(parts.iter().map(|part| part.choice.pairs).collect()),
        kv_lora_rank: mean(&|i| parts[i].rank),
        kv_elements: mean(&|i| elements[i]),
        layers: differ(elements),
        predicted: predicted / everything.max(f64::MIN_POSITIVE),
        kl: None,
        chosen: false,
    };
    Split { parts, candidate }
}

/// What a choice does to one layer.
pub(super) fn part(source: &Source, ranking: &Ranking, choice: Choice) -> Result<Part, LinalgError> {
    let (rotated, rope_error) = ranking.first(choice.pairs);
    let rank = choice.rank.min(source.useful_rank(&rotated));
    let content = source.components(&rotated)?;
    let (latent_error, content) = (content.error(rank, choice.keys), content.error(0, None));
    Ok(Part { choice, rotated, rank, content, latent_error, rope_error })
}

/// The choice for one layer that divides `elements` as `like` divides its own, with a number of rotated pairs out of `counts`.
pub(super) fn scaled(like: Choice, counts: &[usize], each: usize, elements: usize) -> Choice {
    let whole = like.pairs * each + like.rank;
    let wanted = like.pairs as f64 * elements as f64 / whole.max(1) as f64;
    let fitting = counts.iter().copied().filter(|pairs| pairs * each < elements);
    let near = |pairs: &usize| (*pairs as f64 - wanted).abs();
    let pairs = fitting.min_by(|a, b| near(a).total_cmp(&near(b))).unwrap_or(counts[0]);
    Choice { pairs, rank: elements.saturating_sub(pairs * each).max(1), ..like }
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

/// The indices of `count` splits to measure, ascending: those with the least predicted error; or, where the method's own errors predict no
/// output, some of all over.
pub(super) fn promising(splits: &[Split], count: usize, predicts: bool) -> Vec<usize> {
    if !predicts {
        let count = count.min(splits.len());
        return (0..count).map(|i| (2 * i + 1) * splits.len() / (2 * count)).collect();
    }
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
        Split { parts: vec![], candidate: Candidate { predicted, kl, ..Candidate::default() } }
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
    fn a_layer_with_more_or_less_divides_it_alike() {
        let like = Choice { freqfold: 1, pairs: 16, rank: 64, keys: None };
        let counts: Vec<usize> = (0..=48).collect();
        for (elements, expected) in
            [(96, (16, 64)), (48, (8, 32)), (192, (32, 128)), (2, (0, 2)), (97, (16, 65))]
        {
            let choice = scaled(like, &counts, 2, elements);
            assert_eq!((choice.pairs, choice.rank), expected, "{elements}");
        }
        let uneven = scaled(like, &[8, 16, 32], 2, 150);
        assert_eq!((uneven.pairs, uneven.rank), (32, 86), "the nearest that is to be had");
    }

    #[test]
    fn the_promising_ones_are_those_with_the_least_predicted_error_or_some_of_all_over() {
        let splits: Vec<Split> = [0.5, 0.1, 0.4, 0.2, 0.2].map(|p| split(p, None)).into();
        for (count, expected) in
            [(0, &[][..]), (1, &[1]), (2, &[1, 3]), (3, &[1, 3, 4]), (9, &[0, 1, 2, 3, 4])]
        {
            assert_eq!(promising(&splits, count, true), expected);
        }
        for (count, expected) in
            [(0, &[][..]), (1, &[2]), (2, &[1, 3]), (4, &[0, 1, 3, 4]), (9, &[0, 1, 2, 3, 4])]
        {
            assert_eq!(promising(&splits, count, false), expected, "all over");
        }
    }
}
