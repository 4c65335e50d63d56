//! `quantization_config`: which ways of storing weights are read, and what is said of those that are written. Knows no tensor.

use serde_json::{Value, json};

use super::config::ConfigError;

const KEY: &str = "quantization_config";
/// What is said of the experts of a model whose other weights are bitsandbytes'; transformers has one entry for all.
const EXPERTS: &str = "experts_quantization_config";

/// Refuses what the loader could not make sense of.
pub(super) fn check(config: &Value) -> Result<(), ConfigError> {
    let Some(written) = config.get(KEY).filter(|written| !written.is_null()) else { return Ok(()) };
    let fault = |text: String| Err(ConfigError::Value(format!("{KEY}: {text}")));
    let flag = |name: &str| written.get(name).and_then(Value::as_bool).unwrap_or(false);
    let text = |name: &str| written.get(name).and_then(Value::as_str);
    let (four, eight) = (flag("load_in_4bit"), flag("load_in_8bit"));
    let method = text("quant_method").unwrap_or(if four || eight { "bitsandbytes" } else { "" });
    match method {
        "mxfp4" => Ok(()),
        "bitsandbytes" if eight || !four => {
            fault("of bitsandbytes, weights of 8 bits are not supported; supported: 4 bits (nf4)".to_owned())
        }
        "bitsandbytes" => match text("bnb_4bit_quant_type").unwrap_or("fp4") {
            "nf4" => Ok(()),
            other => fault(format!("bnb_4bit_quant_type `{other}` is not supported; supported: nf4")),
        },
        other => fault(format!(
            "quant_method `{other}` is not supported; supported: mxfp4, bitsandbytes (nf4). Take the model's unquantised weights"
        )),
    }
}

/// Says that attention, embedding, head and, in a `dense` model, MLPs are in NF4 with double quantisation. What was said of experts is
/// kept under a name of its own.
pub fn set_nf4(config: &mut Value, dense: bool) {
    let skipped: &[&str] = if dense { &[] } else { &["router", "experts"] };
    let before = config.get(KEY).filter(|before| before["quant_method"] == "mxfp4").cloned();
    config[KEY] = json!({
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": true,
        "llm_int8_skip_modules": skipped,
        "load_in_4bit": true,
        "load_in_8bit": false,
        "quant_method": "bitsandbytes",
    });
    if let Some(before) = before {
        config[EXPERTS] = before;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(written: &Value) -> Result<(), String> {
        check(&json!({"quantization_config": written})).map_err(|error| error.to_string())
    }

    #[test]
    fn what_the_loader_reads_is_accepted_and_the_rest_is_refused_by_name() {
        let nf4 = |more: Value| {
            let mut written = json!({"load_in_4bit": true, "bnb_4bit_quant_type": "nf4"});
            written.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            written
        };
        for good in [
            Value::Null,
            json!({"quant_method": "mxfp4"}),
            nf4(json!({"quant_method": "bitsandbytes"})),
            nf4(json!({})),
        ] {
            assert_eq!(checked(&good), Ok(()), "{good}");
        }
        for (bad, text) in [
            (json!({"quant_method": "gptq", "bits": 4}), "quant_method `gptq` is not supported"),
            (json!({"quant_method": "fp8"}), "quant_method `fp8`"),
            (json!({"quant_method": "bitsandbytes", "load_in_8bit": true}), "weights of 8 bits"),
            (json!({"load_in_4bit": true}), "bnb_4bit_quant_type `fp4`"),
            (nf4(json!({"bnb_4bit_quant_type": "fp4"})), "bnb_4bit_quant_type `fp4`"),
        ] {
            let error = checked(&bad).unwrap_err();
            assert!(
                error.starts_with("config.json: quantization_config: ") && error.contains(text),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_written_is_accepted_and_keeps_what_was_said_of_the_experts() {
        let mut config =
            json!({"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}});
        set_nf4(&mut config, false);
        check(&config).unwrap();
        assert_eq!(config["quantization_config"]["llm_int8_skip_modules"], json!(["router", "experts"]));
        assert_eq!(config[EXPERTS]["modules_to_not_convert"], json!(["lm_head"]));
        let again = config.clone();
        set_nf4(&mut config, false);
        assert_eq!(config, again);
        let mut dense = json!({});
        set_nf4(&mut dense, true);
        assert_eq!((dense.get(EXPERTS), &dense[KEY]["llm_int8_skip_modules"]), (None, &json!([])));
    }
}
