//! The tensors of a Llama in a GGUF file: their names in Hugging Face layout, and their bytes, unpacked and in its order of rows. Knows no
//! metadata beyond the sizes of heads.
//!
//! llama.cpp rotates neighbouring rows of queries and keys, transformers a row of the first half of a head with one of the second; its
//! converter permutes the rows of each head, and here they are put back.

use std::{collections::BTreeMap, os::unix::fs::FileExt};

use candle_core::{
    Device,
    quantized::{GgmlDType, ggml_file::qtensor_from_ggml, gguf_file::TensorInfo},
};
use safetensors::Dtype;

use super::{Gguf, GgufError, meta::Llama};
use crate::{artifact::checkpoint::shards::Spec, engine::action::Failure};

/// The tensors by their name in Hugging Face layout; those that are no weights keep theirs.
pub(super) struct Tensors(BTreeMap<String, Tensor>);

struct Tensor {
    source: String,
    spec: Spec,
    /// Rows of a head whose halves are interleaved.
    head: Option<usize>,
}

/// Parts of a layer: their names there and here, and whether the rows of heads are permuted.
const LAYER: [(&str, &str); 9] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const OTHERS: [(&str, &str); 4] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
    ("rope_freqs.weight", "rope_freqs.weight"),
];

/// Elements that are unpacked at one time.
const PIECE: usize = 1 << 22;

impl Tensors {
    /// Names and sizes of all tensors; everything that is wrong with them in one error.
    pub(super) fn of(gguf: &Gguf, llama: &Llama) -> Result<Self, GgufError> {
        let (mut found, mut problems) = (BTreeMap::new(), Vec::new());
        let infos: BTreeMap<_, _> = gguf.content.tensor_infos.iter().collect();
        for (name, info) in infos {
            let Some(target) = target(name) else {
                problems.push(format!("`{name}` is no tensor of a Llama"));
                continue;
            };
            let permuted = [".q_proj.", ".k_proj."].iter().any(|part| target.contains(part));
            let head = permuted.then_some(llama.head_dim);
            problems.extend(fault(gguf, info, head).map(|fault| format!("`{name}` {fault}")));
            let spec = Spec {
                name: target.clone(),
                dtype: kept(info.ggml_dtype).unwrap_or(Dtype::F32),
                shape: info.shape.dims().to_vec(),
            };
            found.insert(target, Tensor { source: name.clone(), spec, head });
        }
        if !found.contains_key(OTHERS[0].1) {
            problems.push(format!("`{}` is missing", OTHERS[0].0));
        }
        if problems.is_empty() { Ok(Self(found)) } else { Err(GgufError::Tensors(problems)) }
    }

    /// What is to be written: the embedding and head first, then layer after layer.
    pub(super) fn specs(&self) -> Vec<Spec> {
        let weights = self.0.values().filter(|tensor| tensor.spec.name != tensor.source);
        let mut specs: Vec<Spec> = weights.map(|tensor| tensor.spec.clone()).collect();
        let layer = |spec: &Spec| spec.name.split('.').find_map(|part| part.parse::<usize>().ok());
        specs.sort_by_cached_key(layer);
        specs
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.0.get(name)?.spec.shape)
    }

    /// The element type as `config.json` names it.
    pub(super) fn dtype(&self, name: &str) -> &'static str {
        match self.0.get(name).map(|tensor| tensor.spec.dtype) {
            Some(Dtype::F16) => "float16",
            Some(Dtype::BF16) => "bfloat16",
            _ => "float32",
        }
    }

    /// All values of a small tensor that is kept under its own name.
    pub(super) fn values(&self, gguf: &Gguf, name: &str) -> Result<Option<Vec<f32>>, GgufError> {
        let Some(tensor) = self.0.get(name) else { return Ok(None) };
        let info = &gguf.content.tensor_infos[&tensor.source];
        unpack(gguf, info, 0, info.shape.elem_count()).map(Some)
    }

    /// Gives the bytes of the tensor `name`, in order and in pieces of whole rows and heads.
    pub(super) fn pieces(
        &self,
        gguf: &Gguf,
        name: &str,
        give: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let Tensor { source, spec, head } = &self.0[name];
        let info = &gguf.content.tensor_infos[source];
        let n = info.shape.elem_count();
        let rows = spec.shape[0].max(1);
        let width = (n / rows).max(1);
        // A vector that is packed has no rows.
        let unit = if spec.shape.len() == 1 && head.is_none() { n.max(1) } else { width * head.unwrap_or(1) };
        let piece = (PIECE / unit).max(1) * unit;
        for from in (0..n).step_by(piece) {
            let count = piece.min(n - from);
            let mut bytes = if kept(info.ggml_dtype).is_some() {
                raw(gguf, info, from, count).map_err(Failure::stage)?
            } else {
                let values = unpack(gguf, info, from, count).map_err(Failure::stage)?;
                values.iter().flat_map(|x| x.to_le_bytes()).collect()
            };
            if let Some(head) = *head {
                bytes = halves(&bytes, head, width * spec.dtype.bitsize() / 8);
            }
            give(&bytes)?;
        }
        Ok(())
    }
}

