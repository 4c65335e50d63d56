//! A matrix with a row for each token id: the embedding, and the output head. Frozen BF16 and NF4 stay as the file has them.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use crate::{
    kernel::{
        bf16_linear::{Bf16, bf16_linear},
        linear::linear,
    },
    model::params::{Param, nf4},
};

/// A matrix [vocab, hidden].
#[derive(Clone)]
pub enum Table {
    /// As floats; it may train.
    Floats(Param),
    /// Frozen, in the bytes of the file: at a vocabulary of 200,000 its floats would take gigabytes.
    Bf16(Bf16),
    /// Frozen, in four bits: rows are expanded as they are asked for, and for logits a part of them at a time.
    Nf4(Arc<nf4::Weight>),
}

/// Rows of NF4 that are expanded at one time for a product.
const ROWS: usize = 4096;

/// Rows `from..to` of a packed matrix.
fn expanded(weight: &nf4::Weight, from: usize, to: usize) -> Result<Tensor> {
    let width = weight.shape()[1];
    Tensor::from_vec(weight.values(from * width..to * width), (to - from, width), &Device::Cpu)
}

impl Table {
    /// Rows.
    pub fn vocab(&self) -> Result<usize> {
        match self {
            Self::Floats(param) => param.tensor.dim(0),
            Self::Bf16(table) => Ok(table.shape()[0]),
            Self::Nf4(table) => Ok(table.shape()[0]),
        }
    }

    /// The rows of `ids` [t, hidden], each of which is below [`Self::vocab`].
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        match self {
            Self::Floats(param) => {
                param.tensor.index_select(&Tensor::from_slice(ids, ids.len(), &Device::Cpu)?, 0)
            }
            Self::Bf16(table) => {
                let values: Vec<f32> = ids.iter().flat_map(|&id| table.row(id as usize)).collect();
                Tensor::from_vec(values, (ids.len(), table.shape()[1]), &Device::Cpu)
            }
            Self::Nf4(table) => {
                let width = table.shape()[1];
                let row = |&id: &u32| table.values(id as usize * width..(id as usize + 1) * width);
                Tensor::from_vec(ids.iter().flat_map(row).collect(), (ids.len(), width), &Device::Cpu)
            }
        }
    }

    /// Logits [t, vocab] of `x` [t, hidden].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Floats(param) => linear(x, &param.tensor, None, param.train),
            Self::Bf16(table) => bf16_linear(x, table),
            Self::Nf4(table) => {
                let rows = table.shape()[0];
                let part =
                    |from: usize| linear(x, &expanded(table, from, (from + ROWS).min(rows))?, None, false);
                let parts: Vec<Tensor> = (0..rows).step_by(ROWS).map(part).collect::<Result<_>>()?;
                Tensor::cat(&parts, 1)
            }
        }
    }

    /// The matrix as floats, made if there is none.
    pub fn floats(&self) -> Result<Tensor> {
        match self {
            Self::Floats(param) => Ok(param.tensor.clone()),
            Self::Bf16(table) => Tensor::from_vec(table.to_f32(), &table.shape()[..], &Device::Cpu),
            Self::Nf4(table) => expanded(table, 0, table.shape()[0]),
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::{
        artifact::{
            Artifact,
            checkpoint::{Checkpoint, Draft, files_in},
        },
        kernel::testing::{bits, noise},
        model::{
            Params,
            params::nf4::{Form, WeightDtype, write},
        },
    };

    #[test]
    fn nf4_gives_the_rows_and_logits_of_its_values() {
        // Rows of 20 lie across blocks of 64, and there are more of them than are expanded at one time.
        let (vocab, hidden) = (ROWS + 3, 20);
        let form = Form { dtype: WeightDtype::Bfloat16, double: true };
        let tensors = write("t", &noise(3, vocab * hidden, 1.0), [vocab, hidden], form).unwrap();
        let dir = tempfile::tempdir().unwrap();
        Draft { tensors, ..Draft::default() }.save(dir.path()).unwrap();
        let checkpoint = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
        let packed = Params::new(&checkpoint, &|_| false).table("t", [vocab, hidden]);
        assert!(matches!(packed, Table::Nf4(_)));
        let floats = Table::Floats(Params::new(&checkpoint, &|_| false).get("t", &[vocab, hidden]));
        let x = Tensor::from_vec(noise(4, 2 * hidden, 1.0), (2, hidden), &Device::Cpu).unwrap();
        assert_eq!((packed.vocab().unwrap(), floats.vocab().unwrap()), (vocab, vocab));
        let ids = [0, 3, vocab as u32 - 1, 3];
        for (a, b) in [
            (packed.rows(&ids), floats.rows(&ids)),
            (packed.forward(&x), floats.forward(&x)),
            (packed.floats(), floats.floats()),
        ] {
            assert_eq!(bits(&a.unwrap()), bits(&b.unwrap()));
        }
        let trained = Params::new(&checkpoint, &|_| true).table("t", [vocab, hidden]);
        assert!(matches!(trained, Table::Floats(_)));
    }

    #[test]
    fn both_forms_give_the_same_rows_and_logits() {
        let numbers: Vec<bf16> = noise(1, 12, 1.0).into_iter().map(bf16::from_f32).collect();
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let packed = Table::Bf16(Bf16::new(bytes.into(), [4, 3]));
        let floats = Table::Floats(Param { tensor: packed.floats().unwrap(), train: false });
        let x = Tensor::from_vec(noise(2, 6, 1.0), (2, 3), &Device::Cpu).unwrap();
        assert_eq!((packed.vocab().unwrap(), floats.vocab().unwrap()), (4, 4));
        for (a, b) in [
            (packed.rows(&[3, 0, 3]), floats.rows(&[3, 0, 3])),
            (packed.forward(&x), floats.forward(&x)),
            (packed.floats(), floats.floats()),
        ] {
            assert_eq!(bits(&a.unwrap()), bits(&b.unwrap()));
        }
    }
}
