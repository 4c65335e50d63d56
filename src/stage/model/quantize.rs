//! Rounding a model's large matrices to NF4, a layer at a time. Knows which matrices those are, and no codes.

use std::{collections::BTreeMap, path::Path};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::write_config;
use crate::{
    artifact::checkpoint::{
        Checkpoint, Owned,
        shards::{Shards, Spec},
    },
    engine::action::{Cx, Failure},
    model::{Config, params::nf4, quantization},
};

/// A type that weights are rounded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Quantize {
    /// Blocks of 64 four-bit codes for quantiles of a normal distribution, with eight-bit scales: 4.13 bits a weight.
    Nf4,
}

/// Writes the model into `dir` with its large matrices in NF4: one shard a layer, which is what lies in memory, and what surrounds the
/// layers.
pub(super) fn write(checkpoint: &Checkpoint, dir: &Path, cx: &Cx<'_>) -> Result<(), Failure> {
    let config = Config::parse(&checkpoint.config).map_err(Failure::stage)?;
    let dense = config.experts.is_none();
    let mut groups: BTreeMap<(usize, usize), Vec<&str>> = BTreeMap::new();
    for name in checkpoint.names() {
        groups.entry(group(name)).or_default().push(name);
    }
    cx.progress.phase("rounding to NF4", Some(groups.len() as u64), "shards");
    let mut shards = Shards::new(dir, groups.len());
    for names in groups.into_values() {
        cx.check_stop()?;
        let mut packed: BTreeMap<String, Owned> = BTreeMap::new();
        let mut specs = Vec::new();
        for name in names {
            let raw = checkpoint.raw(name).expect("listed by the checkpoint itself");
            if raw.shape.len() == 2 && raw.is_float() && rounded(name, dense) {
                packed.extend(nf4::write_raw(name, raw, true).map_err(Failure::stage)?);
            } else {
                specs.push(Spec { name: name.to_owned(), dtype: raw.dtype, shape: raw.shape.to_vec() });
            }
        }
        let spec = |(name, t): (&String, &Owned)| Spec {
            name: name.clone(),
            dtype: t.dtype,
            shape: t.shape.clone(),
        };
        specs.extend(packed.iter().map(spec));
        shards.write(specs, &mut |spec, sink| {
            let same = || checkpoint.raw(&spec.name).map_or(&[][..], |raw| raw.bytes);
            sink.put(packed.get(&spec.name).map_or_else(same, |tensor| &tensor.bytes))
                .map_err(Failure::stage)?;
            checkpoint.release(&spec.name);
            Ok::<(), Failure>(())
        })?;
        cx.progress.advance(1);
    }
    shards.finish().map_err(Failure::stage)?;
    let mut json = checkpoint.config.clone();
    quantization::set_nf4(&mut json, dense);
    write_config(dir, &json)
}

/// The shard of a tensor: embedding, layers, head and the rest.
fn group(name: &str) -> (usize, usize) {
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
    match layer {
        Some(layer) => (1, layer),
        None if name.starts_with("model.embed_tokens.") => (0, 0),
        None => (2, 0),
    }
}

fn rounded(name: &str, dense: bool) -> bool {
    let of = |part: &str| name.contains(part) && name.ends_with("_proj.weight");
    ["model.embed_tokens.weight", "lm_head.weight"].contains(&name)
        || of(".self_attn.")
        || dense && of(".mlp.")
}

#[cfg(test)]
mod tests;
