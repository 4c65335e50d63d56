//! A conversion under way: the parity gate, the splits of the budget, their measurement. Knows no file.

use serde_json::{Value, json};

use super::{
    Dtype, Layout, Svd, SvdError,
    budget::{self, Split},
    fold,
    measure::{self, Variant},
    rotated::Rotated,
    source::Source,
};
use crate::{
    artifact::{checkpoint::Checkpoint, conversion::Parity},
    engine::action::{Cx, Failure},
    math::low_rank::LowRank,
    model::{Batch, Config, config::LayerKind},
    stage::weights::Projections,
};

/// Splits of a budget between shared components and the latent that are looked at.
const SPLITS: usize = 16;

/// A conversion under way.
pub(super) struct Job<'a> {
    pub(super) svd: &'a Svd,
    pub(super) cx: &'a Cx<'a>,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) config: &'a Config,
    pub(super) sources: &'a [Source],
}

impl Job<'_> {
    /// Factorises without loss (all pairs rotated, the latent as wide as the values) and compares logits.
    pub(super) fn parity(&self) -> Result<Parity, Failure> {
        let all: Vec<usize> = (0..self.config.head_dim / 2).collect();
        let width = self.config.num_key_value_heads * self.config.head_dim;
        let rotated = |source: &Source| match &source.shared {
            None => Rotated::Pairs(all.clone()),
            Some(shared) => Rotated::Shared(shared.all()),
        };
        let kinds: Vec<_> = self.sources.iter().map(|source| (rotated(source), width)).collect();
        let attention = |source: &Source| {
            let projections = Projections::read(self.checkpoint, self.config, source.layer)?;
            let rotated = rotated(source);
            // Keys that are left over where heads share theirs are zero, and come before the values.
            let lossless = LowRank::last(width, if source.shared.is_some() { 2 * width } else { width });
            Ok(fold::fold((source, &projections), &rotated, &lossless, Dtype::F32))
        };
        let variant = Variant { config: self.config_json(&kinds), attention: Box::new(attention) };
        let batch = self.prompt();
        let outcome = measure::run(self, &[variant], &batch, "parity")?;
        let (difference, largest) = outcome.largest_difference(0)?;
        let measured = difference / largest.max(f64::MIN_POSITIVE);
        let tolerance = self.svd.parity_tolerance.0;
        if measured.is_nan() || measured > tolerance {
            return Err(Failure::stage(SvdError::Parity { measured, tolerance }));
        }
        self.cx.progress.say(&format!(
            "parity: the lossless factorisation differs by {measured:.1e} of the largest logit over {} tokens",
            batch.len()
        ));
        Ok(Parity { relative_difference: measured, tolerance, largest_logit: largest, tokens: batch.len() })
    }

    /// A fixed sequence longer than the window, at the start and far behind the original context.
    fn prompt(&self) -> Batch {
        let length = 2 * self.config.sliding_window + 37;
        let id = |i: usize| (i * i * 7 + i * 31 + 13) % self.config.vocab_size;
        let ids: Vec<u32> = (0..length).map(|i| id(i) as u32).collect();
        let mut batch = Batch::new([&ids[..], &ids[..]]);
        let far = 2 * self.config.rope.original_context as u32;
        batch.positions[length..].iter_mut().for_each(|position| *position += far);
        batch
    }

    /// Every feasible split of the budget, or the one that was asked for.
    pub(super) fn splits(&self) -> Result<Vec<Split>, Failure> {
        let frequencies = self.config.rope.inv_freq(self.config.head_dim);
        let least = self.svd.angle.0 / self.svd.context as f64;
        let rankings: Vec<Rotated> =
            self.sources.iter().map(|source| budget::ranking(source, &frequencies, least)).collect();
        let wanted = self.wanted(&frequencies, least).map_err(Failure::stage)?;
        self.cx.progress.phase("splitting the budget", Some(wanted.len() as u64), "splits");
        let mut splits = Vec::new();
        for at in wanted {
            self.cx.check_stop()?;
            splits.push(budget::split(self.sources, &rankings, at).map_err(Failure::stage)?);
            self.cx.progress.advance(1);
        }
        Ok(splits)
    }

    /// Rotated pairs and latent widths to try.
    fn wanted(&self, frequencies: &[f64], least: f64) -> Result<Vec<(usize, usize)>, SvdError> {
        let shared = self.svd.layout == Layout::D;
        let heads = self.config.num_key_value_heads;
        // Of one pair, or of one component that all heads share.
        let (kv_heads, has) =
            if shared { (1, heads * frequencies.len()) } else { (heads, frequencies.len()) };
        let turning = frequencies.iter().filter(|&&f| f > least).count();
        let pairs = match (self.svd.layout, self.svd.rope_pairs) {
            (Layout::A, _) => has..=has,
            (_, Some(wanted)) if wanted > has => return Err(SvdError::Pairs { wanted, has }),
            (_, Some(wanted)) => wanted..=wanted,
            (Layout::B, None) => 0..=turning,
            (Layout::D, None) => 0..=has,
        };
        let Some(budget) = self.svd.kv_budget else {
            let rank = self.svd.kv_lora_rank.expect("checked: one of the two is there");
            return Ok(pairs.map(|pairs| (pairs, rank)).collect());
        };
        let least_pairs = *pairs.start();
        let needed = 2 * kv_heads * least_pairs;
        let fits = |pairs: usize| budget.checked_sub(2 * kv_heads * pairs).filter(|&rank| rank > 0);
        let most = (*pairs.end()).min(budget / (2 * kv_heads));
        let step = if shared { most.div_ceil(SPLITS).max(1) } else { 1 };
        let wanted: Vec<_> = pairs.step_by(step).filter_map(|pairs| Some((pairs, fits(pairs)?))).collect();
        if wanted.is_empty() {
            return Err(SvdError::Budget { budget, pairs: least_pairs, kv_heads, needed });
        }
        Ok(wanted)
    }

    /// Measures the most promising splits on held-out sequences.
    pub(super) fn measure(&self, splits: &mut [Split], held_out: &[Vec<u32>]) -> Result<(), Failure> {
        let mut tokens = 0;
        let fits = |ids: &&Vec<u32>| {
            tokens += ids.len();
            tokens <= self.svd.measure_tokens
        };
        let sequences: Vec<&[u32]> = held_out.iter().take_while(fits).map(Vec::as_slice).collect();
        if sequences.is_empty() || self.svd.measure == 0 {
            return Ok(());
        }
        let which = budget::promising(splits, self.svd.measure);
        let variants: Vec<Variant> = which.iter().map(|&i| self.variant(&splits[i])).collect();
        let batch = Batch::new(sequences);
        let label = format!("measuring {} splits on {} held-out tokens", which.len(), batch.len());
        let measured = measure::run(self, &variants, &batch, &label)?.kl(self.cx)?;
        drop(variants);
        for (kl, i) in measured.into_iter().zip(which) {
            splits[i].candidate.kl = Some(kl);
        }
        Ok(())
    }

    /// The model that a split makes; each layer is folded when it is asked for.
    pub(super) fn variant<'a>(&'a self, split: &'a Split) -> Variant<'a> {
        let kinds: Vec<_> = split.parts.iter().map(|part| (part.rotated.clone(), split.rank)).collect();
        let attention = move |source: &Source| {
            let at = self.sources.iter().position(|one| one.layer == source.layer);
            let rotated = &split.parts[at.expect("a source of this job")].rotated;
            let map = source.components(rotated)?.truncate(split.rank);
            let projections = Projections::read(self.checkpoint, self.config, source.layer)?;
            Ok(fold::fold((source, &projections), rotated, &map, self.svd.dtype))
        };
        Variant { config: self.config_json(&kinds), attention: Box::new(attention) }
    }

    /// Bytes of folding one layer: its weights in f64, what they become, and the decomposition of its content.
    pub(super) fn folding(&self) -> u64 {
        let config = self.config;
        let (heads, kv_heads, d) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let weights = 2 * (heads + kv_heads) * d * (config.hidden_size + 1);
        let content = 2 * kv_heads * d;
        // Queries are there once more in f64 and once in the new tensors; roots, moments and eigenvectors are squares of the content.
        let kept = self.sources.len() * (2 * content * content + heads * d * d);
        ((2 * weights + 8 * content * content + kept) * size_of::<f64>()) as u64
    }

    /// The converted `config.json`; `kinds` holds rotated pairs and rank of each source.
    fn config_json(&self, kinds: &[(Rotated, usize)]) -> Value {
        let layers = self.config.layers.len();
        let mut types: Vec<Value> = Vec::with_capacity(layers);
        let mut latents = vec![Value::Null; layers];
        for kind in &self.config.layers {
            types.push(match kind {
                LayerKind::Sliding => "sliding_attention".into(),
                LayerKind::Full => "full_attention".into(),
                LayerKind::Latent(_) => "latent_attention".into(),
            });
        }
        for (i, kind) in self.config.layers.iter().enumerate() {
            if let LayerKind::Latent(latent) = kind {
                latents[i] = json!(latent);
            }
        }
        for (source, (rotated, rank)) in self.sources.iter().zip(kinds) {
            types[source.layer] = "latent_attention".into();
            latents[source.layer] = json!(rotated.latent(*rank));
        }
        let mut config = self.checkpoint.config.clone();
        let kind = Config::converted_type(config["model_type"].as_str().unwrap_or_default());
        config["model_type"] = kind.into();
        config["layer_types"] = types.into();
        config["mla"] = latents.into();
        config
    }
}
