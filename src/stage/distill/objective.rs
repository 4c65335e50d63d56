//! The losses of training and their gradients, for one part of a step's batch. Knows no optimiser.

use std::sync::Arc;

use candle_core::{D, Tensor};

use crate::{
    kernel::{
        cross_entropy::cross_entropy,
        host,
        linear_divergence::{Taught, Teacher, linear_divergence},
    },
    model::{
        Batch, Model, ModelError, Probe,
        block::moe::Routing,
        tape::{Keep, Output, Tape},
    },
};

use super::{
    foretold::Foretold,
    gradients::Gradients,
    layerwise::{self, Fed},
    loss::Loss,
};

/// What a phase minimises.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Objective {
    /// Relative squared error of each converted layer's attention output, on inputs of the model that is named.
    Layerwise(Fed),
    /// How far the student's next-token distribution is from the teacher's, and what else the user wants to count, per token.
    Kl(Loss),
    /// Next-token cross-entropy, plus `balance` times the routers' load-balancing loss.
    CrossEntropy {
        /// Weight of the load-balancing loss.
        balance: f32,
    },
}

/// The two models, and how the student is gone back through.
#[derive(Clone, Copy)]
pub(crate) struct Models<'a> {
    pub(crate) student: &'a Model,
    pub(crate) teacher: Option<&'a Model>,
    /// What a teacher predicted, which counts before the teacher itself.
    pub(crate) foretold: Option<&'a Foretold>,
    pub(crate) keep: Keep,
}

/// Sizes of the whole batch that a part belongs to: losses are divided by them, so that parts add up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Whole {
    /// Tokens.
    pub(crate) tokens: usize,
    /// Tokens that predict another.
    pub(crate) predictions: f32,
}

impl Whole {
    /// Of these documents together.
    pub(crate) fn of<'a>(documents: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let add = |(tokens, predictions): (usize, usize), document: &[u32]| {
            (tokens + document.len(), predictions + document.len().saturating_sub(1))
        };
        let (tokens, predictions) = documents.into_iter().fold((0, 0), add);
        Self { tokens, predictions: predictions as f32 }
    }
}

impl Objective {
    /// The phase's name in manifests and curves.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Layerwise(Fed::Teacher) => "layerwise",
            Self::Layerwise(Fed::Student) => "self-fed",
            Self::Kl(_) => "kl",
            Self::CrossEntropy { .. } => "cross-entropy",
        }
    }

    /// What `part` adds to the loss of the `whole` batch; its gradient is added to `into`.
    pub(crate) fn add(
        &self,
        models: Models<'_>,
        (part, whole): (&Batch, Whole),
        into: &mut Gradients,
    ) -> Result<f64, ModelError> {
        match self {
            Self::Layerwise(fed) => {
                let teacher = models.teacher.ok_or_else(no_teacher)?;
                layerwise::add((models.student, teacher), (part, whole.tokens), *fed, into)
            }
            Self::Kl(loss) => kl(models, (part, whole), loss, into),
            Self::CrossEntropy { balance } => next_token(models, (part, whole), *balance, into),
        }
    }
}

fn no_teacher() -> ModelError {
    ModelError::Tensor(candle_core::Error::msg("this objective needs a teacher"))
}

