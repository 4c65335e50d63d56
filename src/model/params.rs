//! Named parameters of a checkpoint as tensors: shapes and element types checked, all problems reported at once.
//!
//! Knows names and shapes, no architecture. Parameters whose name matches are trainable variables; the others are plain tensors.

pub mod nf4;
mod survey;

use std::{cell::RefCell, collections::BTreeMap};

use bytes::Bytes;
use candle_core::{Device, Tensor, Var};
use safetensors::Dtype;

use crate::{
    artifact::checkpoint::{Checkpoint, Raw},
    kernel::{bf16_linear::Bf16, mxfp4, mxfp4_linear::Mxfp4},
};

pub use self::survey::Role;
use self::survey::Survey;
use super::{block::table::Table, config::ConfigError};

/// A parameter and whether it trains.
#[derive(Debug, Clone)]
pub struct Param {
    /// The values.
    pub tensor: Tensor,
    /// Whether gradients are wanted.
    pub train: bool,
}

/// The matrices of a layer's experts.
#[derive(Debug, Clone)]
pub enum ExpertWeights {
    /// As floats [experts, out, in].
    Dense(Param),
    /// Frozen and as small as the checkpoint has them.
    Packed(Mxfp4),
}

impl Param {
    /// A frozen vector of `n` equal values.
    pub fn constant(value: f32, n: usize) -> Self {
        Self {
            tensor: Tensor::from_vec(vec![value; n], n, &Device::Cpu)
                .expect("as many values as the shape says"),
            train: false,
        }
    }
}

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Tensors are missing or have the wrong form; each line names one.
    #[error("the checkpoint does not fit its config.json:\n  {}", .0.join("\n  "))]
    Tensors(Vec<String>),
    /// A token id outside the embedding.
    #[error("token id {id} is outside the vocabulary of {vocab_size}; is this the model's own tokenizer?")]
    TokenId {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// Reads parameters from a checkpoint and gathers every problem on the way.
pub struct Params<'a> {
    checkpoint: &'a Checkpoint,
    trainable: &'a dyn Fn(&str) -> bool,
    vars: RefCell<BTreeMap<String, Var>>,
    problems: RefCell<Vec<String>>,
    survey: Option<Survey>,
}

impl<'a> Params<'a> {
    /// Reads from `checkpoint`; parameters whose name satisfies `trainable` become variables.
    pub fn new(checkpoint: &'a Checkpoint, trainable: &'a dyn Fn(&str) -> bool) -> Self {
        let (vars, problems) = Default::default();
        Self { checkpoint, trainable, vars, problems, survey: None }
    }

    /// Checks names, shapes and element types of `checkpoint` and reads no value: zeros stand in for all. Ends with [`Self::surveyed`].
    pub fn survey(checkpoint: &'a Checkpoint) -> Self {
        Self { survey: Some(Survey::default()), ..Self::new(checkpoint, &|_| false) }
    }

    /// What a survey found: every problem, and each tensor that was asked for.
    pub fn surveyed(self) -> (Vec<String>, BTreeMap<String, Role>) {
        (self.problems.into_inner(), self.survey.map(Survey::into_found).unwrap_or_default())
    }

    /// The parameter `name` with the given shape, as `f32`, unpacked if it is stored as NF4 ([`nf4`]). A problem is noted and zeros stand in until [`Self::finish`].
    pub fn get(&self, name: &str, shape: &[usize]) -> Param {
        if let Some(survey) = &self.survey {
            return survey.get(self, name, shape);
        }
        let values = self.values(name, shape);
        self.param(name, shape, values)
    }

    /// A matrix with a row for each token id. Frozen BF16 and NF4 stay in the bytes of the file; all else is as [`Self::get`] has it.
    pub fn table(&self, name: &str, shape: [usize; 2]) -> Table {
        if self.survey.is_some() || (self.trainable)(name) {
            return Table::Floats(self.get(name, &shape));
        }
        if let Some(Ok(weight)) = nf4::open(self.checkpoint, name, shape) {
            return Table::Nf4(weight.into());
        }
        let bf16 =
            self.checkpoint.raw(name).is_some_and(|raw| raw.dtype == Dtype::BF16 && raw.shape == shape);
        match self.checkpoint.shared(name).filter(|_| bf16) {
            Some(bytes) => Table::Bf16(Bf16::new(bytes, shape)),
            None => Table::Floats(self.get(name, &shape)),
        }
    }

