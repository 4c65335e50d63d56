//! Layer-wise matching: what the attention of each converted layer gives against what the original's gives, one layer's graph at a time.
//!
//! Layers do not learn through each other, so one pass over the data trains them all (RADLADS, arXiv 2505.03005, step 1). On the
//! teacher's inputs they do not even see each other; on the student's own they learn to undo what the layers below got wrong. Knows no
//! step and no optimiser.

use candle_core::Tensor;

use crate::{
    kernel::host,
    model::{Batch, Model, ModelError, config::LayerKind, probe::NoProbe},
};

use super::gradients::Gradients;

/// Whose residual stream enters the student's layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fed {
    /// The teacher's.
    Teacher,
    /// The student's own, as it stands.
    Student,
}

/// Mean over matched layers and over tokens of `‖student − teacher‖² / ‖teacher‖²`, where the norms are those of a whole document;
/// `tokens` counts those of the whole step, of which `part` may be a piece. Gradients are added to `into`.
pub(crate) fn add(
    (student, teacher): (&Model, &Model),
    (part, tokens): (&Batch, usize),
    fed: Fed,
    into: &mut Gradients,
) -> Result<f64, ModelError> {
    let matched = matched(student)?;
    let share = 1.0 / (tokens * matched.len()) as f64;
    let (mut taught, mut learnt) =
        (teacher.shell.embed(&part.ids)?, student.shell.embed(&part.ids)?.detach());
    let (mut value, last) = (0.0, matched[matched.len() - 1]);
    for (i, (above, layer)) in teacher.layers.iter().zip(&student.layers).enumerate().take(last + 1) {
        let target = above.attend(&taught, part, &mut NoProbe)?;
        if fed == Fed::Student || matched.contains(&i) {
            let input = if fed == Fed::Student { &learnt } else { &taught };
            let attended = layer.attend(input, part, &mut NoProbe)?;
            if matched.contains(&i) {
                let error = (&attended - &target)?.sqr()?.sum(1)?;
                let cost = (error * weights(&target, &part.offsets, share)?)?.sum_all()?;
                value += f64::from(cost.to_scalar::<f32>()?);
                into.add(&student.vars, &cost.backward()?)?;
            }
            if fed == Fed::Student {
                learnt = layer.finish(&learnt, &attended.detach(), &mut NoProbe)?.detach();
            }
        }
        taught = above.finish(&taught, &target, &mut NoProbe)?;
    }
    Ok(value)
}

/// The converted layers of which something trains.
fn matched(student: &Model) -> Result<Vec<usize>, ModelError> {
    let latent = |i: &usize| matches!(student.config.layers[*i], LayerKind::Latent(_));
    let matched: Vec<usize> =
        (0..student.layers.len()).filter(latent).filter(|&i| student.trains(i)).collect();
    if matched.is_empty() {
        return Err(candle_core::Error::msg("the student has no converted layer that trains").into());
    }
    Ok(matched)
}

/// For each row of `target` [t, hidden] the tokens of its document over the squared norm of the document's rows, times `share`.
fn weights(target: &Tensor, offsets: &[usize], share: f64) -> candle_core::Result<Tensor> {
    let (rows, hidden) = target.dims2()?;
    let values = host(target)?;
    let mut weights = Vec::with_capacity(rows);
    for document in offsets.windows(2) {
        let square: f64 = values[document[0] * hidden..document[1] * hidden]
            .iter()
            .map(|&x| f64::from(x) * f64::from(x))
            .sum();
        let tokens = document[1] - document[0];
        let weight = if square > 0.0 { share * tokens as f64 / square } else { 0.0 };
        weights.extend(std::iter::repeat_n(weight as f32, tokens));
    }
    Tensor::from_vec(weights, rows, target.device())
}

#[cfg(test)]
mod tests;
