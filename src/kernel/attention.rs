//! Causal attention over packed sequences, with an optional window, returning each row's log-sum-exp. Knows no projection.
//!
//! Rows of `q`, `k`, `v` are the tokens of several sequences one after the other; a token sees only its own sequence, at or
//! before itself and, with a window `w`, only the last `w` tokens including itself. Nothing of size tokens² is kept: a block of
//! query rows is scored at a time, a tile of keys at a time, and the backward pass recomputes the probabilities from the
//! log-sum-exp. Attention sinks are applied afterwards from that log-sum-exp (`sink.rs`), so gradients of it are part of the
//! backward pass.

mod forward;

use std::{ops::Range, sync::Arc};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{
    exp::exp_in_place,
    f32s,
    gemm::{Mat, Threads, Write, gemm},
    host, tensor,
};

/// Query rows scored at a time.
const BLOCK: usize = 64;

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

/// A block of query rows of one sequence and the keys that any of them sees, as absolute token ranges.
struct Block {
    rows: Range<usize>,
    keys: Range<usize>,
}

impl Pattern {
    fn blocks(&self, sequence: Range<usize>) -> impl Iterator<Item = Block> + '_ {
        sequence.clone().step_by(BLOCK).map(move |from| {
            let rows = from..(from + BLOCK).min(sequence.end);
            Block { keys: self.first_key(from, sequence.start)..rows.end, rows }
        })
    }

    fn first_key(&self, row: usize, start: usize) -> usize {
        self.window.map_or(start, |window| (row + 1).saturating_sub(window).max(start))
    }

    /// The keys that `row` sees, relative to the block's first key.
    fn seen(&self, row: usize, block: &Block) -> Range<usize> {
        self.first_key(row, block.keys.start) - block.keys.start..row + 1 - block.keys.start
    }

    fn sequences(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.offsets.windows(2).map(|pair| pair[0]..pair[1])
    }
}

/// The view of head `h` of rows `range` in a [t, heads, d] array.
fn head(data: &[f32], range: Range<usize>, (h, heads, d): (usize, usize, usize)) -> Mat<'_> {
    let rows = range.len();
    let from = (range.start * heads + h) * d;
    Mat::new(&data[from..from + (rows - 1) * heads * d + d], rows, d, heads * d)
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
        let work: Vec<_> =
            self.pattern.sequences().flat_map(|s| (0..dims.hk).map(move |g| (s.clone(), g))).collect();
        let parts: Vec<_> = work
            .into_par_iter()
            .map(|(sequence, g)| {
                let part = self.backward_group(
                    dims,
                    sequence.clone(),
                    g,
                    &Saved { q: &qs, k: &ks, v: &vs, out: &os, grad: &gs },
                );
                (sequence, g, part)
            })
            .collect();
        let mut dq = vec![0f32; qs.len()];
        let mut dk = vec![0f32; ks.len()];
        let mut dv = vec![0f32; vs.len()];
        let per = dims.hq / dims.hk;
        for (sequence, g, part) in parts {
            scatter(
                &mut dq,
                &part.dq,
                sequence.clone(),
                (g * per * dims.dk, per * dims.dk, dims.hq * dims.dk),
            );
            scatter(&mut dk, &part.dk, sequence.clone(), (g * dims.dk, dims.dk, dims.hk * dims.dk));
            scatter(&mut dv, &part.dv, sequence, (g * dims.dv, dims.dv, dims.hk * dims.dv));
        }
        Ok((Some(tensor(dq, q.shape())?), Some(tensor(dk, k.shape())?), Some(tensor(dv, v.shape())?)))
    }
}

/// Copies a dense [tokens, width] part into columns `at..at + width` of rows `range` with `stride` columns.
fn scatter(into: &mut [f32], part: &[f32], range: Range<usize>, (at, width, stride): (usize, usize, usize)) {
    for (t, row) in range.zip(part.chunks_exact(width)) {
        into[t * stride + at..][..width].copy_from_slice(row);
    }
}

