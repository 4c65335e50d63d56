//! Runs the original and converted variants side by side, layer by layer, and compares their logits. Knows no conversion.

use std::collections::BTreeMap;

use candle_core::Tensor;
use rayon::prelude::*;
use serde_json::Value;

use crate::{
    artifact::{
        Artifact, ArtifactError,
        checkpoint::{Checkpoint, Draft, Owned, files_in},
    },
    engine::action::{Cx, Failure},
    kernel::host,
    model::{Batch, Config, Layer, Shell, probe::NoProbe},
};

use super::fold::layer_tensors;

/// A variant of the model: its configuration and the attention tensors of its converted layers.
pub(super) struct Variant {
    pub(super) config: Value,
    pub(super) attention: BTreeMap<usize, BTreeMap<String, Owned>>,
}

/// Rows of logits at a time.
const ROWS: usize = 512;

/// The final hidden states of the original and of each variant.
pub(super) struct Outcome {
    shell: Shell,
    original: Tensor,
    variants: Vec<Tensor>,
}

/// Pushes `batch` through the original and all variants. Layers before the first converted one are computed once.
pub(super) fn run(
    cx: &Cx<'_>,
    checkpoint: &Checkpoint,
    variants: &[Variant],
    batch: &Batch,
) -> Result<Outcome, Failure> {
    let config = Config::parse(&checkpoint.config).map_err(Failure::stage)?;
    let shell = Shell::load(checkpoint, &config).map_err(Failure::stage)?;
    let mut original = shell.embed(&batch.ids).map_err(Failure::stage)?;
    let mut streams: Vec<Option<Tensor>> = vec![None; variants.len()];
    for index in 0..config.layers.len() {
        cx.check_stop()?;
        let layer = Layer::load(checkpoint, &config, index).map_err(Failure::stage)?;
        for (variant, stream) in variants.iter().zip(&mut streams) {
            let x = stream.as_ref().unwrap_or(&original);
            match variant.attention.get(&index) {
                Some(attention) => {
                    let layer = converted(cx, checkpoint, (&variant.config, index), attention)?;
                    *stream = Some(layer.forward(x, batch, &mut NoProbe).map_err(Failure::stage)?);
                }
                None if stream.is_some() => {
                    *stream = Some(layer.forward(x, batch, &mut NoProbe).map_err(Failure::stage)?);
                }
                None => {}
            }
        }
        original = layer.forward(&original, batch, &mut NoProbe).map_err(Failure::stage)?;
    }
    let normed = |x: &Tensor| shell.normed(x).map_err(Failure::stage);
    let variants =
        streams.iter().map(|x| normed(x.as_ref().unwrap_or(&original))).collect::<Result<_, _>>()?;
    Ok(Outcome { original: normed(&original)?, variants, shell })
}

/// A converted layer, read back from the bytes that a checkpoint would hold.
fn converted(
    cx: &Cx<'_>,
    checkpoint: &Checkpoint,
    (config, index): (&Value, usize),
    attention: &BTreeMap<String, Owned>,
) -> Result<Layer, Failure> {
    let dir =
        tempfile::tempdir_in(&cx.scratch).map_err(ArtifactError::io(&cx.scratch)).map_err(Failure::stage)?;
    let tensors = layer_tensors(checkpoint, index, attention);
    let draft = Draft { config: config.clone(), tensors, ..Draft::default() };
    draft.save(dir.path()).map_err(Failure::stage)?;
    let part = Checkpoint::load(&files_in(dir.path()).map_err(Failure::stage)?).map_err(Failure::stage)?;
    let config = Config::parse(config).map_err(Failure::stage)?;
    Layer::load(&part, &config, index).map_err(Failure::stage)
}

impl Outcome {
    /// The largest difference of a logit of variant `which`, and the original's largest logit, both absolute.
    pub(super) fn largest_difference(&self, which: usize) -> Result<(f64, f64), Failure> {
        let mut largest = (0f64, 0f64);
        self.rows(which, |original, variant, _| {
            let difference = original.iter().zip(variant).map(|(a, b)| f64::from((a - b).abs()));
            // A difference that is not a number must not pass as small.
            let worst = |a: f64, b: f64| if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) };
            largest.0 = difference.fold(largest.0, worst);
            largest.1 = original.iter().map(|a| f64::from(a.abs())).fold(largest.1, f64::max);
        })?;
        Ok(largest)
    }

    /// The mean KL divergence of variant `which` from the original, in nats per token.
    pub(super) fn kl(&self, which: usize) -> Result<f64, Failure> {
        let (mut sum, mut tokens) = (0f64, 0usize);
        self.rows(which, |original, variant, vocab| {
            let rows = original.par_chunks_exact(vocab).zip(variant.par_chunks_exact(vocab));
            let each: Vec<f64> = rows.map(|(p, q)| divergence(p, q)).collect();
            tokens += each.len();
            sum += each.iter().sum::<f64>();
        })?;
        Ok(sum / tokens.max(1) as f64)
    }

    fn rows(&self, which: usize, mut f: impl FnMut(&[f32], &[f32], usize)) -> Result<(), Failure> {
        let logits = |x: &Tensor, from: usize, n: usize| {
            self.shell.lm_head.forward(&x.narrow(0, from, n)?.contiguous()?)
        };
        let mut each = || -> candle_core::Result<()> {
            let tokens = self.original.dim(0)?;
            for from in (0..tokens).step_by(ROWS) {
                let n = ROWS.min(tokens - from);
                let (a, b) = (logits(&self.original, from, n)?, logits(&self.variants[which], from, n)?);
                f(&host(&a)?, &host(&b)?, a.dim(1)?);
            }
            Ok(())
        };
        each().map_err(Failure::stage)
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
