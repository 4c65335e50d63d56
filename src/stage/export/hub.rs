//! The JSON files and the code that let transformers load a bundle. Knows file names and keys, no tensor.

use serde_json::{Map, Value, json};

/// The classes that load a checkpoint with latent layers.
pub(super) const MODELING: &str = include_str!("modeling_gpt_oss_mla.py");
/// Their configuration.
pub(super) const CONFIGURATION: &str = include_str!("configuration_gpt_oss_mla.py");

/// Side files of a checkpoint that belong into a bundle under the same name.
pub(super) const CARRIED: [&str; 9] = [
    "LICENSE",
    "USAGE_POLICY",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
];

/// Whether stock transformers lacks the architecture, so that the bundle must bring its code.
pub(super) fn needs_code(config: &Value) -> bool {
    config["model_type"] == "gpt_oss_mla"
}

/// The `config.json` of the bundle.
pub(super) fn config(checkpoint: &Value) -> Value {
    let mut config = checkpoint.clone();
    if needs_code(checkpoint) {
        config["architectures"] = json!(["GptOssMlaForCausalLM"]);
        config["auto_map"] = json!({
            "AutoConfig": "configuration_gpt_oss_mla.GptOssMlaConfig",
            "AutoModelForCausalLM": "modeling_gpt_oss_mla.GptOssMlaForCausalLM",
        });
    } else {
        config["architectures"] = json!(["GptOssForCausalLM"]);
    }
    config
}

/// A generation config from the special tokens that `config.json` names, for a checkpoint without one of its own.
pub(super) fn generation_config(config: &Value) -> Value {
    let mut out = Map::new();
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        if let Some(id) = config.get(key).filter(|id| !id.is_null()) {
            out.insert(key.to_owned(), id.clone());
        }
    }
    Value::Object(out)
}

/// A tokenizer config for a checkpoint that has only `tokenizer.json`: everything else is in that file.
pub(super) fn tokenizer_config(config: &Value) -> Value {
    let mut out =
        json!({"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false});
    if let Some(length) = config.get("max_position_embeddings") {
        out["model_max_length"] = length.clone();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latent_model_brings_its_code_and_a_stock_model_does_not() {
        let mla = config(&json!({"model_type": "gpt_oss_mla", "mla": [null], "architectures": ["Wrong"]}));
        assert_eq!(mla["architectures"], json!(["GptOssMlaForCausalLM"]));
        for (class, file, source) in [
            ("AutoConfig", "configuration_gpt_oss_mla", CONFIGURATION),
            ("AutoModelForCausalLM", "modeling_gpt_oss_mla", MODELING),
        ] {
            let (in_file, name) = mla["auto_map"][class].as_str().unwrap().split_once('.').unwrap();
            assert_eq!(in_file, file);
            assert!(source.contains(&format!("class {name}(")), "{name}");
        }
        assert_eq!(mla["mla"], json!([null]));
        let stock = config(&json!({"model_type": "gpt_oss"}));
        assert!(stock.get("auto_map").is_none());
        assert_eq!(stock["architectures"], json!(["GptOssForCausalLM"]));
    }

    #[test]
    fn special_tokens_reach_the_generation_config() {
        let config = json!({"eos_token_id": [2, 3], "pad_token_id": null, "hidden_size": 8});
        assert_eq!(generation_config(&config), json!({"eos_token_id": [2, 3]}));
        assert_eq!(tokenizer_config(&json!({"max_position_embeddings": 512}))["model_max_length"], 512);
    }

    #[test]
    fn the_code_is_self_contained() {
        assert!(MODELING.contains("from .configuration_gpt_oss_mla import GptOssMlaConfig"));
        assert!(!MODELING.contains("mla_run"));
    }
}
