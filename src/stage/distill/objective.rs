//! The losses of training, each a scalar tensor for one batch. Knows no optimiser.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{D, Tensor};

use crate::{
    kernel::{
        cross_entropy::cross_entropy,
        host,
        linear_kl::{Teacher, linear_kl},
    },
    model::{Batch, Model, ModelError, Probe, block::moe::Routing, config::LayerKind, probe::NoProbe},
};

/// What a phase minimises.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Objective {
    /// Relative squared error of each converted layer's attention output, on the teacher's inputs.
    Layerwise,
    /// `KL(teacher ‖ student)` per token.
    Kl,
    /// Next-token cross-entropy, plus `balance` times the routers' load-balancing loss.
    CrossEntropy {
        /// Weight of the load-balancing loss.
        balance: f32,
    },
}

impl Objective {
    /// The phase's name in manifests and curves.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Layerwise => "layerwise",
            Self::Kl => "kl",
            Self::CrossEntropy { .. } => "cross-entropy",
        }
    }

    /// The value to report and the tensor to differentiate.
    pub(crate) fn loss(
        self,
        student: &Model,
        teacher: Option<&Model>,
        batch: &Batch,
    ) -> Result<(f32, Tensor), ModelError> {
        let teacher = teacher
            .ok_or_else(|| ModelError::Tensor(candle_core::Error::msg("this objective needs a teacher")));
        match self {
            Self::Layerwise => layerwise(student, teacher?, batch),
            Self::Kl => kl(student, teacher?, batch),
            Self::CrossEntropy { balance } => next_token(student, batch, balance),
        }
    }
}

/// Mean over converted layers of `‖student − teacher‖² / ‖teacher‖²`; the layers are independent of each other.
fn layerwise(student: &Model, teacher: &Model, batch: &Batch) -> Result<(f32, Tensor), ModelError> {
    let mut x = teacher.shell.embed(&batch.ids)?;
    let mut losses = Vec::new();
    for (i, (taught, layer)) in teacher.layers.iter().zip(&student.layers).enumerate() {
        let target = taught.attend(&x, batch, &mut NoProbe)?;
        if matches!(student.config.layers[i], LayerKind::Latent(_)) {
            let error = (layer.attend(&x, batch, &mut NoProbe)? - &target)?.sqr()?.sum_all()?;
            losses.push(error.broadcast_div(&target.sqr()?.sum_all()?)?);
        }
        x = taught.finish(&x, &target, &mut NoProbe)?;
    }
    if losses.is_empty() {
        return Err(ModelError::Tensor(candle_core::Error::msg("the student has no converted layer")));
    }
    let loss = Tensor::stack(&losses, 0)?.mean_all()?;
    Ok((loss.to_scalar()?, loss))
}

fn kl(student: &Model, teacher: &Model, batch: &Batch) -> Result<(f32, Tensor), ModelError> {
    let target = teacher.hidden(batch, &mut NoProbe)?;
    let hidden = student.hidden(batch, &mut NoProbe)?;
    let (_, weights) = batch.next_tokens();
    let norm = weights.iter().sum();
    let weights: Arc<[f32]> = weights.into();
    let head = &teacher.shell.lm_head.weight.tensor;
    let loss = linear_kl(&hidden, &Teacher { hidden: &target, head, weights: &weights, norm })?;
    let value = host(&loss)?[0];
    Ok((value, loss))
}

fn next_token(student: &Model, batch: &Batch, balance: f32) -> Result<(f32, Tensor), ModelError> {
    let mut routers = Routers { per_token: student.config.num_experts_per_tok, layers: BTreeMap::new() };
    let logits = student.logits(batch, &mut routers)?;
    let (targets, weights) = batch.next_tokens();
    let norm = weights.iter().sum();
    let loss = cross_entropy(&logits, &targets.into(), &weights.into(), norm)?;
    let value = host(&loss)?[0];
    let mut total = loss.sum_all()?;
    if balance > 0.0 {
        for layer in routers.layers.values() {
            total = (total + (layer * f64::from(balance))?)?;
        }
    }
    Ok((value, total))
}

/// Collects each router's load-balancing loss, `E · Σ_e load_e · mean_t p_e` (arXiv 2101.03961, equation 4; load counts all chosen experts).
struct Routers {
    per_token: usize,
    layers: BTreeMap<usize, Tensor>,
}

impl Probe for Routers {
    fn router(&mut self, layer: usize, logits: &Tensor) -> candle_core::Result<()> {
        let (t, experts) = logits.dims2()?;
        let routing = Routing::new(&host(logits)?, experts, self.per_token);
        let load = routing.offsets.windows(2).map(|w| (w[1] - w[0]) as f32 / (t * self.per_token) as f32);
        let load = Tensor::from_vec(load.collect::<Vec<_>>(), experts, logits.device())?;
        let mean = candle_nn::ops::softmax(logits, D::Minus1)?.mean(0)?;
        self.layers.insert(layer, ((mean * load)?.sum_all()? * experts as f64)?);
        Ok(())
    }
}
