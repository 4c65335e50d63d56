//! The way back: gradients of what the model predicts, from the head down to the first layer that is converted, one layer at a time. Knows
//! no text.
//!
//! What enters each layer is kept, and a layer's graph is made again when its turn comes. At every position one next token is drawn from the
//! model's own prediction, by the sequence's tokens and the seed, so a shard draws what the whole would draw.

mod back;
mod labels;
mod projections;

use std::path::PathBuf;

use candle_core::Tensor;

use self::{
    back::{Activated, Back},
    labels::CHUNK,
    projections::Projections,
};
use super::{
    attention::Fisher,
    observe::{rows, shape, square},
};
use crate::{
    artifact::{
        checkpoint::Checkpoint,
        moments::{LayerMoments, file_of},
    },
    engine::action::{Cx, Failure},
    kernel::host,
    model::{Batch, Config, Layer, Shell, probe::NoProbe},
    stage::streamed::{self, budget::Needs, hidden::Hidden, resume::Resume},
};

/// Tokens that go through a layer at once, unless one sequence is longer.
const BATCH: usize = 2048;

/// How next tokens are drawn.
#[derive(Clone, Copy)]
pub(super) struct Draw {
    /// `τ`, by which logits are divided.
    pub(super) temperature: f64,
    /// Of the draws.
    pub(super) seed: u64,
}

/// A pass back through a model whose forward sums are written.
pub(super) struct Gradients<'a> {
    pub(super) cx: &'a Cx<'a>,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) config: &'a Config,
    /// How next tokens are drawn.
    pub(super) draw: Draw,
    /// Where the sums of each layer lie.
    pub(super) dir: PathBuf,
}

