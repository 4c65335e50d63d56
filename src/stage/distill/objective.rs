//! The losses of training, each a scalar tensor for one batch. Knows no optimiser.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{D, Tensor};

use crate::{
    kernel::{
        cross_entropy::cross_entropy,
        host,
        linear_divergence::{Teacher, linear_divergence},
    },
    model::{Batch, Model, ModelError, Probe, block::moe::Routing, config::LayerKind, probe::NoProbe},
};

use super::loss::Loss;

/// What a phase minimises.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Objective {
    /// Relative squared error of each converted layer's attention output, on the teacher's inputs.
    Layerwise,
    /// How far the student's next-token distribution is from the teacher's, and what else the user wants to count, per token.
    Kl(Loss),
    /// Next-token cross-entropy, plus `balance` times the routers' load-balancing loss.
    CrossEntropy {
        /// Weight of the load-balancing loss.
        balance: f32,
    },
}

impl Objective {
    /// The phase's name in manifests and curves.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Layerwise => "layerwise",
            Self::Kl(_) => "kl",
            Self::CrossEntropy { .. } => "cross-entropy",
        }
    }

    /// The value to report and the tensor to differentiate.
    pub(crate) fn loss(
        &self,
        student: &Model,
        teacher: Option<&Model>,
        batch: &Batch,
    ) -> Result<(f32, Tensor), ModelError> {
        let teacher = teacher
            .ok_or_else(|| ModelError::Tensor(candle_core::Error::msg("this objective needs a teacher")));
        match self {
            Self::Layerwise => layerwise(student, teacher?, batch),
            Self::Kl(loss) => kl(student, teacher?, batch, loss),
            Self::CrossEntropy { balance } => next_token(student, batch, *balance),
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

fn kl(student: &Model, teacher: &Model, batch: &Batch, loss: &Loss) -> Result<(f32, Tensor), ModelError> {
    let (mut taught, mut learnt) = (Streams::default(), Streams::default());
    let (target, hidden) = if loss.looks_inside() {
        (teacher.hidden(batch, &mut taught)?, student.hidden(batch, &mut learnt)?)
    } else {
        (teacher.hidden(batch, &mut NoProbe)?, student.hidden(batch, &mut NoProbe)?)
    };
    let (targets, weights) = batch.next_tokens();
    let norm = weights.iter().sum();
    let (targets, weights): (Arc<[u32]>, Arc<[f32]>) = (targets.into(), weights.into());
    let head = teacher.shell.lm_head.floats()?;
    let against = Teacher {
        hidden: &target,
        head: &head,
        weights: &weights,
        norm,
        targets: Some(&targets),
        loss: loss.token(),
    };
    let mut total = linear_divergence(&hidden, &against)?;
    if loss.looks_inside() {
        let begins = |kind: &LayerKind| matches!(kind, LayerKind::Latent(_));
        let begins = student.config.layers.iter().position(begins).unwrap_or(0);
        let pairs: Vec<_> = learnt.0.iter().zip(&taught.0).skip(begins).collect();
        let weights = Tensor::new(&weights[..], hidden.device())?;
        for (learnt, taught) in &pairs {
            let apart = apart((learnt, taught), &weights, (loss.hidden_mse.0, loss.hidden_cosine.0))?;
            total = (total + (apart / (f64::from(norm) * pairs.len() as f64))?)?;
        }
    }
    let value = host(&total)?[0];
    Ok((value, total))
}

/// Keeps the residual stream behind each layer.
#[derive(Default)]
struct Streams(Vec<Tensor>);

impl Probe for Streams {
    fn layer(&mut self, _: usize, hidden: &Tensor) -> candle_core::Result<()> {
        self.0.push(hidden.clone());
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

fn next_token(student: &Model, batch: &Batch, balance: f32) -> Result<(f32, Tensor), ModelError> {
    let mut routers = Routers {
        per_token: student.config.experts.map_or(0, |experts| experts.num_experts_per_tok),
        layers: BTreeMap::new(),
    };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        artifact::checkpoint::{Draft, Owned, Raw},
        kernel::testing::{close, flat},
        model::testing::{FULL, SLIDING, VOCAB, checkpoint, draft, lossless},
        stage::Finite,
    };

    const LAYERS: [&str; 3] = [SLIDING, FULL, FULL];

    fn model(draft: &Draft) -> Model {
        Model::load(&checkpoint(draft).1, &|_| true).unwrap()
    }

    fn batch() -> Batch {
        Batch::new([&[3, 1, 4, 1, 5, 9, 2][..], &[6, 5, 3][..]])
    }

    /// Multiplies the values of a tensor.
    fn scale(draft: &mut Draft, name: &str, by: f32) {
        let tensor = &draft.tensors[name];
        let values =
            Raw { dtype: tensor.dtype, shape: &tensor.shape, bytes: &tensor.bytes }.to_f32().unwrap();
        let values: Vec<f32> = values.iter().map(|x| x * by).collect();
        let scaled = Owned::f32(&tensor.shape.clone(), &values);
        draft.tensors.insert(name.to_owned(), scaled);
    }

    fn value(objective: &Objective, student: &Draft, teacher: &Draft) -> f64 {
        let (value, total) = objective.loss(&model(student), Some(&model(teacher)), &batch()).unwrap();
        close(&flat(&total), &[f64::from(value)], 1e-6);
        f64::from(value)
    }

    #[test]
    fn a_lossless_student_costs_nothing() {
        let teacher = draft(&LAYERS);
        let student = lossless(&lossless(&teacher, 1), 2);
        let inside = Loss { hidden_mse: Finite(1.0), hidden_cosine: Finite(1.0), ..Loss::default() };
        for objective in [Objective::Layerwise, Objective::Kl(Loss::default()), Objective::Kl(inside)] {
            let value = value(&objective, &student, &teacher);
            assert!(value.abs() < 1e-6, "{objective:?}: {value}");
        }
    }

    #[test]
    fn a_layer_twice_as_loud_has_the_relative_error_one() {
        let teacher = draft(&LAYERS);
        let mut student = lossless(&lossless(&teacher, 1), 2);
        // `‖2 y − y‖² = ‖y‖²` in one of two converted layers; the other gets the teacher's inputs and stays exact.
        for part in ["weight", "bias"] {
            scale(&mut student, &format!("model.layers.1.self_attn.o_proj.{part}"), 2.0);
        }
        assert!((value(&Objective::Layerwise, &student, &teacher) - 0.5).abs() < 1e-5);
        // What is not converted is not looked at.
        for part in ["weight", "bias"] {
            scale(&mut student, &format!("model.layers.0.self_attn.o_proj.{part}"), 3.0);
        }
        assert!((value(&Objective::Layerwise, &student, &teacher) - 0.5).abs() < 1e-5);
    }

    /// `ln softmax` of a row of logits in f64, and the token that follows.
    type Prediction = (Vec<f64>, usize);

    /// Of all rows that predict a token.
    fn predictions(draft: &Draft) -> Vec<Prediction> {
        let logits = flat(&model(draft).logits(&batch(), &mut NoProbe).unwrap());
        let (targets, weights) = batch().next_tokens();
        let row = |z: &[f32]| {
            let sum = z.iter().map(|&z| f64::from(z).exp()).sum::<f64>().ln();
            z.iter().map(|&z| f64::from(z) - sum).collect::<Vec<_>>()
        };
        let rows = logits.chunks(VOCAB).zip(targets).zip(weights);
        rows.filter(|(_, w)| *w > 0.0).map(|((z, t), _)| (row(z), t as usize)).collect()
    }

    #[test]
    fn kl_and_cross_entropy_are_means_over_predicted_tokens() {
        let teacher = draft(&LAYERS);
        let mut student = lossless(&teacher, 1);
        scale(&mut student, "model.layers.1.self_attn.kv_a_proj.weight", 0.3);
        let (taught, learnt) = (predictions(&teacher), predictions(&student));
        assert_eq!(taught.len(), 8, "all but the last of each document");
        let kl = |(p, q): (&Prediction, &Prediction)| {
            p.0.iter().zip(&q.0).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
        };
        let want = taught.iter().zip(&learnt).map(kl).sum::<f64>() / 8.0;
        assert!(want > 1e-4);
        assert!(
            (value(&Objective::Kl(Loss::default()), &student, &teacher) - want).abs() < 1e-5 * (1.0 + want)
        );
        let want = learnt.iter().map(|(q, target)| -q[*target]).sum::<f64>() / 8.0;
        let got = value(&Objective::CrossEntropy { balance: 0.0 }, &student, &teacher);
        assert!((got - want).abs() < 1e-5 * want, "{got} {want}");
    }

    #[test]
    fn residual_streams_count_from_the_first_converted_layer_on() {
        let (teacher, mut student) = (draft(&LAYERS), lossless(&draft(&LAYERS), 1));
        scale(&mut student, "model.layers.1.self_attn.kv_a_proj.weight", 0.3);
        let streams = |draft: &Draft| {
            let mut streams = Streams::default();
            model(draft).hidden(&batch(), &mut streams).unwrap();
            streams.0[1..].iter().map(|x| x.to_vec2::<f32>().unwrap()).collect::<Vec<_>>()
        };
        let (taught, learnt) = (streams(&teacher), streams(&student));
        let (_, weights) = batch().next_tokens();
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let (mut mse, mut cosine) = (0.0, 0.0);
        for (t, s) in taught
            .iter()
            .flatten()
            .zip(learnt.iter().flatten())
            .zip(weights.iter().cycle())
            .filter_map(|(pair, w)| (*w > 0.0).then_some(pair))
        {
            let apart: Vec<f32> = t.iter().zip(s).map(|(t, s)| s - t).collect();
            mse += dot(&apart, &apart) / dot(t, t) / 16.0;
            cosine += (1.0 - dot(t, s) / (dot(t, t) * dot(s, s)).sqrt()) / 16.0;
        }
        assert!(mse > 1e-4 && cosine > 1e-5);
        let plain = value(&Objective::Kl(Loss::default()), &student, &teacher);
        for (hidden_mse, hidden_cosine) in [(2.0, 0.0), (0.0, 3.0), (0.5, 0.25)] {
            let loss = Loss {
                hidden_mse: Finite(hidden_mse),
                hidden_cosine: Finite(hidden_cosine),
                ..Loss::default()
            };
            let want = plain + hidden_mse * mse + hidden_cosine * cosine;
            let got = value(&Objective::Kl(loss), &student, &teacher);
            assert!((got - want).abs() < 1e-5 * want, "{hidden_mse} {hidden_cosine}: {got} {want}");
        }
    }

    #[test]
    fn routers_that_prefer_nobody_cost_one_each() {
        let mut student = draft(&[FULL, SLIDING]);
        for layer in 0..2 {
            for part in ["weight", "bias"] {
                scale(&mut student, &format!("model.layers.{layer}.mlp.router.{part}"), 0.0);
            }
        }
        // The mean probability of each expert is 1/E, so `E · Σ load / E` is 1 whoever was chosen.
        let (value, total) = Objective::CrossEntropy { balance: 0.25 }
            .loss(&model(&student), Some(&model(&student)), &batch())
            .unwrap();
        close(&flat(&total), &[f64::from(value) + 2.0 * 0.25], 1e-5);
    }

    #[test]
    fn faults_are_told() {
        let error = |result: Result<(f32, Tensor), ModelError>| result.unwrap_err().to_string();
        let plain = model(&draft(&LAYERS));
        let text = error(Objective::Layerwise.loss(&plain, Some(&plain), &batch()));
        assert!(text.contains("no converted layer"), "{text}");
        for objective in [Objective::Layerwise, Objective::Kl(Loss::default())] {
            assert!(error(objective.loss(&plain, None, &batch())).contains("needs a teacher"));
        }
    }
}
