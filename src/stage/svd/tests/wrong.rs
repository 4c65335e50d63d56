//! Inputs that cannot be converted, or only badly: each is told in one sentence.

use super::*;

#[test]
fn the_gate_fails_with_the_measured_difference() {
    let model = calibrated("gptoss-dense", |_| ());
    let error = model.bench().run(&stage("layout = 'a'\nkv-lora-rank = 8\nparity-tolerance = 1e-12"));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("differs from the original by ") && error.contains("1e-12"), "{error}");
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let model = calibrated("gptoss-dense", |_| ());
    let run = |checkpoint: &Checkpoint, moments: &Moments, toml: &str| {
        let bench = Bench::new().input("model", checkpoint).input("moments", moments);
        bench.run(&stage(toml)).unwrap_err().to_string()
    };
    let toml = "layout = 'a'\nkv-lora-rank = 4";
    let mut moments = model.moments.clone();
    moments.layers.remove(&3);
    assert!(run(&model.checkpoint, &moments, toml).contains("lack the layers [3]"));
    moments = model.moments.clone();
    let (dir, mut layer) = (tempfile::tempdir().unwrap(), moments.layer(1).unwrap());
    layer.plain.pop();
    moments.layers.insert(1, dir.path().join("shorter"));
    layer.save(&moments.layers[&1]).unwrap();
    assert!(
        run(&model.checkpoint, &moments, toml).contains("layer 1: the moments are those of another model")
    );
    // Equal sizes do not make two models one: a single bias that differs is enough.
    let other = calibrated("gptoss-dense", |draft| {
        draft.tensors.get_mut("model.layers.1.self_attn.q_proj.bias").unwrap().bytes[0] ^= 1;
    });
    assert!(
        run(&other.checkpoint, &model.moments, toml).contains("layer 1: the moments are those of another")
    );
    let error = run(&model.checkpoint, &model.moments, "layout = 'b'\nrope-pairs = 9\nkv-lora-rank = 4");
    assert!(error.contains("`rope-pairs` is 9, but there are 8"), "{error}");
    let error = run(&model.checkpoint, &model.moments, "layout = 'a'\nkv-budget = 32");
    assert!(error.contains("8 rotated pairs take 32 elements"), "{error}");
    let error = run(&model.checkpoint, &model.moments, "kv-budget = 65");
    assert!(error.contains("`kv-budget` 65 is above the 64 elements"), "{error}");
    let mut layer = model.moments.layer(1).unwrap();
    layer.fisher_query[3] = f64::NAN;
    layer.save(&moments.layers[&1]).unwrap();
    let error = run(&model.checkpoint, &moments, toml);
    assert!(error.contains("layer 1: the moments are not finite"), "{error}");
    for sum in [&mut layer.fisher_query, &mut layer.fisher_gauss, &mut layer.fisher_values] {
        sum.clear();
    }
    layer.save(&moments.layers[&1]).unwrap();
    let error = run(&model.checkpoint, &moments, toml);
    assert!(
        error.contains("layer 1: the moments hold no gradients; give `analyze` a `fisher-tokens`"),
        "{error}"
    );
    layer.fisher_projections.clear();
    layer.save(&moments.layers[&1]).unwrap();
    let error = run(&model.checkpoint, &moments, "method = 'palu'\nkv-budget = 10");
    assert!(error.contains("layer 1: the moments hold no gradients of its projections"), "{error}");
    let (_bench, converted, _) = model.convert(toml);
    assert!(run(&converted, &model.moments, toml).contains("no full-attention layer to convert"));
}

#[test]
fn parameters_that_do_not_go_together() {
    for (toml, param) in [
        ("", "kv-budget"),
        ("kv-budget = 10\nkv-lora-rank = 5", "kv-lora-rank"),
        ("kv-lora-rank = 5", "rope-pairs"),
        ("method = 'palu'\nkv-budget = 10\nrope-pairs = 5", "rope-pairs"),
        ("method = 'transmla'\nkv-lora-rank = 10", "rope-pairs"),
        ("layout = 'b'\nkv-budget = 9\nfreqfold = [1]", "freqfold"),
        ("layout = 'a'\nkv-budget = 9\nrotary-basis = 'real'", "rotary-basis"),
        ("kv-budget = 9\nfreqfold = [0]", "freqfold"),
        ("kv-budget = 9\nsearch = { kv-budget = [] }", "search"),
        ("kv-budget = 9\nmeasure = 0\nsearch = { kv-budget = [8] }", "search"),
        ("layout = 'a'\nkv-lora-rank = 9\nsearch = { kv-budget = [8] }", "search"),
        ("kv-budget = 9\nrotary-choice = 'norm'", "rotary-choice"),
        ("layout = 'a'\nkv-lora-rank = 5\nrope-pairs = 5", "rope-pairs"),
        ("kv-budget = 0", "kv-budget"),
        ("kv-budget = 9\ndamping = 0.0", "damping"),
        ("kv-budget = 9\ncontext = 0", "angle"),
        ("kv-budget = 9\nlayer-budgets = 'fisher'", "layer-budgets"),
        ("method = 'palu'\nlatent = 'joint'\nkv-budget = 9", "layer-budgets"),
        ("method = 'palu'\nkv-budget = 1", "layer-budgets"),
        ("method = 'palu'\nkv-lora-rank = 1", "layer-budgets"),
        ("method = 'palu'\nkv-budget = 9\nmeasure = 1\nsearch = { kv-budget = [1] }", "layer-budgets"),
    ] {
        assert_eq!(stage(toml).check().unwrap_err().param, param, "{toml}");
    }
    for toml in
        ["", "rope-pairs = 5", "method = 'mha2mla'", "method = 'palu'", "method = 'care'\nfreqfold = [2, 4]"]
    {
        assert_eq!(stage(&format!("kv-budget = 100\n{toml}")).check(), Ok(()), "{toml}");
    }
    assert_eq!(stage("layout = 'a'\nkv-lora-rank = 5").check(), Ok(()));
    assert_eq!(stage("layout = 'd'\nkv-lora-rank = 5\nrope-pairs = 5").check(), Ok(()));
}

/// One word again and again: nearly everything that was seen is one direction.
#[test]
fn constant_activations_are_converted() {
    let one = calibrated("gptoss-dense", |_| ());
    let words = |mut text: Text| {
        text.text = text.text.split(' ').map(|_| "w5").collect::<Vec<_>>().join(" ");
        text
    };
    let same = Texts(texts(&[20, 11]).0.into_iter().map(words).collect());
    let bench = Bench::new().input("model", &one.checkpoint).input("texts", &same);
    let analyze = "model = 'model'\ntexts = 'corpus'\nheld-out-tokens = 0\nlayers = [1, 3]";
    bench.run::<Analyze>(&toml::from_str(analyze).unwrap()).unwrap();
    let moments: Moments = bench.load("moments");
    for toml in ["kv-budget = 20", "method = 'transmla'\nkv-budget = 20", "method = 'care'\nkv-budget = 20"] {
        let convert = Bench::new().input("model", &one.checkpoint).input("moments", &moments);
        convert.run(&stage(toml)).unwrap();
        let report: Conversion = convert.load("report");
        assert!(report.candidates.iter().all(|c| c.kl.is_none()), "nothing was held out");
        let values = logits(&convert.load("checkpoint"));
        assert!(values.iter().all(|x| x.is_finite()), "{toml}");
    }
}
