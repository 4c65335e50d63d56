//! Sliding-window layers, which are converted only where the user asks.

use super::*;
use crate::model::config::LayerKind;

const LOOK: &str = "model = 'model'\ntexts = 'corpus'\nheld-out-tokens = 100\nconvert-swa = true";

/// The golden model with the moments of all its layers.
fn with_windows() -> Calibrated {
    let one = calibrated("gptoss-dense", |_| ());
    let bench = Bench::new().input("model", &one.checkpoint).input("texts", &texts(&[120, 50, 130, 50]));
    bench.run::<Analyze>(&toml::from_str(LOOK).unwrap()).unwrap();
    Calibrated { moments: bench.load("moments"), _bench: bench, ..one }
}

/// The prompt of the gate and the one here are longer than the window of 8.
#[test]
fn a_window_stays_a_window_when_its_layer_is_converted() {
    let model = with_windows();
    for layout in ["layout = 'a'\nkv-lora-rank = 32", "layout = 'd'\nrope-pairs = 16\nkv-lora-rank = 33"] {
        let (_bench, converted, report) = model.convert(&format!("convert-swa = true\n{layout}"));
        assert_eq!(report.layers.iter().map(|layer| layer.layer).collect::<Vec<_>>(), [0, 1, 2, 3]);
        let config = Config::parse(&converted.config).unwrap();
        assert_eq!(
            config.layers.iter().map(LayerKind::slides).collect::<Vec<_>>(),
            [true, false, true, false]
        );
        assert!(config.layers.iter().all(|kind| matches!(kind, LayerKind::Latent(_))));
        let difference = difference(&model.checkpoint, &converted);
        assert!(difference < 1e-4, "{layout}: {difference}");
    }
}

#[test]
fn a_window_that_is_forgotten_shows() {
    let model = with_windows();
    let (_bench, converted, _) = model.convert("convert-swa = true\nlayout = 'a'\nkv-lora-rank = 32");
    let mut draft = Draft::copy_of(&converted).unwrap();
    draft.config["layer_types"][0] = "latent_attention".into();
    let dir = tempfile::tempdir().unwrap();
    draft.save(dir.path()).unwrap();
    let wide = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
    assert!(difference(&model.checkpoint, &wide) > 1e-3);
}

#[test]
fn the_cache_of_windows_is_counted_apart() {
    let model = with_windows();
    let (_bench, _, report) = model.convert("convert-swa = true\nkv-budget = 38\ncontext = 256");
    assert!(report.layers.iter().all(|layer| layer.kv_elements_after <= 38));
    let cache = &report.cache;
    let after =
        |layers: [usize; 2]| layers.map(|at| report.layers[at].kv_elements_after).iter().sum::<usize>();
    assert_eq!(cache.sliding_bytes_before, 2 * 8 * 64 * 2);
    assert_eq!(cache.sliding_bytes_after, (after([0, 2]) * 8 * 2) as u64);
    assert_eq!(cache.growing_elements_after, after([1, 3]));
}

#[test]
fn what_analyze_did_not_sum_is_said_with_the_way_out() {
    let model = calibrated("gptoss-dense", |_| ());
    let bench = Bench::new().input("model", &model.checkpoint).input("texts", &texts(&[120]));
    bench.run::<Analyze>(&toml::from_str("model = 'model'\ntexts = 'corpus'").unwrap()).unwrap();
    let without = Calibrated { moments: bench.load("moments"), _bench: bench, ..model };
    let error = without.bench().run(&stage("convert-swa = true\nkv-budget = 38")).unwrap_err().to_string();
    assert!(error.contains("layer 0") && error.contains("`convert-swa` in `analyze`"), "{error}");
}
