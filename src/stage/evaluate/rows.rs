//! The table's rows: figures of predictions, and what a model's configuration says about its cache. Knows no tensor.

use crate::{
    artifact::scores::{Protocol, Row, Scores},
    model::Config,
};

use super::{
    Evaluate,
    compare::Predicted,
    held_out::HeldOut,
    summary::{self, Beside},
};

/// Bytes of a cached element: BF16.
const ELEMENT_BYTES: usize = 2;

/// The scores of the models, the original first, from their predictions.
pub(super) fn scores(
    stage: &Evaluate,
    models: &[(&str, &Config)],
    held_out: &HeldOut,
    predictions: &[Vec<Predicted>],
) -> Scores {
    let (places, answers) = held_out.places();
    let baseline = Cache::of(models[0].1, stage.max_length);
    let row = |(&(name, config), seen): (&(&str, &Config), &Vec<Predicted>)| {
        let beside = Beside { places: &places, original: &predictions[0], model: seen };
        let cache = Cache::of(config, stage.max_length);
        let bytes = |elements: usize| elements * config.storage.cache.bits() / 8;
        Row {
            model: name.to_owned(),
            all: beside.all(),
            buckets: beside.buckets(&stage.buckets, stage.max_length),
            recall: summary::recall(&answers, held_out.skipped(), seen, &stage.distances),
            kv_bytes_per_token: bytes(cache.growing()),
            kv_bytes_per_token_sliding: bytes(cache.sliding),
            kv_cut: saved(bytes(cache.growing()), baseline.growing() * ELEMENT_BYTES),
            kv_cut_whole_model: saved(bytes(cache.whole), baseline.whole * ELEMENT_BYTES),
            kv_elements_per_layer: cache.full,
        }
    };
    Scores {
        protocol: Protocol {
            text: held_out.description(),
            documents: held_out.documents.len(),
            tokens: places.len(),
            max_tokens: stage.max_length,
            bos: stage.bos.clone(),
            numerics: "f32, cpu".to_owned(),
            kv_element_bytes: ELEMENT_BYTES,
        },
        models: models.iter().zip(predictions).map(row).collect(),
    }
}

/// Cached elements of a model.
struct Cache {
    /// Per token, in each layer that sees all tokens before.
    full: Vec<usize>,
    /// Per token, over all sliding-window layers.
    sliding: usize,
    /// Of the whole model at a given context; a sliding layer holds its window at most.
    whole: usize,
}

impl Cache {
    fn of(config: &Config, context: usize) -> Self {
        let (mut full, mut sliding) = (Vec::new(), 0);
        for (i, kind) in config.layers.iter().enumerate() {
            if kind.slides() {
                sliding += config.kv_elements(i);
            } else {
                full.push(config.kv_elements(i));
            }
        }
        let whole = full.iter().sum::<usize>() * context + sliding * context.min(config.sliding_window);
        Self { full, sliding, whole }
    }

    fn growing(&self) -> usize {
        self.full.iter().sum()
    }
}

/// The share of `before` that `now` saves.
fn saved(now: usize, before: usize) -> f64 {
    if before == 0 { 0.0 } else { 1.0 - now as f64 / before as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(layer_types: &[&str], mla: &serde_json::Value) -> Config {
        Config::parse(&serde_json::json!({"model_type": "gpt_oss_mla", "hidden_size": 32, "vocab_size": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 32,
            "num_hidden_layers": layer_types.len(), "num_local_experts": 2, "num_experts_per_tok": 1,
            "rms_norm_eps": 1e-5, "sliding_window": 8, "rope_theta": 1000.0, "layer_types": layer_types, "mla": mla}))
        .unwrap()
    }

    #[test]
    fn sliding_layers_stop_growing_at_the_window() {
        let (s, f, l) = ("sliding_attention", "full_attention", "latent_attention");
        let before = Cache::of(&config(&[s, f, s, f], &serde_json::json!([null, null, null, null])), 100);
        let latent = serde_json::json!({"kv_lora_rank": 20, "rope_pairs": [0, 1, 2]});
        let after = Cache::of(&config(&[s, l, s, f], &serde_json::json!([null, latent, null, null])), 100);
        assert_eq!((before.full.as_slice(), before.sliding), (&[64, 64][..], 128));
        assert_eq!((after.full.as_slice(), after.sliding), (&[32, 64][..], 128));
        assert_eq!((before.whole, after.whole), (128 * 100 + 128 * 8, 96 * 100 + 128 * 8));
        let latent = serde_json::json!({"kv_lora_rank": 20, "rope_pairs": [0, 1, 2]});
        let windows = Cache::of(&config(&[s, f, s, f], &serde_json::json!([latent, null, null, null])), 100);
        assert_eq!((windows.full.as_slice(), windows.sliding), (&[64, 64][..], 32 + 64));
        assert!((saved(after.growing(), before.growing()) - 0.25).abs() < 1e-12);
        assert!(saved(0, 0).abs() < 1e-12);
    }
}
