//! The layer-wise loss against its definition, on the inputs of either model.

use super::*;
use crate::{
    artifact::checkpoint::Draft,
    kernel::testing::flat,
    model::testing::{FULL, SLIDING, checkpoint, draft, lossless, scale},
};

const LAYERS: [&str; 4] = [SLIDING, FULL, FULL, FULL];

fn model(draft: &Draft, trains: &dyn Fn(&str) -> bool) -> Model {
    Model::load(&checkpoint(draft).1, trains).unwrap()
}

fn batch() -> Batch {
    Batch::new([&[3, 1, 4, 1, 5, 9, 2][..], &[6, 5, 3][..]])
}

/// Layers 1 and 3 converted without loss; what layer `layer` gives is then multiplied by `by`.
fn louder(layer: usize, by: f32) -> Draft {
    let mut student = lossless(&lossless(&draft(&LAYERS), 1), 3);
    for part in ["weight", "bias"] {
        scale(&mut student, &format!("model.layers.{layer}.self_attn.o_proj.{part}"), by);
    }
    student
}

fn value(student: &Draft, fed: Fed) -> f64 {
    trained(student, fed, &|_| true).0
}

fn trained(student: &Draft, fed: Fed, trains: &dyn Fn(&str) -> bool) -> (f64, Vec<String>) {
    let (student, teacher) = (model(student, trains), model(&draft(&LAYERS), &|_| false));
    let (mut sum, batch) = (Gradients::default(), batch());
    let value = add((&student, &teacher), (&batch, batch.len()), fed, &mut sum).unwrap();
    let names = student.vars.keys().filter(|name| sum.of(name).is_some_and(|g| g.iter().any(|g| *g != 0.0)));
    (value, names.cloned().collect())
}

#[test]
fn a_layer_twice_as_loud_has_the_relative_error_one() {
    // `‖2 y − y‖² = ‖y‖²` in one of two converted layers; the other gets the teacher's inputs and stays exact.
    for layer in [1, 3] {
        assert!((value(&louder(layer, 2.0), Fed::Teacher) - 0.5).abs() < 1e-5);
    }
    // What is not converted is not looked at.
    assert!(value(&louder(2, 3.0), Fed::Teacher) < 1e-9);
}

#[test]
fn on_its_own_inputs_a_student_answers_for_what_the_layers_below_did() {
    // The last converted layer sees nothing wrong below it; the first makes the other wrong too.
    assert!((value(&louder(3, 2.0), Fed::Student) - 0.5).abs() < 1e-5);
    assert!(value(&louder(1, 2.0), Fed::Student) > 0.505);
    assert!(value(&louder(2, 3.0), Fed::Student) > 0.005);
}

/// Layer 3 on the student's stream, computed with the model's own forward pass.
#[test]
fn the_error_is_that_of_the_two_streams() {
    let (student, batch) = (louder(2, 3.0), batch());
    let (learnt, taught) = (model(&student, &|_| false), model(&draft(&LAYERS), &|_| false));
    let attended = |model: &Model| {
        let mut x = model.shell.embed(&batch.ids).unwrap();
        for layer in &model.layers[..3] {
            x = layer.forward(&x, &batch, &mut NoProbe).unwrap();
        }
        flat(&model.layers[3].attend(&x, &batch, &mut NoProbe).unwrap())
    };
    let (learnt, taught) = (attended(&learnt), attended(&taught));
    let hidden = learnt.len() / batch.len();
    let relative = |rows: std::ops::Range<usize>| {
        let rows = rows.start * hidden..rows.end * hidden;
        let square = |x: f32| f64::from(x) * f64::from(x);
        let apart: f64 =
            learnt[rows.clone()].iter().zip(&taught[rows.clone()]).map(|(s, t)| square(s - t)).sum();
        apart / taught[rows].iter().map(|&t| square(t)).sum::<f64>()
    };
    let want = (7.0 * relative(0..7) + 3.0 * relative(7..10)) / 10.0 / 2.0;
    let got = value(&student, Fed::Student);
    assert!((got - want).abs() < 1e-5 * want, "{got} {want}");
}

#[test]
fn only_converted_layers_learn_and_any_of_them_may_be_left_out() {
    let student = louder(1, 2.0);
    let attention = |name: &str| name.contains("self_attn");
    let (_, learning) = trained(&student, Fed::Student, &attention);
    for layer in [1, 3] {
        assert!(learning.iter().any(|name| name == &format!("model.layers.{layer}.self_attn.sinks")));
    }
    assert!(
        learning.iter().all(|name| name.contains("layers.1.") || name.contains("layers.3.")),
        "{learning:?}"
    );
    // With the faulty layer left out, the mean is over the other, which sees the original's inputs.
    let (value, learning) = trained(&student, Fed::Teacher, &|name| name.contains("layers.3.self_attn"));
    assert!(value < 1e-9 && learning.iter().all(|name| name.contains("layers.3.")), "{value} {learning:?}");
}

#[test]
fn a_document_that_gives_nothing_costs_nothing() {
    let target =
        Tensor::new(&[[3f32, 4.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], &candle_core::Device::Cpu).unwrap();
    assert_eq!(flat(&weights(&target, &[0, 2, 3, 3, 4], 0.5).unwrap()), [0.04, 0.04, 0.0, 0.5]);
}
