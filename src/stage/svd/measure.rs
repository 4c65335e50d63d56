//! Runs the original and converted variants side by side, layer by layer, and compares their logits. Knows no conversion.

use std::collections::BTreeMap;

use candle_core::Tensor;
use rayon::prelude::*;
use serde_json::Value;

use super::{error::SvdError, fold, job::Job, source::Source};
use crate::{
    artifact::checkpoint::Owned,
    engine::action::{Cx, Failure},
    kernel::host,
    model::{Batch, Config, Layer, Shell, probe::NoProbe},
    stage::streamed::{self, budget::Needs, hidden::Hidden},
};

/// The new attention tensors of a layer by their name after `self_attn.`.
type Fold<'a> = dyn Fn(&Source) -> Result<BTreeMap<String, Owned>, SvdError> + 'a;

/// A variant of the model: its configuration and how its layers are converted.
pub(super) struct Variant<'a> {
    pub(super) config: Value,
    pub(super) attention: Box<Fold<'a>>,
    /// The only layer that is converted, where it is not all of them.
    pub(super) only: Option<usize>,
}

impl Variant<'_> {
    fn converts(&self, layer: usize) -> bool {
        self.only.is_none_or(|only| only == layer)
    }
}

/// Rows of logits at a time.
const ROWS: usize = 256;

/// The final hidden states of the original and of each variant.
struct Outcome {
    shell: Shell,
    original: Tensor,
    variants: Vec<Tensor>,
}

/// The mean KL divergence of each variant from the original over every `stride`-th token of `batch`, in nats per token.
pub(super) fn kl(
    job: &Job<'_>,
    variants: &[Variant<'_>],
    (batch, stride): (&Batch, usize),
    label: &str,
) -> Result<Vec<f64>, Failure> {
    job.passes.measure(job.cx, || run(job, variants, batch, label)?.kl(job.cx, stride))
}

/// The largest difference of a logit of the variant, and the original's largest logit, both absolute.
pub(super) fn largest_difference(
    job: &Job<'_>,
    variant: Variant<'_>,
    batch: &Batch,
    label: &str,
) -> Result<(f64, f64), Failure> {
    let measured = job.passes.measure(job.cx, || {
        let (difference, largest) = run(job, &[variant], batch, label)?.largest_difference(0)?;
        Ok(vec![difference, largest])
    })?;
    Ok((measured[0], measured[1]))
}

/// Pushes `batch` through the original and all variants, side by side. Layers before a variant's first converted one are computed once.
fn run(job: &Job<'_>, variants: &[Variant<'_>], batch: &Batch, label: &str) -> Result<Outcome, Failure> {
    let Job { cx, checkpoint, config, sources, .. } = *job;
    let streams = std::iter::repeat_n(batch, variants.len() + 1);
    let needs = Needs { stage: job.folding(), ..Needs::of(checkpoint, config, streams.clone(), 1) };
    let mut hidden = streamed::room(cx, &needs, streams.clone(), (config, "measured.f32"))?;
    let shell = Shell::load(checkpoint, config).map_err(Failure::stage)?;
    let (mut resume, first) = job.passes.begin(cx, &mut hidden)?;
    if first == 0 {
        hidden.put(0, shell.embed(&batch.ids).map_err(Failure::stage)?).map_err(Failure::stage)?;
    }
    let layers = config.layers.len();
    // Until its first converted layer, a variant is the original.
    let begins = |v: usize| variants[v].only.unwrap_or(sources[0].layer);
    let work: usize = (0..variants.len()).map(|v| layers - begins(v)).sum();
    cx.progress.phase(label, Some((batch.len() * (layers + work)) as u64), "tokens");
    for index in 0..layers {
        let apart: Vec<usize> = (0..variants.len()).filter(|&v| begins(v) <= index).collect();
        if index < first {
            cx.progress.advance((batch.len() * (1 + apart.len())) as u64);
            continue;
        }
        let source = job.source(index);
        let layer = Layer::load(checkpoint, config, index).map_err(Failure::stage)?;
        let x = hidden.take(0).map_err(Failure::stage)?;
        for &v in apart.iter().filter(|&&v| begins(v) == index) {
            hidden.put(v + 1, x.clone()).map_err(Failure::stage)?;
        }
        hidden.put(0, x).map_err(Failure::stage)?;
        let mut step = |layer: &Layer, stream: usize| {
            cx.check_stop()?;
            step(layer, (&mut hidden, stream), batch)?;
            cx.progress.advance(batch.len() as u64);
            Ok::<_, Failure>(())
        };
        step(&layer, 0)?;
        for v in apart {
            match source.filter(|_| variants[v].converts(index)) {
                Some(source) => step(&converted(job, &variants[v], source)?, v + 1)?,
                None => step(&layer, v + 1)?,
            }
        }
        Layer::release(checkpoint, index);
        if index + 1 < layers {
            job.passes.keep(&mut resume, index + 1, &mut hidden)?;
        }
    }
    let mut normed = |stream: usize| {
        let x = hidden.take(stream).map_err(Failure::stage)?;
        shell.normed(&x).map_err(Failure::stage)
    };
    let original = normed(0)?;
    let variants = (1..=variants.len()).map(normed).collect::<Result<_, _>>()?;
    Ok(Outcome { shell, original, variants })
}

