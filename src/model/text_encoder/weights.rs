//! The weights of a text encoder: found by name, checked, and laid out for products. Knows no computation.

use super::config::{Config, Family, Positions};
use crate::{artifact::checkpoint::Checkpoint, kernel::ordered::Packed};

/// All weights.
pub(super) struct Weights {
    /// `[vocab_size, hidden]`.
    pub(super) words: Vec<f32>,
    /// `[max_position_embeddings, hidden]`; empty with a rope.
    pub(super) positions: Vec<f32>,
    /// Row 0 of the token types; zeros where there are none.
    pub(super) kind: Vec<f32>,
    pub(super) norm: Norm,
    pub(super) blocks: Vec<Block>,
}

/// One block.
pub(super) struct Block {
    /// Queries, keys and values, one below the other.
    pub(super) qkv: Linear,
    pub(super) out: Linear,
    pub(super) attention_norm: Norm,
    /// For the gated network: up, then gate.
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) network_norm: Norm,
}

/// `y = W x + b`.
pub(super) struct Linear {
    pub(super) matrix: Packed,
    pub(super) bias: Vec<f32>,
}

/// Scale and shift of a layer normalisation.
pub(super) struct Norm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

/// The weights do not fit the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the weights do not fit config.json:\n  {}", .0.join("\n  "))]
pub struct WeightsError(pub Vec<String>);

/// Finds tensors and remembers what is wrong with them.
struct Finder<'a> {
    checkpoint: &'a Checkpoint,
    prefix: &'static str,
    problems: Vec<String>,
}

impl Weights {
    pub(super) fn load(checkpoint: &Checkpoint, config: &Config) -> Result<Self, WeightsError> {
        // A file may hold the encoder alone or inside a model with a head.
        let has =
            |prefix: &&str| checkpoint.raw(&format!("{prefix}embeddings.word_embeddings.weight")).is_some();
        let prefix = ["", "bert.", "new."].into_iter().find(has).unwrap_or("");
        let mut finder = Finder { checkpoint, prefix, problems: Vec::new() };
        let h = config.hidden_size;
        let mut kind = vec![0.0; h];
        if config.type_vocab_size > 0 {
            kind = finder.tensor("embeddings.token_type_embeddings.weight", &[config.type_vocab_size, h]);
            kind.truncate(h);
        }
        let positions = match config.positions {
            Positions::Rope(_) => Vec::new(),
            Positions::Learnt => {
                finder.tensor("embeddings.position_embeddings.weight", &[config.max_position_embeddings, h])
            }
        };
        let weights = Self {
            words: finder.tensor("embeddings.word_embeddings.weight", &[config.vocab_size, h]),
            positions,
            kind,
            norm: finder.norm("embeddings.LayerNorm", h),
            blocks: (0..config.num_hidden_layers).map(|i| finder.block(config, i)).collect(),
        };
        if finder.problems.is_empty() { Ok(weights) } else { Err(WeightsError(finder.problems)) }
    }
}

impl Finder<'_> {
    fn block(&mut self, config: &Config, index: usize) -> Block {
        let (h, inner) = (config.hidden_size, config.intermediate_size);
        let at = |name: &str| format!("encoder.layer.{index}.{name}");
        match config.family {
            Family::Bert => {
                let parts = ["query", "key", "value"].map(|part| at(&format!("attention.self.{part}")));
                let weights = parts.each_ref().map(|part| self.tensor(&format!("{part}.weight"), &[h, h]));
                let bias = parts.each_ref().map(|part| self.tensor(&format!("{part}.bias"), &[h]));
                Block {
                    qkv: Linear { matrix: Packed::of_weights(&weights.concat(), h), bias: bias.concat() },
                    out: self.linear(&at("attention.output.dense"), h, h),
                    attention_norm: self.norm(&at("attention.output.LayerNorm"), h),
                    up: self.linear(&at("intermediate.dense"), inner, h),
                    down: self.linear(&at("output.dense"), h, inner),
                    network_norm: self.norm(&at("output.LayerNorm"), h),
                }
            }
            Family::New => {
                let up = self.tensor(&at("mlp.up_gate_proj.weight"), &[2 * inner, h]);
                Block {
                    qkv: self.linear(&at("attention.qkv_proj"), 3 * h, h),
                    out: self.linear(&at("attention.o_proj"), h, h),
                    attention_norm: self.norm(&at("attn_ln"), h),
                    up: Linear { matrix: Packed::of_weights(&up, h), bias: vec![0.0; 2 * inner] },
                    down: self.linear(&at("mlp.down_proj"), h, inner),
                    network_norm: self.norm(&at("mlp_ln"), h),
                }
            }
        }
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize) -> Linear {
        let weight = self.tensor(&format!("{name}.weight"), &[outputs, inputs]);
        Linear {
            matrix: Packed::of_weights(&weight, inputs),
            bias: self.tensor(&format!("{name}.bias"), &[outputs]),
        }
    }

    fn norm(&mut self, name: &str, width: usize) -> Norm {
        Norm {
            weight: self.tensor(&format!("{name}.weight"), &[width]),
            bias: self.tensor(&format!("{name}.bias"), &[width]),
        }
    }

    /// The values of a tensor. What is wrong with it is noted, and zeros stand in for it so that all problems are found.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Vec<f32> {
        let name = format!("{}{name}", self.prefix);
        let values = match self.checkpoint.raw(&name) {
            None => Err("is missing".to_owned()),
            Some(raw) if raw.shape != shape => Err(format!("has the shape {:?}, not {shape:?}", raw.shape)),
            Some(raw) => raw.to_f32().ok_or_else(|| format!("has elements of type {:?}", raw.dtype)),
        };
        let finite = |values: Vec<f32>| match values.iter().position(|x| !x.is_finite()) {
            None => Ok(values),
            Some(at) => Err(format!("holds {} at element {at}", values[at])),
        };
        values.and_then(finite).unwrap_or_else(|why| {
            self.problems.push(format!("`{name}` {why}"));
            Vec::new()
        })
    }
}
