//! The analyze stage: what a model's attention, keys, values and experts look like on calibration text, and the statistics that a
//! conversion needs, in one pass.
//!
//! A layer is loaded, all sequences go through it, it is dropped. Knows no conversion.

mod attention;
mod observe;
mod picture;
mod sequences;
mod summary;

use std::collections::BTreeMap;

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{
    observe::Observer,
    sequences::{Limits, Sequences},
};
use crate::{
    artifact::{
        Artifact,
        analysis::{Analysis, Figures, Layer as LayerFigures, Protocol},
        checkpoint::Checkpoint,
        moments::{About, LayerMoments, Moments},
        splits::Split,
        texts::Texts,
    },
    engine::action::{Cx, Failure, OutputPort, Pool},
    model::{Batch, Config, Layer, Shell, config::LayerKind},
    stage::{
        Input, InputPort, Invalid, Stage,
        code::{self, Code},
        encode::{Document, encode},
        weights::Projections,
    },
};

/// Pushes calibration text through the model, layer by layer, and records sinks, routing, geometry and spectra, and the moments
/// that `svd` needs.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Analyze {
    /// The model.
    pub model: Input<Checkpoint>,
    /// The calibration split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Input<Split>>,
    /// Plain texts in place of a split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub texts: Option<Input<Texts>>,
    /// Tokens in the sums, over all sequences.
    #[serde(default = "max_tokens")]
    pub max_tokens: usize,
    /// Sequences are cut after this many tokens.
    #[serde(default = "max_length")]
    pub max_length: usize,
    /// Tokens set aside, as whole sequences, for measuring a conversion.
    #[serde(default = "held_out_tokens")]
    pub held_out_tokens: usize,
    /// The layers to analyse, by index. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
}

fn max_tokens() -> usize {
    131_072
}
fn max_length() -> usize {
    4096
}
fn held_out_tokens() -> usize {
    8192
}

/// Why a model could not be analysed.
#[derive(Debug, thiserror::Error)]
enum AnalyzeError {
    #[error("the {0} documents hold no token; give a split with text in it")]
    Empty(usize),
    #[error("`layers` names layer {layer}, but the model has {count} layers")]
    NoLayer { layer: usize, count: usize },
}

impl Stage for Analyze {
    const KIND: &'static str = "analyze";
    const CODE: Code = code::of("analyze");
    const POOL: Pool = Pool::Device;
    const OUTPUTS: &'static [OutputPort] = &[
        OutputPort { name: "analysis", kind: Analysis::KIND },
        OutputPort { name: "moments", kind: Moments::KIND },
    ];

    fn inputs(&self) -> Vec<InputPort> {
        let mut ports = vec![self.model.port("model")];
        ports.extend(self.split.as_ref().map(|split| split.port("split")));
        ports.extend(self.texts.as_ref().map(|texts| texts.port("texts")));
        ports
    }

    fn check(&self) -> Result<(), Invalid> {
        match (&self.split, &self.texts) {
            (Some(_), Some(_)) => {
                return Err(Invalid::new("texts", "`texts` and `split` exclude each other"));
            }
            (None, None) => {
                return Err(Invalid::new("split", "calibration text is missing")
                    .hint("name the stage that makes a split, or give `texts`"));
            }
            _ => {}
        }
        if self.max_tokens == 0 {
            return Err(Invalid::new("max-tokens", "`max-tokens` is 0"));
        }
        if self.max_length < 2 {
            return Err(Invalid::new("max-length", "`max-length` is below 2"));
        }
        if self.layers.as_ref().is_some_and(Vec::is_empty) {
            return Err(Invalid::new("layers", "`layers` is empty").hint("leave it out for all layers"));
        }
        Ok(())
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        let checkpoint = self.model.load(cx, "model")?;
        let config = Config::parse(&checkpoint.config).map_err(Failure::stage)?;
        let sequences = self.sequences(cx, &checkpoint)?;
        let count = config.layers.len();
        let wanted = self.layers.clone().unwrap_or_else(|| (0..count).collect());
        if let Some(&layer) = wanted.iter().find(|&&layer| layer >= count) {
            return Err(Failure::stage(AnalyzeError::NoLayer { layer, count }));
        }
        let (layers, moments) =
            Pass { cx, checkpoint: &checkpoint, config: &config }.run(&sequences, &wanted)?;
        let tokens = sequences.calibration.iter().map(Vec::len).sum();
        let (documents, max_length) = (sequences.calibration.len(), self.max_length);
        let protocol = Protocol { sequences: documents, tokens, max_length };
        let figures = Figures { protocol, layers };
        let summary = summary::write(&figures, config.sliding_window);
        let picture = picture::draw(&figures).map_err(Failure::stage)?;
        Analysis { figures, summary, picture }.save(&cx.output("analysis")).map_err(Failure::stage)?;
        let about = About { sequences: documents, tokens, max_length };
        let moments = Moments { about, layers: moments, held_out: sequences.held_out };
        moments.save(&cx.output("moments")).map_err(Failure::stage)
    }
}