    /// A stack of expert matrices [experts, out, in], from either form of the checkpoint: MXFP4 (`name_blocks`, `name_scales`,
    /// [experts, out, in/32, ..]), which stays packed where it does not train, or dense (`name` [experts, in, out], transposed).
    pub fn experts(&self, name: &str, shape: [usize; 3]) -> ExpertWeights {
        if let Some(survey) = &self.survey {
            return survey.experts(self, name, shape);
        }
        let [experts, out, inner] = shape;
        let (blocks, scales) = (format!("{name}_blocks"), format!("{name}_scales"));
        let values = if self.checkpoint.raw(&blocks).is_some() {
            match self.mxfp4(&blocks, &scales, shape) {
                Some(packed) if !(self.trainable)(name) => return ExpertWeights::Packed(packed),
                Some(packed) => packed.dequantized(),
                None => vec![0f32; experts * out * inner],
            }
        } else {
            let dense = self.values(name, &[experts, inner, out]);
            let mut values = vec![0f32; dense.len()];
            for e in 0..experts {
                let at = e * out * inner;
                for o in 0..out {
                    for i in 0..inner {
                        values[at + o * inner + i] = dense[at + i * out + o];
                    }
                }
            }
            values
        };
        ExpertWeights::Dense(self.param(name, &shape, values))
    }

    /// The trainable variables by name, or all problems that were met.
    pub fn finish(self) -> Result<BTreeMap<String, Var>, ModelError> {
        let problems = self.problems.into_inner();
        if problems.is_empty() { Ok(self.vars.into_inner()) } else { Err(ModelError::Tensors(problems)) }
    }

