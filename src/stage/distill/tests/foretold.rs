//! Healing by what a stage `predict` kept, against healing by the teacher itself.

use super::*;
use crate::{artifact::predictions::Predictions, stage::predict::Predict};

/// The phase `kl` alone, and no teacher at hand.
fn by_predictions() -> Distill {
    Distill {
        teacher: None,
        predictions: Some(Input::new("predict")),
        layerwise: None,
        self_fed: None,
        kl: Some(Phase { lengths: vec![20, 64], ..phase(20, 1e-2).unwrap() }),
        ..healing()
    }
}

fn online() -> Distill {
    Distill { teacher: Some(Input::new("model")), predictions: None, ..by_predictions() }
}

/// What the tests' teacher predicts for their text.
fn predictions(toml: &str) -> Bench {
    let teacher = tempfile::tempdir().unwrap();
    let bench = Bench::new().input("model", &checkpoint(teacher.path(), false, 1)).input("texts", &texts());
    let stage: Predict =
        toml::from_str(&format!("model = 'model'\ntexts = 'corpus'\nmax-length = 64\n{toml}")).unwrap();
    bench.run(&stage).unwrap();
    bench
}

fn student_alone(predictions: &Bench) -> Bench {
    let student = tempfile::tempdir().unwrap();
    Bench::new()
        .input("student", &checkpoint(student.path(), true, 1))
        .input("texts", &texts())
        .input("predictions", &predictions.load::<Predictions>("predictions"))
}

/// Half of the text as the text, the other half as what the model wrote.
fn halved(bench: Bench) -> Bench {
    let all = texts().0;
    let (text, samples) = all.split_at(all.len() / 2);
    bench.input("texts", &Texts(text.to_vec())).input("samples", &Texts(samples.to_vec()))
}

#[test]
fn what_the_model_wrote_is_text_like_any_other() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let models = [checkpoint(dirs[0].path(), true, 1), checkpoint(dirs[1].path(), false, 1)];
    let both = halved(Bench::new().input("student", &models[0]).input("teacher", &models[1]));
    let samples = || Some(Input::new("sample"));
    both.run(&Distill { samples: samples(), ..online() }).unwrap();
    let whole = bench();
    whole.run(&online()).unwrap();
    assert_eq!(losses(&both), losses(&whole));
    let kept = halved(Bench::new().input("model", &models[1]));
    let predict = "model = 'model'\ntexts = 'corpus'\nsamples = 'sample'\nmax-length = 64";
    kept.run(&toml::from_str::<Predict>(predict).unwrap()).unwrap();
    assert_eq!(kept.load::<Predictions>("predictions").len(), texts().0.len());
    assert!(Distill { texts: None, samples: samples(), ..online() }.check().is_ok());
}

fn losses(bench: &Bench) -> Vec<f32> {
    let curve: Curve = bench.load("curve");
    curve.points.iter().map(|point| point.loss).chain(curve.measured.iter().map(|m| m.loss)).collect()
}

#[test]
fn where_everything_is_kept_healing_goes_as_with_the_teacher() {
    let want = bench();
    want.run(&online()).unwrap();
    let got = student_alone(&predictions("top-k = 128\nmass = 1.0"));
    got.run(&by_predictions()).unwrap();
    let (want, got) = (losses(&want), losses(&got));
    assert!(want.len() > 20 && want[0] > 2.0 * want[19], "{want:?}");
    assert!(want.iter().zip(&got).all(|(want, got)| (want - got).abs() < 2e-3 * want), "{want:?} {got:?}");
}

#[test]
fn a_few_tokens_or_draws_heal_too() {
    for toml in ["top-k = 8", "draws = 12"] {
        let bench = student_alone(&predictions(toml));
        bench.run(&by_predictions()).unwrap();
        let (first, last) = ends(&bench.load("curve"), "kl");
        assert!(last < 0.9 * first, "{toml}: {first} -> {last}");
    }
}

#[test]
fn predictions_of_other_text_are_refused_before_a_step() {
    let stage = Distill { max_length: 63, ..by_predictions() };
    let error = student_alone(&predictions("")).run(&stage).unwrap_err().to_string();
    assert!(error.contains("there are no predictions for the document of 63 tokens"), "{error}");
}

#[test]
fn predictions_serve_one_phase_and_one_loss() {
    assert!(by_predictions().check().is_ok());
    let layerwise = Distill { layerwise: phase(2, 0.1), ..by_predictions() };
    assert_eq!(layerwise.check().unwrap_err().param, "teacher");
    let with_teacher = Distill { teacher: Some(Input::new("model")), ..layerwise };
    assert!(with_teacher.check().is_ok(), "the teacher for one phase, its predictions for the other");
    for wrong in [
        Distill { kl: None, cross_entropy: phase(2, 0.1), ..by_predictions() },
        Distill { loss: Loss { temperature: Finite(2.0), ..Loss::default() }, ..by_predictions() },
    ] {
        assert_eq!(wrong.check().unwrap_err().param, "predictions");
    }
}