fn kl(
    models: Models<'_>,
    (part, whole): (&Batch, Whole),
    loss: &Loss,
    into: &mut Gradients,
) -> Result<f64, ModelError> {
    let student = models.student;
    let mut streams = Streams { wanted: loss.looks_inside(), streams: Vec::new() };
    let (taught, head) = match (models.foretold, models.teacher) {
        (Some(foretold), _) => (Taught::Kept(foretold.rows(part)?), &student.shell.lm_head),
        (None, Some(teacher)) => {
            (Taught::States(teacher.hidden(part, &mut streams)?), &teacher.shell.lm_head)
        }
        (None, None) => return Err(no_teacher()),
    };
    let streams = streams.streams;
    let (targets, weights) = part.next_tokens();
    let (targets, weights): (Arc<[u32]>, Arc<[f32]>) = (targets.into(), weights.into());
    let head = head.floats()?;
    let against = Teacher {
        taught,
        head: &head,
        weights: &weights,
        norm: whole.predictions,
        targets: Some(&targets),
        loss: loss.token(),
    };
    let tape = Tape::forward(student, part, models.keep)?;
    let cost = linear_divergence(&student.shell.normed(tape.stream())?, &against)?;
    let mut value = f64::from(host(&cost)?[0]);

    let begins = student.config.first_latent().unwrap_or(0);
    let each = 1.0 / (f64::from(whole.predictions) * streams.len().saturating_sub(begins) as f64);
    let weights = Tensor::new(&weights[..], head.device())?;
    let mut inside = |layer: usize, output: &Output| {
        if !loss.looks_inside() || layer < begins {
            return Ok(None);
        }
        let pair = (&output.stream, &streams[layer]);
        let apart = (apart(pair, &weights, (loss.hidden_mse.0, loss.hidden_cosine.0))? * each)?;
        value += f64::from(host(&apart)?[0]);
        Ok(Some(apart))
    };
    tape.backward(&cost, &mut inside, &mut |grads| into.add(&student.vars, grads))?;
    Ok(value)
}

fn next_token(
    models: Models<'_>,
    (part, whole): (&Batch, Whole),
    balance: f32,
    into: &mut Gradients,
) -> Result<f64, ModelError> {
    let student = models.student;
    let tape = Tape::forward(student, part, models.keep)?;
    let logits = student.shell.lm_head.forward(&student.shell.normed(tape.stream())?)?;
    let (targets, weights) = part.next_tokens();
    let cost = cross_entropy(&logits, &targets.into(), &weights.into(), whole.predictions)?;
    let value = f64::from(host(&cost)?[0]);
    let per_token = student.config.experts.map_or(0, |experts| experts.num_experts_per_tok);
    let share = f64::from(balance) * part.len() as f64 / whole.tokens as f64;
    let mut even = |_: usize, output: &Output| match &output.router {
        Some(logits) if balance > 0.0 => Ok(Some((unevenness(logits, per_token)? * share)?)),
        _ => Ok(None),
    };
    tape.backward(&cost, &mut even, &mut |grads| into.add(&student.vars, grads))?;
    Ok(value)
}

/// Keeps the residual stream behind each layer, where it is wanted.
struct Streams {
    wanted: bool,
    streams: Vec<Tensor>,
}

impl Probe for Streams {
    fn layer(&mut self, _: usize, hidden: &Tensor) -> candle_core::Result<()> {
        if self.wanted {
            self.streams.push(hidden.clone());
        }
        Ok(())
    }
}

/// `Σ w_t (mse · ‖s_t − t_t‖² / ‖t_t‖² + cosine · (1 − cos(s_t, t_t)))` of two residual streams [t, hidden], a scalar `[1]`.
fn apart(
    (learnt, taught): (&Tensor, &Tensor),
    weights: &Tensor,
    (mse, cosine): (f64, f64),
) -> candle_core::Result<Tensor> {
    let square = |x: &Tensor| x.sqr()?.sum(1);
    let taught_square = square(taught)?;
    let error = (square(&(learnt - taught)?)? / &taught_square)?;
    let norms = (square(learnt)?.sqrt()? * taught_square.sqrt()?)?;
    let angle = ((learnt * taught)?.sum(1)? / norms)?.affine(-1.0, 1.0)?;
    let each = ((error * mse)? + (angle * cosine)?)?;
    (each * weights)?.sum_all()?.reshape(1)
}

/// A router's load-balancing loss, `E · Σ_e load_e · mean_t p_e` (arXiv 2101.03961, equation 4; load counts all chosen experts), `[]`.
fn unevenness(logits: &Tensor, per_token: usize) -> candle_core::Result<Tensor> {
    let (t, experts) = logits.dims2()?;
    let routing = Routing::new(&host(logits)?, experts, per_token);
    let load = routing.offsets.windows(2).map(|w| (w[1] - w[0]) as f32 / (t * per_token) as f32);
    let load = Tensor::from_vec(load.collect::<Vec<_>>(), experts, logits.device())?;
    let mean = candle_nn::ops::softmax(logits, D::Minus1)?.mean(0)?;
    (mean * load)?.sum_all()? * experts as f64
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
