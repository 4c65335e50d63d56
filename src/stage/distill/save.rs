//! Writes a trained model back into the layout of the checkpoint it came from. Frozen tensors are copied bit for bit.

use std::path::Path;

use candle_core::Var;
use safetensors::Dtype;
use serde_json::{Value, json};

use super::Stored;
use crate::{
    artifact::{
        ArtifactError,
        checkpoint::{Checkpoint, Draft, Owned},
    },
    kernel::{host, mxfp4},
    model::{Model, ModelError},
};

/// Why a trained model could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SaveModelError {
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Writes `from` with the values of the model's variables. Experts that trained are stored in MXFP4, other tensors as `stored` says.
pub(crate) fn save(
    from: &Checkpoint,
    model: &Model,
    stored: Stored,
    dir: &Path,
) -> Result<(), SaveModelError> {
    let mut draft = Draft::copy_of(from)?;
    for (name, var) in &model.vars {
        if name.ends_with("experts.gate_up_proj") || name.ends_with("experts.down_proj") {
            pack_experts(&mut draft, name, var)?;
        } else {
            let values = host(var.as_tensor()).map_err(ModelError::from)?;
            let dtype = from.raw(name).map_or(Dtype::F32, |raw| raw.dtype);
            draft.tensors.insert(name.clone(), written(stored, dtype, (var.dims(), &values)));
        }
    }
    Ok(draft.save(dir)?)
}

/// A tensor that trained, in the element type that it is stored in; `dtype` is the one that it had.
fn written(stored: Stored, dtype: Dtype, (shape, values): (&[usize], &[f32])) -> Owned {
    match (stored, dtype) {
        (Stored::Bf16, _) | (_, Dtype::BF16) => Owned::bf16(shape, values),
        (_, Dtype::F16) => Owned::f16(shape, values),
        _ => Owned::f32(shape, values),
    }
}

fn pack_experts(draft: &mut Draft, name: &str, var: &Var) -> Result<(), ModelError> {
    let values = host(var.as_tensor())?;
    let (experts, out, inner) = var.dims3()?;
    let groups = inner / mxfp4::BLOCK;
    let mut blocks = vec![0u8; values.len() / 2];
    let mut scales = vec![0u8; values.len() / mxfp4::BLOCK];
    mxfp4::quantize(&values, &mut blocks, &mut scales);
    draft.tensors.remove(name);
    draft.tensors.insert(format!("{name}_blocks"), Owned::u8(&[experts, out, groups, 16], blocks));
    draft.tensors.insert(format!("{name}_scales"), Owned::u8(&[experts, out, groups], scales));
    if let Some(config) = draft.config.as_object_mut() {
        let kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"];
        config.insert(
            "quantization_config".to_owned(),
            json!({"quant_method": "mxfp4", "modules_to_not_convert": kept}),
        );
    }
    Ok(())
}

/// Whether `name` belongs to the attention of a converted layer.
pub(crate) fn is_latent_attention(config: &Value, name: &str) -> bool {
    let Some((layer, part)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
        return false;
    };
    let index: Option<usize> = layer.parse().ok();
    // Not by its type: transformers saves a latent layer as full attention.
    let latent = |i: usize| config["mla"].get(i).is_some_and(|latent| !latent.is_null());
    part.starts_with("self_attn.") && index.is_some_and(latent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_keeps_its_element_type_unless_it_is_to_be_bf16() {
        for (stored, before, after) in [
            (Stored::AsBefore, Dtype::F32, Dtype::F32),
            (Stored::AsBefore, Dtype::F16, Dtype::F16),
            (Stored::AsBefore, Dtype::BF16, Dtype::BF16),
            (Stored::Bf16, Dtype::F32, Dtype::BF16),
            (Stored::Bf16, Dtype::F16, Dtype::BF16),
        ] {
            let owned = written(stored, before, (&[2], &[1.0, -0.375]));
            assert_eq!((owned.dtype, owned.shape.as_slice()), (after, &[2][..]), "{stored:?} {before:?}");
            let raw = crate::artifact::checkpoint::Raw { dtype: after, shape: &[2], bytes: &owned.bytes };
            assert_eq!(raw.to_f32().unwrap(), [1.0, -0.375]);
        }
    }
}
