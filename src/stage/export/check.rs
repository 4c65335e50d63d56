//! `check.safetensors`: a prompt and the logits that this crate computes for it, so that any other implementation can be tested.

use std::path::Path;

use candle_core::{Device, Tensor};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use safetensors::tensor::TensorView;

use crate::{
    artifact::checkpoint::{Checkpoint, Owned},
    engine::action::{Cx, Failure},
    model::{Batch, Config, Layer, ModelError, Shell, probe::NoProbe},
};

/// Logits are kept at this many positions: a whole row is the vocabulary.
const POSITIONS: usize = 8;

/// Computes and writes the file: `tokens` I32 `[n]`, `positions` I32 `[p]`, `logits` F32 [p, vocab]. One layer is in memory at a time.
pub(super) fn write(
    checkpoint: &Checkpoint,
    config: &Config,
    n: usize,
    cx: &Cx<'_>,
    path: &Path,
) -> Result<(), Failure> {
    let tokens = prompt(n, config.vocab_size, cx.seed);
    let positions = spread(n);
    cx.progress.phase("logits to check against", Some(config.layers.len() as u64), "layers");
    let failed = |error: ModelError| Failure::stage(error);
    let shell = Shell::load(checkpoint, config).map_err(failed)?;
    let batch = Batch::new([tokens.as_slice()]);
    let mut x = shell.embed(&tokens).map_err(failed)?;
    for i in 0..config.layers.len() {
        cx.check_stop()?;
        let layer = Layer::load(checkpoint, config, i).map_err(failed)?;
        x = layer.forward(&x, &batch, &mut NoProbe).map_err(failed)?;
        cx.progress.advance(1);
    }
    let logits = head(&shell, &x, &positions).map_err(failed)?;
    let tensors = [
        ("logits", Owned::f32(&[positions.len(), config.vocab_size], &logits)),
        ("positions", i32s(&positions)),
        ("tokens", i32s(&tokens)),
    ];
    let views = tensors.iter().map(|(name, t)| {
        (*name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).expect("bytes fit the shape"))
    });
    safetensors::serialize_to_file(views, None, path).map_err(Failure::stage)
}

fn head(shell: &Shell, x: &Tensor, positions: &[u32]) -> Result<Vec<f32>, ModelError> {
    let at = Tensor::from_slice(positions, positions.len(), &Device::Cpu)?;
    let rows = shell.normed(&x.index_select(&at, 0)?)?;
    Ok(shell.lm_head.forward(&rows)?.flatten_all()?.to_vec1()?)
}

/// Random ids: text would need a tokenizer, and any id is as good for comparing two programs.
fn prompt(n: usize, vocab: usize, seed: u64) -> Vec<u32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| random.next_u32() % vocab as u32).collect()
}

/// Evenly spaced positions, the last one included.
fn spread(n: usize) -> Vec<u32> {
    let count = POSITIONS.min(n);
    (1..=count).map(|i| (i * n / count - 1) as u32).collect()
}

fn i32s(values: &[u32]) -> Owned {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    Owned { dtype: safetensors::Dtype::I32, shape: vec![values.len()], bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_spread_and_end_at_the_last_token() {
        assert_eq!(spread(160), [19, 39, 59, 79, 99, 119, 139, 159]);
        assert_eq!(spread(3), [0, 1, 2]);
        assert_eq!(spread(1), [0]);
    }

    #[test]
    fn prompts_are_the_seeds_and_inside_the_vocabulary() {
        let a = prompt(500, 96, 1);
        assert!(a.iter().all(|&id| id < 96) && a.iter().any(|&id| id > 80));
        assert_eq!(a, prompt(500, 96, 1));
        assert_ne!(a, prompt(500, 96, 2));
    }
}
