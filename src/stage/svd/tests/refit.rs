//! Output projections that are fitted anew.

use candle_core::Tensor;

use super::*;
use crate::{
    engine::action::{NoCheckpoints, Stop},
    model::probe::{AttentionSeen, Probe},
    stage::{streamed::budget::TooLittle, testing::Says},
};

const TOML: &str = "layout = 'd'\nrope-pairs = 8\nkv-lora-rank = 4";

/// The golden model with the moments of more tokens than a layer's heads have outputs.
fn calibrated(name: &str) -> Calibrated {
    let one = super::calibrated(name, |_| ());
    let bench = Bench::new().input("model", &one.checkpoint).input("texts", &texts(&[120, 100, 400, 500]));
    let analyze = "model = 'model'\ntexts = 'corpus'\nheld-out-tokens = 100\nlayers = [1, 3]";
    let analyze = if name == "gptoss-dense" { analyze } else { &analyze.replace(", 3", "") };
    bench.run::<Analyze>(&toml::from_str(analyze).unwrap()).unwrap();
    Calibrated { moments: bench.load("moments"), _bench: bench, ..one }
}

/// What the attention blocks give, in order.
#[derive(Default)]
struct Outputs(Vec<Tensor>);

impl Probe for Outputs {
    fn attention(&mut self, seen: &AttentionSeen<'_>) -> candle_core::Result<()> {
        self.0.push(seen.output.clone());
        Ok(())
    }
}

/// The squared difference of two models' attention outputs in `layer` on the held-out text, over the output's square.
fn error(model: &Calibrated, converted: &Checkpoint, layer: usize) -> f64 {
    let batch = Batch::new(model.moments.held_out.iter().map(Vec::as_slice));
    let outputs = |checkpoint: &Checkpoint| {
        let mut outputs = Outputs::default();
        Model::frozen(checkpoint).unwrap().hidden(&batch, &mut outputs).unwrap();
        outputs.0[layer].flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let (original, converted) = (outputs(&model.checkpoint), outputs(converted));
    let square = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>();
    square(&mut original.iter().zip(&converted).map(|(a, b)| a - b)) / square(&mut original.iter().copied())
}

/// Mean KL divergence from the original on the held-out text.
fn kl(model: &Calibrated, converted: &Checkpoint) -> f64 {
    let batch = Batch::new(model.moments.held_out.iter().map(Vec::as_slice));
    let rows = |checkpoint: &Checkpoint| {
        let logits = Model::frozen(checkpoint).unwrap().logits(&batch, &mut NoProbe).unwrap();
        candle_nn::ops::log_softmax(&logits, 1).unwrap().to_vec2::<f32>().unwrap()
    };
    let (p, q) = (rows(&model.checkpoint), rows(converted));
    let row = |(p, q): (&Vec<f32>, &Vec<f32>)| {
        p.iter().zip(q).map(|(p, q)| f64::from(p.exp()) * f64::from(p - q)).sum::<f64>()
    };
    p.iter().zip(&q).map(row).sum::<f64>() / p.len() as f64
}

#[test]
fn errors_fall_and_are_those_of_the_written_model_on_held_out_text() {
    let model = calibrated("gptoss-dense");
    let (_bench, plain, report) = model.convert(&format!("{TOML}\nrefit = false"));
    assert_eq!(report.refit, None);
    let (_bench, converted, report) = model.convert(TOML);
    let refit = report.refit.unwrap();
    assert!(refit.taken && refit.kl_after < refit.kl_before, "{refit:?}");
    assert!((refit.kl_before - kl(&model, &plain)).abs() < 1e-5, "{refit:?}");
    assert!((refit.kl_after - kl(&model, &converted)).abs() < 1e-5, "{refit:?}");
    assert_eq!(refit.tokens, model.moments.calibration.iter().map(Vec::len).sum::<usize>());
    for layer in &refit.layers {
        assert!(layer.ridge.is_some() && layer.error_after < layer.error_before, "{layer:?}");
        let direct = error(&model, &converted, layer.layer);
        assert!((direct - layer.error_after).abs() < 1e-4 * direct, "{direct} {layer:?}");
    }
    // No layer before the first one is converted, so its error before is that of the plain conversion.
    let first = &refit.layers[0];
    assert!(first.error_after < 0.9 * first.error_before, "{first:?}");
    let direct = error(&model, &plain, first.layer);
    assert!((direct - first.error_before).abs() < 1e-4 * direct, "{direct} {first:?}");
}

#[test]
fn nothing_but_output_projections_of_converted_layers_is_new() {
    let model = calibrated("gptoss-dense");
    let (_bench, plain, _) = model.convert(&format!("{TOML}\nrefit = false"));
    let (_bench, converted, _) = model.convert(TOML);
    let changed = |name: &&str| plain.raw(name).unwrap().bytes != converted.raw(name).unwrap().bytes;
    let changed: Vec<&str> = converted.names().filter(changed).collect();
    let o_proj =
        |layer| ["bias", "weight"].map(|part| format!("model.layers.{layer}.self_attn.o_proj.{part}"));
    assert_eq!(changed, [o_proj(1), o_proj(3)].concat());
    assert_eq!(plain.names().collect::<Vec<_>>(), converted.names().collect::<Vec<_>>());
}

#[test]
fn a_lossless_conversion_stays_as_it_is_or_as_good() {
    let model = calibrated("gptoss-mxfp4");
    let (_bench, converted, _) = model.convert("layout = 'a'\nkv-lora-rank = 64");
    assert!(difference(&model.checkpoint, &converted) < 1e-4);
}

#[test]
fn without_held_out_text_nothing_is_refitted_and_the_user_is_told() {
    let mut model = calibrated("gptoss-dense");
    model.moments.held_out.clear();
    let (bench, says) = (model.bench(), Says::default());
    bench.run_with(&stage(TOML), &says, &NoCheckpoints, &Stop::default()).unwrap();
    let said = says.0.into_inner().unwrap();
    assert!(said.iter().any(|line| line.starts_with("nothing is refitted")), "{said:?}");
    assert_eq!(bench.load::<Conversion>("report").refit, None);
}

#[test]
fn states_in_files_change_no_byte() {
    let model = calibrated("gptoss-dense");
    let whole = model.bench();
    whole.run(&stage(TOML)).unwrap();
    // Each pass that does not fit says what it needs without the states; the last one to say so is the largest.
    let mut memory = 1000;
    let said = loop {
        let (bench, says) = (model.bench().memory(memory), Says::default());
        match bench.run_with(&stage(TOML), &says, &NoCheckpoints, &Stop::default()) {
            Err(Failure::Stage(error)) => memory = error.downcast_ref::<TooLittle>().unwrap().needs.least(),
            ended => {
                ended.unwrap();
                assert_eq!(bench.bytes(), whole.bytes());
                break says.0.into_inner().unwrap();
            }
        }
    };
    assert!(said.iter().any(|line| line.contains("hidden states go into a file")), "{said:?}");
}

#[test]
fn fewer_tokens_are_whole_sequences_and_one_at_least() {
    let model = calibrated("gptoss-dense");
    let lengths: Vec<usize> = model.moments.calibration.iter().map(Vec::len).collect();
    for (most, want) in [(1, lengths[0]), (lengths[0] + lengths[1], lengths[0] + lengths[1])] {
        let (_bench, _, report) = model.convert(&format!("{TOML}\nrefit-tokens = {most}"));
        assert_eq!(report.refit.unwrap().tokens, want);
    }
}
