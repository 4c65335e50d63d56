//! What a teacher predicted, as training asks for it: rows for the tokens of a part of a step. Knows no loss.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    artifact::predictions::{Document, Entries, Predictions, id},
    engine::action::Failure,
    kernel::kept::{Form, Kept},
    model::{Batch, ModelError},
};

use super::trainer::TrainError;

/// Predictions for every document that is trained or measured on.
pub(crate) struct Foretold {
    predictions: Predictions,
    /// The whole document of each beginning at which a phase cuts one.
    wholes: BTreeMap<String, String>,
}

impl Foretold {
    /// Makes sure that nothing is missing. `lengths` are those at which phases cut documents.
    pub(crate) fn new(
        predictions: Predictions,
        (documents, lengths): (&[Vec<u32>], &[usize]),
        vocab_size: usize,
    ) -> Result<Self, Failure> {
        let teacher = predictions.about.vocab_size;
        if teacher != vocab_size {
            return Err(Failure::stage(TrainError::Vocabulary { student: vocab_size, teacher }));
        }
        let mut wholes = BTreeMap::new();
        for ids in documents {
            let whole = id(ids);
            if !predictions.has(&whole) {
                let begins = ids.iter().take(8).copied().collect();
                return Err(Failure::stage(TrainError::NotForetold { begins, tokens: ids.len() }));
            }
            for &length in lengths.iter().filter(|&&length| length < ids.len()) {
                wholes.insert(id(&ids[..length]), whole.clone());
            }
        }
        Ok(Self { predictions, wholes })
    }

    /// A row for each token of `batch`; that of a document's last token is empty or means nothing.
    pub(crate) fn rows(&self, batch: &Batch) -> Result<Arc<Kept>, ModelError> {
        let form = match self.predictions.about.entries {
            Entries::TopK => Form::Bucket,
            Entries::Draws => Form::Draws,
        };
        let mut kept = Kept::new(form);
        for range in batch.offsets.windows(2) {
            let ids = &batch.ids[range[0]..range[1]];
            let Document { lengths, entropies, ids: entries, weights } = self.document(ids)?;
            kept.extend(&lengths[..ids.len()], (&entries, &weights), &entropies);
        }
        Ok(Arc::new(kept))
    }

    fn document(&self, ids: &[u32]) -> Result<Document, ModelError> {
        let failed = |why: String| ModelError::Tensor(candle_core::Error::msg(why));
        let own = id(ids);
        let whole = self.wholes.get(&own).unwrap_or(&own);
        let found = self.predictions.document(whole).map_err(|e| failed(e.to_string()))?;
        found.ok_or_else(|| failed("there are no predictions for a document".to_owned()))
    }
}

#[cfg(test)]
mod tests;
