//! From figures of tokens to figures of a model: means, quantiles, buckets, recall. Knows no model and no logits.

use crate::artifact::scores::{Bucket, Distance, Figures, Recall};

use super::compare::Predicted;

/// Where a predicted token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Index of its document.
    pub(super) document: usize,
    /// Position, in its document, of the token before it, whose logits predict it.
    pub(super) position: usize,
}

/// A marked answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    /// Index of its first token among all predicted tokens.
    pub(super) first: usize,
    /// Its number of tokens.
    pub(super) tokens: usize,
    /// Tokens from the statement to the answer.
    pub(super) distance: usize,
    /// How many answers were possible.
    pub(super) choices: u32,
}

/// The figures of one model beside the original's; one entry per predicted token, in the same order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beside<'a> {
    /// Where the tokens stand; tokens of one document are neighbours.
    pub(super) places: &'a [Place],
    /// The original's predictions.
    pub(super) original: &'a [Predicted],
    /// The model's.
    pub(super) model: &'a [Predicted],
}

impl Beside<'_> {
    /// Over all tokens.
    pub(super) fn all(&self) -> Figures {
        self.figures(|_| true)
    }

    /// By position, between 0, the ascending `edges`, and `end`; buckets without a token are left out.
    pub(super) fn buckets(&self, edges: &[usize], end: usize) -> Vec<Bucket> {
        let inner = edges.iter().copied().filter(|&edge| edge < end);
        let edges: Vec<usize> = std::iter::once(0).chain(inner).chain([end]).collect();
        let bucket = |pair: &[usize]| {
            let (from, to) = (pair[0], pair[1]);
            let figures = self.figures(|place| (from..to).contains(&place.position));
            (figures.tokens > 0).then_some(Bucket { from, to, figures })
        };
        edges.windows(2).filter_map(bucket).collect()
    }

    fn figures(&self, counts: impl Fn(&Place) -> bool) -> Figures {
        let chosen: Vec<usize> = (0..self.places.len()).filter(|&i| counts(&self.places[i])).collect();
        let n = chosen.len() as f64;
        let mean = |value: &dyn Fn(usize) -> f64| chosen.iter().map(|&i| value(i)).sum::<f64>() / n;
        let kl = |i: usize| self.model[i].kl;
        let difference = |i: usize| self.model[i].nll - self.original[i].nll;
        let mut sorted: Vec<f64> = chosen.iter().map(|&i| kl(i)).collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let ln_ratio = mean(&difference);
        let agrees = |i: usize| f64::from(u8::from(self.model[i].agrees));
        let delta_p = |i: usize| (-self.model[i].nll).exp() - (-self.original[i].nll).exp();
        Figures {
            tokens: chosen.len(),
            kl_mean: mean(&kl),
            kl_mean_se: self.standard_error(&chosen, &kl),
            kl_median: quantile(&sorted, 0.5),
            kl_p90: quantile(&sorted, 0.9),
            kl_p95: quantile(&sorted, 0.95),
            kl_p99: quantile(&sorted, 0.99),
            kl_p999: quantile(&sorted, 0.999),
            kl_max: quantile(&sorted, 1.0),
            top1: mean(&agrees),
            top1_se: self.standard_error(&chosen, &agrees),
            delta_p_mean: mean(&delta_p),
            delta_p_rms: mean(&|i| delta_p(i).powi(2)).sqrt(),
            perplexity: mean(&|i| self.model[i].nll).exp(),
            perplexity_ratio: ln_ratio.exp(),
            ln_ratio,
            ln_ratio_se: self.standard_error(&chosen, &difference),
        }
    }

    /// The standard error of a token mean when documents, not tokens, are independent: with `S_d` the sum of a document's
    /// deviations from the mean, `sqrt(D / (D − 1) · Σ S_d²) / N`.
    fn standard_error(&self, chosen: &[usize], value: &dyn Fn(usize) -> f64) -> Option<f64> {
        let n = chosen.len() as f64;
        let mean = chosen.iter().map(|&i| value(i)).sum::<f64>() / n;
        let documents = chosen.chunk_by(|&a, &b| self.places[a].document == self.places[b].document);
        let sums: Vec<f64> = documents.map(|d| d.iter().map(|&i| value(i) - mean).sum()).collect();
        let d = sums.len() as f64;
        (sums.len() > 1).then(|| (d / (d - 1.0) * sums.iter().map(|s| s * s).sum::<f64>()).sqrt() / n)
    }
}

/// The `q` quantile of ascending values: linear between the two nearest ranks, as numpy's default.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = q * last as f64;
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (at - below as f64) * (sorted[above] - sorted[below])
}

/// How many answers a model gets right, each token being its likeliest one. `None` without an answer.
pub(super) fn recall(
    answers: &[Answer],
    skipped: usize,
    model: &[Predicted],
    edges: &[usize],
) -> Option<Recall> {
    let right = |a: &Answer| model[a.first..a.first + a.tokens].iter().all(|token| token.right);
    let share = |chosen: &[&Answer]| {
        let n = chosen.len() as f64;
        let chance = chosen.iter().map(|a| 1.0 / f64::from(a.choices.max(1))).sum::<f64>() / n;
        (chosen.iter().filter(|a| right(a)).count() as f64 / n, chance)
    };
    let all: Vec<&Answer> = answers.iter().collect();
    if all.is_empty() {
        return None;
    }
    let froms = std::iter::once(0).chain(edges.iter().copied());
    let tos = edges.iter().copied().map(Some).chain([None]);
    let by_distance = froms.zip(tos).filter_map(|(from, to)| {
        let inside = |a: &&&Answer| a.distance >= from && to.is_none_or(|to| a.distance < to);
        let chosen: Vec<&Answer> = all.iter().filter(inside).copied().collect();
        let (accuracy, chance) = share(&chosen);
        (!chosen.is_empty()).then_some(Distance { from, to, answers: chosen.len(), accuracy, chance })
    });
    let by_distance = by_distance.collect();
    let (accuracy, chance) = share(&all);
    Some(Recall { answers: all.len(), accuracy, chance, skipped, by_distance })
}

#[cfg(test)]
mod tests;
