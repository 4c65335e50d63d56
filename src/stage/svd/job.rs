//! A conversion under way: the parity gate, the splits of the budget, their measurement, the new checkpoint.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    Dtype, Layout, Svd, SvdError,
    budget::{self, Split},
    fold,
    measure::{self, Variant},
    source::Source,
};
use crate::{
    artifact::{
        checkpoint::{Checkpoint, Draft},
        conversion::Parity,
    },
    engine::action::{Cx, Failure},
    math::low_rank::LowRank,
    model::{Batch, Config, config::LayerKind},
};

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
        self.cx.progress.phase("parity", None, "tokens");
        let all: Vec<usize> = (0..self.config.head_dim / 2).collect();
        let width = self.config.num_key_value_heads * self.config.head_dim;
        let lossless = LowRank::identity(width);
        let fold = |source: &Source| (source.layer, fold::fold(source, &all, &lossless, Dtype::F32));
        let kinds = vec![(all.clone(), width); self.sources.len()];
        let variant =
            Variant { config: self.config_json(&kinds), attention: self.sources.iter().map(fold).collect() };
        let batch = self.prompt();
        let outcome = measure::run(self.cx, self.checkpoint, &[variant], &batch)?;
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
        let rankings: Vec<Vec<usize>> =
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
        let (kv_heads, has) = (self.config.num_key_value_heads, frequencies.len());
        let turning = frequencies.iter().filter(|&&f| f > least).count();
        let pairs = match (self.svd.layout, self.svd.rope_pairs) {
            (Layout::A, _) => has..=has,
            (Layout::B, Some(wanted)) if wanted > has => return Err(SvdError::Pairs { wanted, has }),
            (Layout::B, Some(wanted)) => wanted..=wanted,
            (Layout::B, None) => 0..=turning,
        };
        let Some(budget) = self.svd.kv_budget else {
            let rank = self.svd.kv_lora_rank.expect("checked: one of the two is there");
            return Ok(pairs.map(|pairs| (pairs, rank)).collect());
        };
        let least_pairs = *pairs.start();
        let needed = 2 * kv_heads * least_pairs;
        let fits = |pairs: usize| budget.checked_sub(2 * kv_heads * pairs).filter(|&rank| rank > 0);
        let wanted: Vec<_> = pairs.filter_map(|pairs| Some((pairs, fits(pairs)?))).collect();
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
        self.cx.progress.phase(&label, None, "tokens");
        let outcome = measure::run(self.cx, self.checkpoint, &variants, &batch)?;
        for (n, i) in which.into_iter().enumerate() {
            splits[i].candidate.kl = Some(outcome.kl(n)?);
        }
        Ok(())
    }

    fn variant(&self, split: &Split) -> Variant {
        let mut attention = BTreeMap::new();
        for (source, part) in self.sources.iter().zip(&split.parts) {
            let map = part.components.truncate(split.rank);
            attention.insert(source.layer, fold::fold(source, &part.rotated, &map, self.svd.dtype));
        }
        let kinds: Vec<_> = split.parts.iter().map(|part| (part.rotated.clone(), split.rank)).collect();
        Variant { config: self.config_json(&kinds), attention }
    }

    /// The converted `config.json`; `kinds` holds rotated pairs and rank of each source.
    fn config_json(&self, kinds: &[(Vec<usize>, usize)]) -> Value {
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
            latents[source.layer] = json!({"kv_lora_rank": rank, "rope_pairs": rotated});
        }
        let mut config = self.checkpoint.config.clone();
        let kind = Config::converted_type(config["model_type"].as_str().unwrap_or_default());
        config["model_type"] = kind.into();
        config["layer_types"] = types.into();
        config["mla"] = latents.into();
        config
    }

    /// Writes the converted checkpoint: everything else is copied bit for bit.
    pub(super) fn save(&self, split: &Split) -> Result<(), Failure> {
        let variant = self.variant(split);
        let mut draft = Draft::copy_of(self.checkpoint).map_err(Failure::stage)?;
        draft.config = variant.config;
        for (layer, attention) in variant.attention {
            let prefix = format!("model.layers.{layer}.");
            draft.tensors.retain(|name, _| !(name.starts_with(&prefix) && fold::is_dense_key_value(name)));
            for (name, tensor) in attention {
                draft.tensors.insert(format!("{prefix}self_attn.{name}"), tensor);
            }
        }
        // One shard is written, so an index of several would lie.
        draft.side_files.retain(|name, _| !name.ends_with(".index.json"));
        draft.save(&self.cx.output("checkpoint")).map_err(Failure::stage)
    }
}
