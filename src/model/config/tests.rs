//! Published values, both spellings, and what must be refused.

use super::*;
use serde_json::json;

fn published() -> Value {
    json!({"model_type": "gpt_oss", "hidden_size": 2880, "vocab_size": 201_088, "num_attention_heads": 64,
        "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 2880, "num_hidden_layers": 4,
        "num_local_experts": 32, "num_experts_per_tok": 4, "experts_per_token": 4, "rms_norm_eps": 1e-5,
        "swiglu_limit": 7.0, "sliding_window": 128, "rope_theta": 150_000,
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
            "original_max_position_embeddings": 4096, "truncate": false}})
}

#[test]
fn yarn_of_the_published_model() {
    let config = Config::parse(&published()).unwrap();
    assert!((config.rope.concentration - 1.346_573_590_279_972_7).abs() < 1e-12);
    let (f, base) = (config.rope.inv_freq(64), |i: i32| 150_000f64.powf(-2.0 * f64::from(i) / 64.0));
    for (i, ratio) in
        [(0, 1.0), (8, 1.0), (9, 0.90555), (12, 0.59323), (17, 0.07269), (18, 1.0 / 32.0), (31, 1.0 / 32.0)]
    {
        assert!((f[i as usize] / base(i) - ratio).abs() < 1e-5, "{i}: {}", f[i as usize] / base(i));
    }
    assert_eq!(config.layers, [LayerKind::Sliding, LayerKind::Full, LayerKind::Sliding, LayerKind::Full]);
}

#[test]
fn both_spellings_of_rope_agree() {
    let mut new = published();
    let map = new.as_object_mut().unwrap();
    let mut scaling = map.remove("rope_scaling").unwrap();
    scaling.as_object_mut().unwrap().insert("rope_theta".into(), map.remove("rope_theta").unwrap());
    map.insert("rope_parameters".into(), scaling);
    assert_eq!(Config::parse(&new).unwrap(), Config::parse(&published()).unwrap());
}

#[test]
fn truncation_is_on_unless_the_file_says_otherwise() {
    let mut json = published();
    json["rope_scaling"].as_object_mut().unwrap().remove("truncate");
    let config = Config::parse(&json).unwrap();
    assert!(matches!(config.rope.scaling, Scaling::Yarn { truncate: true, .. }));
    assert!((config.rope.inv_freq(64)[9] / 150_000f64.powf(-18.0 / 64.0) - 0.90555).abs() > 1e-3);
}

#[test]
fn latent_layers() {
    let mut json = published();
    json["model_type"] = "gpt_oss_mla".into();
    json["layer_types"] =
        json!(["sliding_attention", "latent_attention", "sliding_attention", "full_attention"]);
    json["mla"] = json!([null, {"kv_lora_rank": 288, "rope_pairs": [0, 1, 2]}, null, null]);
    let config = Config::parse(&json).unwrap();
    assert_eq!((config.kv_elements(1), config.kv_elements(3)), (288 + 6 * 8, 1024));
    json["layer_types"][1] = json!("full_attention");
    assert_eq!(Config::parse(&json).unwrap(), config, "as transformers saves it");
    json["mla"][1]["rope_pairs"] = json!([2, 1]);
    assert!(Config::parse(&json).unwrap_err().to_string().contains("layer 1"));
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    for (key, value, text) in [
        ("model_type", json!("mamba"), "model_type `mamba` is not supported"),
        ("rope_scaling", json!({"rope_type": "dynamic"}), "rope_type `dynamic` is not supported"),
        ("num_key_value_heads", json!(7), "multiple of num_key_value_heads"),
        ("num_key_value_heads", json!(0), "multiple of num_key_value_heads"),
        ("hidden_size", json!("wide"), "invalid type"),
        ("head_dim", json!(63), "head_dim must be even"),
        ("head_dim", json!(0), "head_dim must be even"),
        ("sliding_window", json!(0), "sliding_window must be positive"),
        ("num_experts_per_tok", json!(0), "between 1 and num_local_experts"),
        ("num_experts_per_tok", json!(33), "between 1 and num_local_experts"),
        ("rope_scaling", json!({"rope_type": "yarn"}), "yarn needs original_max_position_embeddings"),
        ("rope_theta", json!(null), "rope_theta is missing"),
        ("layer_types", json!(["full_attention"]), "must have 4 entries"),
        ("mla", json!([null, null]), "must have 4 entries"),
    ] {
        let mut json = published();
        json.as_object_mut().unwrap().remove("experts_per_token");
        json[key] = value;
        let error = Config::parse(&json).unwrap_err().to_string();
        assert!(error.starts_with("config.json: ") && error.contains(text), "{key}: {error}");
    }
}

#[test]
fn each_size_that_has_no_default_is_missed_by_name() {
    for key in [
        "hidden_size",
        "vocab_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "num_hidden_layers",
        "num_local_experts",
        "rms_norm_eps",
    ] {
        let mut json = published();
        json.as_object_mut().unwrap().remove(key);
        let error = Config::parse(&json).unwrap_err().to_string();
        assert_eq!(error, format!("config.json: missing field `{key}`"));
    }
}

