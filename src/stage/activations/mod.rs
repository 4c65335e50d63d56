//! The activations stage: one grid vector per document, of what a model makes of it. Knows no clustering.

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    artifact::{
        Artifact,
        checkpoint::Checkpoint,
        embeddings::{About, Embeddings},
        texts::Texts,
    },
    engine::action::{Cx, Failure, OutputPort, Pool},
    kernel::host,
    math::{grid, hash::mix},
    model::{Batch, Config, ModelError, Shell},
    stage::{
        Input, InputPort, Invalid, Stage,
        code::{self, Code},
        encode::{Document, encode},
        streamed,
    },
};

/// Turns documents into unit vectors by the activations of the very model that is to be converted: the mean over tokens of the residual
/// stream behind one of its layers, each token at unit length, without the first token, whose stream says nothing of the text. `cluster`
/// takes the result in place of that of `embed`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Activations {
    /// The documents.
    pub texts: Input<Texts>,
    /// The model, with its tokenizer.
    pub model: Input<Checkpoint>,
    /// Behind which layer, counted from 1. Default: the one in the middle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// Only so many tokens of a document are read.
    #[serde(default = "max_tokens")]
    pub max_tokens: usize,
    /// Coordinates per vector, 8 to 1024: wider streams are projected by random signs.
    #[serde(default = "dim")]
    pub dim: usize,
    /// Subtracts the mean of all vectors, which takes out what every document has in common.
    #[serde(default = "yes")]
    pub centre: bool,
}

fn max_tokens() -> usize {
    512
}
fn dim() -> usize {
    256
}
fn yes() -> bool {
    true
}

/// Tokens that go through a layer at once, unless one document is longer.
const BATCH: usize = 4096;
const OUTPUT: &str = "embeddings";

/// Why there are no vectors.
#[derive(Debug, thiserror::Error)]
enum ActivationsError {
    #[error("the model: {0}")]
    Model(#[from] ModelError),
    #[error("`layer` is {layer}, but the model has {layers} layers")]
    Layer { layer: usize, layers: usize },
    #[error("the model's activations are not finite for document {0}; its weights are damaged")]
    NotFinite(String),
}

impl Stage for Activations {
    const KIND: &'static str = "activations";
    const CODE: Code = code::of("activations");
    const POOL: Pool = Pool::Device;
    const OUTPUTS: &'static [OutputPort] = &[OutputPort { name: OUTPUT, kind: Embeddings::KIND }];

    fn inputs(&self) -> Vec<InputPort> {
        vec![self.texts.port("texts"), self.model.port("model")]
    }

