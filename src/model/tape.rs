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
    layers: Vec<(Var, Option<Output>)>,
    stream: Tensor,
}

/// What a layer's output costs by itself, beside what the layers above make of it.
pub type Local<'a> = &'a mut dyn FnMut(usize, &Output) -> Result<Option<Tensor>>;

impl<'a> Tape<'a> {
    /// Runs `batch` through all layers of `model`.
    pub fn forward(model: &'a Model, batch: &'a Batch, keep: Keep) -> std::result::Result<Self, ModelError> {
        let mut stream = model.shell.embed(&batch.ids)?.detach();
        let mut layers = Vec::new();
        for index in 0..model.layers.len() {
            let entered = Var::from_tensor(&stream)?;
            let output = through(model, index, (entered.as_tensor(), batch))?;
            stream = output.stream.detach();
            layers.push((entered, (keep == Keep::Graphs).then_some(output)));
        }
        Ok(Self { model, batch, layers, stream })
    }

    /// The residual stream behind the last layer [t, hidden], a leaf: what is made of it knows no layer.
    pub fn stream(&self) -> &Tensor {
        &self.stream
    }

    /// Hands the gradients of every layer's variables to `sink`, from the last layer down to the first that trains, given that of
    /// [`Self::stream`].
    pub fn backward(
        self,
        gradient: Tensor,
        local: Local<'_>,
        sink: &mut dyn FnMut(&GradStore) -> Result<()>,
    ) -> std::result::Result<(), ModelError> {
        let first = self.model.first_trained();
        let mut gradient = gradient;
        for (index, (entered, output)) in self.layers.into_iter().enumerate().rev() {
            if first.is_none_or(|first| index < first) {
                return Ok(());
            }
            let output = match output {
                Some(output) => output,
                None => through(self.model, index, (entered.as_tensor(), self.batch))?,
            };
            let mut cost = (&output.stream * &gradient)?.sum_all()?;
            if let Some(own) = local(index, &output)? {
                cost = (cost + own.sum_all()?)?;
            }
            let mut grads = cost.backward()?;
            let nothing = || Error::msg(format!("layer {index} gives what enters it no gradient"));
            gradient = grads.remove(entered.as_tensor()).ok_or_else(nothing)?;
            sink(&grads)?;
        }
        let embedded = self.model.shell.embed(&self.batch.ids)?;
        Ok(sink(&(embedded * gradient)?.sum_all()?.backward()?)?)
    }
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
