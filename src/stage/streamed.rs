//! The forward pass of a model of which one layer at a time lies in memory. Knows no task.

use candle_core::Tensor;

use crate::{
    artifact::checkpoint::Checkpoint,
    engine::action::{Cx, Failure},
    model::{Batch, Config, Layer, ModelError, Shell, probe::NoProbe},
};

/// The residual stream [t, hidden] of each batch behind the last layer, before the final norm.
pub(crate) fn residuals<'b>(
    cx: &Cx<'_>,
    (checkpoint, config, shell): (&Checkpoint, &Config, &Shell),
    batches: &(impl Iterator<Item = &'b Batch> + Clone),
    failed: impl Fn(ModelError) -> Failure,
) -> Result<Vec<Tensor>, Failure> {
    let embed = |batch: &Batch| shell.embed(&batch.ids).map_err(&failed);
    let mut all = batches.clone().map(embed).collect::<Result<Vec<_>, _>>()?;
    if all.is_empty() {
        return Ok(all);
    }
    for index in 0..config.layers.len() {
        let layer = Layer::load(checkpoint, config, index).map_err(&failed)?;
        for (x, batch) in all.iter_mut().zip(batches.clone()) {
            cx.check_stop()?;
            *x = layer.forward(x, batch, &mut NoProbe).map_err(&failed)?;
            cx.progress.advance(batch.len() as u64);
        }
        Layer::release(checkpoint, index);
    }
    Ok(all)
}