    fn check(&self) -> Result<(), Invalid> {
        if !(8..=grid::MAX_DIM).contains(&self.dim) {
            return Err(Invalid::new(
                "dim",
                format!("`dim` is {}, outside 8 to {}", self.dim, grid::MAX_DIM),
            ));
        }
        if self.max_tokens < 2 {
            return Err(Invalid::new("max-tokens", "the first token is not looked at: give 2 or more"));
        }
        if self.layer == Some(0) {
            return Err(Invalid::new("layer", "`layer` counts from 1"));
        }
        Ok(())
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        let checkpoint = self.model.load(cx, "model")?;
        let config = Config::parse(&checkpoint.config)
            .map_err(|e| Failure::stage(ActivationsError::Model(e.into())))?;
        let layers = config.layers.len();
        let layer = self.layer.unwrap_or(layers.div_ceil(2));
        if layer > layers {
            return Err(Failure::stage(ActivationsError::Layer { layer, layers }));
        }
        let texts = self.texts.load(cx, "texts")?.0;
        let ids: Vec<String> = texts.iter().map(|text| text.id.clone()).collect();
        let texts: Vec<Document> = texts.into_iter().map(Document::from).collect();
        let mut documents = encode(cx, &checkpoint, &texts)?;
        for document in &mut documents {
            document.truncate(self.max_tokens);
        }
        let sums = totals(cx, (&checkpoint, &config, layer), &documents)?;
        let signs = Signs { seed: cx.seed, dim: self.dim };
        let dim = if config.hidden_size > self.dim { self.dim } else { config.hidden_size };
        let mut vectors = vec![0_i16; ids.len() * dim];
        for ((sum, row), id) in sums.iter().zip(vectors.chunks_exact_mut(dim)).zip(&ids) {
            if sum.iter().any(|x| !x.is_finite()) {
                return Err(Failure::stage(ActivationsError::NotFinite(id.clone())));
            }
            if config.hidden_size > self.dim {
                grid::quantise_real(&signs.project(sum), row);
            } else {
                grid::quantise_real(sum, row);
            }
        }
        if self.centre && !ids.is_empty() {
            grid::centre(dim, &mut vectors);
        }
        let about = About { model: "activations".to_owned(), dim, scale: grid::SCALE, centred: self.centre };
        let embeddings = Embeddings { about, ids, vectors, windows: Vec::new() };
        embeddings.save(&cx.output(OUTPUT)).map_err(Failure::stage)
    }
}

/// Of each document the sum over its tokens but the first of the stream at unit length, `[hidden]`; one token alone is summed, of none is
/// nothing.
fn totals(
    cx: &Cx<'_>,
    (checkpoint, config, layer): (&Checkpoint, &Config, usize),
    documents: &[Vec<u32>],
) -> Result<Vec<Vec<f64>>, Failure> {
    let failed = |e| Failure::stage(ActivationsError::Model(e));
    let shell = Shell::load(checkpoint, config).map_err(failed)?;
    let some = || documents.iter().filter(|ids| !ids.is_empty());
    let batches = Batch::packed(some().map(Vec::as_slice), BATCH);
    let tokens: usize = documents.iter().map(Vec::len).sum();
    cx.progress.phase("reading activations", Some((tokens * layer) as u64), "tokens");
    let model = (checkpoint, config, &shell, layer);
    let mut hidden = streamed::behind(cx, model, &batches.iter(), ("activations", 1), failed)?;
    let mut read = Vec::with_capacity(documents.len());
    for (i, batch) in batches.iter().enumerate() {
        let stream = hidden.take(i).map_err(Failure::stage)?;
        read.extend(sums(&stream, &batch.offsets).map_err(|e| failed(e.into()))?);
    }
    let mut read = read.into_iter();
    let of = |ids: &Vec<u32>| {
        let found = if ids.is_empty() { None } else { read.next() };
        found.unwrap_or_else(|| vec![0.0; config.hidden_size])
    };
    Ok(documents.iter().map(of).collect())
}

/// The sums of each document of a stream [t, hidden].
fn sums(stream: &Tensor, offsets: &[usize]) -> candle_core::Result<Vec<Vec<f64>>> {
    let width = stream.dim(1)?;
    let values = host(stream)?;
    let document = |ends: &[usize]| {
        let mut sum = vec![0f64; width];
        let first = if ends[1] - ends[0] > 1 { ends[0] + 1 } else { ends[0] };
        for row in values[first * width..ends[1] * width].chunks_exact(width) {
            let norm = row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
            let scale = if norm > 0.0 { 1.0 / norm } else { 0.0 };
            sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += scale * f64::from(x));
        }
        sum
    };
    Ok(offsets.windows(2).map(document).collect())
}

/// A random projection onto `dim` coordinates that keeps angles, about (Achlioptas, 2003).
struct Signs {
    seed: u64,
    dim: usize,
}

impl Signs {
    fn project(&self, x: &[f64]) -> Vec<f64> {
        let mut out = vec![0f64; self.dim];
        for (i, &x) in x.iter().enumerate() {
            for (word, out) in out.chunks_mut(64).enumerate() {
                let bits = mix(self.seed ^ mix(((i as u64) << 16) | word as u64));
                for (bit, out) in out.iter_mut().enumerate() {
                    *out += if bits >> bit & 1 == 1 { x } else { -x };
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests;