#[test]
fn latent_layers_that_do_not_fit_are_told_by_their_index() {
    let sizes = |rank: usize, pairs: &[usize]| json!({"kv_lora_rank": rank, "rope_pairs": pairs});
    for (kind, latent, text) in [
        ("latent_attention", json!(null), "layer 1: type `latent_attention` without an entry in `mla`"),
        ("linear_attention", sizes(8, &[0]), "layer 1: type `linear_attention` with an entry in `mla`"),
        ("linear_attention", json!(null), "layer 1: type `linear_attention` without an entry"),
        ("latent_attention", sizes(0, &[0]), "layer 1: kv_lora_rank must be positive"),
        ("latent_attention", sizes(8, &[1, 0]), "rope_pairs ascending"),
        ("latent_attention", sizes(8, &[1, 1]), "rope_pairs ascending"),
        (
            "latent_attention",
            json!({"kv_lora_rank": 8, "rope_pairs": [1, 0], "shared_rope": true}),
            "rope_pairs ascending",
        ),
        ("latent_attention", sizes(8, &[0, 32]), "below head_dim / 2"),
        ("latent_attention", json!({"kv_lora_rank": 8}), "missing field `rope_pairs`"),
        ("latent_attention", json!({"kv_lora_rank": 8, "rope_pairs": [], "x": 1}), "unknown field `x`"),
    ] {
        let mut json = published();
        let full = "full_attention";
        json["layer_types"] = json!([full, kind, full, full]);
        json["mla"] = json!([null, latent, null, null]);
        let error = Config::parse(&json).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
    // A window is kept by the layer's type.
    let mut json = published();
    json["layer_types"] =
        json!(["sliding_attention", "latent_attention", "full_attention", "sliding_attention"]);
    json["mla"] = json!([sizes(8, &[0]), sizes(8, &[0]), null, null]);
    let slides: Vec<bool> = Config::parse(&json).unwrap().layers.iter().map(LayerKind::slides).collect();
    assert_eq!(slides, [true, false, false, true]);
    // None rotated and all rotated are both well.
    let all: Vec<usize> = (0..32).collect();
    for pairs in [&[][..], &all] {
        let mut json = published();
        json["layer_types"] = json!(vec!["full_attention"; 4]);
        json["mla"] = json!([sizes(8, pairs), null, null, null]);
        let config = Config::parse(&json).unwrap();
        assert_eq!(config.kv_elements(0), 8 + 2 * pairs.len() * 8);
    }
}

#[test]
fn what_the_file_does_not_say_is_as_in_transformers() {
    let mut json = published();
    let map = json.as_object_mut().unwrap();
    for key in ["swiglu_limit", "sliding_window", "rope_scaling", "experts_per_token"] {
        map.remove(key);
    }
    let config = Config::parse(&json).unwrap();
    let experts = config.experts.unwrap();
    assert_eq!((experts.swiglu_limit, experts.swiglu_alpha, config.sliding_window), (7.0, 1.702, 128));
    assert_eq!((config.rope.scaling, config.rope.concentration), (Scaling::Plain, 1.0));
    let plain: Vec<f64> = (0..32).map(|i| 150_000f64.powf(-f64::from(i) / 32.0)).collect();
    for (got, want) in config.rope.inv_freq(64).iter().zip(plain) {
        assert!((got / want - 1.0).abs() < 1e-12);
    }
    let mut json = published();
    json["rope_scaling"]["attention_factor"] = json!(1.25);
    assert!((Config::parse(&json).unwrap().rope.concentration - 1.25).abs() < 1e-12);
}

/// Where the ends of the ramp are not rounded, it is linear in the logarithm of the turns that a pair makes in the original context:
/// 0 at `beta_fast` turns, 1 at `beta_slow`.
#[test]
fn the_yarn_table_is_the_formula_of_turns() {
    for (d, theta, context) in [(64, 150_000.0, 4096.0), (128, 10_000.0, 8192.0), (16, 500_000.0, 2048.0)] {
        for factor in [1.0, 2.0, 8.0, 32.0, 40.0] {
            let rope = Rope {
                theta,
                scaling: Scaling::Yarn { factor, beta_fast: 32.0, beta_slow: 1.0, truncate: false },
                original_context: context,
                concentration: 1.0,
            };
            for (i, got) in rope.inv_freq(d).into_iter().enumerate() {
                let base = theta.powf(-2.0 * i as f64 / d as f64);
                let turns = context * base / std::f64::consts::TAU;
                let slow = ((32f64.ln() - turns.ln()) / 32f64.ln()).clamp(0.0, 1.0);
                let want = base * (1.0 - slow) + base / factor * slow;
                assert!((got / want - 1.0).abs() < 1e-9, "{d} {theta} {factor}, pair {i}: {got} {want}");
            }
        }
    }
}

#[test]
fn rounded_ends_keep_the_fast_pairs_and_divide_the_slow_ones() {
    for factor in [4.0, 32.0] {
        let rope = Rope {
            theta: 150_000.0,
            scaling: Scaling::Yarn { factor, beta_fast: 32.0, beta_slow: 1.0, truncate: true },
            original_context: 4096.0,
            concentration: 1.0,
        };
        let frequencies = rope.inv_freq(64);
        assert!(frequencies.windows(2).all(|pair| pair[0] > pair[1]));
        for (i, got) in frequencies.into_iter().enumerate() {
            let ratio = got / 150_000f64.powf(-(i as f64) / 32.0);
            // The ends are 8.09 and 17.4 before rounding, so 8 and 18.
            let ramp = ((i as f64 - 8.0) / 10.0).clamp(0.0, 1.0);
            assert!((ratio - (1.0 - ramp + ramp / factor)).abs() < 1e-9, "pair {i}: {ratio}");
        }
    }
}
