//! The conversion report: errors, ranks and the arithmetic of the cache. Knows no way to convert.

use crate::{
    artifact::{
        conversion::{Cache, Candidate, Conversion, Converted, Parity, Refit},
        moments::{About, Moments},
    },
    engine::action::Cx,
    model::Config,
};

use super::{
    budget::Split,
    job::Job,
    pieces::{LatentKind, LayerBudgets, Layout, Metric},
    source::Source,
};

/// Bytes of a cached BF16 element.
const ELEMENT_BYTES: usize = 2;

/// Gathers the report of the split `best`.
pub(super) fn write(
    job: &Job<'_>,
    moments: &Moments,
    (parity, curve): (Parity, Vec<Candidate>),
    (splits, best): (&[Split], usize),
) -> Conversion {
    let split = &splits[best];
    let about = &moments.about;
    let layers: Vec<Converted> =
        job.sources.iter().enumerate().map(|(i, s)| converted(s, split, i)).collect();
    let latent = match job.pieces.latent {
        LatentKind::Joint => "joint latent of un-rotated keys and values",
        LatentKind::Separate => "latents of un-rotated keys and of values",
    };
    Conversion {
        method: job.svd.method.name().to_owned(),
        layout: match job.pieces.layout {
            Layout::A => "a",
            Layout::B => "b",
            Layout::D => "d",
            Layout::Recompute => "recompute",
        }
        .to_owned(),
        calibration: format!(
            "{latent}; {} calibration tokens in {} sequences of at most {} tokens; uncentred second moments with biases, f64{}",
            about.tokens,
            about.sequences,
            about.max_length,
            more(job, about, split)
        ),
        parity,
        curve,
        refit: None,
        cache: cache(job.config, &layers, job.svd.context),
        layers,
        candidates: if splits.len() > 1 {
            splits.iter().map(|s| s.candidate.clone()).collect()
        } else {
            vec![]
        },
    }
}

/// What else calibration gave.
fn more(job: &Job<'_>, about: &About, split: &Split) -> String {
    let metric = (job.pieces.metric == Metric::Fisher).then(|| {
        format!(
            "; errors weighed by gradients of {} tokens at temperature {}",
            about.fisher_tokens, about.fisher_temperature
        )
    });
    let ranks = (job.pieces.layer_budgets == LayerBudgets::Fisher).then(|| {
        format!("; ranks by gradients of key and value projections of {} tokens", about.fisher_tokens)
    });
    let again = (job.pieces.recalibrate && job.cuts(split))
        .then(|| "; content for what layers see once rotations are given up".to_owned());
    metric.into_iter().chain(ranks).chain(again).collect()
}

fn converted(source: &Source, split: &Split, i: usize) -> Converted {
    let (part, sizes) = (&split.parts[i], source.sizes);
    Converted {
        layer: source.layer,
        rope_pairs: part.rotated.latent(part.rank).map_or(vec![], |latent| latent.rope_pairs),
        kv_lora_rank: part.rank,
        latent_error: if part.content > 0.0 { part.latent_error / part.content } else { 0.0 },
        rope_error: part.rope_error / source.everything.max(f64::MIN_POSITIVE),
        kv_elements_before: 2 * sizes.kv_heads * sizes.d,
        kv_elements_after: part.rank + part.rotated.elements(sizes),
    }
}

/// What the model caches for one sequence of `context` tokens.
fn cache(config: &Config, layers: &[Converted], context: usize) -> Cache {
    let mut cache = Cache { context, element_bytes: ELEMENT_BYTES, ..Cache::default() };
    let (mut sliding_before, mut sliding_after) = (0, 0);
    for (i, kind) in config.layers.iter().enumerate() {
        let before = config.kv_elements(i);
        let after = layers.iter().find(|layer| layer.layer == i).map_or(before, |l| l.kv_elements_after);
        if kind.slides() {
            sliding_before += before * context.min(config.sliding_window);
            sliding_after += after * context.min(config.sliding_window);
            continue;
        }
        cache.growing_elements_before += before;
        cache.growing_elements_after += after;
    }
    let bytes = |elements: usize| (elements * ELEMENT_BYTES) as u64;
    cache.growing_cut =
        1.0 - cache.growing_elements_after as f64 / cache.growing_elements_before.max(1) as f64;
    cache.sliding_bytes_before = bytes(sliding_before);
    cache.sliding_bytes_after = bytes(sliding_after);
    cache.bytes_before = bytes(sliding_before + cache.growing_elements_before * context);
    cache.bytes_after = bytes(sliding_after + cache.growing_elements_after * context);
    cache
}

