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
        layout: if job.svd.layout == Layout::A { "a" } else { "b" }.to_owned(),
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
    let all = part.components.error(0);
    Converted {
        layer: source.layer,
        rope_pairs: part.rotated.clone(),
        kv_lora_rank: split.rank,
        latent_error: if all > 0.0 { part.latent_error / all } else { 0.0 },
        rope_error: part.rope_error / source.everything.max(f64::MIN_POSITIVE),
        kv_elements_before: 2 * sizes.kv_heads * sizes.d,
        kv_elements_after: split.rank + 2 * sizes.kv_heads * part.rotated.len(),
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
