//! Models that normalise queries and keys per head: only values can go into the latent.

use super::*;

/// The golden Qwen3 with the moments of all its layers.
fn normed() -> Calibrated {
    let (dir, checkpoint) = golden("qwen3");
    // It knows 64 words.
    let texts = Texts(texts(&[120, 50, 130, 50]).0.into_iter().map(|text| words(text, 64)).collect());
    let bench = Bench::new().input("model", &checkpoint).input("texts", &texts);
    let analyze = "model = 'model'\ntexts = 'corpus'\nheld-out-tokens = 100";
    bench.run::<Analyze>(&toml::from_str(analyze).unwrap()).unwrap();
    Calibrated { _dir: dir, checkpoint, moments: bench.load("moments"), _bench: bench }
}

#[test]
fn exact_keys_beside_a_latent_of_all_values_are_the_original() {
    let model = normed();
    let config = Config::parse(&model.checkpoint.config).unwrap();
    assert!(config.parts.qk_norm);
    let width = config.num_key_value_heads * config.head_dim;
    let (_bench, converted, report) = model.convert(&format!("layout = 'a'\nkv-lora-rank = {width}"));
    assert!(report.parity.relative_difference <= 1e-5);
    assert!(difference(&model.checkpoint, &converted) < 1e-4);
    let names: Vec<&str> = converted.names().filter(|name| name.contains("layers.0.self_attn.k_")).collect();
    let at = |name: &str| format!("model.layers.0.self_attn.{name}");
    assert_eq!(names, [at("k_norm.weight"), at("k_rope_proj.bias"), at("k_rope_proj.weight")]);
    let (_bench, _, report) = model.convert(&format!("layout = 'a'\nkv-lora-rank = {}", width / 4));
    assert!(report.layers.iter().all(|layer| layer.latent_error > 1e-6 && layer.rope_error == 0.0));
}

#[test]
fn other_layouts_are_refused_with_the_reason() {
    let model = normed();
    for toml in ["kv-budget = 20", "kv-budget = 20\nlayout = 'b'", "kv-budget = 20\nmethod = 'palu'"] {
        let error = model.bench().run(&stage(toml)).unwrap_err().to_string();
        assert!(error.contains("QK-norm") && error.contains("layout = \"a\""), "{error}");
    }
}