impl Gradients<'_> {
    /// Adds the Fisher sums to the files of the `wanted` layers, ascending, and not none.
    pub(super) fn run(&self, sequences: &[&[u32]], wanted: &[usize]) -> Result<(), Failure> {
        let batches = Batch::packed(sequences.iter().copied(), BATCH);
        let (first, count) = (wanted[0], self.config.layers.len());
        let levels = count - first + 1;
        let needs = self.needs(&batches, levels);
        let mut gradient = streamed::room(self.cx, &needs, batches.iter(), (self.config, "gradients.f32"))?;
        let rows: Vec<usize> = batches.iter().map(Batch::len).collect::<Vec<_>>().repeat(levels);
        let path = self.cx.scratch.join("streams.f32");
        let streams = gradient.beside(rows, self.config.hidden_size, path).map_err(Failure::stage)?;
        let mut streams = Streams { first, of: batches.len(), hidden: streams };
        let mut resume = Resume::new(self.cx);
        let mut index = count;
        if Self::began(self.cx, self.config)? {
            let kept = resume.restore(&mut gradient, &self.dir)?;
            index = kept.map_or(count, |steps| 2 * count - steps);
            self.cx.progress.say(&format!("going back from layer {index}"));
        }
        let tokens: usize = batches.iter().map(Batch::len).sum();
        self.cx.progress.phase("gradients", Some((tokens * (2 * index - first)) as u64), "tokens");
        self.forward(&batches, &mut streams, index)?;
        if index == count {
            self.top(&batches, &streams, &mut gradient)?;
        }
        while index > first {
            index -= 1;
            self.layer((index, wanted), &batches, &streams, &mut gradient)?;
            Layer::release(self.checkpoint, index);
            if index > first {
                resume.keep(2 * count - index, &mut gradient, &self.dir)?;
            }
        }
        Ok(())
    }

    /// Fails if this will need more memory than there is.
    pub(super) fn check(&self, sequences: &[&[u32]], first: usize) -> Result<(), Failure> {
        let batches = Batch::packed(sequences.iter().copied(), BATCH);
        let needs = self.needs(&batches, self.config.layers.len() - first + 1);
        needs.place(self.cx.memory).map_err(Failure::stage)?;
        Ok(())
    }

    fn needs(&self, batches: &[Batch], levels: usize) -> Needs {
        let plain = Needs::of(self.checkpoint, self.config, batches.iter(), 1);
        let shell = (CHUNK * self.config.vocab_size * size_of::<f32>()) as u64;
        Needs {
            // What a layer makes stays until its gradients are there; at the top logits as they are and divided, what is drawn from, and
            // their gradients.
            batch: (3 * plain.batch).max(5 * shell),
            hidden: (1 + levels as u64) * plain.hidden,
            stage: self.sums(),
            ..plain
        }
    }

    /// Whether an interrupted run came so far: layers on the way back count on from those on the way there.
    pub(super) fn began(cx: &Cx<'_>, config: &Config) -> Result<bool, Failure> {
        Ok(Resume::next(cx)?.is_some_and(|steps| steps > config.layers.len()))
    }

    /// Fills the streams that enter the layers from the first wanted one up to `end`, which enters no layer of these.
    fn forward(&self, batches: &[Batch], streams: &mut Streams, end: usize) -> Result<(), Failure> {
        // Level 0 comes first.
        streamed::embed_once(&mut streams.hidden, (self.checkpoint, self.config), batches.iter())?;
        for index in 0..end {
            let layer = Layer::load(self.checkpoint, self.config, index).map_err(Failure::stage)?;
            for (i, batch) in batches.iter().enumerate() {
                self.cx.check_stop()?;
                let x = streams.get(index, i)?;
                let x = layer.forward(&x, batch, &mut NoProbe).map_err(Failure::stage)?;
                streams.put(index + 1, i, x)?;
                self.cx.progress.advance(batch.len() as u64);
            }
            Layer::release(self.checkpoint, index);
        }
        Ok(())
    }

    /// Fills `gradient` with that of the streams behind the last layer.
    fn top(&self, batches: &[Batch], streams: &Streams, gradient: &mut Hidden) -> Result<(), Failure> {
        let shell = Shell::load(self.checkpoint, self.config).map_err(Failure::stage)?;
        for (i, batch) in batches.iter().enumerate() {
            self.cx.check_stop()?;
            let x = streams.get(self.config.layers.len(), i)?;
            let (_, of) = labels::gradient(&shell, &x, batch, self.draw).map_err(Failure::stage)?;
            gradient.put(i, of).map_err(Failure::stage)?;
        }
        Shell::release(self.checkpoint);
        Ok(())
    }

    /// Goes back through layer `index`, and adds to its file if it is wanted.
    fn layer(
        &self,
        (index, wanted): (usize, &[usize]),
        batches: &[Batch],
        streams: &Streams,
        gradient: &mut Hidden,
    ) -> Result<(), Failure> {
        let layer = Layer::load(self.checkpoint, self.config, index).map_err(Failure::stage)?;
        let shape = shape(self.config, index, layer.sinks().map_err(Failure::stage)?);
        let watched = wanted.contains(&index);
        let mut sums = Fisher::new(&shape);
        // A norm of keys stands between them and their projection.
        let mut projections = (watched && !self.config.parts.qk_norm).then(|| Projections::new(self.config));
        for (i, batch) in batches.iter().enumerate() {
            self.cx.check_stop()?;
            let (x, above) = (streams.get(index, i)?, gradient.take(i).map_err(Failure::stage)?);
            let back =
                Back::through(&layer, (&x, &above), batch, index > wanted[0]).map_err(Failure::stage)?;
            if watched {
                let seen = Activated::of(self.config, batch, &back.seen).map_err(Failure::stage)?;
                let heads = back.heads(&layer).and_then(|heads| Ok(host(&heads)?.to_vec()));
                let found = sums.add(&shape, &seen.activations(batch), &heads.map_err(Failure::stage)?);
                if let Some(projections) = &mut projections {
                    projections.add(self.config, batch, &seen.input, &found).map_err(Failure::stage)?;
                }
            }
            gradient.put(i, back.entered).map_err(Failure::stage)?;
            self.cx.progress.advance(batch.len() as u64);
        }
        if watched {
            let path = self.dir.join(file_of(index));
            let moments = LayerMoments::load(&path, &file_of(index)).map_err(Failure::stage)?;
            let most = shape.window.unwrap_or(usize::MAX);
            let moments = LayerMoments {
                fisher_gauss: rows(&sums.gauss, most),
                fisher_query: sums.query,
                fisher_values: square(&sums.values),
                fisher_projections: projections.map_or(vec![], |sums| sums.squares),
                ..moments
            };
            moments.save(&path).map_err(Failure::stage)?;
        }
        Ok(())
    }

    /// Bytes of a layer's sums: those of the forward pass are read and written beside them.
    fn sums(&self) -> u64 {
        let config = self.config;
        let (d, dim) = (config.head_dim, config.hidden_size + 1);
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let forward = 2 * dim * dim + heads * d * d + (2 * kv_heads * d).pow(2);
        let own = heads * d * d + (kv_heads * d + 1).pow(2) + 2 * kv_heads * d * dim;
        (2 * (forward + own) * size_of::<f64>()) as u64
    }
}

/// The streams that enter the layers from the first wanted one on, and the one behind the last.
struct Streams {
    first: usize,
    /// Batches.
    of: usize,
    hidden: Hidden,
}

impl Streams {
    /// Below the first wanted layer all streams have one place.
    fn at(&self, layer: usize, batch: usize) -> usize {
        layer.saturating_sub(self.first) * self.of + batch
    }

    fn put(&mut self, layer: usize, batch: usize, x: Tensor) -> Result<(), Failure> {
        let at = self.at(layer, batch);
        self.hidden.put(at, x).map_err(Failure::stage)
    }

    fn get(&self, layer: usize, batch: usize) -> Result<Tensor, Failure> {
        let at = self.at(layer, batch);
        self.hidden.whole(at).map_err(Failure::stage)
    }
}

#[cfg(test)]
mod tests;