/// Prints the table of splits and one line per layer.
pub(super) fn say(cx: &Cx<'_>, report: &Conversion) {
    for c in &report.candidates {
        let kl = c.kl.map_or(String::new(), |kl| format!(", KL {kl:.4}"));
        let mark = if c.chosen { " ←" } else { "" };
        let folded =
            if c.freqfold > 1 { format!(" of {} frequencies each", c.freqfold) } else { String::new() };
        let range = c.layers.iter().min().zip(c.layers.iter().max());
        let each = range.map_or(String::new(), |(least, most)| format!(", {least} to {most} by layer"));
        let range = c.pairs_by_layer.iter().min().zip(c.pairs_by_layer.iter().max());
        let pairs = range.map_or(c.rope_pairs.to_string(), |(least, most)| format!("{least} to {most}"));
        cx.progress.say(&format!(
            "split: {} rotated pairs{folded} + rank {} = {} elements{each}, predicted error {:.3} %{kl}{mark}",
            pairs,
            c.kv_lora_rank,
            c.kv_elements,
            100.0 * c.predicted
        ));
    }
    cx.progress.say(&arithmetic(&report.cache));
    for c in &report.curve {
        let kl = c.kl.map_or("not measured".to_owned(), |kl| format!("KL {kl:.4}"));
        cx.progress.say(&format!(
            "search: {} elements, {kl}, {} rotated pairs + rank {}",
            c.kv_elements, c.rope_pairs, c.kv_lora_rank
        ));
    }
    if let Some(refit) = &report.refit {
        cx.progress.say(&refitted(refit));
    }
    for layer in &report.layers {
        let cut = 1.0 - layer.kv_elements_after as f64 / layer.kv_elements_before as f64;
        cx.progress.say(&format!(
            "layer {}: {} + rank {} = {} of {} elements (−{:.1} %), latent error {:.3} %, rope error {:.3} %",
            layer.layer,
            rotated(&report.layout, &layer.rope_pairs),
            layer.kv_lora_rank,
            layer.kv_elements_after,
            layer.kv_elements_before,
            100.0 * cut,
            100.0 * layer.latent_error,
            100.0 * layer.rope_error
        ));
    }
}

/// The arithmetic of the cache in words, and how little of it sliding-window layers are.
fn arithmetic(cache: &Cache) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let sliding = if cache.sliding_bytes_before == 0 {
        String::new()
    } else {
        let share = 100.0 * cache.sliding_bytes_before as f64 / cache.bytes_before.max(1) as f64;
        let now = if cache.sliding_bytes_after == cache.sliding_bytes_before {
            "stay as they are".to_owned()
        } else {
            format!("hold {:.2} MiB now", mib(cache.sliding_bytes_after))
        };
        format!(
            "; of that sliding-window layers hold {:.2} MiB ({share:.2} % of the original's) at any length, and {now}",
            mib(cache.sliding_bytes_before)
        )
    };
    format!(
        "cache of {} tokens in BF16: {:.1} MiB, before {:.1} MiB{sliding}",
        cache.context,
        mib(cache.bytes_after),
        mib(cache.bytes_before)
    )
}

/// What fitting output projections anew gave, in words.
fn refitted(refit: &Refit) -> String {
    let better = refit.layers.iter().filter(|layer| layer.ridge.is_some()).count();
    let taken = if refit.taken { "taken" } else { "not taken" };
    format!(
        "refit to {} tokens: {better} of {} output projections, KL {:.4} before and {:.4} after: {taken}",
        refit.tokens,
        refit.layers.len(),
        refit.kl_before,
        refit.kl_after
    )
}

