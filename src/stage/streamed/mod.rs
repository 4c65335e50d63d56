//! The forward pass of a model of which one layer at a time lies in memory. Knows no task.
//!
//! All batches go through a layer before the next one is read, so the memory needed is one layer, one batch and, unless a file takes them
//! ([`hidden`]), the hidden states.

pub(crate) mod budget;
pub(crate) mod hidden;
pub(crate) mod resume;

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
    shell: &Shell,
    batches: impl Iterator<Item = &'b Batch>,
    failed: impl Fn(ModelError) -> Failure,
) -> Result<(), Failure> {
    for (i, batch) in batches.enumerate() {
        let x = shell.embed(&batch.ids).map_err(&failed)?;
        hidden.put(i, x).map_err(Failure::stage)?;
    }
    Ok(())
}

/// The same with an embedding that is read for it and given back.
pub(crate) fn embed_once<'b>(
    hidden: &mut Hidden,
    (checkpoint, config): (&Checkpoint, &Config),
    batches: impl Iterator<Item = &'b Batch>,
) -> Result<(), Failure> {
    let shell = Shell::load(checkpoint, config).map_err(Failure::stage)?;
    embed(hidden, &shell, batches, Failure::stage)?;
    Shell::release(checkpoint);
    Ok(())
}

/// The residual stream [t, hidden] of each batch behind the last layer, before the final norm. `of` models go through them one after the
/// other, and the streams of all are kept; `name` is that of this one.
pub(crate) fn residuals<'b>(
    cx: &Cx<'_>,
    model: (&Checkpoint, &Config, &Shell),
    batches: &(impl Iterator<Item = &'b Batch> + Clone),
    of: (&str, usize),
    failed: impl Fn(ModelError) -> Failure,
) -> Result<Hidden, Failure> {
    let (checkpoint, config, shell) = model;
    behind(cx, (checkpoint, config, shell, config.layers.len()), batches, of, failed)
}

/// The same behind the first layers, so many of them.
pub(crate) fn behind<'b>(
    cx: &Cx<'_>,
    (checkpoint, config, shell, layers): (&Checkpoint, &Config, &Shell, usize),
    batches: &(impl Iterator<Item = &'b Batch> + Clone),
    (name, of): (&str, usize),
    failed: impl Fn(ModelError) -> Failure,
) -> Result<Hidden, Failure> {
    let needs = Needs::of(checkpoint, config, batches.clone(), of);
    let mut hidden = room(cx, &needs, batches.clone(), (config, &format!("{name}.f32")))?;
    embed(&mut hidden, shell, batches.clone(), &failed)?;
    if batches.clone().next().is_none() {
        return Ok(hidden);
    }
    for index in 0..layers {
        let layer = Layer::load(checkpoint, config, index).map_err(&failed)?;
        for (i, batch) in batches.clone().enumerate() {
            cx.check_stop()?;
            let x = hidden.take(i).map_err(Failure::stage)?;
            let x = layer.forward(&x, batch, &mut NoProbe).map_err(&failed)?;
            hidden.put(i, x).map_err(Failure::stage)?;
            cx.progress.advance(batch.len() as u64);
        }
        Layer::release(checkpoint, index);
    }
    Ok(hidden)
}
