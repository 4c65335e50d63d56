//! Each loss against its definition, and what a part of a batch adds to it.

use super::*;
use crate::{
    artifact::checkpoint::Draft,
    kernel::testing::{close, flat},
    model::testing::{FULL, SLIDING, checkpoint, draft, log_probabilities, lossless, scale},
    stage::Finite,
};

const LAYERS: [&str; 3] = [SLIDING, FULL, FULL];

fn model(draft: &Draft) -> Model {
    Model::load(&checkpoint(draft).1, &|_| true).unwrap()
}

fn batch() -> Batch {
    Batch::new([&[3, 1, 4, 1, 5, 9, 2][..], &[6, 5, 3][..]])
}

fn cost(objective: &Objective, (student, teacher): (&Model, Option<&Model>)) -> Result<f64, ModelError> {
    let whole = Whole { tokens: 10, predictions: 8.0 };
    let models = Models { student, teacher, foretold: None, keep: Keep::Inputs };
    objective.add(models, (&batch(), whole), &mut Gradients::default())
}

fn value(objective: &Objective, student: &Draft, teacher: &Draft) -> f64 {
    cost(objective, (&model(student), Some(&model(teacher)))).unwrap()
}

#[test]
fn a_lossless_student_costs_nothing() {
    let teacher = draft(&LAYERS);
    let student = lossless(&lossless(&teacher, 1), 2);
    let inside = Loss { hidden_mse: Finite(1.0), hidden_cosine: Finite(1.0), ..Loss::default() };
    let fed = [Fed::Teacher, Fed::Student].map(Objective::Layerwise);
    for objective in fed.into_iter().chain([Objective::Kl(Loss::default()), Objective::Kl(inside)]) {
        let value = value(&objective, &student, &teacher);
        assert!(value.abs() < 1e-6, "{objective:?}: {value}");
    }
}

/// `ln softmax` of a row of logits in f64, and the token that follows.
type Prediction = (Vec<f64>, usize);

/// Of all rows that predict a token.
fn predictions(draft: &Draft) -> Vec<Prediction> {
    let (targets, weights) = batch().next_tokens();
    let rows = log_probabilities(&model(draft), &batch()).into_iter().zip(targets).zip(weights);
    rows.filter(|(_, w)| *w > 0.0).map(|((row, t), _)| (row, t as usize)).collect()
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
    assert!((value(&Objective::Kl(Loss::default()), &student, &teacher) - want).abs() < 1e-5 * (1.0 + want));
    let want = learnt.iter().map(|(q, target)| -q[*target]).sum::<f64>() / 8.0;
    let got = value(&Objective::CrossEntropy { balance: 0.0 }, &student, &teacher);
    assert!((got - want).abs() < 1e-5 * want, "{got} {want}");
}

#[test]
fn residual_streams_count_from_the_first_converted_layer_on() {
    let (teacher, mut student) = (draft(&LAYERS), lossless(&draft(&LAYERS), 1));
    scale(&mut student, "model.layers.1.self_attn.kv_a_proj.weight", 0.3);
    let streams = |draft: &Draft| {
        let mut seen = Streams { wanted: true, streams: Vec::new() };
        model(draft).hidden(&batch(), &mut seen).unwrap();
        seen.streams[1..].iter().map(|x| x.to_vec2::<f32>().unwrap()).collect::<Vec<_>>()
    };
    let (taught, learnt) = (streams(&teacher), streams(&student));
    let (_, weights) = batch().next_tokens();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
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
        let loss =
            Loss { hidden_mse: Finite(hidden_mse), hidden_cosine: Finite(hidden_cosine), ..Loss::default() };
        let want = plain + hidden_mse * mse + hidden_cosine * cosine;
        let got = value(&Objective::Kl(loss), &student, &teacher);
        assert!((got - want).abs() < 1e-5 * want, "{hidden_mse} {hidden_cosine}: {got} {want}");
    }
}