/// What stays rotated, in words.
fn rotated(layout: &str, rope_pairs: &[usize]) -> String {
    match layout {
        "recompute" => "keys made again".to_owned(),
        "d" => {
            let mut frequencies = rope_pairs.to_vec();
            frequencies.dedup();
            format!("{} rotated components at {} frequencies", rope_pairs.len(), frequencies.len())
        }
        _ => format!("rotated pairs {rope_pairs:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_rotated_is_listed_for_heads_and_counted_for_components() {
        assert_eq!(rotated("b", &[0, 3]), "rotated pairs [0, 3]");
        assert_eq!(rotated("d", &[0, 0, 3]), "3 rotated components at 2 frequencies");
        assert_eq!(rotated("recompute", &[]), "keys made again");
    }

    fn config(window: usize) -> Config {
        Config::parse(&serde_json::json!({"model_type": "gpt_oss", "hidden_size": 32, "vocab_size": 8,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 32,
            "num_hidden_layers": 4, "num_local_experts": 2, "num_experts_per_tok": 1, "rms_norm_eps": 1e-5,
            "sliding_window": window, "rope_theta": 1000.0}))
        .unwrap()
    }

    /// GPT-OSS 20B: 12 of 24 layers slide over 128 tokens, each token has 1,024 elements in a layer.
    #[test]
    fn the_arithmetic_of_published_sizes() {
        let cache = Cache {
            context: 131_072,
            sliding_bytes_before: 12 * 128 * 2048,
            sliding_bytes_after: 12 * 128 * 2048,
            bytes_before: 12 * (128 + 131_072) * 2048,
            bytes_after: 12 * (128 * 2048 + 131_072 * 1152),
            ..Cache::default()
        };
        assert_eq!(
            arithmetic(&cache),
            "cache of 131072 tokens in BF16: 1731.0 MiB, before 3075.0 MiB; of that sliding-window layers hold 3.00 MiB \
             (0.10 % of the original's) at any length, and stay as they are"
        );
        let converted = arithmetic(&Cache { sliding_bytes_after: 12 * 128 * 1152, ..cache.clone() });
        assert!(converted.ends_with("at any length, and hold 1.69 MiB now"), "{converted}");
        let none = arithmetic(&Cache { sliding_bytes_before: 0, ..cache });
        assert!(none.ends_with("before 3075.0 MiB"), "{none}");
    }

    #[test]
    fn the_cache_is_counted_layer_by_layer() {
        // Layers 0 and 2 slide, 1 and 3 see everything; each caches 2 · 2 · 16 = 64 elements a token.
        let layer = |layer, kv_elements_after| Converted { layer, kv_elements_after, ..Converted::default() };
        let seen = cache(&config(8), &[layer(1, 20), layer(3, 28)], 100);
        assert_eq!((seen.growing_elements_before, seen.growing_elements_after), (128, 48));
        assert!((seen.growing_cut - 0.625).abs() < 1e-12);
        let sliding = 2 * 64 * 8 * 2;
        assert_eq!((seen.sliding_bytes_before, seen.sliding_bytes_after), (sliding, sliding));
        assert_eq!((seen.bytes_before, seen.bytes_after), (sliding + 128 * 100 * 2, sliding + 48 * 100 * 2));
        assert_eq!((seen.context, seen.element_bytes), (100, 2));
    }

    #[test]
    fn a_layer_that_was_not_converted_keeps_its_size_and_a_short_context_its_window() {
        let layer = Converted { layer: 3, kv_elements_after: 14, ..Converted::default() };
        let seen = cache(&config(8), &[layer], 5);
        assert_eq!(seen.growing_elements_after, 64 + 14);
        assert_eq!(seen.sliding_bytes_before, 2 * 64 * 5 * 2, "a window of 8 holds the 5 tokens there are");
        let window = Converted { layer: 2, kv_elements_after: 14, ..Converted::default() };
        let seen = cache(&config(8), &[window], 5);
        assert_eq!((seen.growing_elements_after, seen.sliding_bytes_after), (128, (64 + 14) * 5 * 2));
        let none = cache(&config(8), &[], 5);
        assert!(none.growing_cut.abs() < 1e-12 && none.bytes_before == none.bytes_after);
    }
}
