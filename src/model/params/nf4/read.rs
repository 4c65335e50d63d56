//! Reading: every tensor of a weight is looked for and checked, and all problems are gathered. Knows no writing.

use std::fmt::Display;

use safetensors::Dtype;

use super::{STATE, State, join};
use crate::{
    artifact::checkpoint::{Checkpoint, Raw},
    kernel::nf4::{
        self,
        absmax::{self, Nested},
    },
};

/// The weight `name` if it is quantised by bitsandbytes: its values, or every problem with its tensors. `None` for a plain tensor.
pub(in crate::model::params) fn read(
    checkpoint: &Checkpoint,
    name: &str,
    shape: &[usize],
) -> Option<Result<Vec<f32>, Vec<String>>> {
    if checkpoint.raw(&join(name, STATE)).is_none() {
        checkpoint.raw(&join(name, "quant_state.bitsandbytes__fp4"))?;
        return Some(Err(vec![format!(
            "`{name}` is quantised as FP4; of bitsandbytes' types only NF4 is read"
        )]));
    }
    let mut reader = Reader { checkpoint, name, problems: Vec::new() };
    Some(reader.values(shape).ok_or(reader.problems))
}

struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    name: &'a str,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    /// The values; `None` once a problem was noted. With a wrong state, the sizes of the other tensors are unknown.
    fn values(&mut self, shape: &[usize]) -> Option<Vec<f32>> {
        let state = self.state(shape)?;
        let n: usize = shape.iter().product();
        let codes = self.bytes("", &[n.div_ceil(2), 1]);
        let book = self.floats("quant_map", 16);
        if book.is_some_and(|book| book.iter().zip(nf4::LEVELS).any(|(a, b)| a.to_bits() != b.to_bits())) {
            self.note("quant_map", "is not the code book of NF4");
        }
        let scales = self.scales(&state, n.div_ceil(state.blocksize));
        let (codes, scales) = (codes?, scales?);
        let mut values = vec![0.0; n];
        let unpacked = nf4::dequantize(codes, &scales, state.blocksize, &mut values);
        if let Err(error) = unpacked.and_then(|()| state.dtype.check(&scales)) {
            self.fault("absmax", format_args!("as {:?}, {error}", state.dtype));
        }
        for x in &mut values {
            *x = state.dtype.round(*x);
        }
        self.problems.is_empty().then_some(values)
    }

    fn scales(&mut self, state: &State, blocks: usize) -> Option<Vec<f32>> {
        let (Some(block), Some(offset)) = (state.nested_blocksize, state.nested_offset) else {
            return self.floats("absmax", blocks);
        };
        let codes = self.bytes("absmax", &[blocks]);
        let absmax = self.floats("nested_absmax", blocks.div_ceil(block));
        let map = self.floats("nested_quant_map", 256);
        let nested = Nested { codes: codes?.to_vec(), absmax: absmax?, offset: offset as f32 };
        let map = map?.try_into().expect("its length was checked");
        absmax::dequantize(&nested, &map, block).map_err(|e| self.fault("nested_absmax", e)).ok()
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
