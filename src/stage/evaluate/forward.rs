//! Forward passes over all documents, a layer at a time, and their logits, a chunk of tokens at a time.
//!
//! What lies in memory is one layer, every model's residual stream and the logits of one chunk; nothing of vocabulary size is kept
//! per token. Knows no marks and no statistics.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::{
    artifact::checkpoint::Checkpoint,
    engine::action::{Cx, Failure},
    kernel::host,
    model::{Batch, Config, ModelError, Shell},
    stage::streamed::{self, hidden::Hidden},
};

use super::{
    EvaluateError,
    compare::{Distribution, Predicted},
};

/// Tokens that go through a layer at one time, about: whole documents are taken.
const BATCH_TOKENS: usize = 8192;

/// Documents packed into batches, in order.
pub(super) fn batches(documents: &[&[u32]]) -> Vec<Batch> {
    Batch::packed(documents.iter().copied(), BATCH_TOKENS)
}

/// A model's final states on all batches, and the head that turns them into logits.
pub(super) struct States {
    name: String,
    shell: Shell,
    /// [t, hidden] for each batch, before the final norm.
    hidden: Hidden,
}

impl States {
    /// Runs one of `of` models over all batches, layer by layer.
    pub(super) fn run(
        (name, of): (&str, usize),
        (checkpoint, config): (&Checkpoint, &Config),
        batches: &[Batch],
        cx: &Cx<'_>,
    ) -> Result<Self, Failure> {
        let failed = |source| Failure::stage(EvaluateError::Model { name: name.to_owned(), source });
        let shell = Shell::load(checkpoint, config).map_err(failed)?;
        let model = (checkpoint, config, &shell);
        let hidden = streamed::residuals(cx, model, &batches.iter(), (name, of), failed)?;
        Ok(Self { name: name.to_owned(), shell, hidden })
    }

    /// Logits of `n` rows of a batch [n, vocab].
    fn logits(&self, batch: usize, from: usize, n: usize) -> Result<Tensor, Failure> {
        let rows = self.hidden.rows(batch, from, n).map_err(Failure::stage)?;
        let logits = || Ok(self.shell.lm_head.forward(&self.shell.normed(&rows)?)?);
        let failed = |source| Failure::stage(EvaluateError::Model { name: self.name.clone(), source });
        logits().map_err(failed)
    }
}

/// What every model, the first being the original, makes of every token that has one before it in its document.
pub(super) fn predictions(
    models: &[States],
    batches: &[Batch],
    chunk: usize,
    cx: &Cx<'_>,
) -> Result<Vec<Vec<Predicted>>, Failure> {
    let mut all = vec![Vec::new(); models.len()];
    for (b, batch) in batches.iter().enumerate() {
        let (targets, weights) = batch.next_tokens();
        for from in (0..batch.len()).step_by(chunk) {
            cx.check_stop()?;
            let n = chunk.min(batch.len() - from);
            let logits: Vec<Tensor> =
                models.iter().map(|model| model.logits(b, from, n)).collect::<Result<_, _>>()?;
            let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
            let chosen: Vec<(usize, usize)> = (0..n)
                .filter(|row| weights[from + row] > 0.0)
                .map(|row| (row, targets[from + row] as usize))
                .collect();
            for row in compare(&names, &logits, &chosen).map_err(Failure::stage)? {
                all.iter_mut().zip(row).for_each(|(all, seen)| all.push(seen));
            }
            cx.progress.advance(n as u64);
        }
    }
    Ok(all)
}

/// Every model's prediction of the chosen (row, target), the first model being the original.
fn compare(
    names: &[&str],
    logits: &[Tensor],
    chosen: &[(usize, usize)],
) -> Result<Vec<Vec<Predicted>>, EvaluateError> {
    let failed = |e: candle_core::Error| EvaluateError::Model {
        name: names[0].to_owned(),
        source: ModelError::Tensor(e),
    };
    let views = logits.iter().map(host).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let vocab = logits[0].dim(1).map_err(failed)?;
    let row = |&(row, target): &(usize, usize)| {
        let of = |model: usize| {
            Distribution::new(&views[model][row * vocab..(row + 1) * vocab])
                .ok_or(EvaluateError::NotFinite { name: names[model].to_owned() })
        };
        let original = of(0)?;
        let others = (1..names.len()).map(|model| Ok(original.against(&of(model)?, target)));
        std::iter::once(Ok(original.itself(target))).chain(others).collect()
    };
    chosen.par_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_compared_with_their_own_targets_and_holes_are_reported() {
        let rows = |values: [f32; 6]| crate::kernel::tensor(values.to_vec(), (2, 3)).unwrap();
        let (u, z) = (rows([0.0, 1.0, 2.0, 5.0, 1.0, 0.0]), rows([3.0, 1.0, 2.0, 5.0, 1.0, 0.0]));
        let seen = compare(&["original", "other"], &[u.clone(), z], &[(0, 2), (1, 1)]).unwrap();
        assert!(seen[0][0].right && !seen[0][1].agrees && seen[0][1].kl > 0.1);
        assert!(!seen[1][0].right && seen[1][1] == seen[1][0]);
        let hole = rows([0.0, f32::NAN, 0.0, 0.0, 0.0, 0.0]);
        let error = compare(&["original", "other"], &[u.clone(), hole.clone()], &[(0, 2)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the model `other` gives logits that are not finite; its weights are damaged"
        );
        assert!(compare(&["original", "other"], &[u, hole], &[(1, 2)]).is_ok());
    }
}
