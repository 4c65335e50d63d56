//! The file of a refitted layer: its new tensors and the errors. Knows no way to fit.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::PathBuf,
};

use safetensors::{SafeTensorError, SafeTensors, tensor::TensorView};

use super::super::{error::SvdError, job::Job};
use crate::{artifact::checkpoint::Owned, math::ridge::Fit};

fn path(job: &Job<'_>, layer: usize) -> PathBuf {
    job.passes.file(&format!("refit-{layer:03}.safetensors"))
}

/// The figures of a layer in the metadata of its file.
const FIGURES: &str = "figures";

/// Writes the file of a layer: its new tensors, unless it stays as it was.
pub(super) fn write(job: &Job<'_>, layer: usize, fit: &Fit) -> Result<(), SvdError> {
    let failed = |e: SafeTensorError| SvdError::Refit { layer, why: e.to_string() };
    let (rows, width) = (job.config.hidden_size, job.config.num_attention_heads * job.config.head_dim);
    let mut tensors: Vec<(&str, Owned)> = Vec::new();
    if fit.ridge.is_some() {
        let values: Vec<f32> = (0..rows * width).map(|at| fit.map[(at / width, at % width)] as f32).collect();
        tensors.push(("o_proj.weight", job.svd.dtype.store(&[rows, width], &values)));
        if fit.map.ncols() > width {
            let values: Vec<f32> = (0..rows).map(|i| fit.map[(i, width)] as f32).collect();
            tensors.push(("o_proj.bias", job.svd.dtype.store(&[rows], &values)));
        }
    }
    let mut views = Vec::new();
    for (name, Owned { dtype, shape, bytes }) in &tensors {
        views.push((*name, TensorView::new(*dtype, shape.clone(), bytes).map_err(failed)?));
    }
    let figures = [fit.ridge.unwrap_or(0.0), fit.before, fit.after].map(f64::to_bits);
    let text = serde_json::to_string(&figures).expect("numbers are JSON");
    let metadata: HashMap<String, String> = [(FIGURES.to_owned(), text)].into();
    safetensors::serialize_to_file(views, Some(metadata), &path(job, layer)).map_err(failed)
}

/// The new tensors of a layer by their name after `self_attn.`; none if it stays as it was.
pub(super) fn read(job: &Job<'_>, layer: usize) -> Result<BTreeMap<String, Owned>, SvdError> {
    let failed = |why: String| SvdError::Refit { layer, why };
    let bytes = fs::read(path(job, layer)).map_err(|e| failed(e.to_string()))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| failed(e.to_string()))?;
    let own = |(name, view): (String, TensorView<'_>)| {
        let owned = Owned { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
        (name, owned)
    };
    Ok(tensors.tensors().into_iter().map(own).collect())
}

/// What the file of a layer says of its fit.
pub(super) fn figures(job: &Job<'_>, layer: usize) -> Result<[f64; 3], SvdError> {
    let failed = |why: String| SvdError::Refit { layer, why };
    let bytes = fs::read(path(job, layer)).map_err(|e| failed(e.to_string()))?;
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| failed(e.to_string()))?;
    let text = header.metadata().as_ref().and_then(|metadata| metadata.get(FIGURES));
    let text = text.ok_or_else(|| failed(format!("`{FIGURES}` is missing")))?;
    let bits: [u64; 3] = serde_json::from_str(text).map_err(|e| failed(e.to_string()))?;
    Ok(bits.map(f64::from_bits))
}