    fn param(&self, name: &str, shape: &[usize], values: Vec<f32>) -> Param {
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).expect("as many values as the shape says");
        if !(self.trainable)(name) {
            return Param { tensor, train: false };
        }
        let var = Var::from_tensor(&tensor).expect("a host tensor becomes a variable");
        let tensor = var.as_tensor().clone();
        self.vars.borrow_mut().insert(name.to_owned(), var);
        Param { tensor, train: true }
    }

    fn values(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let zeros = || vec![0f32; shape.iter().product()];
        if let Some(unpacked) = nf4::read(self.checkpoint, name, shape) {
            return unpacked.unwrap_or_else(|problems| {
                self.problems.borrow_mut().extend(problems);
                zeros()
            });
        }
        let Some(raw) = self.found(name, shape) else { return zeros() };
        raw.to_f32().unwrap_or_else(|| {
            self.not_float(name, raw);
            zeros()
        })
    }

    fn not_float(&self, name: &str, raw: Raw<'_>) {
        self.note(format!("`{name}` has element type {:?}, expected F32, BF16 or F16", raw.dtype));
    }

    fn mxfp4(&self, blocks: &str, scales: &str, shape: [usize; 3]) -> Option<Mxfp4> {
        let (packed, exponents) = self.packed(blocks, scales, shape)?;
        let packed = Mxfp4::new(packed, exponents, shape);
        packed.map_err(|error| self.note(format!("`{scales}`: {error}"))).ok()
    }

    /// Blocks and scales of the right sizes.
    fn packed(&self, blocks: &str, scales: &str, shape: [usize; 3]) -> Option<(Bytes, Bytes)> {
        let [experts, out, inner] = shape;
        if !inner.is_multiple_of(mxfp4::BLOCK) {
            self.note(format!(
                "`{blocks}`: MXFP4 needs an input width that is a multiple of 32, got {inner}"
            ));
            return None;
        }
        let groups = inner / mxfp4::BLOCK;
        let packed = self.bytes(blocks, &[experts, out, groups, mxfp4::BLOCK / 2]);
        let exponents = self.bytes(scales, &[experts, out, groups]);
        packed.zip(exponents)
    }

    /// The bytes of a U8 tensor.
    fn bytes(&self, name: &str, shape: &[usize]) -> Option<Bytes> {
        let raw = self.found(name, shape)?;
        if raw.dtype != Dtype::U8 {
            self.note(format!("`{name}` has element type {:?}, expected U8", raw.dtype));
            return None;
        }
        self.checkpoint.shared(name)
    }

    fn found(&self, name: &str, shape: &[usize]) -> Option<Raw<'a>> {
        let Some(raw) = self.checkpoint.raw(name) else {
            self.note(format!("`{name}` is missing"));
            return None;
        };
        if raw.shape != shape {
            self.note(format!("`{name}` has shape {:?}, expected {shape:?}", raw.shape));
            return None;
        }
        Some(raw)
    }

    fn note(&self, problem: String) {
        self.problems.borrow_mut().push(problem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::{
        Artifact,
        checkpoint::{Draft, Owned, files_in},
    };

    fn checkpoint(tensors: &[(&str, Owned)]) -> (tempfile::TempDir, Checkpoint) {
        let dir = tempfile::tempdir().unwrap();
        let tensors = tensors.iter().map(|(name, t)| ((*name).to_owned(), t.clone())).collect();
        Draft { tensors, ..Draft::default() }.save(dir.path()).unwrap();
        let checkpoint = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
        (dir, checkpoint)
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let (_dir, checkpoint) =
            checkpoint(&[("a", Owned::f32(&[2], &[1.0, 2.0])), ("b", Owned::u8(&[2], vec![0, 0]))]);
        let params = Params::new(&checkpoint, &|_| false);
        params.get("a", &[3]);
        params.get("b", &[2]);
        params.get("c", &[1]);
        let text = params.finish().unwrap_err().to_string();
        for part in ["`a` has shape [2], expected [3]", "`b` has element type U8", "`c` is missing"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn both_forms_of_experts_give_the_same_matrices() {
        let (experts, out, inner) = (2, 3, 32);
        let blocks: Vec<u8> = (0..experts * out * 16).map(|i| (i * 37 % 256) as u8).collect();
        let scales: Vec<u8> = (0..experts * out).map(|i| 120 + i as u8).collect();
        let mut values = vec![0f32; experts * out * inner];
        mxfp4::dequantize(&blocks, &scales, &mut values).unwrap();
        let at = |e: usize, i: usize, o: usize| values[(e * out + o) * inner + i];
        let dense: Vec<f32> =
            (0..values.len()).map(|n| at(n / (inner * out), n / out % inner, n % out)).collect();
        let (_dir, checkpoint) = checkpoint(&[
            ("packed_blocks", Owned::u8(&[experts, out, 1, 16], blocks)),
            ("packed_scales", Owned::u8(&[experts, out, 1], scales)),
            ("dense", Owned::f32(&[experts, inner, out], &dense)),
        ]);
        let params = Params::new(&checkpoint, &|name| name == "dense");
        let shape = [experts, out, inner];
        let flat = |weights: &ExpertWeights| match weights {
            ExpertWeights::Dense(param) => param.tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
            ExpertWeights::Packed(packed) => packed.dequantized(),
        };
        assert_eq!(flat(&params.experts("packed", shape)), values);
        assert_eq!(flat(&params.experts("dense", shape)), values);
        assert_eq!(params.finish().unwrap().keys().collect::<Vec<_>>(), ["dense"]);
    }

    #[test]
    fn faults_of_packed_experts_are_told_with_the_tensor() {
        let check = |inner: usize, tensors: &[(&str, Owned)], expected: &str| {
            let (_dir, checkpoint) = checkpoint(tensors);
            let params = Params::new(&checkpoint, &|_| false);
            let stand_in = params.experts("w", [2, 3, inner]);
            assert!(matches!(stand_in, ExpertWeights::Dense(param) if param.tensor.dims() == [2, 3, inner]));
            assert_eq!(params.finish().unwrap_err().to_string().lines().nth(1).unwrap().trim(), expected);
        };
        let blocks = || Owned::u8(&[2, 3, 1, 16], vec![0; 96]);
        let scales = |bytes: Vec<u8>| Owned::u8(&[2, 3, 1], bytes);
        check(32, &[("w_blocks", blocks())], "`w_scales` is missing");
        check(
            32,
            &[("w_blocks", blocks()), ("w_scales", Owned::u8(&[2, 3], vec![0; 6]))],
            "`w_scales` has shape [2, 3], expected [2, 3, 1]",
        );
        check(
            64,
            &[("w_blocks", blocks()), ("w_scales", scales(vec![0; 6]))],
            "`w_blocks` has shape [2, 3, 1, 16], expected [2, 3, 2, 16]",
        );
        check(
            33,
            &[("w_blocks", blocks())],
            "`w_blocks`: MXFP4 needs an input width that is a multiple of 32, got 33",
        );
        check(
            32,
            &[("w_blocks", blocks()), ("w_scales", scales(vec![1, 2, 3, 255, 5, 6]))],
            "`w_scales`: scale 3 is 255, which MXFP4 reserves for NaN",
        );
        check(32, &[("w_scales", scales(vec![0; 6]))], "`w` is missing");
    }

    #[test]
    fn a_variable_shares_its_values_with_the_model() {
        let (_dir, checkpoint) =
            checkpoint(&[("a", Owned::f32(&[2], &[1.0, 2.0])), ("b", Owned::f32(&[1], &[3.0]))]);
        let params = Params::new(&checkpoint, &|name| name == "a");
        let (a, b) = (params.get("a", &[2]), params.get("b", &[1]));
        assert_eq!((a.train, b.train), (true, false));
        let vars = params.finish().unwrap();
        vars["a"].set(&Tensor::new(&[7f32, 8.0], &Device::Cpu).unwrap()).unwrap();
        assert_eq!(a.tensor.to_vec1::<f32>().unwrap(), [7.0, 8.0]);
        assert_eq!(vars.len(), 1);
    }
}
