//! Parameters that are only looked for: every name, shape and element type is checked and noted, and no value is read. Knows no
//! architecture; what is asked for says it.

use std::{cell::RefCell, collections::BTreeMap};

use candle_core::{DType, Device, Tensor};

use super::{ExpertWeights, Param, Params, nf4};

/// What a tensor holds that a model reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Numbers.
    Values,
    /// Codes, of which any is good.
    Codes,
    /// Scales of MXFP4.
    Scales,
    /// Codes of NF4 for a weight of this shape, whose scales lie in tensors beside it.
    Nf4(Vec<usize>),
}

/// The tensors that were asked for and are there.
#[derive(Default)]
pub(super) struct Survey {
    found: RefCell<BTreeMap<String, Role>>,
}

impl Survey {
    pub(super) fn into_found(self) -> BTreeMap<String, Role> {
        self.found.into_inner()
    }

    pub(super) fn get(&self, params: &Params<'_>, name: &str, shape: &[usize]) -> Param {
        match nf4::survey(params.checkpoint, name, shape) {
            Some(Ok(parts)) => {
                self.found.borrow_mut().extend(parts.into_iter().map(|part| (part, Role::Codes)));
                self.add(name, Role::Nf4(shape.to_vec()));
            }
            Some(Err(problems)) => {
                // Not among what nobody reads: the problems tell of it.
                self.add(name, Role::Codes);
                params.problems.borrow_mut().extend(problems);
            }
            None => {
                if let Some(raw) = params.found(name, shape)
                    && !raw.is_float()
                {
                    params.not_float(name, raw);
                }
                self.add(name, Role::Values);
            }
        }
        stand_in(shape)
    }

    pub(super) fn experts(&self, params: &Params<'_>, name: &str, shape: [usize; 3]) -> ExpertWeights {
        let [experts, out, inner] = shape;
        let (blocks, scales) = (format!("{name}_blocks"), format!("{name}_scales"));
        if params.checkpoint.raw(&blocks).is_some() {
            params.packed(&blocks, &scales, shape);
            self.add(&blocks, Role::Codes);
            self.add(&scales, Role::Scales);
        } else {
            self.get(params, name, &[experts, inner, out]);
        }
        ExpertWeights::Dense(stand_in(&shape))
    }

    fn add(&self, name: &str, role: Role) {
        self.found.borrow_mut().insert(name.to_owned(), role);
    }
}

/// One zero that counts as a tensor of this shape.
fn stand_in(shape: &[usize]) -> Param {
    let zero = Tensor::zeros((), DType::F32, &Device::Cpu).and_then(|zero| zero.broadcast_as(shape));
    Param { tensor: zero.expect("a number has every shape"), train: false }
}