/// What the backward pass reads.
struct Saved<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    grad: &'a [f32],
}

/// Gradients of one key/value head group over one sequence: `dq` [tokens, group, dk], `dk` [tokens, dk], `dv` [tokens, dv].
struct Part {
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl Attention {
    fn backward_group(&self, dims: Dims, sequence: Range<usize>, g: usize, saved: &Saved<'_>) -> Part {
        let Dims { hq, hk, dk, dv } = dims;
        let (n, per) = (sequence.len(), hq / hk);
        let mut part = Part { dq: vec![0f32; n * per * dk], dk: vec![0f32; n * dk], dv: vec![0f32; n * dv] };
        for block in self.pattern.blocks(sequence.clone()) {
            let (rows, keys) = (block.rows.len(), block.keys.len());
            let (mut p, mut ds) = (vec![0f32; rows * keys], vec![0f32; rows * keys]);
            let (kh, vh) = (
                head(saved.k, block.keys.clone(), (g, hk, dk)),
                head(saved.v, block.keys.clone(), (g, hk, dv)),
            );
            let key_from = block.keys.start - sequence.start;
            for h in g * per..(g + 1) * per {
                let (qh, scale) = (head(saved.q, block.rows.clone(), (h, hq, dk)), self.pattern.scale);
                // The last column of `grad` belongs to the log-sum-exp, so the view of d(out) is one narrower than its stride.
                let at = (block.rows.start * hq + h) * (dv + 1);
                let dout = Mat::new(&saved.grad[at..], rows, dv, hq * (dv + 1));
                gemm((&mut p, keys), Write::Set, scale, (qh, kh.t()), Threads::One);
                gemm((&mut ds, keys), Write::Set, 1.0, (dout, vh.t()), Threads::One);
                for i in 0..rows {
                    let row = at + i * hq * (dv + 1)..at + i * hq * (dv + 1) + dv + 1;
                    let (p, ds) = (&mut p[i * keys..(i + 1) * keys], &mut ds[i * keys..(i + 1) * keys]);
                    score_gradient(
                        p,
                        ds,
                        self.pattern.seen(block.rows.start + i, &block),
                        (&saved.out[row.clone()], &saved.grad[row]),
                    );
                }
                let (p, ds) = (Mat::dense(&p, rows, keys), Mat::dense(&ds, rows, keys));
                let row_from = block.rows.start - sequence.start;
                let dq = &mut part.dq[row_from * per * dk + (h - g * per) * dk..];
                gemm((dq, per * dk), Write::Set, scale, (ds, kh), Threads::One);
                gemm((&mut part.dk[key_from * dk..], dk), Write::Add, scale, (ds.t(), qh), Threads::One);
                gemm((&mut part.dv[key_from * dv..], dv), Write::Add, 1.0, (p.t(), dout), Threads::One);
            }
        }
        part
    }
}

/// `p` holds scores and becomes probabilities; `ds` holds `dO · Vᵀ` and becomes the gradient of the scores.
fn score_gradient(p: &mut [f32], ds: &mut [f32], seen: Range<usize>, (out, grad): (&[f32], &[f32])) {
    let dv = out.len() - 1;
    let (log_sum_exp, d_log_sum_exp) = (out[dv], grad[dv]);
    let through_out: f32 = out[..dv].iter().zip(&grad[..dv]).map(|(o, g)| o * g).sum();
    let shift = d_log_sum_exp - through_out;
    for x in [&mut *p, &mut *ds] {
        x[..seen.start].fill(0.0);
        x[seen.end..].fill(0.0);
    }
    let (p, ds) = (&mut p[seen.clone()], &mut ds[seen]);
    exp_in_place(p, log_sum_exp);
    p.iter().zip(ds).for_each(|(p, ds)| *ds = p * (*ds + shift));
}

#[cfg(test)]
mod tests;
