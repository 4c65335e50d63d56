//! Backward through a model one layer at a time: what enters each layer is kept, and the rest is made again when its turn comes.
//!
//! The memory that training needs is then one layer's graph and the residual streams (T. Chen et al., arXiv 1604.06174). With
//! [`Keep::Graphs`] the graphs of all layers stay instead, which is a forward pass faster; the numbers are the same bits. Knows no loss:
//! the gradient of the last stream comes from outside, and so may what a layer costs by itself.

use candle_core::{Error, Result, Tensor, Var, backprop::GradStore};

use super::{Batch, Model, ModelError, probe::Probe};

/// What stays in memory between the passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The streams that enter layers.
    Inputs,
    /// Whatever the forward pass made.
    Graphs,
}

/// What a layer put out.
#[derive(Debug, Clone)]
pub struct Output {
    /// The residual stream behind it [t, hidden].
    pub stream: Tensor,
    /// Its router's logits [t, experts], where it has one.
    pub router: Option<Tensor>,
}

/// A forward pass that can be gone back through once.
pub struct Tape<'a> {
    model: &'a Model,
    batch: &'a Batch,
    /// What entered each layer, from the first that a gradient must reach on, and what it put out.
    layers: Vec<(usize, Var, Option<Output>)>,
    top: Var,
}

/// What a layer's output costs by itself, beside what the layers above make of it.
pub type Local<'a> = &'a mut dyn FnMut(usize, &Output) -> Result<Option<Tensor>>;

impl<'a> Tape<'a> {
    /// Runs `batch` through all layers of `model`.
    pub fn forward(model: &'a Model, batch: &'a Batch, keep: Keep) -> std::result::Result<Self, ModelError> {
        let mut stream = model.shell.embed(&batch.ids)?.detach();
        let (mut layers, mut reached) = (Vec::new(), model.trains_embedding());
        for index in 0..model.layers.len() {
            reached |= model.trains(index);
            if !reached {
                stream = through(model, index, (&stream, batch))?.stream;
                continue;
            }
            let entered = Var::from_tensor(&stream)?;
            let output = through(model, index, (entered.as_tensor(), batch))?;
            stream = output.stream.detach();
            layers.push((index, entered, (keep == Keep::Graphs).then_some(output)));
        }
        Ok(Self { model, batch, layers, top: Var::from_tensor(&stream)? })
    }

    /// The residual stream behind the last layer [t, hidden], a leaf: what is made of it knows no layer.
    pub fn stream(&self) -> &Tensor {
        self.top.as_tensor()
    }

    /// Goes back from `cost`, a scalar that was made of [`Self::stream`]. Hands `sink` the gradients of what stands above the layers, then
    /// of each layer's variables, from the last layer down to the first that trains, then of the embedding.
    pub fn backward(
        self,
        cost: &Tensor,
        local: Local<'_>,
        sink: &mut dyn FnMut(&GradStore) -> Result<()>,
    ) -> std::result::Result<(), ModelError> {
        let mut gradient = split(cost, &self.top, sink)?;
        for (index, entered, output) in self.layers.into_iter().rev() {
            let output = match output {
                Some(output) => output,
                None => through(self.model, index, (entered.as_tensor(), self.batch))?,
            };
            let mut cost = (&output.stream * &gradient)?.sum_all()?;
            if let Some(own) = local(index, &output)? {
                cost = (cost + own.sum_all()?)?;
            }
            gradient = split(&cost, &entered, sink)?;
        }
        if self.model.trains_embedding() {
            let embedded = self.model.shell.embed(&self.batch.ids)?;
            sink(&(embedded * gradient)?.sum_all()?.backward()?)?;
        }
        Ok(())
    }
}

/// The gradient of `cost` for what entered; all others go to `sink`.
fn split(cost: &Tensor, entered: &Var, sink: &mut dyn FnMut(&GradStore) -> Result<()>) -> Result<Tensor> {
    let mut grads = cost.sum_all()?.backward()?;
    let nothing = || Error::msg("what is gone back from gives what entered no gradient");
    let gradient = grads.remove(entered.as_tensor()).ok_or_else(nothing)?;
    sink(&grads)?;
    Ok(gradient)
}

fn through(
    model: &Model,
    index: usize,
    (x, batch): (&Tensor, &Batch),
) -> std::result::Result<Output, ModelError> {
    let mut router = Router(None);
    let stream = model.layers[index].forward(x, batch, &mut router)?;
    Ok(Output { stream, router: router.0 })
}

/// Keeps a router's logits.
struct Router(Option<Tensor>);

impl Probe for Router {
    fn router(&mut self, _: usize, logits: &Tensor) -> Result<()> {
        self.0 = Some(logits.clone());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
