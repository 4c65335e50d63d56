//! The forward pass of a model of which one layer at a time lies in memory. Knows no task.
//!
//! All batches go through a layer before the next one is read, so the memory needed is one layer, one batch and, unless a file takes them
//! ([`hidden`]), the hidden states.

pub(crate) mod budget;
pub(crate) mod hidden;
pub(crate) mod resume;

use candle_core::Tensor;

use self::{
    budget::{Needs, Where},
    hidden::Hidden,
};
use crate::{
    artifact::checkpoint::Checkpoint,
    engine::action::{Cx, Failure},
    model::{Batch, Config, Layer, ModelError, Shell, probe::NoProbe},
};

/// Room for the residual streams of `batches` within the stage's memory; `name` is that of the file in the scratch folder, if it takes one.
pub(crate) fn room<'b>(
    cx: &Cx<'_>,
    needs: &Needs,
    batches: impl Iterator<Item = &'b Batch>,
    (config, name): (&Config, &str),
) -> Result<Hidden, Failure> {
    let rows = batches.map(Batch::len).collect();
    match needs.place(cx.memory).map_err(Failure::stage)? {
        Where::Memory => Ok(Hidden::in_memory(rows, config.hidden_size)),
        Where::File => {
            cx.progress.say("hidden states go into a file: they do not fit into `memory`");
            Hidden::in_file(rows, config.hidden_size, cx.scratch.join(name)).map_err(Failure::stage)
        }
    }
}

/// Fills `hidden` with the embeddings of `batches`.
pub(crate) fn embed<'b>(
    hidden: &mut Hidden,
    (checkpoint, config): (&Checkpoint, &Config),
    batches: impl Iterator<Item = &'b Batch>,
    failed: impl Fn(ModelError) -> Failure,
) -> Result<(), Failure> {
    let shell = Shell::load(checkpoint, config).map_err(&failed)?;
    for (i, batch) in batches.enumerate() {
        let x = shell.embed(&batch.ids).map_err(&failed)?;
        hidden.put(i, x).map_err(Failure::stage)?;
    }
    Shell::release(checkpoint);
    Ok(())
}

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
