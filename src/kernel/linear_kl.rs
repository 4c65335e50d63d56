//! `KL(teacher ‖ student)` through a shared, frozen output head, chunked over tokens. Knows no model.
//!
//! Logits exist for one chunk of tokens at a time, so the workspace does not grow with the sequence. With `p`, `q` the two softmaxes,
//! `L = Σ w_t KL(p_t ‖ q_t) / norm` and `dL/dh_t = w_t (q_t − p_t) W / norm`; the gradient is made in the forward pass, where the
//! logits are at hand, and nothing of vocabulary size is kept.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{
    cross_entropy::log_sum_exp,
    exp::exp,
    f32s,
    gemm::{Mat, Threads, Write, gemm},
    host, tensor,
};

/// Tokens whose logits exist at one time.
const CHUNK: usize = 256;

/// The frozen side of the loss.
pub struct Teacher<'a> {
    /// Teacher states after the final norm [t, hidden].
    pub hidden: &'a Tensor,
    /// Shared head [vocab, hidden].
    pub head: &'a Tensor,
    /// Weight of each token: 0 leaves it out.
    pub weights: &'a Arc<[f32]>,
    /// Number of counted tokens of the whole batch, so that losses of parts add up.
    pub norm: f32,
}

/// The loss, a scalar `[1]`, for student states `hidden` [t, hidden].
pub fn linear_kl(hidden: &Tensor, teacher: &Teacher<'_>) -> Result<Tensor> {
    if hidden.shape() != teacher.hidden.shape()
        || teacher.weights.len() != hidden.dim(0)?
        || teacher.head.dim(1)? != hidden.dim(1)?
    {
        bail!(
            "linear_kl: student {:?}, teacher {:?}, head {:?}, {} weights",
            hidden.shape(),
            teacher.hidden.shape(),
            teacher.head.shape(),
            teacher.weights.len()
        );
    }
    hidden.apply_op1(LinearKl {
        teacher: teacher.hidden.clone(),
        head: teacher.head.clone(),
        weights: teacher.weights.clone(),
        norm: teacher.norm,
        gradient: Mutex::default(),
    })
}

struct LinearKl {
    teacher: Tensor,
    head: Tensor,
    weights: Arc<[f32]>,
    norm: f32,
    gradient: Mutex<Vec<f32>>,
}

/// `z` holds student logits and becomes `q − p`; returns `KL(p ‖ q)`. `u` holds teacher logits and is used up.
fn divergence(z: &mut [f32], u: &mut [f32]) -> f32 {
    let (student, teacher) = (log_sum_exp(z), log_sum_exp(u));
    let mut kl = 0f32;
    for (z, u) in z.iter_mut().zip(u) {
        let (log_p, log_q) = (*u - teacher, *z - student);
        let p = exp(log_p);
        kl += p * (log_p - log_q);
        *z = exp(log_q) - p;
    }
    kl.max(0.0)
}

impl CustomOp1 for LinearKl {
    fn name(&self) -> &'static str {
        "linear_kl"
    }

    fn cpu_fwd(&self, h: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((t, inner), vocab) = (layout.shape().dims2()?, self.head.dim(0)?);
        let (h, teacher, head) = (f32s(h, layout, "linear_kl")?, host(&self.teacher)?, host(&self.head)?);
        let head = Mat::dense(&head, vocab, inner);
        let mut gradient = vec![0f32; t * inner];
        let (mut z, mut u) = (vec![0f32; CHUNK * vocab], vec![0f32; CHUNK * vocab]);
        let mut loss = 0f64;
        for from in (0..t).step_by(CHUNK) {
            let n = CHUNK.min(t - from);
            let rows = from * inner..(from + n) * inner;
            let (student, taught) =
                (Mat::dense(&h[rows.clone()], n, inner), Mat::dense(&teacher[rows.clone()], n, inner));
            let (z, u) = (&mut z[..n * vocab], &mut u[..n * vocab]);
            gemm((z, vocab), Write::Set, 1.0, (student, head.t()), Threads::All);
            gemm((u, vocab), Write::Set, 1.0, (taught, head.t()), Threads::All);
            let row = |(i, (z, u)): (usize, (&mut [f32], &mut [f32]))| {
                let weight = self.weights[from + i];
                if weight == 0.0 {
                    z.fill(0.0);
                    return 0.0;
                }
                let kl = divergence(z, u);
                for z in z.iter_mut() {
                    *z *= weight / self.norm;
                }
                f64::from(weight) * f64::from(kl)
            };
            let terms: Vec<f64> = z
                .par_chunks_exact_mut(vocab)
                .zip(u.par_chunks_exact_mut(vocab))
                .enumerate()
                .map(row)
                .collect();
            loss += terms.iter().sum::<f64>();
            gemm(
                (&mut gradient[rows], inner),
                Write::Set,
                1.0,
                (Mat::dense(z, n, vocab), head),
                Threads::All,
            );
        }
        *self.gradient.lock().unwrap_or_else(PoisonError::into_inner) = gradient;
        Ok((CpuStorage::F32(vec![(loss / f64::from(self.norm)) as f32]), 1.into()))
    }

    fn bwd(&self, h: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let factor = host(grad)?[0];
        let mut gradient = std::mem::take(&mut *self.gradient.lock().unwrap_or_else(PoisonError::into_inner));
        if gradient.len() != h.elem_count() {
            bail!("linear_kl: its gradient was already taken");
        }
        for g in &mut gradient {
            *g *= factor;
        }
        Ok(Some(tensor(gradient, h.shape())?))
    }
}

#[cfg(test)]
mod tests;
