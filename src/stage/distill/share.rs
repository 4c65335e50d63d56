//! A step's batch, cut into parts whose gradients are summed in a fixed order, whoever computes them. Knows no process.
//!
//! Part `i` belongs to sum `i mod 8`. A sum adds its parts in their order, and the sums are added in theirs, so that the bits do not depend
//! on how many processes there are.

use super::{
    gradients::Gradients,
    objective::{Models, Objective, Whole},
};
use crate::model::{Batch, ModelError};

/// Sums that a step has at most, and so the most processes that can share one.
pub(crate) const SUMS: usize = 8;

/// The batch of one step.
pub(crate) struct Step {
    parts: Vec<Batch>,
    /// Sizes of all parts together.
    pub(crate) whole: Whole,
}

/// What some of the parts add to the loss and its gradient.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Sum {
    pub(crate) loss: f64,
    pub(crate) gradients: Gradients,
}

impl Step {
    /// Parts of at most `micro_batch_tokens`, unless a document has more.
    pub(crate) fn new(documents: &[&[u32]], micro_batch_tokens: usize) -> Self {
        let whole = Whole::of(documents.iter().copied());
        Self { parts: Batch::packed(documents.iter().copied(), micro_batch_tokens), whole }
    }

    /// How many sums there are.
    pub(crate) fn sums(&self) -> usize {
        self.parts.len().min(SUMS)
    }

    /// The sums of process number `of.0` out of `of.1`.
    pub(crate) fn share(&self, of: (usize, usize)) -> impl Iterator<Item = usize> + use<> {
        (of.0..self.sums()).step_by(of.1)
    }

    /// One sum.
    pub(crate) fn sum(
        &self,
        number: usize,
        models: Models<'_>,
        objective: &Objective,
    ) -> Result<Sum, ModelError> {
        let mut sum = Sum::default();
        for part in self.parts.iter().skip(number).step_by(SUMS) {
            sum.loss += objective.add(models, (part, self.whole), &mut sum.gradients)?;
        }
        Ok(sum)
    }
}

impl Sum {
    /// Adds the next sum.
    pub(crate) fn add(&mut self, next: Self) {
        self.loss += next.loss;
        self.gradients.merge(next.gradients);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sum_has_one_process_and_every_part_one_sum() {
        let documents: Vec<Vec<u32>> = (0..11).map(|i| vec![i; 5]).collect();
        let documents: Vec<&[u32]> = documents.iter().map(Vec::as_slice).collect();
        let step = Step::new(&documents, 5);
        assert_eq!((step.parts.len(), step.sums(), step.whole.tokens), (11, 8, 55));
        for processes in 1..=SUMS {
            let mut all: Vec<usize> = (0..processes).flat_map(|p| step.share((p, processes))).collect();
            all.sort_unstable();
            assert!(all.into_iter().eq(0..8));
        }
        let few = Step::new(&documents[..2], 5);
        assert_eq!((few.sums(), few.share((1, 2)).collect::<Vec<_>>()), (2, vec![1]));
        assert_eq!(few.share((2, 3)).count(), 0, "a process may have nothing to do");
    }
}
