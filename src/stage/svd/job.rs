//! A conversion under way: the parity gate, the splits of the budget, their measurement. Knows no file.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    Svd,
    budget::{self, Choice, Part, Split},
    error::SvdError,
    fold,
    measure::{self, Variant},
    passes::Passes,
    pieces::{Dtype, LayerBudgets, Layout, Metric, Pieces},
    ranking::Ranking,
    ranks,
    rotated::Rotated,
    source::Source,
};
use crate::{
    artifact::{
        checkpoint::{Checkpoint, Owned},
        conversion::{Candidate, Parity},
    },
    engine::action::{Cx, Failure},
    math::low_rank::LowRank,
    model::{Batch, Config, config::LayerKind},
    stage::weights::Projections,
};

/// A conversion under way.
pub(super) struct Job<'a> {
    pub(super) svd: &'a Svd,
    pub(super) cx: &'a Cx<'a>,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) config: &'a Config,
    pub(super) sources: &'a [Source],
    pub(super) pieces: &'a Pieces,
    pub(super) passes: &'a Passes,
}

impl Job<'_> {
    /// The source of layer `index`, if it is converted.
    pub(super) fn source(&self, index: usize) -> Option<&Source> {
        self.sources.iter().find(|source| source.layer == index)
    }

    /// Factorises without loss (all pairs rotated, the latent as wide as the values) and compares logits.
    pub(super) fn parity(&self) -> Result<Parity, Failure> {
        let all: Vec<usize> = (0..self.config.head_dim / 2).collect();
        let width = self.config.num_key_value_heads * self.config.head_dim;
        let rotated = |source: &Source| match self.pieces.layout {
            Layout::A | Layout::B => Rotated::Pairs(all.clone()),
            Layout::D => {
                let kept = source.shared[&1].iter().flatten().cloned().collect();
                Rotated::Shared { kept, rest: Vec::new() }
            }
            Layout::Recompute => Rotated::Recomputed,
        };
        let lossless = match self.pieces.layout {
            Layout::A | Layout::B => LowRank::last(width, width),
            // Keys that are left over where heads share theirs are zero, and come before the values.
            Layout::D => LowRank::last(width, 2 * width),
            Layout::Recompute => LowRank::last(2 * width, 2 * width),
        };
        let kinds: Vec<_> =
            self.sources.iter().map(|source| (source.layer, rotated(source), width)).collect();
        let attention = |source: &Source| {
            let projections = Projections::read(self.checkpoint, self.config, source.layer)?;
            Ok(fold::fold((source, &projections), &rotated(source), &lossless, Dtype::F32))
        };
        let config = self.config_json(&kinds);
        let variant = Variant { config, attention: Box::new(attention), only: None };
        let batch = self.prompt();
        let (difference, largest) = measure::largest_difference(self, variant, &batch, "parity")?;
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

    /// What every layer would keep rotated.
    pub(super) fn rankings(&self, freqfold: usize) -> Vec<Ranking> {
        let frequencies = self.config.rope.inv_freq(self.config.head_dim);
        let rank = |source| Ranking::new(source, freqfold, (&frequencies, self.least_turn()));
        self.sources.iter().map(rank).collect()
    }

    /// Radians per token below which a pair hardly turns within the context.
    fn least_turn(&self) -> f64 {
        self.svd.angle.0 / self.svd.context as f64
    }

    /// Every feasible split of the budget, or the one that was asked for.
    pub(super) fn splits(&self, budget: Option<usize>) -> Result<Vec<Split>, Failure> {
        let frequencies = self.config.rope.inv_freq(self.config.head_dim);
        let turning = frequencies.iter().filter(|&&f| f > self.least_turn()).count();
        let (mut wanted, mut small): (Vec<Choice>, Option<SvdError>) = (Vec::new(), None);
        let rankings: BTreeMap<usize, Vec<Ranking>> =
            self.pieces.freqfold.iter().map(|&freqfold| (freqfold, self.rankings(freqfold))).collect();
        for (&freqfold, rankings) in &rankings {
            match budget::choices(self, budget, (freqfold, &rankings[0]), turning) {
                Ok(choices) => wanted.extend(choices),
                // Other groups of frequencies may need less.
                Err(error @ SvdError::Budget { .. }) => small = Some(error),
                Err(error) => return Err(Failure::stage(error)),
            }
        }
        if wanted.is_empty() {
            let uneven = || SvdError::Uneven { wanted: self.svd.rope_pairs.unwrap_or_default() };
            return Err(Failure::stage(small.unwrap_or_else(uneven)));
        }
        self.cx.progress.phase("splitting the budget", Some(wanted.len() as u64), "splits");
        let mut splits = Vec::new();
        for choice in wanted {
            self.cx.check_stop()?;
            let choices = match self.pieces.layer_budgets {
                LayerBudgets::Fisher => ranks::by_gradients(self.sources, choice).map_err(Failure::stage)?,
                _ => vec![choice; self.sources.len()],
            };
            let split = budget::split(self.sources, &rankings[&choice.freqfold], &choices);
            splits.push(split.map_err(Failure::stage)?);
            self.cx.progress.advance(1);
        }
        if self.pieces.own_splits {
            splits.extend(budget::mixed(self.sources, &splits));
        }
        Ok(splits)
    }

    /// The best split of every budget of the search, ascending, `own` among them; empty without a search.
    pub(super) fn curve(&self, own: &Candidate, held_out: &[Vec<u32>]) -> Result<Vec<Candidate>, Failure> {
        let Some(search) = &self.svd.search else { return Ok(vec![]) };
        let mut curve = vec![own.clone()];
        for &budget in search.kv_budget.iter().filter(|&&budget| Some(budget) != self.svd.kv_budget) {
            let mut splits = self.splits(Some(budget))?;
            self.measure(&mut splits, held_out)?;
            let best = budget::choose(&mut splits);
            curve.push(Candidate { chosen: false, ..splits.swap_remove(best).candidate });
        }
        curve.sort_by_key(|candidate| candidate.kv_elements);
        Ok(curve)
    }

    /// Measures the most promising splits on held-out sequences.
    pub(super) fn measure(&self, splits: &mut [Split], held_out: &[Vec<u32>]) -> Result<(), Failure> {
        let Some(batch) = whole_sequences(held_out, self.svd.measure_tokens) else { return Ok(()) };
        let predicts =
            matches!(self.pieces.metric, Metric::Fisher | Metric::Output) && self.pieces.query_weights;
        let which = budget::promising(splits, self.svd.measure, predicts);
        if which.is_empty() {
            return Ok(());
        }
        let variants: Vec<Variant> = which.iter().map(|&i| self.variant(&splits[i])).collect();
        let label = format!("measuring {} splits on {} held-out tokens", which.len(), batch.len());
        let measured = measure::kl(self, &variants, (&batch, 1), &label)?;
        drop(variants);
        for (kl, i) in measured.into_iter().zip(which) {
            splits[i].candidate.kl = Some(kl);
        }
        Ok(())
    }

    /// The model that a split makes; each layer is folded when it is asked for.
    pub(super) fn variant<'a>(&'a self, split: &'a Split) -> Variant<'a> {
        let kind = |(source, part): (&Source, &Part)| (source.layer, part.rotated.clone(), part.rank);
        let kinds: Vec<_> = self.sources.iter().zip(&split.parts).map(kind).collect();
        let attention = move |source: &Source| {
            let at = self.sources.iter().position(|one| one.layer == source.layer);
            self.folded(source, &split.parts[at.expect("a source of this job")])
        };
        Variant { config: self.config_json(&kinds), attention: Box::new(attention), only: None }
    }

    pub(super) fn folded(&self, source: &Source, part: &Part) -> Result<BTreeMap<String, Owned>, SvdError> {
        let map = source.components(&part.rotated)?.truncate(part.rank, part.choice.keys);
        let projections = Projections::read(self.checkpoint, self.config, source.layer)?;
        Ok(fold::fold((source, &projections), &part.rotated, &map, self.svd.dtype))
    }

    /// Whether a latent of `split` cannot hold all content of its layer.
    pub(super) fn cuts(&self, split: &Split) -> bool {
        self.sources
            .iter()
            .zip(&split.parts)
            .any(|(source, part)| part.rank < source.useful_rank(&part.rotated))
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

    /// The converted `config.json`; `kinds` holds the converted layers with what stays rotated and their rank.
    pub(super) fn config_json(&self, kinds: &[(usize, Rotated, usize)]) -> Value {
        let layers = self.config.layers.len();
        let mut types: Vec<Value> = Vec::with_capacity(layers);
        let mut latents = vec![Value::Null; layers];
        for kind in &self.config.layers {
            types.push(match kind {
                LayerKind::Full => "full_attention".into(),
                kind if kind.slides() => "sliding_attention".into(),
                _ => "latent_attention".into(),
            });
        }
        for (i, kind) in self.config.layers.iter().enumerate() {
            if let LayerKind::Latent(latent) = kind {
                latents[i] = json!(latent);
            }
        }
        let mut config = self.checkpoint.config.clone();
        if self.pieces.layout == Layout::Recompute {
            return config;
        }
        for (layer, rotated, rank) in kinds {
            // A layer that sees a window keeps the type that says so.
            if !self.config.layers[*layer].slides() {
                types[*layer] = "latent_attention".into();
            }
            latents[*layer] = json!(rotated.latent(*rank));
        }
        let kind = Config::converted_type(config["model_type"].as_str().unwrap_or_default());
        config["model_type"] = kind.into();
        config["layer_types"] = types.into();
        config["mla"] = latents.into();
        config
    }
}

/// Whole sequences of together at most so many tokens; the first one in any case.
pub(super) fn first(sequences: &[Vec<u32>], most: usize) -> impl Iterator<Item = &[u32]> {
    let mut tokens = 0;
    sequences.iter().enumerate().map_while(move |(i, ids)| {
        tokens += ids.len();
        (i == 0 || tokens <= most).then_some(ids.as_slice())
    })
}

/// Whole held-out sequences of together at most so many tokens.
pub(super) fn whole_sequences(held_out: &[Vec<u32>], most: usize) -> Option<Batch> {
    let mut tokens = 0;
    let fits = |ids: &&Vec<u32>| {
        tokens += ids.len();
        tokens <= most
    };
    let sequences: Vec<&[u32]> = held_out.iter().take_while(fits).map(Vec::as_slice).collect();
    (!sequences.is_empty()).then(|| Batch::new(sequences))
}
