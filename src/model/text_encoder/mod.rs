//! Text encoders of the BERT family, forward only: token ids in, one vector per text out. Knows no tokenizer and no stage.
//!
//! `x = LN(E[ids] + P + T[0])`; in each block `x = LN(x + W_o attention(x) + b_o)`, then `x = LN(x + network(x))`. There is no norm
//! after the last block. Texts of a batch lie one after the other without padding, and none of them can change a bit of another.

mod attention;
mod config;
#[cfg(test)]
mod tests;
mod weights;

use rayon::prelude::*;

use self::{
    attention::{Rope, Shape, attention},
    weights::{Block, Linear, Norm, Weights},
};
pub use self::{
    config::{Config, ConfigError, Family, Positions},
    weights::WeightsError,
};
use crate::{
    artifact::checkpoint::Checkpoint,
    kernel::{
        gelu::{gated_gelu, gelu_in_place},
        layer_norm::layer_norm,
        ordered::{Left, biased_product},
    },
};

/// A text encoder with its weights.
pub struct TextEncoder {
    config: Config,
    weights: Weights,
}

/// How the vectors of a text's tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The first token's vector.
    Cls,
    /// Their mean.
    Mean,
}

/// Why a text encoder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// Its configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The tokens are those of another tokenizer.
    #[error("token {id} is outside the model's vocabulary of {size}: the tokenizer belongs to another model")]
    Token {
        /// The token.
        id: u32,
        /// Rows of the embedding table.
        size: usize,
    },
}

/// Values that one task of an elementwise pass works on.
const CHUNK: usize = 64;

impl TextEncoder {
    /// Reads configuration and weights, and names all that is wrong with them.
    pub fn load(checkpoint: &Checkpoint) -> Result<Self, EncoderError> {
        let config = Config::parse(&checkpoint.config)?;
        let weights = Weights::load(checkpoint, &config)?;
        Ok(Self { config, weights })
    }

    /// Its shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// One vector `[hidden_size]` for each text, not normalised. No text may be empty or longer than `max_position_embeddings`.
    pub fn embed(&self, texts: &[&[u32]], pooling: Pooling) -> Result<Vec<Vec<f64>>, EncoderError> {
        let hidden = self.hidden(texts)?;
        let h = self.config.hidden_size;
        let mut rest = &hidden[..];
        let pool = |text: &&[u32]| {
            let (rows, after) = rest.split_at(text.len() * h);
            rest = after;
            match pooling {
                Pooling::Cls => rows[..h].iter().map(|&x| f64::from(x)).collect(),
                Pooling::Mean => {
                    let mut sum = vec![0.0; h];
                    for row in rows.chunks_exact(h) {
                        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
                    }
                    for x in &mut sum {
                        *x /= text.len() as f64;
                    }
                    sum
                }
            }
        };
        Ok(texts.iter().map(pool).collect())
    }

    /// The vectors of all tokens after the last block, `[tokens, hidden_size]`.
    pub fn hidden(&self, texts: &[&[u32]]) -> Result<Vec<f32>, EncoderError> {
        let lengths: Vec<usize> = texts.iter().map(|text| text.len()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        assert!(longest <= self.config.max_position_embeddings, "texts are cut before they come here");
        let rope = match &self.config.positions {
            Positions::Rope(frequencies) => Some(Rope::new(longest, frequencies)),
            Positions::Learnt => None,
        };
        let x = self.tokens(texts)?;
        let mut room = Room { x, wide: Vec::new(), gated: Vec::new(), sum: Vec::new() };
        for block in &self.weights.blocks {
            self.block(block, &mut room, &lengths, rope.as_ref());
        }
        Ok(room.x)
    }

    fn tokens(&self, texts: &[&[u32]]) -> Result<Vec<f32>, EncoderError> {
        let (h, size) = (self.config.hidden_size, self.config.vocab_size);
        let Weights { words, positions, kind, norm, .. } = &self.weights;
        let mut x = Vec::with_capacity(texts.iter().map(|text| text.len()).sum::<usize>() * h);
        for text in texts {
            for (position, &id) in text.iter().enumerate() {
                let word = words.get(id as usize * h..(id as usize + 1) * h);
                let word = word.ok_or(EncoderError::Token { id, size })?;
                let place = positions.get(position * h..).filter(|_| !positions.is_empty());
                x.extend(
                    word.iter()
                        .zip(kind)
                        .enumerate()
                        .map(|(i, (word, kind))| place.map_or(word + kind, |place| word + kind + place[i])),
                );
            }
        }
        self.normalise(&mut x, norm);
        Ok(x)
    }

    fn block(&self, block: &Block, room: &mut Room, lengths: &[usize], rope: Option<&Rope>) {
        let inner = self.config.intermediate_size;
        let shape = Shape { heads: self.config.num_attention_heads, head_dim: self.config.head_dim() };
        let Room { x, wide, gated, sum } = room;
        let qkv = block.qkv.apply(x, wide);
        if let Some(rope) = rope {
            rope.turn(qkv, lengths, shape);
        }
        let mixed = sized(gated, x.len());
        attention(mixed, qkv, lengths, shape);
        add(x, block.out.apply(mixed, sum));
        self.normalise(x, &block.attention_norm);
        let up = block.up.apply(x, wide);
        let network = match self.config.family {
            Family::Bert => {
                up.par_chunks_mut(CHUNK * inner).for_each(gelu_in_place);
                up
            }
            Family::New => {
                let gated = sized(gated, up.len() / 2);
                gated.par_chunks_exact_mut(inner).zip(up.par_chunks_exact(2 * inner)).for_each(
                    |(out, row)| {
                        let (up, gate) = row.split_at(inner);
                        gated_gelu(out, up, gate);
                    },
                );
                gated
            }
        };
        add(x, block.down.apply(network, sum));
        self.normalise(x, &block.network_norm);
    }

    fn normalise(&self, x: &mut [f32], norm: &Norm) {
        let rows = x.par_chunks_mut(CHUNK * self.config.hidden_size);
        rows.for_each(|rows| layer_norm(rows, &norm.weight, &norm.bias, self.config.layer_norm_eps));
    }
}

/// The vectors of all tokens, and memory that the blocks use one after the other: new pages cost as much as the work on them.
struct Room {
    x: Vec<f32>,
    wide: Vec<f32>,
    gated: Vec<f32>,
    sum: Vec<f32>,
}

/// The first `n` values of a buffer, which grows if it must. What they are is for the caller to set.
fn sized(buffer: &mut Vec<f32>, n: usize) -> &mut [f32] {
    if buffer.len() < n {
        buffer.resize(n, 0.0);
    }
    &mut buffer[..n]
}

impl Linear {
    /// `x Wᵀ + b` for every row of `x`, in `buffer`.
    fn apply<'b>(&self, x: &[f32], buffer: &'b mut Vec<f32>) -> &'b mut [f32] {
        let inputs = self.matrix.inner();
        let out = sized(buffer, x.len() / inputs * self.bias.len());
        biased_product(out, &self.bias, Left { data: x, stride: inputs }, &self.matrix);
        out
    }
}

fn add(x: &mut [f32], y: &[f32]) {
    x.par_chunks_mut(1 << 15).zip(y.par_chunks(1 << 15)).for_each(|(x, y)| {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    });
}
