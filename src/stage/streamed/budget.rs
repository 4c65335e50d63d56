//! What a pass through a model takes of main memory, and what gives way when that is too much. Knows no stage.
//!
//! ```text
//! process · layer · working memory of one batch · what the stage sums · hidden states
//! ```
//!
//! Only the hidden states can go elsewhere, into a file. Batches have one size whatever the memory, because sums over batches would have
//! other last bits.

use std::fmt;

use bytesize::ByteSize;
use safetensors::Dtype;

use crate::{
    artifact::checkpoint::Checkpoint,
    model::{Batch, Config},
};

/// Program, tokenizer, texts and allocator.
const PROCESS: u64 = 400 << 20;
const F32: u64 = size_of::<f32>() as u64;

/// Bytes that a pass takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Needs {
    /// The largest layer: floats as f32, packed experts as they are.
    pub(crate) layer: u64,
    /// What a layer makes of the largest batch.
    pub(crate) batch: u64,
    /// Tokens of the largest batch.
    pub(crate) batch_tokens: u64,
    /// What the stage itself keeps while a layer is there.
    pub(crate) stage: u64,
    /// The residual streams of all batches.
    pub(crate) hidden: u64,
}

/// Where the hidden states lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Where {
    Memory,
    File,
}

/// A pass does not fit even with its hidden states in a file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`memory` is {}, but this pass needs about {}: {needs}; give it more, or shorter sequences", size(*.memory), size(.needs.least()))]
pub(crate) struct TooLittle {
    memory: u64,
    pub(crate) needs: Needs,
}

impl Needs {
    /// What a plain pass of `batches` takes, `streams` models side by side.
    pub(crate) fn of<'b>(
        checkpoint: &Checkpoint,
        config: &Config,
        batches: impl Iterator<Item = &'b Batch>,
        streams: usize,
    ) -> Self {
        let sizes: Vec<u64> = batches.map(|batch| batch.len() as u64).collect();
        let batch_tokens = sizes.iter().copied().max().unwrap_or(0);
        let layers = (0..config.layers.len()).map(|index| layer_bytes(checkpoint, index));
        Self {
            layer: layers.max().unwrap_or(0),
            batch: batch_tokens * F32 * per_token(config),
            batch_tokens,
            stage: 0,
            hidden: sizes.iter().sum::<u64>() * config.hidden_size as u64 * F32 * streams as u64,
        }
    }

    /// Where the hidden states go, or why nothing helps.
    pub(crate) fn place(&self, memory: Option<u64>) -> Result<Where, TooLittle> {
        match memory {
            Some(memory) if memory < self.least() => Err(TooLittle { memory, needs: *self }),
            Some(memory) if memory < self.least() + self.hidden => Ok(Where::File),
            _ => Ok(Where::Memory),
        }
    }

    /// Bytes without the hidden states.
    pub(crate) fn least(&self) -> u64 {
        PROCESS + self.layer + self.batch + self.stage
    }
}

/// Floats that a layer makes of one token and that lie in memory together: the stream and its norm, queries, keys, values and attention's
/// output in two forms each, then what an MLP or all chosen experts make of it.
pub(crate) fn per_token(config: &Config) -> u64 {
    let (hidden, d, inner) = (config.hidden_size, config.head_dim, config.intermediate_size);
    let attention = 2 * d * (2 * config.num_attention_heads + 2 * config.num_key_value_heads);
    let mlp = match config.experts {
        Some(experts) => experts.num_experts_per_tok * (2 * hidden + 3 * inner),
        None => 3 * inner,
    };
    (4 * hidden + attention.max(mlp)) as u64
}

fn layer_bytes(checkpoint: &Checkpoint, index: usize) -> u64 {
    let prefix = format!("model.layers.{index}.");
    let bytes = |name: &str| {
        let raw = checkpoint.raw(name).expect("listed by the checkpoint itself");
        if raw.dtype == Dtype::U8 {
            // Two codes a byte: NF4 is expanded, MXFP4 is not.
            let floats = if checkpoint.raw(&format!("{name}.absmax")).is_some() { 2 * F32 } else { 0 };
            raw.bytes.len() as u64 * (1 + floats)
        } else {
            // The file's pages are in memory while they are turned into floats.
            raw.shape.iter().product::<usize>() as u64 * F32 + raw.bytes.len() as u64
        }
    };
    checkpoint.names().filter(|name| name.starts_with(&prefix)).map(bytes).sum()
}

fn size(bytes: u64) -> impl fmt::Display {
    ByteSize::b(bytes).display().si()
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} for the program, {} for a layer, {} for a batch of {} tokens, {} for what is summed",
            size(PROCESS),
            size(self.layer),
            size(self.batch),
            self.batch_tokens,
            size(self.stage)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::checkpoint::{Draft, Owned};
    use crate::model::testing::{FULL, SLIDING, checkpoint, draft};

    #[test]
    fn hidden_states_give_way_before_anything_fails() {
        let (mb, needs) = (1 << 20, Needs { layer: 100 << 20, hidden: 300 << 20, ..Needs::default() });
        assert_eq!(needs.place(None), Ok(Where::Memory));
        assert_eq!(needs.place(Some(800 * mb)), Ok(Where::Memory));
        assert_eq!(needs.place(Some(800 * mb - 1)), Ok(Where::File));
        assert_eq!(needs.place(Some(500 * mb)), Ok(Where::File));
        let error = needs.place(Some(500 * mb - 1)).unwrap_err().to_string();
        assert!(error.starts_with("`memory` is 524.3 MB, but this pass needs about 524.3 MB: "), "{error}");
        assert!(error.contains("104.9 MB for a layer"), "{error}");
    }

    #[test]
    fn packed_experts_stay_packed_and_nf4_does_not() {
        let tensors = [
            ("model.layers.0.mlp.experts.down_proj_blocks", Owned::u8(&[10], vec![0; 10])),
            ("model.layers.0.self_attn.q_proj.weight", Owned::u8(&[6, 1], vec![0; 6])),
            ("model.layers.0.self_attn.q_proj.weight.absmax", Owned::f32(&[1], &[1.0])),
        ];
        let tensors = tensors.map(|(name, tensor)| (name.to_owned(), tensor)).into();
        let (_dir, checkpoint) = checkpoint(&Draft { tensors, ..Draft::default() });
        assert_eq!(layer_bytes(&checkpoint, 0), 10 + (6 + 12 * 4) + (4 + 4));
    }

    #[test]
    fn needs_follow_from_the_tensors_and_the_longest_batch() {
        let (_dir, checkpoint) = checkpoint(&draft(&[SLIDING, FULL]));
        let config = Config::parse(&checkpoint.config).unwrap();
        let batches = [Batch::new([&[1, 2, 3][..]]), Batch::new([&[1, 2][..], &[3, 4, 5][..]])];
        let needs = Needs::of(&checkpoint, &config, batches.iter(), 2);
        let hidden = config.hidden_size as u64;
        assert_eq!(needs.hidden, 8 * hidden * 4 * 2);
        assert_eq!((needs.batch_tokens, needs.batch), (5, 5 * 4 * per_token(&config)));
        let names = checkpoint.names().filter(|name| name.starts_with("model.layers.1."));
        let floats: usize =
            names.map(|name| checkpoint.raw(name).unwrap().shape.iter().product::<usize>()).sum();
        assert!(needs.layer >= 4 * floats as u64, "{} {floats}", needs.layer);
    }
}
