//! NF4 weights of a checkpoint, read and written under the names that bitsandbytes gives them. Knows the tensors that belong to a
//! weight and their sizes, no architecture.
//!
//! Beside `NAME`, the codes (U8 [⌈n/2⌉, 1]), stand `NAME.absmax` (F32, one a block; U8 with `NAME.nested_absmax` and
//! `NAME.nested_quant_map` if doubly quantised), `NAME.quant_map` (F32, 16) and `NAME.quant_state.bitsandbytes__nf4`, JSON in U8.

mod read;

use std::{collections::BTreeMap, ops::Range};

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use crate::{
    artifact::checkpoint::{Owned, Raw},
    kernel::nf4::{self, NotFinite, absmax},
};

pub use read::Weight;
pub(in crate::model) use read::check_scales;
pub(super) use read::{open, read, survey};

const STATE: &str = "quant_state.bitsandbytes__nf4";
/// What stands behind the names of a weight's tensors.
const PARTS: [&str; 6] = ["", "absmax", "nested_absmax", "nested_quant_map", "quant_map", STATE];

/// How a weight is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// The type that the values had and get again.
    pub dtype: WeightDtype,
    /// Whether the scales become bytes too: 4.13 bits a weight in place of 4.5.
    pub double: bool,
}

/// What a weight is rounded to once it is expanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightDtype {
    /// Nothing is rounded.
    Float32,
    /// To nearest even.
    Bfloat16,
    /// To nearest even.
    Float16,
}

impl WeightDtype {
    fn round(self, x: f32) -> f32 {
        match self {
            Self::Float32 => x,
            Self::Bfloat16 => bf16::from_f32(x).to_f32(),
            Self::Float16 => f16::from_f32(x).to_f32(),
        }
    }

    /// Scales that this type cannot hold make values that it cannot hold: a code of ±1 stands in every block.
    fn check(self, scales: &[f32]) -> Result<(), NotFinite> {
        let bad = scales.iter().position(|&x| !self.round(x).is_finite());
        bad.map_or(Ok(()), |index| Err(NotFinite { what: "absmax", index, value: self.round(scales[index]) }))
    }
}

/// Values that NF4 cannot hold.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("`{name}` cannot be written as NF4 of {dtype:?}: {source}")]
pub struct WriteError {
    /// The weight's name.
    pub name: String,
    /// The type that the values were rounded to.
    pub dtype: WeightDtype,
    /// The first of them.
    pub source: NotFinite,
}

/// The tensors of a checkpoint, by full name, that stand for the matrix `values` [out, in] named `name`.
///
/// The values are rounded to the type of `form` first, since bitsandbytes packs tensors of that type.
pub fn write(
    name: &str,
    values: &[f32],
    shape: [usize; 2],
    form: Form,
) -> Result<BTreeMap<String, Owned>, WriteError> {
    assert_eq!(values.len(), shape[0] * shape[1], "as many values as the shape says");
    pack(name, &|range| values[range].to_vec(), shape, form)
}

/// The same of a matrix in a checkpoint, whose values are expanded a part at a time; the type that they have is the one they get again.
/// `raw` is a matrix of floats.
pub fn write_raw(name: &str, raw: Raw<'_>, double: bool) -> Result<BTreeMap<String, Owned>, WriteError> {
    let dtype = match raw.dtype {
        Dtype::BF16 => WeightDtype::Bfloat16,
        Dtype::F16 => WeightDtype::Float16,
        _ => WeightDtype::Float32,
    };
    let size = raw.dtype.bitsize() / 8;
    let values = |range: Range<usize>| {
        let part = Raw { bytes: &raw.bytes[range.start * size..range.end * size], ..raw };
        part.to_f32().expect("a matrix of floats")
    };
    pack(name, &values, [raw.shape[0], raw.shape[1]], Form { dtype, double })
}

/// Values that are packed by one task; whole blocks.
const PART: usize = 1 << 16;

