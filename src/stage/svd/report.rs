//! The conversion report: errors, ranks and the arithmetic of the cache. Knows no way to convert.

use crate::{
    artifact::{
        conversion::{Cache, Conversion, Converted, Parity},
        moments::Moments,
    },
    engine::action::Cx,
    model::{Config, config::LayerKind},
};

use super::{Layout, budget::Split, job::Job, source::Source};

/// Bytes of a cached BF16 element.
const ELEMENT_BYTES: usize = 2;

/// Gathers the report of the split `best`.
pub(super) fn write(
    job: &Job<'_>,
    moments: &Moments,
    parity: Parity,
    (splits, best): (&[Split], usize),
) -> Conversion {
    let split = &splits[best];
    let about = &moments.about;
    let layers: Vec<Converted> =
        job.sources.iter().enumerate().map(|(i, s)| converted(s, split, i)).collect();
    Conversion {
        layout: match job.svd.layout {
            Layout::A => "a",
            Layout::B => "b",
            Layout::D => "d",
        }
        .to_owned(),
        method: format!(
            "joint latent of un-rotated keys and values; {} calibration tokens in {} sequences of at most {} tokens; \
             uncentred second moments with biases, f64",
            about.tokens, about.sequences, about.max_length
        ),
        parity,
        cache: cache(job.config, &layers, job.svd.context),
        layers,
        candidates: if splits.len() > 1 {
            splits.iter().map(|s| s.candidate.clone()).collect()
        } else {
            vec![]
        },
    }
}

fn converted(source: &Source, split: &Split, i: usize) -> Converted {
    let (part, sizes) = (&split.parts[i], source.sizes);
    let latent = part.rotated.latent(split.rank);
    Converted {
        layer: source.layer,
        rope_pairs: latent.rope_pairs,
        kv_lora_rank: latent.kv_lora_rank,
        latent_error: if part.content > 0.0 { part.latent_error / part.content } else { 0.0 },
        rope_error: part.rope_error / source.everything.max(f64::MIN_POSITIVE),
        kv_elements_before: 2 * sizes.kv_heads * sizes.d,
        kv_elements_after: split.rank + part.rotated.elements(sizes),
    }
}

/// What the model caches for one sequence of `context` tokens.
fn cache(config: &Config, layers: &[Converted], context: usize) -> Cache {
    let mut cache = Cache { context, element_bytes: ELEMENT_BYTES, ..Cache::default() };
    let mut sliding = 0;
    for (i, kind) in config.layers.iter().enumerate() {
        let before = config.kv_elements(i);
        if *kind == LayerKind::Sliding {
            sliding += before * context.min(config.sliding_window);
            continue;
        }
        let after = layers.iter().find(|layer| layer.layer == i).map_or(before, |l| l.kv_elements_after);
        cache.growing_elements_before += before;
        cache.growing_elements_after += after;
    }
    let bytes = |elements: usize| (elements * ELEMENT_BYTES) as u64;
    cache.growing_cut =
        1.0 - cache.growing_elements_after as f64 / cache.growing_elements_before.max(1) as f64;
    cache.sliding_bytes = bytes(sliding);
    cache.bytes_before = bytes(sliding + cache.growing_elements_before * context);
    cache.bytes_after = bytes(sliding + cache.growing_elements_after * context);
    cache
}

/// Prints the table of splits and one line per layer.
pub(super) fn say(cx: &Cx<'_>, report: &Conversion) {
    for c in &report.candidates {
        let kl = c.kl.map_or(String::new(), |kl| format!(", KL {kl:.4}"));
        let mark = if c.chosen { " ←" } else { "" };
        cx.progress.say(&format!(
            "split: {} rotated pairs + rank {} = {} elements, predicted error {:.3} %{kl}{mark}",
            c.rope_pairs,
            c.kv_lora_rank,
            c.kv_elements,
            100.0 * c.predicted
        ));
    }
    for layer in &report.layers {
        let cut = 1.0 - layer.kv_elements_after as f64 / layer.kv_elements_before as f64;
        cx.progress.say(&format!(
            "layer {}: rotated pairs {:?} + rank {} = {} of {} elements (−{:.1} %), latent error {:.3} %, rope error {:.3} %",
            layer.layer,
            layer.rope_pairs,
            layer.kv_lora_rank,
            layer.kv_elements_after,
            layer.kv_elements_before,
            100.0 * cut,
            100.0 * layer.latent_error,
            100.0 * layer.rope_error
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(window: usize) -> Config {
        Config::parse(&serde_json::json!({"model_type": "gpt_oss", "hidden_size": 32, "vocab_size": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 32,
            "num_hidden_layers": 4, "num_local_experts": 2, "num_experts_per_tok": 1, "rms_norm_eps": 1e-5,
            "sliding_window": window, "rope_theta": 1000.0}))
        .unwrap()
    }

    #[test]
    fn the_cache_is_counted_layer_by_layer() {
        // Layers 0 and 2 slide, 1 and 3 see everything; each caches 2 · 2 · 16 = 64 elements a token.
        let layer = |layer, kv_elements_after| Converted { layer, kv_elements_after, ..Converted::default() };
        let seen = cache(&config(8), &[layer(1, 20), layer(3, 28)], 100);
        assert_eq!((seen.growing_elements_before, seen.growing_elements_after), (128, 48));
        assert!((seen.growing_cut - 0.625).abs() < 1e-12);
        let sliding = 2 * 64 * 8 * 2;
        assert_eq!(seen.sliding_bytes, sliding);
        assert_eq!((seen.bytes_before, seen.bytes_after), (sliding + 128 * 100 * 2, sliding + 48 * 100 * 2));
        assert_eq!((seen.context, seen.element_bytes), (100, 2));
    }

    #[test]
    fn a_layer_that_was_not_converted_keeps_its_size_and_a_short_context_its_window() {
        let layer = Converted { layer: 3, kv_elements_after: 14, ..Converted::default() };
        let seen = cache(&config(8), &[layer], 5);
        assert_eq!(seen.growing_elements_after, 64 + 14);
        assert_eq!(seen.sliding_bytes, 2 * 64 * 5 * 2, "a window of 8 holds the 5 tokens there are");
        let none = cache(&config(8), &[], 5);
        assert!(none.growing_cut.abs() < 1e-12 && none.bytes_before == none.bytes_after);
    }
}
