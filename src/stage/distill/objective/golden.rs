//! A whole student step against torch's autograd in float64 (`tests/golden/healing.py`).

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;

use super::*;
use crate::{
    artifact::{
        Artifact,
        checkpoint::{Checkpoint, Raw, files_in},
    },
    stage::distill::save::is_latent_attention,
};

const PHASES: [(&str, Objective); 2] =
    [("layerwise", Objective::Layerwise(Fed::Teacher)), ("self-fed", Objective::Layerwise(Fed::Student))];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/healing")
}

fn checkpoint(name: &str) -> Checkpoint {
    Checkpoint::load(&files_in(&folder().join(name)).unwrap()).unwrap()
}

/// The two prompts of the script.
fn prompts() -> [Vec<u32>; 2] {
    [(0..40).map(|i| (i * i * 7 + 3 * i) % 40).collect(), (0..23).map(|i| (i * 11 + 5) % 40).collect()]
}

fn values(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let view = file.tensor(name).unwrap();
    Raw { dtype: view.dtype(), shape: view.shape(), bytes: view.data() }.to_f32().unwrap()
}

/// Largest error of a gradient, as a share of its tensor's largest entry.
fn error(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0f32, |a, x| a.max(x.abs()));
    got.iter().zip(want).fold(0f32, |a, (got, want)| a.max((got - want).abs())) / largest
}

#[test]
fn gradients_of_every_phase_are_those_of_autograd() {
    let saved = checkpoint("student");
    let student = Model::load(&saved, &|name| is_latent_attention(&saved.config, name)).unwrap();
    let teacher = Model::frozen(&checkpoint("teacher")).unwrap();
    let bytes = std::fs::read(folder().join("expected.safetensors")).unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let prompts = prompts();
    let documents = || prompts.iter().map(Vec::as_slice);
    let kl = ("kl", Objective::Kl(Loss::default()));
    for (name, objective) in PHASES.into_iter().chain([kl]) {
        for micro_batch_tokens in [4096, 1] {
            let models =
                Models { student: &student, teacher: Some(&teacher), foretold: None, keep: Keep::Inputs };
            let (mut sum, whole) = (Gradients::default(), Whole::of(documents()));
            let value: f64 = Batch::packed(documents(), micro_batch_tokens)
                .iter()
                .map(|part| objective.add(models, (part, whole), &mut sum).unwrap())
                .sum();
            let want = f64::from(values(&expected, name)[0]);
            assert!((value - want).abs() < 1e-5 * want, "{name}: {value}, should be {want}");
            assert_eq!(student.vars.len(), 20, "of each layer five projections, four biases and the sinks");
            for tensor in student.vars.keys() {
                let got = sum.of(tensor).unwrap_or_else(|| panic!("{name}: `{tensor}` has no gradient"));
                let error = error(got, &values(&expected, &format!("{name}/{tensor}")));
                assert!(error < 1e-5, "{name}: `{tensor}` is off by {error:.1e}");
            }
        }
    }
}