fn pack(
    name: &str,
    values: &(dyn Fn(Range<usize>) -> Vec<f32> + Sync),
    shape: [usize; 2],
    form: Form,
) -> Result<BTreeMap<String, Owned>, WriteError> {
    let Form { dtype, double } = form;
    let failed = |source| WriteError { name: name.to_owned(), dtype, source };
    let n = shape[0] * shape[1];
    let mut codes = vec![0; n.div_ceil(2)];
    let mut scales = vec![0.0; n.div_ceil(nf4::BLOCK)];
    let parts = codes.par_chunks_mut(PART / 2).zip(scales.par_chunks_mut(PART / nf4::BLOCK)).enumerate();
    let packed = parts.map(|(i, (codes, scales))| {
        let from = i * PART;
        let mut part = values(from..(from + PART).min(n));
        for x in &mut part {
            *x = dtype.round(*x);
        }
        nf4::quantize(&part, nf4::BLOCK, codes, scales)
            .map_err(|error| NotFinite { index: error.index + from, ..error })
    });
    // Of several the first one in the matrix is told, whichever was met first.
    packed.collect::<Vec<_>>().into_iter().collect::<Result<(), _>>().map_err(failed)?;
    let mut state = State::new(dtype, &shape);
    let mut tensors = BTreeMap::new();
    let mut add = |suffix: &str, tensor| tensors.insert(join(name, suffix), tensor);
    if double {
        let nested = absmax::quantize(&scales).map_err(failed)?;
        let map = absmax::map();
        let restored = absmax::dequantize(&nested, &map, absmax::NESTED_BLOCK).map_err(failed)?;
        dtype.check(&restored).map_err(failed)?;
        state.nested_blocksize = Some(absmax::NESTED_BLOCK);
        state.nested_dtype = Some(WeightDtype::Float32);
        state.nested_offset = Some(f64::from(nested.offset));
        add("absmax", Owned::u8(&[scales.len()], nested.codes));
        add("nested_absmax", Owned::f32(&[nested.absmax.len()], &nested.absmax));
        add("nested_quant_map", Owned::f32(&[256], &map));
    } else {
        add("absmax", Owned::f32(&[scales.len()], &scales));
    }
    let json = serde_json::to_vec(&state).expect("a quantisation state serialises");
    add("", Owned::u8(&[codes.len(), 1], codes));
    add("quant_map", Owned::f32(&[16], &nf4::LEVELS));
    add(STATE, Owned::u8(&[json.len()], json));
    Ok(tensors)
}

/// What the JSON says; the fields and their order are those of bitsandbytes, which refuses others too.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: WeightDtype,
    shape: Vec<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nested_blocksize: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nested_dtype: Option<WeightDtype>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nested_offset: Option<f64>,
}

impl State {
    fn new(dtype: WeightDtype, shape: &[usize]) -> Self {
        Self {
            quant_type: "nf4".to_owned(),
            blocksize: nf4::BLOCK,
            dtype,
            shape: shape.to_vec(),
            nested_blocksize: None,
            nested_dtype: None,
            nested_offset: None,
        }
    }

    fn problems(&self, shape: &[usize]) -> Vec<String> {
        let mut problems = Vec::new();
        if self.quant_type != "nf4" {
            problems.push(format!("quant_type is `{}`, expected `nf4`", self.quant_type));
        }
        if self.shape != shape {
            problems.push(format!("shape is {:?}, expected {shape:?}", self.shape));
        }
        let sizes = [("blocksize", Some(self.blocksize)), ("nested_blocksize", self.nested_blocksize)];
        for (field, size) in sizes {
            if let Some(size) = size.filter(|size| !nf4::BLOCKS.contains(size)) {
                problems.push(format!("{field} is {size}, expected one of {:?}", nf4::BLOCKS));
            }
        }
        let nested = (self.nested_blocksize, self.nested_dtype, self.nested_offset);
        if !matches!(nested, (None, None, None) | (Some(_), Some(WeightDtype::Float32), Some(_))) {
            problems.push(
                "nested_blocksize, nested_dtype (`float32`) and nested_offset are there together or not at all"
                    .to_owned(),
            );
        }
        problems
    }
}

fn join(name: &str, suffix: &str) -> String {
    if suffix.is_empty() { name.to_owned() } else { format!("{name}.{suffix}") }
}

#[cfg(test)]
mod tests;
