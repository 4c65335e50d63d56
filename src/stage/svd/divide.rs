//! Divides the budget of a split anew among layers, after each layer was measured by itself. Knows no way to convert.

use super::{
    budget::{self, Choice, Part, Split},
    job::{Job, whole_sequences},
    layers::{self, Axis, Bounds, Curve},
    measure::{self, Variant},
    pieces::LayerBudgets,
    ranking::Ranking,
    source::Source,
};
use crate::{engine::action::Failure, model::Batch};

/// Shares of what a layer has at which it is measured by itself, beside what it has.
const POINTS: [f64; 2] = [0.6, 1.6];

/// Of the tokens that go through those models, every so many is compared: the head is a large part of the work.
const STRIDE: usize = 4;

/// Adds the split that divides the elements of the best one anew among layers, and returns the better of the two.
pub(super) fn redivide(
    job: &Job<'_>,
    splits: &mut Vec<Split>,
    best: usize,
    held_out: &[Vec<u32>],
) -> Result<usize, Failure> {
    let Some(batch) = whole_sequences(held_out, job.svd.measure_tokens / 2) else { return Ok(best) };
    let rankings = job.rankings(splits[best].candidate.freqfold);
    let counts = budget::counts(job, &rankings[0]);
    let division = Division { job, rankings: &rankings, counts: &counts, like: &splits[best] };
    let choices = match job.pieces.layer_budgets {
        LayerBudgets::TwoLevel => division.two_level(&batch)?,
        _ => division.free(&batch)?,
    };
    let divided = budget::split(job.sources, &rankings, &choices).map_err(Failure::stage)?;
    splits[best].candidate.chosen = false;
    let before = splits[best].candidate.kl;
    splits.push(divided);
    let last = splits.len() - 1;
    job.measure(&mut splits[last..], held_out)?;
    if before.is_none() {
        job.measure(&mut splits[best..=best], held_out)?;
    }
    Ok(budget::choose(splits))
}

/// A split whose elements are moved between layers, to where they lower the divergence most.
struct Division<'a> {
    job: &'a Job<'a>,
    rankings: &'a [Ranking],
    /// The numbers of rotated pairs that can be had.
    counts: &'a [usize],
    like: &'a Split,
}

