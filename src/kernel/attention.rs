//! Causal attention over packed sequences, with an optional window, returning each row's log-sum-exp. Knows no projection.
//!
//! Rows of `q`, `k`, `v` are the tokens of several sequences one after the other; a token sees only its own sequence, at or
//! before itself and, with a window `w`, only the last `w` tokens including itself. Nothing of size tokens² is kept: a block of
//! query rows is scored at a time, a tile of keys at a time, and the backward pass recomputes the probabilities from the
//! log-sum-exp. Attention sinks are applied afterwards from that log-sum-exp (`sink.rs`), so gradients of it are part of the
//! backward pass.

mod backward;
mod forward;

use std::{ops::Range, sync::Arc};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::{f32s, host, tensor};

/// What an attention call needs besides its tensors.
#[derive(Debug, Clone)]
pub struct Pattern {
    /// Token offsets of the sequences: sequence `i` is rows `offsets[i]..offsets[i + 1]`.
    pub offsets: Arc<[usize]>,
    /// How many keys a query sees at most, itself included; `None` sees all before it.
    pub window: Option<usize>,
    /// Factor on `q · k`.
    pub scale: f32,
}

/// `q` [t, hq, dk], `k` [t, hk, dk], `v` [t, hk, dv] → [t, hq, dv + 1]: the output, and the log-sum-exp (natural) in the last column.
///
/// Query head `h` uses key/value head `h / (hq / hk)`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, pattern: &Pattern) -> Result<Tensor> {
    q.apply_op3(k, v, Attention { pattern: pattern.clone() })
}

struct Attention {
    pattern: Pattern,
}

/// Sizes of one call.
#[derive(Clone, Copy)]
struct Dims {
    hq: usize,
    hk: usize,
    dk: usize,
    dv: usize,
}

impl Dims {
    fn new(q: &Shape, k: &Shape, v: &Shape, pattern: &Pattern) -> Result<Self> {
        let ((t, hq, dk), (tk, hk, dk2), (tv, hv, dv)) = (q.dims3()?, k.dims3()?, v.dims3()?);
        if t != tk || t != tv || dk != dk2 || hk != hv || hq % hk != 0 || pattern.offsets.last() != Some(&t) {
            bail!(
                "attention: q {q:?}, k {k:?}, v {v:?} and sequences up to {:?} do not fit",
                pattern.offsets.last()
            );
        }
        Ok(Self { hq, hk, dk, dv })
    }
}

impl Pattern {
    /// The first token that `row` sees of its sequence, which begins at `start`.
    fn first_key(&self, row: usize, start: usize) -> usize {
        self.window.map_or(start, |window| (row + 1).saturating_sub(window).max(start))
    }

    fn sequences(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.offsets.windows(2).map(|pair| pair[0]..pair[1])
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let dims = Dims::new(ql.shape(), kl.shape(), vl.shape(), &self.pattern)?;
        let (q, k, v) = (f32s(q, ql, "attention")?, f32s(k, kl, "attention")?, f32s(v, vl, "attention")?);
        let t = ql.shape().dims3()?.0;
        let out = forward::forward(&self.pattern, dims, (q, k, v));
        Ok((CpuStorage::F32(out), (t, dims.hq, dims.dv + 1).into()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dims = Dims::new(q.shape(), k.shape(), v.shape(), &self.pattern)?;
        let grad = grad.contiguous()?;
        let (qs, ks, vs, os, gs) = (host(q)?, host(k)?, host(v)?, host(out)?, host(&grad)?);
        let saved = backward::Saved { q: &qs, k: &ks, v: &vs, out: &os, grad: &gs };
        let [dq, dk, dv] = backward::backward(&self.pattern, dims, saved);
        Ok((Some(tensor(dq, q.shape())?), Some(tensor(dk, k.shape())?), Some(tensor(dv, v.shape())?)))
    }
}

#[cfg(test)]
mod tests;
