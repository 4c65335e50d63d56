//! Published methods do what their papers say, and lose to ours on the same data.

use super::*;

#[test]
fn every_published_method_keeps_the_budget_and_none_beats_ours() {
    let model = calibrated("gptoss-dense", |_| ());
    let best = |toml: &str| {
        let (_bench, converted, report) = model.convert(&format!("kv-budget = 38\nmeasure = 20\n{toml}"));
        let config = Config::parse(&converted.config).unwrap();
        assert!(report.candidates.iter().all(|c| c.kv_elements <= 38), "{toml}");
        for layer in report.layers.iter().filter(|_| report.layout != "recompute") {
            assert_eq!(config.kv_elements(layer.layer), layer.kv_elements_after, "{toml}");
        }
        assert_eq!(report.method, toml.split('\'').nth(1).unwrap_or("metric"));
        let kl = report.candidates.iter().find(|c| c.chosen).and_then(|c| c.kl);
        kl.unwrap_or_else(|| panic!("{toml} was not measured"))
    };
    let ours = best("");
    for method in ["transmla", "mha2mla", "care"] {
        let kl = best(&format!("method = '{method}'"));
        assert!(ours < kl, "{ours} and {method} {kl}");
    }
}

#[test]
fn transmla_tries_every_freqfold_that_its_tables_have() {
    let model = calibrated("gptoss-dense", |_| ());
    let (_bench, _, report) = model.convert("method = 'transmla'\nkv-budget = 40\nmeasure = 20");
    // 8 frequencies of 2 heads: a group of f frequencies keeps every divisor of f. 32 inputs and a bias fill 33 channels.
    let tried: Vec<(usize, usize, usize)> =
        report.candidates.iter().map(|c| (c.freqfold, c.rope_pairs, c.kv_lora_rank)).collect();
    let expected =
        [(1, 8, 24), (2, 4, 32), (2, 8, 24), (4, 2, 33), (4, 4, 32), (4, 8, 24), (8, 1, 33), (8, 2, 33)];
    assert_eq!(tried, [&expected[..], &[(8, 4, 32), (8, 8, 24)]].concat());
    let fixed = "method = 'transmla'\nkv-budget = 40\nrope-pairs = 4\nmeasure = 20";
    let (_bench, _, report) = model.convert(fixed);
    assert_eq!(report.candidates.iter().map(|c| c.freqfold).collect::<Vec<_>>(), [2, 4, 8]);
    // What a single frequency each needs is too much here, not what two or more need.
    let (_bench, _, report) = model.convert("method = 'transmla'\nkv-budget = 16\nmeasure = 20");
    assert!(report.candidates.iter().all(|c| c.freqfold > 1 && c.kv_elements <= 16));
    let error = model.bench().run(&stage("method = 'transmla'\nkv-budget = 2\nmeasure = 20"));
    assert!(error.unwrap_err().to_string().contains("leaves no latent"));
    let error = model.bench().run(&stage("method = 'transmla'\nkv-budget = 40\nrope-pairs = 3"));
    assert!(error.unwrap_err().to_string().contains("cannot be spread evenly"));
    let error = model.bench().run(&stage("kv-budget = 40\nfreqfold = [3]"));
    assert!(error.unwrap_err().to_string().contains("`freqfold` 3 does not divide the 8"));
}

#[test]
fn heads_apart_at_full_rank_equal_the_original() {
    let model = calibrated("gptoss-dense", |_| ());
    let toml = "method = 'mha2mla'\nkv-lora-rank = 64\nrope-pairs = 16";
    let (_bench, converted, report) = model.convert(toml);
    assert!(difference(&model.checkpoint, &converted) < 1e-4);
    assert_eq!(report.layers[0].rope_pairs, [0, 1, 2, 3, 4, 5, 6, 7].map(|pair| [pair; 2]).concat());
    let (_bench, _, report) = model.convert("method = 'mha2mla'\nkv-lora-rank = 64\nrope-pairs = 6");
    assert_eq!(report.layers[0].kv_elements_after, 2 * 6 + 33, "33 inputs with the bias, no more");
}

#[test]
fn keys_that_are_made_again_leave_an_ordinary_model() {
    let model = calibrated("gptoss-dense", |_| ());
    let (_bench, converted, report) = model.convert("method = 'palu'\nkv-lora-rank = 64");
    assert!(difference(&model.checkpoint, &converted) < 1e-4);
    assert_eq!(converted.config, model.checkpoint.config);
    let shape = |checkpoint: &Checkpoint, name: &str| checkpoint.raw(name).map(|raw| raw.shape.to_vec());
    for name in ["k_proj.weight", "v_proj.bias", "kv_a_proj.weight"] {
        let name = format!("model.layers.1.self_attn.{name}");
        assert_eq!(shape(&converted, &name), shape(&model.checkpoint, &name));
    }
    assert_eq!((report.layout.as_str(), report.layers[0].rope_pairs.len()), ("recompute", 0));
    let toml = "method = 'palu'\nlayer-budgets = 'uniform'\nkv-lora-rank = 10";
    let (_bench, converted, report) = model.convert(toml);
    assert_eq!((report.layers[0].kv_elements_after, report.cache.growing_elements_after), (10, 20));
    let values = converted.raw("model.layers.1.self_attn.v_proj.weight").and_then(Raw::to_f32).unwrap();
    let values = faer::Mat::from_fn(32, 32, |i, j| f64::from(values[i * 32 + j]));
    let singular = crate::math::linalg::thin_svd(values.as_ref()).unwrap().values;
    assert!(singular[4] > 1e-3 && singular[5] < 1e-5, "five channels of values: {singular:?}");
}

