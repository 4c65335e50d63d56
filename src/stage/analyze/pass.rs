//! One pass over the layers: each is loaded, all batches go through it under observation, its sums are written, it is dropped. Knows no text.

use std::{collections::BTreeMap, path::PathBuf};

use super::{gradients::Gradients, observe::Observer, sequences::Sequences};
use crate::{
    artifact::{
        checkpoint::Checkpoint,
        moments::{LayerMoments, file_of},
    },
    engine::action::{Cx, Failure},
    model::{Batch, Config, Layer, probe::NoProbe},
    stage::{
        streamed::{self, budget::Needs, hidden::Hidden, resume::Resume},
        weights::Projections,
    },
};

/// A pass over a model.
pub(super) struct Pass<'a> {
    pub(super) cx: &'a Cx<'a>,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) config: &'a Config,
    /// Whether sliding-window layers are to be converted too.
    pub(super) convert_swa: bool,
    /// Where the sums of each layer go.
    pub(super) dir: PathBuf,
}

impl Pass<'_> {
    /// Writes the sums of the `wanted` layers; returns the file of each.
    pub(super) fn run(
        &self,
        sequences: &Sequences,
        wanted: &[usize],
    ) -> Result<BTreeMap<usize, PathBuf>, Failure> {
        let files = wanted.iter().map(|&index| (index, self.dir.join(file_of(index)))).collect();
        if Gradients::began(self.cx, self.config)? {
            return Ok(files);
        }
        let batches = sequences.batches();
        let needs = Needs {
            stage: self.sums(&batches),
            ..Needs::of(self.checkpoint, self.config, batches.iter(), 1)
        };
        let mut hidden = streamed::room(self.cx, &needs, batches.iter(), (self.config, "hidden.f32"))?;
        let (mut resume, first) = Resume::begin(self.cx, &mut hidden, &self.dir)?;
        if first == 0 {
            streamed::embed_once(&mut hidden, (self.checkpoint, self.config), batches.iter())?;
        }
        let last = wanted.iter().copied().max().expect("checked not to be empty");
        let tokens: usize = batches.iter().map(Batch::len).sum();
        self.cx.progress.phase("analysing", Some((tokens * (last + 1)) as u64), "tokens");
        self.cx.progress.advance((tokens * first) as u64);
        for index in first..=last {
            if let Some(sums) = self.layer(index, wanted.contains(&index), &batches, &mut hidden)? {
                sums.save(&self.dir.join(file_of(index))).map_err(Failure::stage)?;
            }
            Layer::release(self.checkpoint, index);
            if index < last {
                resume.keep(index + 1, &mut hidden, &self.dir)?;
            }
        }
        Ok(files)
    }

    fn layer(
        &self,
        index: usize,
        watched: bool,
        batches: &[Batch],
        hidden: &mut Hidden,
    ) -> Result<Option<LayerMoments>, Failure> {
        let config = self.config;
        let layer = Layer::load(self.checkpoint, config, index).map_err(Failure::stage)?;
        let converted = config.layers[index].is_grouped(self.convert_swa);
        let read = || Projections::read(self.checkpoint, config, index);
        let projections = (watched && converted).then(read).transpose().map_err(Failure::stage)?;
        let sinks = layer.sinks().map_err(Failure::stage)?;
        let mut observer = Observer::new(config, index, sinks, projections.as_ref());
        for (i, batch) in batches.iter().enumerate() {
            self.cx.check_stop()?;
            let x = hidden.take(i).map_err(Failure::stage)?;
            let forward = if watched {
                observer.expect(batch);
                layer.forward(&x, batch, &mut observer)
            } else {
                layer.forward(&x, batch, &mut NoProbe)
            };
            hidden.put(i, forward.map_err(Failure::stage)?).map_err(Failure::stage)?;
            self.cx.progress.advance(batch.len() as u64);
        }
        Ok(watched.then(|| observer.finish()))
    }

    /// Bytes of a full layer's sums, of its weights in f64, and of what goes into them for one batch.
    fn sums(&self, batches: &[Batch]) -> u64 {
        let config = self.config;
        let (d, dim) = (config.head_dim, config.hidden_size + 1);
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let rows = batches.iter().map(Batch::len).max().unwrap_or(0);
        let weights = 2 * (heads + kv_heads) * d * dim;
        let moments = 2 * dim * dim + heads * d * d + (2 * kv_heads * d).pow(2);
        let augmented = 2 * rows * dim;
        // The moments are there twice while they are written.
        ((weights + 2 * moments + augmented) * size_of::<f64>()) as u64
    }
}
