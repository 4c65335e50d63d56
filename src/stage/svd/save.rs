//! The converted checkpoint: new attention tensors layer by layer, everything else copied bit for bit from the original's file. Knows no
//! error.

use std::{collections::BTreeMap, fs};

use super::{fold, job::Job, measure::Variant};
use crate::{
    artifact::{
        ArtifactError,
        checkpoint::{
            Owned,
            shards::{self, LIMIT, Sink, Spec},
        },
    },
    engine::action::Failure,
    model::Layer,
};

/// Writes the checkpoint of `variant`. In memory lie the new tensors of one layer at most.
pub(super) fn save(job: &Job<'_>, variant: &Variant<'_>) -> Result<(), Failure> {
    let dir = job.cx.output("checkpoint");
    let mut layers = Layers { job, variant, folded: None };
    let specs = layers.specs()?;
    job.cx.progress.phase("writing", Some(specs.iter().map(Spec::bytes).sum()), "bytes");
    shards::write::<Wrapped>(&dir, specs, LIMIT, &mut |spec, sink| {
        layers.put(spec, sink)?;
        job.cx.progress.advance(spec.bytes());
        Ok(())
    })
    .map_err(|Wrapped(failure)| failure)?;
    let mut config = serde_json::to_vec_pretty(&variant.config).expect("a JSON value serialises");
    config.push(b'\n');
    let path = dir.join("config.json");
    fs::write(&path, config).map_err(ArtifactError::io(&path)).map_err(Failure::stage)?;
    // The index of the original's shards would lie.
    for (name, path) in job.checkpoint.side_files().filter(|(name, _)| !name.ends_with(".index.json")) {
        fs::copy(path, dir.join(name)).map_err(ArtifactError::io(path)).map_err(Failure::stage)?;
    }
    Ok(())
}

/// A failure as the writer of shards passes it on.
struct Wrapped(Failure);

impl From<ArtifactError> for Wrapped {
    fn from(error: ArtifactError) -> Self {
        Self(Failure::stage(error))
    }
}

/// The tensors of the new checkpoint, made when they are asked for.
struct Layers<'a> {
    job: &'a Job<'a>,
    variant: &'a Variant<'a>,
    /// The layer that was folded last, and its new tensors by full name.
    folded: Option<(usize, BTreeMap<String, Owned>)>,
}

impl Layers<'_> {
    /// All tensors: what every layer folds to is known in shape once it was folded.
    fn specs(&mut self) -> Result<Vec<Spec>, Failure> {
        let mut specs: BTreeMap<String, Spec> = BTreeMap::new();
        for name in self.job.checkpoint.names() {
            let raw = self.job.checkpoint.raw(name).expect("listed by the checkpoint itself");
            let spec = Spec { name: name.to_owned(), dtype: raw.dtype, shape: raw.shape.to_vec() };
            specs.insert(name.to_owned(), spec);
        }
        for at in 0..self.job.sources.len() {
            let layer = self.job.sources[at].layer;
            let prefix = format!("model.layers.{layer}.");
            specs.retain(|name, _| !(name.starts_with(&prefix) && fold::is_dense_key_value(name)));
            for (name, tensor) in self.fold(at)? {
                let spec = Spec { name: name.clone(), dtype: tensor.dtype, shape: tensor.shape.clone() };
                specs.insert(name.clone(), spec);
            }
        }
        Ok(specs.into_values().collect())
    }

    fn put(&mut self, spec: &Spec, sink: &mut Sink<'_>) -> Result<(), Wrapped> {
        self.job.cx.check_stop().map_err(Wrapped)?;
        let layer =
            self.job.sources.iter().position(|source| {
                spec.name.starts_with(&format!("model.layers.{}.self_attn.", source.layer))
            });
        if let Some(at) = layer
            && let Some(tensor) = self.fold(at).map_err(Wrapped)?.get(&spec.name)
        {
            return Ok(sink.put(&tensor.bytes)?);
        }
        let raw = self.job.checkpoint.raw(&spec.name).expect("listed by the checkpoint itself");
        sink.put(raw.bytes)?;
        self.job.checkpoint.release(&spec.name);
        Ok(())
    }

    /// The new tensors of the source number `at`.
    fn fold(&mut self, at: usize) -> Result<&BTreeMap<String, Owned>, Failure> {
        let source = &self.job.sources[at];
        if self.folded.as_ref().is_none_or(|(layer, _)| *layer != source.layer) {
            let tensors = (self.variant.attention)(source).map_err(Failure::stage)?;
            Layer::release(self.job.checkpoint, source.layer);
            let prefix = format!("model.layers.{}.self_attn.", source.layer);
            let named = tensors.into_iter().map(|(name, tensor)| (prefix.clone() + &name, tensor)).collect();
            self.folded = Some((source.layer, named));
        }
        Ok(&self.folded.as_ref().expect("folded above").1)
    }
}
