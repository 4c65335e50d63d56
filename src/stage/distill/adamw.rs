//! AdamW (arXiv 1711.05101) on f32 master weights, with clipping by the global norm and state that can be saved. Knows no model.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};
use rayon::prelude::*;

use crate::{
    artifact::checkpoint::{Checkpoint, Draft, Owned},
    kernel::host,
};

use super::gradients::Gradients;

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.95;
const EPS: f32 = 1e-8;

/// The optimiser's state: first and second moments by variable name.
pub(crate) struct AdamW {
    step: i32,
    moments: BTreeMap<String, (Vec<f32>, Vec<f32>)>,
    weight_decay: f32,
    clip: f32,
}

impl AdamW {
    /// A fresh optimiser for `vars`. Matrices decay by `weight_decay`; vectors (norms, biases, sinks) never do.
    pub(crate) fn new(vars: &BTreeMap<String, Var>, weight_decay: f32, clip: f32) -> Self {
        let zeros = |var: &Var| (vec![0f32; var.elem_count()], vec![0f32; var.elem_count()]);
        let moments = vars.iter().map(|(name, var)| (name.clone(), zeros(var))).collect();
        Self { step: 0, moments, weight_decay, clip }
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
        let (c1, c2) = (1.0 - BETA1.powi(self.step), 1.0 - BETA2.powi(self.step));
        for (name, var) in vars {
            let Some(g) = gradients.of(name) else { continue };
            let (m, v) = self.moments.get_mut(name).expect("made for the same variables");
            let decay = if var.rank() > 1 { lr * self.weight_decay } else { 0.0 };
            let updated: Vec<f32> = {
                let w = host(var.as_tensor())?;
                let one = |(((w, g), m), v): (((&f32, &f32), &mut f32), &mut f32)| {
                    let g = g * scale;
                    *m = BETA1 * *m + (1.0 - BETA1) * g;
                    *v = BETA2 * *v + (1.0 - BETA2) * g * g;
                    w - decay * w - lr * (*m / c1) / ((*v / c2).sqrt() + EPS)
                };
                w.par_iter()
                    .zip(g.par_iter())
                    .zip(m.par_iter_mut())
                    .zip(v.par_iter_mut())
                    .with_min_len(8192)
                    .map(one)
                    .collect()
            };
            var.set(&Tensor::from_vec(updated, var.shape(), var.device())?)?;
        }
        Ok(())
    }

    /// Adds the state to a draft, under `m.` and `v.`.
    pub(crate) fn save(&self, vars: &BTreeMap<String, Var>, draft: &mut Draft) {
        draft.config = serde_json::json!({ "step": self.step });
        for (name, var) in vars {
            let (m, v) = &self.moments[name];
            for (prefix, values) in [("m", m), ("v", v)] {
                draft.tensors.insert(format!("{prefix}.{name}"), Owned::f32(var.dims(), values));
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
        let mut m = read(saved, "m", vars)?;
        for (name, v) in read(saved, "v", vars)? {
            let m = m.remove(&name).expect("read for the same variables");
            self.moments.insert(name, (m, v));
        }
        Ok(())
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
        let at = format!("{prefix}.{name}");
        let raw = saved.raw(&at).filter(|raw| raw.shape == var.dims());
        let values = raw.and_then(crate::artifact::checkpoint::Raw::to_f32).ok_or(Foreign(at))?;
        Ok((name.clone(), values))
    };
    vars.iter().map(one).collect()
}

#[cfg(test)]
mod tests;