#[test]
fn routers_that_prefer_nobody_cost_one_each() {
    // The mean probability of each expert is 1/E, so `E · Σ load / E` is 1 whoever was chosen.
    let logits = Tensor::zeros((5, 4), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
    close(&flat(&unevenness(&logits, 2).unwrap()), &[1.0], 1e-6);
    // All tokens to one expert, as surely as can be: E.
    let logits = Tensor::new(&[[0f32, 99.0, 0.0, 0.0]; 3], &candle_core::Device::Cpu).unwrap();
    close(&flat(&unevenness(&logits, 1).unwrap()), &[4.0], 1e-6);
}

/// Gradients of all variables, as one row.
fn gradient(objective: &Objective, models: Models<'_>, parts: &[Batch], whole: Whole) -> (f64, Vec<f32>) {
    let mut sum = Gradients::default();
    let value = parts.iter().map(|part| objective.add(models, (part, whole), &mut sum).unwrap()).sum();
    let of = |name: &String| sum.of(name).unwrap_or_default().to_vec();
    (value, models.student.vars.keys().flat_map(of).collect())
}

#[test]
fn parts_of_a_batch_add_up_to_it_and_what_is_kept_changes_nothing() {
    let teacher = draft(&LAYERS);
    let mut student = lossless(&lossless(&teacher, 1), 2);
    scale(&mut student, "model.layers.1.self_attn.kv_a_proj.weight", 0.3);
    let (student, teacher) = (model(&student), model(&teacher));
    let documents: [&[u32]; 4] = [&[3, 1, 4, 1, 5, 9, 2], &[6, 5, 3], &[5, 8], &[9, 7, 9, 3, 2]];
    let whole = Whole::of(documents);
    assert_eq!(whole, Whole { tokens: 17, predictions: 13.0 });
    let inside = Loss { hidden_mse: Finite(0.5), cross_entropy: Finite(0.1), ..Loss::default() };
    for objective in [
        Objective::Layerwise(Fed::Teacher),
        Objective::Layerwise(Fed::Student),
        Objective::Kl(inside),
        Objective::CrossEntropy { balance: 0.0 },
    ] {
        let run = |parts: &[Batch], keep| {
            let models = Models { student: &student, teacher: Some(&teacher), foretold: None, keep };
            gradient(&objective, models, parts, whole)
        };
        let (value, want) = run(&[Batch::new(documents)], Keep::Inputs);
        let parts = Batch::packed(documents, 8);
        assert_eq!(parts.len(), 3);
        let (sum, got) = run(&parts, Keep::Inputs);
        assert!(value > 1e-4 && (sum - value).abs() < 1e-5 * value, "{objective:?}: {sum} {value}");
        let largest = want.iter().fold(0f32, |a, x| a.max(x.abs()));
        let scaled = |x: &[f32]| x.iter().map(|x| x / largest).collect::<Vec<_>>();
        close(&scaled(&got), &scaled(&want).into_iter().map(f64::from).collect::<Vec<_>>(), 1e-5);
        assert!(run(&[Batch::new(documents)], Keep::Graphs) == (value, want), "{objective:?}");
    }
}

#[test]
fn the_balance_counts_in_the_gradient_and_not_in_the_value() {
    let student = model(&draft(&LAYERS));
    let models = Models { student: &student, teacher: None, foretold: None, keep: Keep::Inputs };
    let whole = Whole { tokens: 10, predictions: 8.0 };
    let run = |balance| gradient(&Objective::CrossEntropy { balance }, models, &[batch()], whole);
    let ((plain, without), (value, with)) = (run(0.0), run(0.5));
    assert!((plain - value).abs() < 1e-9);
    assert!(without.iter().zip(&with).any(|(a, b)| (a - b).abs() > 1e-4));
}

#[test]
fn faults_are_told() {
    let plain = model(&draft(&LAYERS));
    let error = |objective: Objective, teacher| cost(&objective, (&plain, teacher)).unwrap_err().to_string();
    let text = error(Objective::Layerwise(Fed::Student), Some(&plain));
    assert!(text.contains("no converted layer"), "{text}");
    for objective in [Objective::Layerwise(Fed::Teacher), Objective::Kl(Loss::default())] {
        assert!(error(objective, None).contains("needs a teacher"));
    }
}