impl Analyze {
    fn sequences(&self, cx: &Cx<'_>, checkpoint: &Checkpoint) -> Result<Sequences, Failure> {
        let texts: Vec<Document> = match (&self.split, &self.texts) {
            (Some(split), _) => split.load(cx, "split")?.0.into_iter().map(Document::from).collect(),
            (None, Some(texts)) => texts.load(cx, "texts")?.0.into_iter().map(Document::from).collect(),
            (None, None) => Vec::new(),
        };
        let ids = encode(cx, checkpoint, &texts)?;
        let limits = Limits {
            max_tokens: self.max_tokens,
            max_length: self.max_length,
            held_out: self.held_out_tokens,
        };
        let sequences = Sequences::divide(ids, &limits);
        if sequences.calibration.is_empty() {
            return Err(Failure::stage(AnalyzeError::Empty(texts.len())));
        }
        Ok(sequences)
    }
}

/// One pass over the layers.
struct Pass<'a> {
    cx: &'a Cx<'a>,
    checkpoint: &'a Checkpoint,
    config: &'a Config,
}

type Results = (Vec<LayerFigures>, BTreeMap<usize, LayerMoments>);

impl Pass<'_> {
    fn run(&self, sequences: &Sequences, wanted: &[usize]) -> Result<Results, Failure> {
        let batches = sequences.batches();
        let embedded =
            batches.iter().map(|batch| Shell::embed_from(self.checkpoint, self.config, &batch.ids));
        let mut streams: Vec<Tensor> = embedded.collect::<Result<_, _>>().map_err(Failure::stage)?;
        Shell::release(self.checkpoint);
        let last = wanted.iter().copied().max().expect("checked not to be empty");
        let tokens: usize = batches.iter().map(Batch::len).sum();
        self.cx.progress.phase("analysing", Some((tokens * (last + 1)) as u64), "tokens");
        let (mut figures, mut moments) = (Vec::new(), BTreeMap::new());
        for index in 0..=last {
            let watched = wanted.contains(&index);
            let (layer, sums) = self.layer(index, watched, &batches, &mut streams)?;
            Layer::release(self.checkpoint, index);
            figures.extend(layer);
            moments.extend(sums.map(|sums| (index, sums)));
        }
        Ok((figures, moments))
    }

    fn layer(
        &self,
        index: usize,
        watched: bool,
        batches: &[Batch],
        streams: &mut [Tensor],
    ) -> Result<(Option<LayerFigures>, Option<LayerMoments>), Failure> {
        let config = self.config;
        let layer = Layer::load(self.checkpoint, config, index).map_err(Failure::stage)?;
        // Keys that are normalised are no linear map of the input, and what they are has no use for the conversion.
        let full = watched && config.layers[index] == LayerKind::Full && !config.parts.qk_norm;
        let read = || Projections::read(self.checkpoint, config, index);
        let projections = full.then(read).transpose().map_err(Failure::stage)?;
        let sinks = layer.sinks().map_err(Failure::stage)?;
        let mut observer = Observer::new(config, index, sinks, projections.as_ref());
        for (batch, x) in batches.iter().zip(streams) {
            self.cx.check_stop()?;
            let forward = if watched {
                observer.expect(batch);
                layer.forward(x, batch, &mut observer)
            } else {
                layer.forward(x, batch, &mut crate::model::probe::NoProbe)
            };
            *x = forward.map_err(Failure::stage)?;
            self.cx.progress.advance(batch.len() as u64);
        }
        if !watched {
            return Ok((None, None));
        }
        Ok((Some(observer.figures().map_err(Failure::stage)?), observer.moments()))
    }
}

#[cfg(test)]
pub(crate) mod tests;
