//! Text that is set aside decides what comes out of a phase.

use super::*;
use crate::stage::distill::curve::Candidate;

#[test]
fn what_comes_out_is_the_best_that_was_measured() {
    let held_out = HeldOut { tokens: 64, every: 300, ..HeldOut::default() };
    let kl = Distill { layerwise: None, self_fed: None, held_out, ema: Some(Finite(0.7)), ..healing() };
    let run = |stage: &Distill| {
        let bench = bench();
        bench.run(stage).unwrap();
        let curve: Curve = bench.load("curve");
        (curve, bench.bytes()["checkpoint/model.safetensors"].clone())
    };
    let (curve, _) = run(&kl);
    let steps: Vec<_> = curve.measured.iter().map(|m| (m.step, m.candidate)).collect();
    assert_eq!((steps[0], steps[steps.len() - 1]), ((0, Candidate::Last), (20, Candidate::Ema)));
    assert!(steps.len() > 9, "before, at the end, and between: {steps:?}");
    let best = curve.measured.iter().map(|m| m.loss).fold(f32::INFINITY, f32::min);
    assert!(best < 0.9 * curve.measured[0].loss, "{:?}", curve.measured);

    // Steps that make it worse leave the student as it was; patience ends them.
    let wild = Distill { kl: phase(20, 5.0), ema: None, ..kl };
    let patient = HeldOut { patience: 2, ..wild.held_out.clone() };
    let (curve, after) = run(&wild);
    assert!(curve.measured[1..].iter().all(|m| m.loss > curve.measured[0].loss), "{:?}", curve.measured);
    let (stopped, same) = run(&Distill { held_out: patient, ..wild });
    assert!(after == same && stopped.measured.len() == 3 && stopped.points.len() < curve.points.len());
    let before = tempfile::tempdir().unwrap();
    let (before, after) =
        (checkpoint(before.path(), true, 1), safetensors::SafeTensors::deserialize(&after).unwrap());
    for name in before.names() {
        assert!(before.raw(name).unwrap().bytes == after.tensor(name).unwrap().data(), "{name}");
    }
}

#[test]
fn the_mean_of_the_best_is_measured_at_the_end() {
    let held_out = HeldOut { tokens: 64, every: 300, keep: 3, ..HeldOut::default() };
    let bench = bench();
    bench.run(&Distill { layerwise: None, self_fed: None, held_out, ..healing() }).unwrap();
    let curve: Curve = bench.load("curve");
    let (mean, others) = curve.measured.split_last().unwrap();
    assert_eq!((mean.candidate, mean.step), (Candidate::Mean, 20));
    assert!(others.iter().all(|m| m.candidate == Candidate::Last));
    // What it is the mean of lies around it.
    let ranked: Vec<f32> =
        Curve { measured: others.to_vec(), points: vec![] }.ranked().map(|m| m.loss).collect();
    assert!(mean.loss < 1.05 * ranked[2], "{} of {ranked:?}", mean.loss);
}

#[test]
fn without_held_out_text_the_last_weights_come_out() {
    let bench = bench();
    bench.run(&Distill { held_out: HeldOut { tokens: 0, ..HeldOut::default() }, ..healing() }).unwrap();
    let curve: Curve = bench.load("curve");
    assert!(curve.measured.is_empty() && curve.points.len() == 60);
}
