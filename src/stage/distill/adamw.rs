//! AdamW (arXiv 1711.05101) on f32 master weights, with clipping by the global norm and state that can be saved. Knows no model.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use rayon::prelude::*;
use safetensors::Dtype;

use crate::{
    artifact::checkpoint::{Checkpoint, Draft, Owned},
    kernel::host,
};

use super::{
    gradients::Gradients,
    moments::{BLOCK, Moment, Part, Precision},
    parameters::Rates,
};

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.95;
const EPS: f32 = 1e-8;

/// Elements that one task updates.
const PIECE: usize = 32 * BLOCK;

/// The optimiser's state by variable name.
pub(crate) struct AdamW {
    step: i32,
    moments: BTreeMap<String, Moments>,
    rates: BTreeMap<String, Rates>,
    precision: Precision,
    clip: f32,
}

/// The first moment, and the root of the second one: in 8 bits a root reaches further down, and no parameter that has a first moment
/// is divided by nothing.
struct Moments {
    first: Moment,
    root: Moment,
}

impl AdamW {
    /// A fresh optimiser for `vars`, with the rates of each.
    pub(crate) fn new(
        vars: &BTreeMap<String, Var>,
        rates: BTreeMap<String, Rates>,
        (precision, clip): (Precision, f32),
    ) -> Self {
        let zeros = |var: &Var| Moment::zeros(precision, var.elem_count());
        let moments = |var: &Var| Moments { first: zeros(var), root: zeros(var) };
        let moments = vars.iter().map(|(name, var)| (name.clone(), moments(var))).collect();
        Self { step: 0, moments, rates, precision, clip }
    }

    /// One step of learning rate `lr`, `norm` being that of the whole gradient. Variables without a gradient stay as they are.
    pub(crate) fn step(
        &mut self,
        vars: &BTreeMap<String, Var>,
        gradients: &Gradients,
        (norm, lr): (f32, f32),
    ) -> candle_core::Result<()> {
        let scale = if norm > self.clip { self.clip / norm } else { 1.0 };
        self.step += 1;
        for (name, var) in vars {
            let Some(g) = gradients.of(name) else { continue };
            let rates = self.rates[name];
            let update = Update {
                scale,
                lr: lr * rates.lr,
                keep: 1.0 - lr * rates.lr * rates.weight_decay,
                correct: (1.0 - BETA1.powi(self.step), (1.0 - BETA2.powi(self.step)).sqrt()),
            };
            let moments = self.moments.get_mut(name).expect("made for the same variables");
            let mut updated = vec![0f32; g.len()];
            {
                let w = host(var.as_tensor())?;
                updated
                    .par_chunks_mut(PIECE)
                    .zip(w.par_chunks(PIECE).zip(g.par_chunks(PIECE)))
                    .zip(moments.first.parts(PIECE).into_par_iter().zip(moments.root.parts(PIECE)))
                    .for_each(|((out, (w, g)), (first, root))| update.piece(out, (w, g), (first, root)));
            }
            var.set(&Tensor::from_vec(updated, var.shape(), var.device())?)?;
        }
        Ok(())
    }

    /// Adds the state to a draft, under `m.` and `r.`, with `.scales` where there are any.
    pub(crate) fn save(&self, vars: &BTreeMap<String, Var>, draft: &mut Draft) {
        draft.config = serde_json::json!({ "step": self.step });
        for (name, var) in vars {
            let Moments { first, root } = &self.moments[name];
            for (prefix, moment) in [("m", first), ("r", root)] {
                let at = format!("{prefix}.{name}");
                let tensor = match moment {
                    Moment::F32(values) => Owned::f32(var.dims(), values),
                    Moment::Eight { codes, scales } => {
                        draft.tensors.insert(format!("{at}.scales"), Owned::f32(&[scales.len()], scales));
                        Owned { dtype: Dtype::U8, shape: var.dims().to_vec(), bytes: codes.clone() }
                    }
                };
                draft.tensors.insert(at, tensor);
            }
        }
    }

    /// Restores what [`Self::save`] added.
    pub(crate) fn restore(
        &mut self,
        vars: &BTreeMap<String, Var>,
        saved: &Checkpoint,
    ) -> Result<(), Foreign> {
        let step = saved.config.get("step").and_then(serde_json::Value::as_i64);
        self.step =
            step.and_then(|step| i32::try_from(step).ok()).ok_or_else(|| Foreign("step".to_owned()))?;
        for (name, var) in vars {
            let moment = |prefix: &str| {
                let at = format!("{prefix}.{name}");
                if self.precision == Precision::F32 {
                    return Ok(Moment::F32(floats(saved, &at, var.dims())?));
                }
                let scales = floats(saved, &format!("{at}.scales"), &[var.elem_count().div_ceil(BLOCK)])?;
                let codes = saved.raw(&at).filter(|raw| raw.shape == var.dims() && raw.dtype == Dtype::U8);
                Ok(Moment::Eight { codes: codes.ok_or(Foreign(at))?.bytes.to_vec(), scales })
            };
            let moments = Moments { first: moment("m")?, root: moment("r")? };
            self.moments.insert(name.clone(), moments);
        }
        Ok(())
    }
}

/// What one step does to each element of a variable.
struct Update {
    /// Of the gradient, from clipping.
    scale: f32,
    lr: f32,
    /// What decay leaves of a parameter.
    keep: f32,
    /// What the first moment, and the root of the second, are short of at this step.
    correct: (f32, f32),
}

impl Update {
    fn piece(&self, out: &mut [f32], (w, g): (&[f32], &[f32]), (mut first, mut root): (Part<'_>, Part<'_>)) {
        let (mut m, mut r) = ([0f32; BLOCK], [0f32; BLOCK]);
        let blocks = out.chunks_mut(BLOCK).zip(w.chunks(BLOCK).zip(g.chunks(BLOCK)));
        for (block, (out, (w, g))) in blocks.enumerate() {
            let (m, r) = (&mut m[..out.len()], &mut r[..out.len()]);
            first.read(block, m);
            root.read(block, r);
            for i in 0..out.len() {
                let g = g[i] * self.scale;
                m[i] = BETA1 * m[i] + (1.0 - BETA1) * g;
                r[i] = (BETA2 * r[i] * r[i] + (1.0 - BETA2) * g * g).sqrt();
                out[i] = self.keep * w[i] - self.lr * (m[i] / self.correct.0) / (r[i] / self.correct.1 + EPS);
            }
            first.write(block, m);
            root.write(block, r);
        }
    }
}

/// A tensor that a training checkpoint lacks, or has in another shape.
#[derive(Debug, thiserror::Error)]
#[error("the training checkpoint does not fit this run: `{0}` is missing or has another shape")]
pub(crate) struct Foreign(pub(crate) String);

/// The tensors `prefix.name` of a training checkpoint, one for each variable.
pub(crate) fn read(
    saved: &Checkpoint,
    prefix: &str,
    vars: &BTreeMap<String, Var>,
) -> Result<BTreeMap<String, Vec<f32>>, Foreign> {
    let one = |(name, var): (&String, &Var)| {
        Ok((name.clone(), floats(saved, &format!("{prefix}.{name}"), var.dims())?))
    };
    vars.iter().map(one).collect()
}

/// A tensor of floats, which must have that shape.
fn floats(saved: &Checkpoint, at: &str, shape: &[usize]) -> Result<Vec<f32>, Foreign> {
    let raw = saved.raw(at).filter(|raw| raw.shape == shape);
    raw.and_then(crate::artifact::checkpoint::Raw::to_f32).ok_or_else(|| Foreign(at.to_owned()))
}

#[cfg(test)]
mod tests;
