//! Reading: every tensor of a weight is looked for and checked, and all problems are gathered. Knows no writing.

use std::{fmt::Display, ops::Range};

use bytes::Bytes;
use safetensors::Dtype;

use super::{PARTS, STATE, State, join};
use crate::{
    artifact::checkpoint::{Checkpoint, Raw},
    kernel::nf4::{
        self, NotFinite,
        absmax::{self, Nested},
    },
};

/// The weight `name` if it is quantised by bitsandbytes: its values, or every problem with its tensors. `None` for a plain tensor.
pub(in crate::model::params) fn read(
    checkpoint: &Checkpoint,
    name: &str,
    shape: &[usize],
) -> Option<Result<Vec<f32>, Vec<String>>> {
    with(checkpoint, name, |reader| {
        let weight = reader.checked(shape)?;
        Some(weight.values(0..weight.n))
    })
}

/// The same of a matrix, as it is packed.
pub(in crate::model::params) fn open(
    checkpoint: &Checkpoint,
    name: &str,
    shape: [usize; 2],
) -> Option<Result<Weight, Vec<String>>> {
    with(checkpoint, name, |reader| reader.checked(&shape))
}

/// Checks the tensors of `name` if it is quantised: all their names, types and sizes, and no values. Gives their names.
pub(in crate::model::params) fn survey(
    checkpoint: &Checkpoint,
    name: &str,
    shape: &[usize],
) -> Option<Result<Vec<String>, Vec<String>>> {
    let there = |name: &String| checkpoint.raw(name).is_some();
    let names = || PARTS.iter().map(|part| join(name, part)).filter(there).collect();
    with(checkpoint, name, |reader| reader.weight(shape).map(|_| names()))
}

/// Checks the scales of a quantised weight, on which it hangs whether every value is finite.
pub(in crate::model) fn check_scales(checkpoint: &Checkpoint, name: &str, shape: &[usize]) -> Vec<String> {
    let checked = with(checkpoint, name, |reader| reader.checked(shape).map(drop));
    checked.and_then(Result::err).unwrap_or_default()
}

fn with<T>(
    checkpoint: &Checkpoint,
    name: &str,
    take: impl FnOnce(&mut Reader<'_>) -> Option<T>,
) -> Option<Result<T, Vec<String>>> {
    if checkpoint.raw(&join(name, STATE)).is_none() {
        checkpoint.raw(&join(name, "quant_state.bitsandbytes__fp4"))?;
        return Some(Err(vec![format!(
            "`{name}` is quantised as FP4; of bitsandbytes' types only NF4 is read"
        )]));
    }
    let mut reader = Reader { checkpoint, name, problems: Vec::new() };
    let taken = take(&mut reader);
    Some(taken.filter(|_| reader.problems.is_empty()).ok_or(reader.problems))
}

/// A quantised weight in the bytes of the file, each of its tensors of the right size.
pub struct Weight {
    state: State,
    codes: Bytes,
    scales: Scales,
    /// Values.
    n: usize,
}

enum Scales {
    Plain(Vec<f32>),
    Nested { nested: Nested, map: Box<[f32; 256]>, block: usize },
}

impl Weight {
    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.state.shape
    }

    /// The values at `range` of the flattened weight; no others are expanded, but for those of the same blocks.
    pub fn values(&self, range: Range<usize>) -> Vec<f32> {
        let block = self.state.blocksize;
        let blocks = range.start / block..range.end.div_ceil(block);
        let (from, to) = (blocks.start * block, (blocks.end * block).min(self.n));
        let mut values = vec![0.0; to.saturating_sub(from)];
        let codes = &self.codes[from / 2..to.div_ceil(2)];
        let expanded =
            self.scales.range(blocks).and_then(|scales| nf4::dequantize(codes, &scales, block, &mut values));
        expanded.expect("the scales were checked when it was opened");
        let wanted = &values[range.start - from..range.end - from];
        wanted.iter().map(|&x| self.state.dtype.round(x)).collect()
    }
}

impl Scales {
    fn range(&self, blocks: Range<usize>) -> Result<Vec<f32>, NotFinite> {
        match self {
            Self::Plain(scales) => Ok(scales[blocks].to_vec()),
            Self::Nested { nested, map, block } => {
                let first = blocks.start / block;
                let part = Nested {
                    codes: nested.codes[first * block..blocks.end].to_vec(),
                    absmax: nested.absmax[first..blocks.end.div_ceil(*block)].to_vec(),
                    offset: nested.offset,
                };
                let scales = absmax::dequantize(&part, map, *block)?;
                Ok(scales[blocks.start - first * block..].to_vec())
            }
        }
    }
}

struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    /// The tensors; `None` once a problem was noted. With a wrong state, the sizes of the other tensors are unknown.
    fn weight(&mut self, shape: &[usize]) -> Option<Weight> {
        let state = self.state(shape)?;
        let n: usize = shape.iter().product();
        let codes = self.bytes("", &[n.div_ceil(2), 1]).and_then(|_| self.checkpoint.shared(self.name));
        let book = self.floats("quant_map", 16);
        if book.is_some_and(|book| book.iter().zip(nf4::LEVELS).any(|(a, b)| a.to_bits() != b.to_bits())) {
            self.note("quant_map", "is not the code book of NF4");
        }
        let scales = self.packed_scales(&state, n.div_ceil(state.blocksize));
        Some(Weight { codes: codes?, scales: scales?, state, n })
    }

    /// The same, and every scale is a number that the weight's type can hold.
    fn checked(&mut self, shape: &[usize]) -> Option<Weight> {
        let weight = self.weight(shape)?;
        let (blocks, dtype) = (weight.n.div_ceil(weight.state.blocksize), weight.state.dtype);
        let scales = weight.scales.range(0..blocks).map_err(|e| self.fault("nested_absmax", e)).ok()?;
        let fits = dtype.check(&scales);
        fits.map_err(|error| self.fault("absmax", format_args!("as {dtype:?}, {error}"))).ok()?;
        Some(weight)
    }

    fn packed_scales(&mut self, state: &State, blocks: usize) -> Option<Scales> {
        let (Some(block), Some(offset)) = (state.nested_blocksize, state.nested_offset) else {
            return self.floats("absmax", blocks).map(Scales::Plain);
        };
        let codes = self.bytes("absmax", &[blocks]);
        let absmax = self.floats("nested_absmax", blocks.div_ceil(block));
        let map = self.floats("nested_quant_map", 256);
        let nested = Nested { codes: codes?.to_vec(), absmax: absmax?, offset: offset as f32 };
        let map = Box::new(map?.try_into().expect("its length was checked"));
        Some(Scales::Nested { nested, map, block })
    }

    fn state(&mut self, shape: &[usize]) -> Option<State> {
        let raw = self.found(STATE)?;
        if raw.dtype != Dtype::U8 {
            self.note(STATE, &format!("has element type {:?}, expected U8", raw.dtype));
            return None;
        }
        let state: State = serde_json::from_slice(raw.bytes).map_err(|e| self.fault(STATE, e)).ok()?;
        let problems = state.problems(shape);
        let usable = problems.is_empty();
        for problem in problems {
            self.fault(STATE, problem);
        }
        usable.then_some(state)
    }

    fn floats(&mut self, suffix: &str, n: usize) -> Option<Vec<f32>> {
        let raw = self.shaped(suffix, &[n])?;
        let values = raw.to_f32();
        if values.is_none() {
            self.note(suffix, &format!("has element type {:?}, expected F32", raw.dtype));
        }
        values
    }

    fn bytes(&mut self, suffix: &str, shape: &[usize]) -> Option<&'a [u8]> {
        let raw = self.shaped(suffix, shape)?;
        if raw.dtype != Dtype::U8 {
            self.note(suffix, &format!("has element type {:?}, expected U8", raw.dtype));
            return None;
        }
        Some(raw.bytes)
    }

    fn shaped(&mut self, suffix: &str, shape: &[usize]) -> Option<Raw<'a>> {
        let raw = self.found(suffix)?;
        if raw.shape != shape {
            self.note(suffix, &format!("has shape {:?}, expected {shape:?} for NF4", raw.shape));
            return None;
        }
        Some(raw)
    }

    fn found(&mut self, suffix: &str) -> Option<Raw<'a>> {
        let raw = self.checkpoint.raw(&join(self.name, suffix));
        if raw.is_none() {
            self.note(suffix, "is missing");
        }
        raw
    }

    fn note(&mut self, suffix: &str, problem: &str) {
        self.problems.push(format!("`{}` {problem}", join(self.name, suffix)));
    }

    fn fault(&mut self, suffix: &str, error: impl Display) {
        self.problems.push(format!("`{}`: {error}", join(self.name, suffix)));
    }
}