impl Division<'_> {
    /// Every layer divides what it has as before, and has one of two sizes.
    fn two_level(&self, batch: &Batch) -> Result<Vec<Choice>, Failure> {
        let (job, mean) = (self.job, self.like.candidate.kv_elements);
        let whole = self.whole();
        let scaled = |layer: usize, elements| {
            budget::scaled(self.like.parts[layer].choice, self.counts, self.each(), elements)
        };
        // What is rotated at least, and one channel.
        let fewest = self.counts[0] * self.each() + 1;
        let near = |share: f64| ((mean as f64 * share) as usize).clamp(fewest.max(2), whole);
        let sizes = [near(POINTS[0]), mean, near(POINTS[1])];
        let tried: Vec<Vec<Choice>> =
            (0..job.sources.len()).map(|i| sizes.map(|elements| scaled(i, elements)).into()).collect();
        let curve = |kls: &Vec<f64>| Curve::new(sizes.into_iter().zip(kls.iter().copied()).collect());
        let curves: Vec<Curve> = self.alone(&tried, batch)?.iter().map(curve).collect();
        let step = if fewest.next_multiple_of(step(mean)) > mean { 1 } else { step(mean) };
        let least = (mean / 3).max(step).max(fewest);
        let bounds = Bounds { total: mean * job.sources.len(), step, least, most: whole };
        Ok(layers::two_level(&curves, bounds).into_iter().enumerate().map(|(i, n)| scaled(i, n)).collect())
    }

    /// Rotated pairs and latent channels of every layer as they are worth it, unless the user fixed one of the two.
    fn free(&self, batch: &Batch) -> Result<Vec<Choice>, Failure> {
        let svd = self.job.svd;
        let pairs = (svd.rope_pairs.is_none() || svd.kv_lora_rank.is_some()) && self.counts.len() > 1;
        let rank = svd.kv_lora_rank.is_none();
        let choices: Vec<Choice> = self.like.parts.iter().map(|part| part.choice).collect();
        let tried: Vec<Vec<Choice>> =
            choices.iter().map(|&choice| self.around(choice, pairs, rank)).collect();
        let measured = self.alone(&tried, batch)?;
        let each = self.each();
        let (mut axes, mut total) = (Vec::new(), 0);
        for ((&at, tried), kls) in choices.iter().zip(&tried).zip(&measured) {
            let points = || tried.iter().zip(kls.iter().copied());
            if pairs {
                let curve = points().filter(|(one, _)| one.rank == at.rank);
                let sizes = self.counts.iter().filter(|&&count| count >= at.pairs / 3);
                axes.push(Axis {
                    curve: Curve::new(curve.map(|(one, kl)| (one.pairs * each, kl)).collect()),
                    sizes: sizes.map(|count| count * each).collect(),
                });
                total += at.pairs * each;
            }
            if rank {
                let curve = points().filter(|(one, _)| one.pairs == at.pairs);
                let step = step(at.rank);
                axes.push(Axis {
                    curve: Curve::new(curve.map(|(one, kl)| (one.rank, kl)).collect()),
                    sizes: (1..=self.whole() / step)
                        .map(|n| n * step)
                        .filter(|&n| 3 * n >= at.rank)
                        .collect(),
                });
                total += at.rank;
            }
        }
        let mut elements = layers::free(&axes, total).into_iter();
        let mut next = || elements.next().expect("one for each axis");
        let divided = choices.into_iter().map(|at| Choice {
            pairs: if pairs { next() / each } else { at.pairs },
            rank: if rank { next() } else { at.rank },
            ..at
        });
        Ok(divided.collect())
    }

    /// `at`, and what has less or more of one of the two.
    fn around(&self, at: Choice, pairs: bool, rank: bool) -> Vec<Choice> {
        let mut around = vec![at];
        for share in POINTS {
            let far = |count: &usize| (*count as f64 - at.pairs as f64 * share).abs();
            let count = self.counts.iter().copied().min_by(|a, b| far(a).total_cmp(&far(b)));
            if let Some(count) = count.filter(|&count| pairs && count != at.pairs) {
                around.push(Choice { pairs: count, ..at });
            }
            let channels = ((at.rank as f64 * share) as usize).clamp(1, self.whole());
            if rank && channels != at.rank {
                around.push(Choice { rank: channels, ..at });
            }
        }
        around
    }

    /// The divergence of each layer's choices with all other layers as they were.
    fn alone(&self, tried: &[Vec<Choice>], batch: &Batch) -> Result<Vec<Vec<f64>>, Failure> {
        let mut alone = Vec::new();
        for ((source, ranking), tried) in self.job.sources.iter().zip(self.rankings).zip(tried) {
            for &choice in tried {
                alone.push((source.layer, budget::part(source, ranking, choice).map_err(Failure::stage)?));
            }
        }
        let variants: Vec<Variant> =
            alone.iter().map(|(layer, part)| single(self.job, *layer, part)).collect();
        let label = format!("measuring layers by themselves on {} held-out tokens", batch.len());
        let mut measured = measure::kl(self.job, &variants, (batch, STRIDE), &label)?.into_iter();
        Ok(tried.iter().map(|tried| measured.by_ref().take(tried.len()).collect()).collect())
    }

    /// Elements of a pair.
    fn each(&self) -> usize {
        budget::each(self.job.pieces.layout, self.job.config.num_key_value_heads)
    }

    /// Elements of the original.
    fn whole(&self) -> usize {
        2 * self.job.config.num_key_value_heads * self.job.config.head_dim
    }
}

/// How finely about so many elements are divided.
fn step(elements: usize) -> usize {
    (elements / 24).max(1).next_power_of_two()
}

/// The model with only one layer converted.
fn single<'a>(job: &'a Job<'a>, layer: usize, part: &'a Part) -> Variant<'a> {
    let config = job.config_json(&[(layer, part.rotated.clone(), part.rank)]);
    let attention = move |source: &Source| job.folded(source, part);
    Variant { config, attention: Box::new(attention), only: Some(layer) }
}
