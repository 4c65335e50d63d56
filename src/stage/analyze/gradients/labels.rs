//! The top of the way back: a next token drawn at every position, and the gradient of its log-probability. Knows no layer.

use candle_core::{Tensor, Var};

use super::Draw;
use crate::{
    kernel::{cross_entropy::cross_entropy, host},
    model::{
        Batch, ModelError, Shell,
        sample::{Sampler, Sampling},
    },
};

/// Positions whose logits exist at one time.
pub(super) const CHUNK: usize = 128;

/// Draws a token `y_t` from `p = softmax(z/τ)` at each position, and returns with them the gradient of `−τ Σ_t ln p(y_t)` for the stream `x`
/// behind the last layer [t, hidden]. With the factor `τ` squares of gradients are `τ²` times those of the divergence at `τ`, which keeps
/// their size (arXiv 1503.02531, §2).
pub(super) fn gradient(
    shell: &Shell,
    x: &Tensor,
    batch: &Batch,
    draw: Draw,
) -> Result<(Vec<u32>, Tensor), ModelError> {
    let (mut labels, mut parts) = (Vec::with_capacity(batch.len()), Vec::new());
    for pair in batch.offsets.windows(2) {
        let mut sampler = sampler(&batch.ids[pair[0]..pair[1]], draw);
        for from in (pair[0]..pair[1]).step_by(CHUNK) {
            let rows = CHUNK.min(pair[1] - from);
            let stream = Var::from_tensor(&x.narrow(0, from, rows)?.contiguous()?)?;
            let logits = shell.lm_head.forward(&shell.normed(stream.as_tensor())?)?;
            let cooled = (&logits / draw.temperature)?;
            let vocab = logits.dim(1)?;
            let drawn: Vec<u32> = host(&logits)?.chunks_exact(vocab).map(|row| sampler.next(row)).collect();
            labels.extend_from_slice(&drawn);
            let cost = cross_entropy(&cooled, &drawn.into(), &vec![1.0; rows].into(), 1.0)?;
            let found = (cost.sum_all()? * draw.temperature)?.backward()?.remove(stream.as_tensor());
            parts.push(found.ok_or_else(|| candle_core::Error::msg("the head gives its input no gradient"))?);
        }
    }
    Ok((labels, Tensor::cat(&parts, 0)?))
}

/// What draws for a sequence: a stream of its own, whatever other sequences there are.
fn sampler(ids: &[u32], draw: Draw) -> Sampler {
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let digest = blake3::hash(&bytes);
    let stream = u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("eight of its bytes"));
    Sampler::new(Sampling { temperature: draw.temperature, top_p: 1.0, seed: draw.seed }, stream)
}