#[test]
fn projections_get_channels_by_their_gradients() {
    let model = calibrated("gptoss-dense", |_| ());
    let (_bench, _, report) = model.convert("method = 'palu'\nkv-budget = 10");
    let elements: Vec<usize> = report.layers.iter().map(|layer| layer.kv_elements_after).collect();
    assert_eq!(elements.iter().sum::<usize>(), 20, "the total is kept: {elements:?}");
    assert!(report.calibration.contains("ranks by gradients"), "{}", report.calibration);
    let mean = |squares: &[f64]| squares.iter().map(|x| x.sqrt()).sum::<f64>() / squares.len() as f64;
    let scores = report.layers.iter().map(|layer| {
        let squares = model.moments.layer(layer.layer).unwrap().fisher_projections;
        let (keys, values) = squares.split_at(32 * 32);
        mean(keys) + mean(values)
    });
    let scores: Vec<f64> = scores.collect();
    for (elements, score) in elements.iter().zip(&scores) {
        let share = 20.0 * score / scores.iter().sum::<f64>();
        assert!((*elements as f64 - share).abs() < 2.0, "{elements} for {share}");
    }
}

/// What TransMLA's basis loses: real factors cannot undo a phase between heads, and do not need to where there is none.
#[test]
fn real_components_share_what_is_in_phase_only() {
    let copies = |angle: f32| calibrated("gptoss-dense", move |draft| copied_heads(draft, &|_| angle));
    let toml = "method = 'transmla'\nkv-lora-rank = 64\nrope-pairs = 8\nfreqfold = [1]";
    let model = copies(0.0);
    let (_bench, converted, report) = model.convert(toml);
    assert_eq!(report.layers[0].rope_pairs, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert!(difference(&model.checkpoint, &converted) < 1e-4);
    let model = copies(1.2);
    let (_bench, converted, _) = model.convert(toml);
    assert!(difference(&model.checkpoint, &converted) > 1e-3);
    // What is left of keys is rounding, which the balance would blow up.
    let (_bench, converted, _) =
        model.convert(&format!("{toml}\nrotary-basis = 'complex'\nmetric = 'plain'"));
    assert!(difference(&model.checkpoint, &converted) < 1e-4);
}

/// One layer's curve decides nothing alone: the total is kept, and a division that measures worse is not taken.
#[test]
fn a_budget_divided_among_layers_keeps_the_total() {
    // Layer 1 has a key and value projection of rank 2 and needs next to nothing.
    let model = calibrated("gptoss-dense", |draft| {
        for part in ["k_proj", "v_proj"] {
            let name = format!("model.layers.1.self_attn.{part}.weight");
            let value = |n: usize| ((n / 32) as f32).cos() * ((n % 32) as f32 * 0.7).sin() * 0.3;
            let values: Vec<f32> = (0..32 * 32).map(value).collect();
            draft.tensors.insert(name, Owned::f32(&[32, 32], &values));
        }
    });
    let toml = "kv-budget = 24\nmeasure = 4\nlayer-budgets = ";
    let (_bench, _, uniform) = model.convert(&format!("{toml}'uniform'"));
    for division in ["free", "two-level"] {
        let (_bench, converted, report) = model.convert(&format!("{toml}'{division}'"));
        assert_eq!(report.candidates.len(), uniform.candidates.len() + 1);
        let divided = report.candidates.last().unwrap();
        assert!(divided.layers[0] < divided.layers[1], "{division}: {divided:?}");
        assert!(divided.layers.iter().sum::<usize>() <= 48, "{division}: {divided:?}");
        let least = report.candidates.iter().filter_map(|c| c.kl).fold(f64::INFINITY, f64::min);
        let chosen = report.candidates.iter().find(|c| c.chosen).unwrap();
        assert_eq!(chosen.kl, Some(least), "{division}: {:?}", report.candidates);
        let sizes = if chosen.layers.is_empty() { &vec![chosen.kv_elements; 2] } else { &chosen.layers };
        let config = Config::parse(&converted.config).unwrap();
        for (layer, &elements) in report.layers.iter().zip(sizes) {
            assert_eq!(config.kv_elements(layer.layer), elements);
        }
    }
}

#[test]
fn a_layer_of_few_elements_still_rotates_every_key_with_layout_a() {
    let model = calibrated("gptoss-dense", |_| ());
    for division in ["free", "two-level"] {
        let toml = format!("layout = 'a'\nkv-budget = 44\nlayer-budgets = '{division}'\nrefit = false");
        let (_bench, _, report) = model.convert(&toml);
        let divided = report.candidates.last().unwrap();
        assert_eq!((divided.rope_pairs, &divided.pairs_by_layer), (8, &vec![]), "{division}: {divided:?}");
        let elements: usize = report.layers.iter().map(|layer| layer.kv_elements_after).sum();
        assert!(elements <= 2 * 44 && divided.layers.iter().sum::<usize>() <= 2 * 44, "{divided:?}");
    }
}

/// Turns the queries and keys of every head at every pair by an angle of its own: the model stays what it is, heads lose their phase.
fn scattered(draft: &mut Draft) {
    for (layer, kind, part) in [1, 3].iter().flat_map(|layer| {
        [("q_proj", "weight"), ("q_proj", "bias"), ("k_proj", "weight"), ("k_proj", "bias")]
            .map(|(kind, part)| (layer, kind, part))
    }) {
        let name = format!("model.layers.{layer}.self_attn.{kind}.{part}");
        let (mut values, shape) = (floats(draft, &name), draft.tensors[&name].shape.clone());
        let (heads, width) = (shape[0] / 16, values.len() / shape[0]);
        for at in 0..heads * 8 * width {
            let (head, pair, column) = (at / (8 * width), at / width % 8, at % width);
            let group = if kind == "q_proj" { head / 4 } else { head };
            let (sin, cos) = (1.5 * group as f32 + 5.0 * pair as f32).sin_cos();
            let (re, im) = ((head * 16 + pair) * width + column, (head * 16 + pair + 8) * width + column);
            let (a, b) = (values[re], values[im]);
            (values[re], values[im]) = (cos * a - sin * b, sin * a + cos * b);
        }
        draft.tensors.insert(name, Owned::f32(&shape, &values));
    }
}

/// Gives every key/value head a twin, and each of the two half of its queries.
fn doubled(draft: &mut Draft) {
    draft.config["num_key_value_heads"] = 4.into();
    let names: Vec<String> = draft.tensors.keys().cloned().collect();
    for name in names.iter().filter(|name| name.contains("k_proj") || name.contains("v_proj")) {
        let (values, mut shape) = (floats(draft, name), draft.tensors[name].shape.clone());
        let head = values.len() / 2;
        let twice: Vec<f32> = values.chunks(head).flat_map(|head| [head, head].concat()).collect();
        shape[0] *= 2;
        draft.tensors.insert(name.clone(), Owned::f32(&shape, &twice));
    }
}

/// Neither phases between heads nor twins change a model, so they must not change what its conversion loses. Real components see both.
#[test]
fn a_change_of_heads_that_changes_no_prediction_costs_ours_nothing() {
    let plain = calibrated("gptoss-dense", |draft| copied_heads(draft, &|_| 0.0));
    let phases = calibrated("gptoss-dense", |draft| {
        copied_heads(draft, &|_| 0.0);
        scattered(draft);
    });
    let twins = calibrated("gptoss-dense", |draft| {
        copied_heads(draft, &|_| 0.0);
        doubled(draft);
    });
    for other in [&phases, &twins] {
        assert!(difference(&plain.checkpoint, &other.checkpoint) < 1e-4, "the same model");
    }
    let best = |model: &Calibrated, toml: &str| {
        let (_bench, _, report) = model.convert(&format!("kv-budget = 30\nmeasure = 30\n{toml}"));
        report.candidates.iter().filter_map(|c| c.kl).fold(f64::INFINITY, f64::min)
    };
    let ours = [&plain, &phases, &twins].map(|model| best(model, ""));
    let theirs = [&plain, &phases].map(|model| best(model, "method = 'transmla'"));
    assert!((ours[1] / ours[0] - 1.0).abs() < 0.02, "{ours:?}");
    assert!((ours[2] / ours[0] - 1.0).abs() < 0.02, "{ours:?}");
    assert!(theirs[1] > 1.2 * theirs[0], "{theirs:?}");
}

/// CARE raises the eigenvalues of the inputs' second moment by 1 % of their mean.
#[test]
fn damped_inputs_are_a_piece_of_care_and_can_be_left_off() {
    let model = calibrated("gptoss-dense", |_| ());
    let kl = |toml: &str| {
        let (_bench, _, report) =
            model.convert(&format!("kv-budget = 38\nmeasure = 20\nmethod = 'care'\n{toml}"));
        report.candidates.iter().find(|c| c.chosen).and_then(|c| c.kl).unwrap()
    };
    let published = kl("");
    assert!((kl("input-damping = 0.01") - published).abs() < 1e-12);
    assert!((kl("input-damping = 0.0") - published).abs() > 1e-9);
    // So much of it leaves nothing of the text: a conversion by weights alone.
    let heavy = kl("input-damping = 1e6");
    assert!((heavy - published).abs() > 1e-4, "{heavy} {published}");
    assert_eq!(stage("kv-budget = 38\ninput-damping = -0.1").check().unwrap_err().param, "input-damping");
}
