//! AdamW (arXiv 1711.05101) on f32 master weights, with clipping by the global norm and state that can be saved. Knows no model.

use std::{collections::BTreeMap, path::Path};

use candle_core::{Result, Tensor, Var, backprop::GradStore};
use rayon::prelude::*;

use crate::{
    artifact::{
        ArtifactError,
        checkpoint::{Checkpoint, Draft, Owned},
    },
    kernel::host,
};

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
    pub(crate) fn step(&mut self, vars: &BTreeMap<String, Var>, grads: &GradStore, lr: f32) -> Result<f32> {
        let norm = global_norm(vars, grads)?;
        let scale = if norm > self.clip { self.clip / norm } else { 1.0 };
        self.step += 1;
        let (c1, c2) = (1.0 - BETA1.powi(self.step), 1.0 - BETA2.powi(self.step));
        for (name, var) in vars {
            let Some(grad) = grads.get(var.as_tensor()) else { continue };
            let (m, v) = self.moments.get_mut(name).expect("made for the same variables");
            let decay = if var.rank() > 1 { lr * self.weight_decay } else { 0.0 };
            let grad = grad.contiguous()?;
            let updated: Vec<f32> = {
                let (w, g) = (host(var.as_tensor())?, host(&grad)?);
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

fn global_norm(vars: &BTreeMap<String, Var>, grads: &GradStore) -> Result<f32> {
    let mut square = 0f64;
    for var in vars.values() {
        if let Some(grad) = grads.get(var.as_tensor()) {
            let grad = grad.contiguous()?;
            square += host(&grad)?.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        }
    }
    Ok(square.sqrt() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        artifact::{Artifact, checkpoint::files_in},
        kernel::testing::var,
    };

    fn vars() -> BTreeMap<String, Var> {
        BTreeMap::from([
            ("matrix".to_owned(), var(1, &[3, 4], 1.0)),
            ("vector".to_owned(), var(2, &[5], 1.0)),
        ])
    }

    fn values(vars: &BTreeMap<String, Var>) -> Vec<Vec<f32>> {
        vars.values().map(|v| v.flatten_all().unwrap().to_vec1().unwrap()).collect()
    }

    /// Gradients of half the squared distance of every variable from 1.
    fn grads(vars: &BTreeMap<String, Var>) -> GradStore {
        let loss =
            |v: &Var| ((v.as_tensor() - 1.0).unwrap().sqr().unwrap().sum_all().unwrap() * 0.5).unwrap();
        vars.values().map(loss).reduce(|a, b| (a + b).unwrap()).unwrap().backward().unwrap()
    }

    #[test]
    fn the_first_step_moves_by_lr_against_the_sign() {
        let vars = vars();
        let before = values(&vars);
        AdamW::new(&vars, 0.0, f32::INFINITY).step(&vars, &grads(&vars), 0.01).unwrap();
        for (old, new) in before.iter().flatten().zip(values(&vars).iter().flatten()) {
            assert!((new - old - 0.01 * (1.0 - old).signum()).abs() < 1e-5);
        }
    }

    #[test]
    fn decay_touches_matrices_only_and_clipping_bounds_the_moments() {
        let vars = vars();
        let before = values(&vars);
        let mut adam = AdamW::new(&vars, 0.5, 1e-3);
        let norm = adam.step(&vars, &grads(&vars), 0.1).unwrap();
        assert!(norm > 1.0);
        let m: f32 = adam.moments.values().flat_map(|(m, _)| m).map(|m| m * m).sum();
        assert!((m.sqrt() - 1e-4).abs() < 1e-6);
        let after = values(&vars);
        let moved = |old: f32, new: f32, decay: f32| new - (old - decay * old) - 0.1 * (1.0 - old).signum();
        assert!(before[0].iter().zip(&after[0]).all(|(a, b)| moved(*a, *b, 0.05).abs() < 1e-3));
        assert!(before[1].iter().zip(&after[1]).all(|(a, b)| moved(*a, *b, 0.0).abs() < 1e-3));
    }

    #[test]
    fn saved_and_restored_goes_on_with_the_same_bits() {
        let (a, b) = (vars(), vars());
        let mut straight = AdamW::new(&a, 0.1, 1.0);
        for _ in 0..3 {
            straight.step(&a, &grads(&a), 0.05).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        straight.save(&a, dir.path()).unwrap();
        let mut resumed = AdamW::new(&b, 0.1, 1.0);
        resumed.restore(&b, &Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap()).unwrap();
        for _ in 0..3 {
            straight.step(&a, &grads(&a), 0.05).unwrap();
            resumed.step(&b, &grads(&b), 0.05).unwrap();
        }
        assert_eq!(values(&a), values(&b));
        let other = BTreeMap::from([("other".to_owned(), var(1, &[3], 1.0))]);
        let error = AdamW::new(&other, 0.1, 1.0)
            .restore(&other, &Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap())
            .unwrap_err();
        assert!(error.to_string().contains("`w.other` is missing"), "{error}");
    }
}
