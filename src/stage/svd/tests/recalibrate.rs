//! Content that is compressed for what layers see once rotations are given up.

use super::*;
use crate::{
    kernel::host,
    math::moments::SecondMoment,
    model::probe::{AttentionSeen, Probe},
    stage::testing::{Kept, Says},
};

/// Half of the rotations are given up.
const TOML: &str = "method = 'transmla'\nrope-pairs = 4\nfreqfold = [4]\nkv-lora-rank =";

/// Second moments of what goes into the attention of each layer.
struct Inputs(Vec<SecondMoment>);

impl Probe for Inputs {
    fn attention(&mut self, seen: &AttentionSeen<'_>) -> candle_core::Result<()> {
        self.0[seen.layer].add(&host(seen.input)?, None);
        Ok(())
    }
}

fn inputs(model: &Calibrated, checkpoint: &Checkpoint) -> Vec<SecondMoment> {
    let batch = Batch::new(model.moments.calibration.iter().map(Vec::as_slice));
    let model = Model::frozen(checkpoint).unwrap();
    let mut inputs = Inputs(model.config.layers.iter().map(|_| SecondMoment::new(32)).collect());
    model.hidden(&batch, &mut inputs).unwrap();
    inputs.0
}

/// `kv_b · kv_a` of a layer, row-major: the same whatever the signs of channels.
fn content(checkpoint: &Checkpoint, layer: usize) -> Vec<f64> {
    let values = |name: &str| {
        let name = format!("model.layers.{layer}.self_attn.{name}_proj.weight");
        checkpoint.raw(&name).and_then(Raw::to_f32).unwrap()
    };
    let (down, up) = (values("kv_a"), values("kv_b"));
    let rank = down.len() / 32;
    let at = |row: &[f32], j: usize| (0..rank).map(|r| f64::from(row[r]) * f64::from(down[r * 32 + j])).sum();
    up.chunks_exact(rank).flat_map(|row| (0..32).map(move |j| at(row, j))).collect()
}

/// The largest difference as a share of the largest number.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    let largest = b.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    a.iter().zip(b).fold(0.0, |most: f64, (a, b)| most.max((a - b).abs())) / largest
}

#[test]
fn the_second_pass_sums_the_inputs_of_the_model_whose_rotations_were_given_up() {
    let model = calibrated("gptoss-dense", |_| ());
    let (_bench, whole, _) = model.convert(&format!("{TOML} 64"));
    let (original, want) = (inputs(&model, &model.checkpoint), inputs(&model, &whole));
    let dir = tempfile::tempdir().unwrap();
    let kept = Kept::new(dir.path(), usize::MAX);
    model.bench().run_with(&stage(&format!("{TOML} 12")), &Says::default(), &kept, &kept.stop).unwrap();
    for (layer, changes) in [(1, false), (3, true)] {
        let bytes = std::fs::read(dir.path().join(format!("inputs-{layer:03}.f64"))).unwrap();
        let sums: Vec<f64> = bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        assert!(apart(&sums, &want[layer].sum) < 1e-5, "layer {layer}");
        let differs = apart(&original[layer].sum, &want[layer].sum) > 1e-3;
        assert_eq!(
            differs, changes,
            "layer {layer}: only what lies behind a converted layer sees anything else"
        );
    }
}

#[test]
fn layers_behind_converted_ones_keep_other_content_for_it() {
    let model = calibrated("gptoss-dense", |_| ());
    let (_bench, once, _) = model.convert(&format!("{TOML} 12\nrecalibrate = false"));
    let (_bench, twice, report) = model.convert(&format!("{TOML} 12"));
    assert!(report.calibration.ends_with("; content for what layers see once rotations are given up"));
    assert!(apart(&content(&twice, 1), &content(&once, 1)) < 1e-4);
    assert!(apart(&content(&twice, 3), &content(&once, 3)) > 1e-3);
    let changed = |name: &&str| once.raw(name).unwrap().bytes != twice.raw(name).unwrap().bytes;
    let rotated: Vec<&str> = twice.names().filter(changed).filter(|name| name.contains("k_rope")).collect();
    assert!(rotated.is_empty(), "what is rotated was chosen before: {rotated:?}");
}

#[test]
fn what_is_measured_is_the_conversion_that_is_written() {
    let model = calibrated("gptoss-dense", |_| ());
    let budget = "method = 'transmla'\nkv-budget = 24\nmeasure = 20";
    let kl = |toml: &str| {
        let (_bench, _, report) = model.convert(&format!("{budget}\n{toml}"));
        let chosen: Vec<f64> = report.candidates.iter().filter(|c| c.chosen).filter_map(|c| c.kl).collect();
        assert_eq!(chosen.len(), 1);
        chosen[0]
    };
    assert!((kl("") - kl("recalibrate = true")).abs() < 1e-12);
    assert!((kl("") - kl("recalibrate = false")).abs() > 1e-7);
    let refit = "refit = true";
    let (_bench, _, report) = model.convert(&format!("{budget}\n{refit}"));
    let before = report.refit.unwrap().kl_before;
    assert!((before - kl("")).abs() < 1e-12, "the refit begins with it");
}

#[test]
fn a_latent_that_holds_everything_needs_no_second_pass() {
    let model = calibrated("gptoss-dense", |_| ());
    let passes = |toml: &str| {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::new(dir.path(), usize::MAX);
        model.bench().run_with(&stage(toml), &Says::default(), &kept, &kept.stop).unwrap();
        kept.count()
    };
    let (_bench, _, report) = model.convert(&format!("{TOML} 64"));
    assert!(report.calibration.ends_with("f64"), "nor says that there was one: {}", report.calibration);
    // Of four layers: the parity gate, and the second pass.
    assert_eq!((passes(&format!("{TOML} 64")), passes(&format!("{TOML} 12"))), (4, 8));
}

#[test]
fn an_interrupted_second_pass_goes_on_and_ends_with_the_same_bytes() {
    let (model, toml) = (calibrated("gptoss-dense", |_| ()), format!("{TOML} 12"));
    let whole = model.bench();
    whole.run(&stage(&toml)).unwrap();
    for last in [5, 7, 8] {
        let dir = tempfile::tempdir().unwrap();
        let (bench, first) = (model.bench(), Kept::new(dir.path(), last));
        let stopped = bench.run_with(&stage(&toml), &Says::default(), &first, &first.stop);
        assert!(matches!(stopped, Err(Failure::Stopped)), "{last}: {stopped:?}");
        let second = Kept::new(dir.path(), usize::MAX);
        bench.run_with(&stage(&toml), &Says::default(), &second, &second.stop).unwrap();
        assert_eq!(second.count(), 8 - last, "what was done is not done again");
        assert!(bench.bytes() == whole.bytes(), "{last}");
    }
}

#[test]
fn it_counts_all_tokens_alike() {
    let wrong = stage("kv-budget = 38\nrecalibrate = true").check().unwrap_err();
    assert_eq!(wrong.param, "recalibrate");
    stage("kv-budget = 38\nrecalibrate = true\ntoken-weights = 'none'").check().unwrap();
    // TransMLA's content with other weights has no second pass.
    stage("kv-budget = 38\nmethod = 'transmla'\ntoken-weights = 'attention'").check().unwrap();
}