/// One stream through one layer.
fn step(layer: &Layer, (hidden, stream): (&mut Hidden, usize), batch: &Batch) -> Result<(), Failure> {
    let x = hidden.take(stream).map_err(Failure::stage)?;
    let y = layer.forward(&x, batch, &mut NoProbe).map_err(Failure::stage)?;
    hidden.put(stream, y).map_err(Failure::stage)
}

/// A converted layer, over the original's other tensors.
pub(super) fn converted(job: &Job<'_>, variant: &Variant<'_>, source: &Source) -> Result<Layer, Failure> {
    let prefix = format!("model.layers.{}.", source.layer);
    let tensors = (variant.attention)(source).map_err(Failure::stage)?;
    let named = tensors.into_iter().map(|(name, tensor)| (format!("{prefix}self_attn.{name}"), tensor));
    let gone = |name: &str| name.starts_with(&prefix) && fold::is_dense_key_value(name);
    let part = job.checkpoint.overlaid(variant.config.clone(), gone, named.collect());
    let config = Config::parse(&variant.config).map_err(Failure::stage)?;
    Layer::load(&part, &config, source.layer).map_err(Failure::stage)
}

impl Outcome {
    /// The largest difference of a logit of variant `which`, and the original's largest logit, both absolute.
    fn largest_difference(&self, which: usize) -> Result<(f64, f64), Failure> {
        let mut largest = (0f64, 0f64);
        for rows in self.rows(1).chunks(ROWS) {
            let (original, variant) =
                (self.logits(&self.original, rows)?, self.logits(&self.variants[which], rows)?);
            let (original, variant) =
                (host(&original).map_err(Failure::stage)?, host(&variant).map_err(Failure::stage)?);
            let difference = original.iter().zip(variant.iter()).map(|(a, b)| f64::from((a - b).abs()));
            // A difference that is not a number must not pass as small.
            let worst = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
            largest.0 = difference.fold(largest.0, worst);
            largest.1 = original.iter().map(|a| f64::from(a.abs())).fold(largest.1, f64::max);
        }
        Ok(largest)
    }

    /// The mean KL divergence of each variant from the original over every `stride`-th token, in nats per token.
    fn kl(&self, cx: &Cx<'_>, stride: usize) -> Result<Vec<f64>, Failure> {
        let mut sums = vec![0f64; self.variants.len()];
        let rows = self.rows(stride);
        cx.progress.phase("comparing logits", Some((rows.len() * (sums.len() + 1)) as u64), "tokens");
        for rows in rows.chunks(ROWS) {
            let original = self.logits(&self.original, rows)?;
            let vocab = original.dim(1).map_err(Failure::stage)?;
            let p = host(&original).map_err(Failure::stage)?;
            cx.progress.advance(rows.len() as u64);
            for (sum, variant) in sums.iter_mut().zip(&self.variants) {
                cx.check_stop()?;
                let variant = self.logits(variant, rows)?;
                let q = host(&variant).map_err(Failure::stage)?;
                let rows = p.par_chunks_exact(vocab).zip(q.par_chunks_exact(vocab));
                let each: Vec<f64> = rows.map(|(p, q)| divergence(p, q)).collect();
                *sum += each.iter().sum::<f64>();
                cx.progress.advance(each.len() as u64);
            }
        }
        Ok(sums.into_iter().map(|sum| sum / rows.len().max(1) as f64).collect())
    }

    /// Every `stride`-th token.
    fn rows(&self, stride: usize) -> Vec<u32> {
        (0..self.original.dims()[0] as u32).step_by(stride).collect()
    }

    /// Logits of the given rows of `x`.
    fn logits(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor, Failure> {
        let ids = Tensor::new(rows, x.device()).map_err(Failure::stage)?;
        let rows = x.index_select(&ids, 0);
        rows.and_then(|x| self.shell.lm_head.forward(&x)).map_err(Failure::stage)
    }
}

/// `Σ p ln(p / q)` of two rows of logits.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let lse = |row: &[f32]| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        f64::from(max) + row.iter().map(|x| f64::from((x - max).exp())).sum::<f64>().ln()
    };
    let (lp, lq) = (lse(p), lse(q));
    p.iter()
        .zip(q)
        .map(|(&p, &q)| {
            let (a, b) = (f64::from(p) - lp, f64::from(q) - lq);
            a.exp() * (a - b)
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::divergence;

    #[test]
    fn divergence_by_hand_and_against_shifts() {
        // p = (3/4, 1/4), q = (1/2, 1/2).
        let p = [3f32.ln(), 0.0];
        let want = 0.75 * (1.5f64).ln() + 0.25 * (0.5f64).ln();
        assert!((divergence(&p, &[2.0, 2.0]) - want).abs() < 1e-6);
        assert!(divergence(&p, &[p[0] - 5.0, -5.0]).abs() < 1e-6);
    }
}
