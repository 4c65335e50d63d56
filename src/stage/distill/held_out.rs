//! Text set aside from training, and how far the student is from its teacher there, by position. Knows no step.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    kernel::{host, linear_divergence::Taught},
    math::softmax::{kl, log_sum_exp},
    model::{Batch, Model, ModelError, probe::NoProbe},
    stage::Invalid,
};

use super::{data::shuffled, foretold::Foretold};

/// Rows of logits that exist at one time.
const ROWS: usize = 256;

/// Text set aside from training. The student is measured on it before a phase, at its end and in between; what comes out of a phase is the
/// best that was measured. The measure is the divergence from the teacher, or the cross-entropy where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct HeldOut {
    /// Tokens to set aside, in whole documents, but no more than a tenth of the text. With 0 nothing is measured, and the last weights
    /// come out of a phase.
    pub tokens: usize,
    /// Tokens of training from one measurement to the next.
    pub every: usize,
    /// A phase ends after this many measurements without a better one; 0 lets it run to its end.
    pub patience: u32,
    /// How many of the best weights are kept. Where there are several, their mean is measured at the end of a phase, and comes out of it
    /// if it is better still.
    pub keep: usize,
    /// Positions at which a new bucket starts, ascending.
    pub buckets: Vec<usize>,
}

impl Default for HeldOut {
    fn default() -> Self {
        Self { tokens: 8192, every: 1 << 20, patience: 0, keep: 1, buckets: vec![128, 1024, 4096] }
    }
}

impl HeldOut {
    /// Values that mean something.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if self.every == 0 {
            return Err(Invalid::new("held-out", "`every` must be positive"));
        }
        if self.keep == 0 {
            return Err(Invalid::new("held-out", "`keep` must be positive"));
        }
        if !self.buckets.is_sorted_by(|a, b| a < b) || self.buckets.first() == Some(&0) {
            return Err(Invalid::new("held-out", "`buckets` must be positive and ascending"));
        }
        Ok(())
    }

    /// Takes documents out of `documents`, drawn by `seed`; the others keep their order.
    pub(super) fn set_aside(&self, documents: &mut Vec<Vec<u32>>, seed: u64) -> Vec<Vec<u32>> {
        let all: usize = documents.iter().map(Vec::len).sum();
        let (mut room, mut chosen) = (self.tokens.min(all / 10), Vec::new());
        for i in shuffled(documents.len(), seed, u64::MAX) {
            if documents[i].len() <= room {
                room -= documents[i].len();
                chosen.push(i);
            }
        }
        chosen.sort_unstable();
        let mut aside: Vec<_> = chosen.iter().rev().map(|&i| documents.remove(i)).collect();
        aside.reverse();
        aside
    }
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Measure {
    /// Mean over all predicted tokens, in nats.
    pub(crate) loss: f32,
    /// Mean by position; a bucket without a token is left out.
    pub(crate) buckets: Vec<Bucket>,
}

/// The mean over the tokens that stand from one position to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bucket {
    /// First position.
    pub from: usize,
    /// Tokens.
    pub tokens: usize,
    /// Mean, in nats.
    pub loss: f32,
}

/// The text, with what the teacher makes of it.
pub(crate) struct Exam {
    batches: Vec<Batch>,
    /// What the teacher makes of each batch; none without a teacher.
    taught: Vec<Taught>,
    buckets: Vec<usize>,
}

impl Exam {
    /// Runs the teacher once over all documents, or asks what it predicted.
    pub(crate) fn new(
        documents: &[Vec<u32>],
        (teacher, foretold): (Option<&Model>, Option<&Foretold>),
        micro_batch_tokens: usize,
        buckets: &[usize],
    ) -> Result<Self, ModelError> {
        let batches = Batch::packed(documents.iter().map(Vec::as_slice), micro_batch_tokens);
        let taught = |batch| match (teacher, foretold) {
            (Some(teacher), _) => Some(teacher.hidden(batch, &mut NoProbe).map(Taught::States)),
            (None, Some(foretold)) => Some(foretold.rows(batch).map(Taught::Kept)),
            (None, None) => None,
        };
        let taught = batches.iter().filter_map(taught).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { batches, taught, buckets: buckets.to_vec() })
    }

    /// Tokens of the text.
    pub(crate) fn tokens(&self) -> usize {
        self.batches.iter().map(Batch::len).sum()
    }

    /// Measures `student`; `None` where what it predicts is no number.
    pub(crate) fn measure(&self, student: &Model) -> Result<Option<Measure>, ModelError> {
        let edges: Vec<usize> = std::iter::once(0).chain(self.buckets.iter().copied()).collect();
        let (mut sums, mut tokens) = (vec![0f64; edges.len()], vec![0usize; edges.len()]);
        for (b, batch) in self.batches.iter().enumerate() {
            let states = student.hidden(batch, &mut NoProbe)?;
            let (targets, weights) = batch.next_tokens();
            for from in (0..batch.len()).step_by(ROWS) {
                let rows = from..batch.len().min(from + ROWS);
                let taught = self.taught.get(b);
                let Some(costs) = costs(student, (&states, taught), rows.clone(), &targets)? else {
                    return Ok(None);
                };
                for (row, cost) in rows.zip(costs).filter(|(row, _)| weights[*row] > 0.0) {
                    let bucket = edges.partition_point(|&edge| edge <= batch.positions[row] as usize) - 1;
                    sums[bucket] += cost;
                    tokens[bucket] += 1;
                }
            }
        }
        let loss = sums.iter().sum::<f64>() / tokens.iter().sum::<usize>().max(1) as f64;
        let bucket = |i: usize| {
            (tokens[i] > 0).then(|| Bucket {
                from: edges[i],
                tokens: tokens[i],
                loss: (sums[i] / tokens[i] as f64) as f32,
            })
        };
        Ok(Some(Measure { loss: loss as f32, buckets: (0..edges.len()).filter_map(bucket).collect() }))
    }
}

/// What each of these rows costs: the divergence from the teacher, or the next token's where there is none.
fn costs(
    student: &Model,
    (states, taught): (&Tensor, Option<&Taught>),
    rows: Range<usize>,
    targets: &[u32],
) -> Result<Option<Vec<f64>>, ModelError> {
    let head = &student.shell.lm_head;
    let logits = |x: &Tensor| head.forward(&x.narrow(0, rows.start, rows.len())?);
    let z = logits(states)?;
    let vocab = z.dim(1)?;
    let z = host(&z)?;
    let z = z.par_chunks_exact(vocab);
    Ok(match taught {
        Some(Taught::States(taught)) => {
            let u = logits(taught)?;
            let u = host(&u)?;
            z.zip(u.par_chunks_exact(vocab)).map(|(z, u)| kl(u, z)).collect()
        }
        Some(Taught::Kept(kept)) => {
            let cost = |(i, z): (usize, &[f32])| kept.cost(rows.start + i, &mut z.to_vec());
            z.enumerate().map(cost).map(|cost| cost.is_finite().then_some(cost)).collect()
        }
        None => {
            let next = |i: usize, z: &[f32]| f64::from(z[targets[rows.start + i] as usize]);
            z.enumerate().map(|(i, z)| Some(log_sum_exp(z)? - next(i, z))).collect()
        }
    })
}

#[cfg(test)]
mod tests;
