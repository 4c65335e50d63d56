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
    assert!(config.rope.truncate);
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
        ("rope_scaling", json!({"rope_type": "llama3"}), "rope_type `llama3` is not supported"),
        ("num_key_value_heads", json!(7), "multiple of num_key_value_heads"),
        ("hidden_size", json!("wide"), "invalid type"),
    ] {
        let mut json = published();
        json[key] = value;
        let error = Config::parse(&json).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    }
}
