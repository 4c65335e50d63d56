//! The losses that tasks ask for: a layer is loaded, all sequences go through it, it is dropped. Knows no window.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{
    ContextGainError,
    documents::{Ask, Document, Task},
};
use crate::{
    artifact::checkpoint::Checkpoint,
    engine::action::{Cx, Failure},
    kernel::host,
    math::softmax::log_sum_exp,
    model::{Config, ModelError, Shell},
    stage::streamed,
};

/// Rows of logits in memory at one time.
const ROWS: usize = 256;

/// A model that reads tasks.
pub(super) struct Forward<'a> {
    cx: &'a Cx<'a>,
    checkpoint: &'a Checkpoint,
    config: Config,
    shell: Shell,
}

impl<'a> Forward<'a> {
    /// Reads the configuration and what surrounds the layers.
    pub(super) fn load(cx: &'a Cx<'a>, checkpoint: &'a Checkpoint) -> Result<Self, Failure> {
        let config = Config::parse(&checkpoint.config)
            .map_err(|e| Failure::from(ContextGainError::Model(e.into())))?;
        let shell = Shell::load(checkpoint, &config).map_err(ContextGainError::from)?;
        Ok(Self { cx, checkpoint, config, shell })
    }

    /// How many layers there are.
    pub(super) fn layers(&self) -> usize {
        self.config.layers.len()
    }

    /// For each task the loss, in nats, of each token that it asks for.
    pub(super) fn losses(&self, tasks: &[Task], documents: &[Document]) -> Result<Vec<Vec<f64>>, Failure> {
        let batches = tasks.iter().map(|task| &task.batch);
        let model = (self.checkpoint, &self.config, &self.shell);
        let failed = |e| ContextGainError::from(e).into();
        let mut residuals = streamed::residuals(self.cx, model, &batches, ("hidden", 1), failed)?;
        let mut losses = Vec::new();
        for (i, task) in tasks.iter().enumerate() {
            let (x, mut all) = (residuals.take(i).map_err(Failure::stage)?, Vec::new());
            for asks in task.asks.chunks(ROWS) {
                self.cx.check_stop()?;
                let part = self.loss(&x, asks).map_err(ContextGainError::from)?;
                all.extend(
                    part.ok_or_else(|| ContextGainError::NotFinite(documents[task.document].id.clone()))?,
                );
            }
            losses.push(all);
        }
        Ok(losses)
    }

    /// The losses of some tokens, from the states [t, hidden] behind the last layer; `None` where a logit is not finite.
    fn loss(&self, x: &Tensor, asks: &[Ask]) -> Result<Option<Vec<f64>>, ModelError> {
        let rows: Vec<u32> = asks.iter().map(|ask| ask.row as u32).collect();
        let x = x.index_select(&Tensor::new(rows, x.device())?, 0)?;
        let logits = self.shell.lm_head.forward(&self.shell.normed(&x)?)?;
        let vocab = logits.dim(1)?;
        // The last token of a document may be asked for without ever being read.
        if let Some(&Ask { target: id, .. }) = asks.iter().find(|ask| ask.target as usize >= vocab) {
            return Err(ModelError::TokenId { id, vocab_size: vocab });
        }
        let view = host(&logits)?;
        let loss = |(ask, row): (&Ask, &[f32])| {
            log_sum_exp(row).map(|sum| sum - f64::from(row[ask.target as usize]))
        };
        Ok(asks.par_iter().zip(view.par_chunks_exact(vocab)).map(loss).collect())
    }
}
