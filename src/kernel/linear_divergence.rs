//! What a student's states cost against its teacher's through a shared, frozen output head, chunked over tokens. Knows no model.
//!
//! Logits exist for one chunk of tokens at a time, so the workspace does not grow with the sequence. With `l` the loss of a row
//! ([`Loss`]), `L = Σ w_t l_t / norm` and `dL/dh_t = w_t (dl_t/dz_t) W / norm`; the gradient is made in the forward pass, where the logits
//! are at hand, and nothing of vocabulary size is kept.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{
    divergence::Loss,
    f32s,
    gemm::{Mat, Threads, Write, gemm},
    host,
    kept::Kept,
    tensor,
};

/// Tokens whose logits exist at one time.
pub(crate) const CHUNK: usize = 256;

/// What the student is compared with.
#[derive(Debug, Clone)]
pub enum Taught {
    /// Teacher states after the final norm [t, hidden].
    States(Tensor),
    /// What was kept of the teacher's distributions, a row for each token; only for forward divergence at temperature 1 and nothing else.
    Kept(Arc<Kept>),
}

impl Taught {
    /// For a message.
    fn size(&self) -> String {
        match self {
            Self::States(states) => format!("{:?}", states.shape()),
            Self::Kept(kept) => format!("{} rows", kept.len()),
        }
    }
}

/// The frozen side of the loss.
pub struct Teacher<'a> {
    /// What is to be predicted.
    pub taught: Taught,
    /// Shared head [vocab, hidden].
    pub head: &'a Tensor,
    /// Weight of each token: 0 leaves it out.
    pub weights: &'a Arc<[f32]>,
    /// Number of counted tokens of the whole batch, so that losses of parts add up.
    pub norm: f32,
    /// The token that follows each, where the loss looks at it.
    pub targets: Option<&'a Arc<[u32]>>,
    /// What a token costs.
    pub loss: Loss,
}

/// The loss, a scalar `[1]`, for student states `hidden` [t, hidden].
pub fn linear_divergence(hidden: &Tensor, teacher: &Teacher<'_>) -> Result<Tensor> {
    let ((rows, inner), (vocab, width)) = (hidden.dims2()?, teacher.head.dims2()?);
    let fits = match &teacher.taught {
        Taught::States(states) => states.shape() == hidden.shape(),
        Taught::Kept(kept) => {
            kept.len() == rows
                && kept.greatest().is_none_or(|id| (id as usize) < vocab)
                && teacher.loss == Loss::default()
        }
    };
    if !fits || teacher.weights.len() != rows || width != inner {
        bail!(
            "linear_divergence: student {:?}, teacher {}, head {:?}, {} weights",
            hidden.shape(),
            teacher.taught.size(),
            teacher.head.shape(),
            teacher.weights.len()
        );
    }
    let targets: Arc<[u32]> = match teacher.targets {
        None if teacher.loss.cross_entropy > 0.0 => bail!("linear_divergence: cross-entropy without targets"),
        None => vec![0; rows].into(),
        Some(targets) => targets.clone(),
    };
    if targets.len() != rows {
        bail!("linear_divergence: {rows} rows, but {} targets", targets.len());
    }
    if let Some(target) = targets.iter().find(|&&target| target as usize >= vocab) {
        bail!("linear_divergence: target {target} of {vocab} logits");
    }
    hidden.apply_op1(LinearDivergence {
        taught: teacher.taught.clone(),
        head: teacher.head.clone(),
        weights: teacher.weights.clone(),
        norm: teacher.norm,
        targets,
        loss: teacher.loss,
        gradient: Mutex::default(),
    })
}

struct LinearDivergence {
    taught: Taught,
    head: Tensor,
    weights: Arc<[f32]>,
    norm: f32,
    targets: Arc<[u32]>,
    loss: Loss,
    gradient: Mutex<Vec<f32>>,
}

impl LinearDivergence {
    /// The cost of row `i` with its weight, and its gradient in the place of its logits `z`.
    fn weighed(&self, i: usize, z: &mut [f32], cost: impl FnOnce(&mut [f32]) -> f64) -> f64 {
        let weight = self.weights[i];
        if weight == 0.0 {
            z.fill(0.0);
            return 0.0;
        }
        let cost = cost(z);
        for z in z.iter_mut() {
            *z *= weight / self.norm;
        }
        f64::from(weight) * cost
    }
}

impl CustomOp1 for LinearDivergence {
    fn name(&self) -> &'static str {
        "linear_divergence"
    }

    fn cpu_fwd(&self, h: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((t, inner), vocab) = (layout.shape().dims2()?, self.head.dim(0)?);
        let (h, head) = (f32s(h, layout, "linear_divergence")?, host(&self.head)?);
        let head = Mat::dense(&head, vocab, inner);
        let mut gradient = vec![0f32; t * inner];
        let (mut z, mut u) = (vec![0f32; CHUNK * vocab], Vec::new());
        let mut loss = 0f64;
        for from in (0..t).step_by(CHUNK) {
            let n = CHUNK.min(t - from);
            let rows = from * inner..(from + n) * inner;
            let z = &mut z[..n * vocab];
            gemm(
                (z, vocab),
                Write::Set,
                1.0,
                (Mat::dense(&h[rows.clone()], n, inner), head.t()),
                Threads::All,
            );
            let terms: Vec<f64> = match &self.taught {
                Taught::States(states) => {
                    let states = host(states)?;
                    u.resize(CHUNK * vocab, 0.0);
                    let u = &mut u[..n * vocab];
                    let taught = Mat::dense(&states[rows.clone()], n, inner);
                    gemm((u, vocab), Write::Set, 1.0, (taught, head.t()), Threads::All);
                    let pairs = z.par_chunks_exact_mut(vocab).zip(u.par_chunks_exact_mut(vocab)).enumerate();
                    let cost = |i: usize, z: &mut [f32], u: &mut [f32]| {
                        self.weighed(i, z, |z| self.loss.row(z, u, self.targets[i] as usize))
                    };
                    pairs.map(|(i, (z, u))| cost(from + i, z, u)).collect()
                }
                Taught::Kept(kept) => {
                    let rows = z.par_chunks_exact_mut(vocab).enumerate();
                    rows.map(|(i, z)| self.weighed(from + i, z, |z| kept.cost(from + i, z))).collect()
                }
            };
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
            bail!("linear_divergence: its gradient was already taken");
        }
        for g in &mut gradient {
            *g *= factor;
        }
        Ok(Some(tensor(gradient, h.shape())?))
    }
}

#[cfg(test)]
mod tests;
