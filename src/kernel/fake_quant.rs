//! Rounding to MXFP4 in the forward pass with a straight-through gradient, for training weights that will be stored in MXFP4.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{f32s, mxfp4};

/// `w` [.., in] rounded to MXFP4 along its last dimension (a multiple of 32); the gradient passes unchanged.
pub fn fake_quant(w: &Tensor) -> Result<Tensor> {
    w.apply_op1(FakeQuant)
}

struct FakeQuant;

impl CustomOp1 for FakeQuant {
    fn name(&self) -> &'static str {
        "fake_quant"
    }

    fn cpu_fwd(&self, w: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let inner = layout.dims().last().copied().unwrap_or(0);
        if inner == 0 || !inner.is_multiple_of(mxfp4::BLOCK) {
            candle_core::bail!(
                "fake_quant: the last dimension must be a multiple of 32, got {:?}",
                layout.shape()
            );
        }
        let mut values = f32s(w, layout, "fake_quant")?.to_vec();
        values.par_chunks_mut(inner * 64).for_each(mxfp4::round_trip);
        Ok((CpuStorage::F32(values), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(grad.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{bits, flat, var};

    #[test]
    fn rounds_forward_and_passes_gradients() {
        let w = var(3, &[5, 64], 1.0);
        let rounded = fake_quant(&w).unwrap();
        let mut want = w.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        mxfp4::round_trip(&mut want);
        assert_eq!(rounded.flatten_all().unwrap().to_vec1::<f32>().unwrap(), want);
        let grads = (rounded * 3.0).unwrap().sum_all().unwrap().backward().unwrap();
        let grad = grads.get(w.as_tensor()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(grad.iter().all(|g| (g - 3.0).abs() < 1e-6));
    }

    #[test]
    fn odd_widths_are_refused() {
        assert!(fake_quant(&var(3, &[5, 33], 1.0)).is_err());
    }

    #[test]
    fn rows_are_rounded_alike_wherever_they_stand() {
        // Work is cut into 64 rows; a row must not know where.
        for n in [1, 63, 64, 65, 129] {
            let w = var(n as u64, &[n, 32], 2.0);
            let whole = flat(&fake_quant(&w).unwrap());
            for (row, got) in flat(&w).chunks(32).zip(whole.chunks(32)) {
                let mut want = row.to_vec();
                mxfp4::round_trip(&mut want);
                assert_eq!(got, want);
            }
        }
        let cube = var(5, &[2, 3, 64], 1.0);
        let flat_rows = cube.reshape((6, 64)).unwrap();
        assert_eq!(bits(&fake_quant(&cube).unwrap()), bits(&fake_quant(&flat_rows).unwrap()));
    }
}