/// The name in Hugging Face layout.
fn target(name: &str) -> Option<String> {
    if let Some((_, target)) = OTHERS.iter().find(|(source, _)| *source == name) {
        return Some((*target).to_owned());
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (part, kind) = part.rsplit_once('.')?;
    let (_, target) = LAYER.iter().find(|(source, _)| *source == part)?;
    matches!(kind, "weight" | "bias").then(|| format!("model.layers.{layer}.{target}.{kind}"))
}

/// The type of elements that stay as they are.
fn kept(dtype: GgmlDType) -> Option<Dtype> {
    match dtype {
        GgmlDType::F32 => Some(Dtype::F32),
        GgmlDType::F16 => Some(Dtype::F16),
        GgmlDType::BF16 => Some(Dtype::BF16),
        _ => None,
    }
}

/// What stands against an import of this tensor.
fn fault(gguf: &Gguf, info: &TensorInfo, head: Option<usize>) -> Option<String> {
    let (shape, block) = (info.shape.dims(), info.ggml_dtype.block_size());
    let rows = shape.first().copied().unwrap_or(0);
    if !shape.last().is_some_and(|width| width.is_multiple_of(block)) {
        return Some(format!("has shape {shape:?}, whose rows are no whole blocks of {:?}", info.ggml_dtype));
    }
    if head.is_some_and(|head| head == 0 || !head.is_multiple_of(2) || !rows.is_multiple_of(head)) {
        return Some(format!("has {rows} rows, which are no whole heads of {}", head.unwrap_or(0)));
    }
    if head.is_some() && shape.len() == 1 && kept(info.ggml_dtype).is_none() {
        return Some(format!("is a vector of {:?}, whose elements cannot be reordered", info.ggml_dtype));
    }
    let start = gguf.content.tensor_data_offset.saturating_add(info.offset);
    let end = start.saturating_add(bytes_of(info, info.shape.elem_count()) as u64);
    (end > gguf.size).then(|| format!("ends at byte {end} of a file of {} bytes", gguf.size))
}

fn bytes_of(info: &TensorInfo, n: usize) -> usize {
    n / info.ggml_dtype.block_size() * info.ggml_dtype.type_size()
}

/// The bytes of elements `from..from + n`, which are whole blocks.
fn raw(gguf: &Gguf, info: &TensorInfo, from: usize, n: usize) -> Result<Vec<u8>, GgufError> {
    let start = gguf.content.tensor_data_offset + info.offset + bytes_of(info, from) as u64;
    let mut bytes = vec![0; bytes_of(info, n)];
    let read = gguf.file.read_exact_at(&mut bytes, start);
    read.map_err(|source| GgufError::Io { path: gguf.path.clone(), source })?;
    Ok(bytes)
}

/// The values of elements `from..from + n`, which are whole blocks.
pub(super) fn unpack(gguf: &Gguf, info: &TensorInfo, from: usize, n: usize) -> Result<Vec<f32>, GgufError> {
    let bytes = raw(gguf, info, from, n)?;
    let packed = qtensor_from_ggml(info.ggml_dtype, &bytes, vec![n], &Device::Cpu);
    let values = packed.and_then(|packed| packed.dequantize(&Device::Cpu)?.to_vec1());
    values.map_err(GgufError::Content)
}

/// Rows 0, 2, 4.. of each head of `head` rows, then rows 1, 3, 5..
pub(super) fn halves(bytes: &[u8], head: usize, row: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for head in bytes.chunks(head * row) {
        for first in [0, 1] {
            head.chunks(row).skip(first).step_by(2).for_each(|row| out.extend_from_slice(row));
        }
    }
    out
}
