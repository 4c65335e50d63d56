//! Divides the budget of a split anew among layers, after each layer was measured by itself. Knows no way to convert.

use super::{
    budget::{self, Choice, Part, Split},
    job::{Job, whole_sequences},
    layers::{self, Bounds, Curve},
    measure::{self, Variant},
    pieces::LayerBudgets,
    source::Source,
};
use crate::engine::action::Failure;

/// Shares of the mean budget at which each layer is measured by itself.
const POINTS: [f64; 3] = [0.6, 1.0, 1.6];

/// Of the tokens that go through those models, every so many is compared: the head is a large part of the work.
const STRIDE: usize = 4;

/// Adds the split that divides the elements of the best one anew among layers, and returns the better of the two.
pub(super) fn redivide(
    job: &Job<'_>,
    splits: &mut Vec<Split>,
    best: usize,
    held_out: &[Vec<u32>],
) -> Result<usize, Failure> {
    let Some(divided) = divide(job, &splits[best], held_out)? else { return Ok(best) };
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

/// `like` with its elements moved between layers, to where they lower the divergence most. `None` where nothing can be measured.
fn divide(job: &Job<'_>, like: &Split, held_out: &[Vec<u32>]) -> Result<Option<Split>, Failure> {
    let Some(batch) = whole_sequences(held_out, job.svd.measure_tokens / 2) else { return Ok(None) };
    let choices: Vec<Choice> = like.parts.iter().map(|part| part.choice).collect();
    let like = &like.candidate;
    let rankings = job.rankings(like.freqfold);
    let kv_heads = job.config.num_key_value_heads;
    let counts = rankings[0].counts(kv_heads, job.pieces.rotary_choice);
    let each = budget::each(job.pieces.layout, kv_heads);
    let scaled = |layer: usize, elements| budget::scaled(choices[layer], &counts, each, elements);
    let whole = 2 * kv_heads * job.config.head_dim;
    let near = |share: f64| ((like.kv_elements as f64 * share) as usize).clamp(2, whole);
    let sizes = POINTS.map(near);
    let mut alone = Vec::new();
    for (i, (source, ranking)) in job.sources.iter().zip(&rankings).enumerate() {
        for elements in sizes {
            let part = budget::part(source, ranking, scaled(i, elements)).map_err(Failure::stage)?;
            alone.push((source.layer, part));
        }
    }
    let variants: Vec<Variant> = alone.iter().map(|(layer, part)| single(job, *layer, part)).collect();
    let label = format!("measuring each layer at {sizes:?} elements on {} held-out tokens", batch.len());
    let measured = measure::kl(job, &variants, (&batch, STRIDE), &label)?;
    let curve = |kls: &[f64]| Curve::new(sizes.into_iter().zip(kls.iter().copied()).collect());
    let curves: Vec<Curve> = measured.chunks_exact(sizes.len()).map(curve).collect();
    let step = (like.kv_elements / 24).max(1).next_power_of_two();
    let bounds = Bounds {
        total: like.kv_elements * job.sources.len(),
        step,
        least: (like.kv_elements / 3).max(step),
        most: whole,
    };
    let elements = match job.svd.layer_budgets {
        LayerBudgets::TwoLevel => layers::two_level(&curves, bounds),
        _ => layers::free(&curves, bounds),
    };
    let choices: Vec<Choice> = elements.into_iter().enumerate().map(|(i, n)| scaled(i, n)).collect();
    Ok(Some(budget::split(job.sources, &rankings, &choices).map_err(Failure::stage)?))
}

/// The model with only one layer converted.
fn single<'a>(job: &'a Job<'a>, layer: usize, part: &'a Part) -> Variant<'a> {
    let config = job.config_json(&[(layer, part.rotated.clone(), part.rank)]);
    let attention = move |source: &Source| job.folded(source, part);
    Variant { config, attention: Box::new(attention), only: Some(layer) }
}
