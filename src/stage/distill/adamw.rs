//! AdamW (arXiv 1711.05101) on f32 master weights, with clipping by the global norm and state that can be saved. Knows no model.

use std::{collections::BTreeMap, path::Path};

use candle_core::{Result, Tensor, Var};
use rayon::prelude::*;

use crate::{
    artifact::{
        ArtifactError,
        checkpoint::{Checkpoint, Draft, Owned},
    },
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

    /// One step of learning rate `lr`. Variables without a gradient stay as they are. Returns the norm of the whole gradient.
    pub(crate) fn step(
        &mut self,
        vars: &BTreeMap<String, Var>,
        gradients: &Gradients,
        lr: f32,
    ) -> Result<f32> {
        let norm = gradients.norm();
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
        Ok(norm)
    }

    /// Adds the state and the variables' values to a draft, under `m.`, `v.` and `w.`.
    pub(crate) fn save(
        &self,
        vars: &BTreeMap<String, Var>,
        dir: &Path,
    ) -> std::result::Result<(), SaveError> {
        let mut draft = Draft { config: serde_json::json!({ "step": self.step }), ..Draft::default() };
        for (name, var) in vars {
            let (m, v) = &self.moments[name];
            let w = host(var.as_tensor())?;
            for (prefix, values) in [("m", &m[..]), ("v", &v[..]), ("w", &w)] {
                draft.tensors.insert(format!("{prefix}.{name}"), Owned::f32(var.dims(), values));
            }
        }
        Ok(draft.save(dir)?)
    }

    /// Restores what [`Self::save`] wrote, into `vars` too.
    pub(crate) fn restore(
        &mut self,
        vars: &BTreeMap<String, Var>,
        saved: &Checkpoint,
    ) -> std::result::Result<(), SaveError> {
        let read = |prefix: &str, name: &str, var: &Var| {
            let at = format!("{prefix}.{name}");
            let raw = saved.raw(&at).filter(|raw| raw.shape == var.dims());
            raw.and_then(crate::artifact::checkpoint::Raw::to_f32).ok_or(SaveError::Foreign(at))
        };
        let step = saved.config.get("step").and_then(serde_json::Value::as_i64);
        self.step = step
            .and_then(|step| i32::try_from(step).ok())
            .ok_or_else(|| SaveError::Foreign("step".to_owned()))?;
        for (name, var) in vars {
            var.set(&Tensor::from_vec(read("w", name, var)?, var.shape(), var.device())?)?;
            self.moments.insert(name.clone(), (read("m", name, var)?, read("v", name, var)?));
        }
        Ok(())
    }
}

/// Why an optimiser could not be saved or restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveError {
    #[error("the training checkpoint does not fit this run: `{0}` is missing or has another shape")]
    Foreign(String),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

#[cfg(test)]
mod tests;
