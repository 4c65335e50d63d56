//! `y = x Wᵀ` with a frozen weight that stays in BF16, such as an output head in a memory map, and its rows as an embedding. Knows no model.
//!
//! A part of the weight at a time is turned into floats; the product is the same, bit for bit, as that of the whole weight in f32.

use bytes::Bytes;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::{
    f32s, host,
    ordered::{Bf16Bytes, Element, Left, Right, product},
    tensor,
};

/// A matrix [out, inner] in BF16, row-major.
#[derive(Debug, Clone)]
pub struct Bf16 {
    bytes: Bytes,
    shape: [usize; 2],
}

impl Bf16 {
    /// # Panics
    /// If there are not two bytes for each element.
    pub fn new(bytes: Bytes, shape: [usize; 2]) -> Self {
        assert_eq!(bytes.len(), 2 * shape[0] * shape[1], "two bytes an element");
        Self { bytes, shape }
    }

    /// [out, inner].
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// All values as f32, row-major.
    pub fn to_f32(&self) -> Vec<f32> {
        self.elements().iter().map(|x| x.to_f32()).collect()
    }

    /// Row `i` as f32.
    pub fn row(&self, i: usize) -> impl Iterator<Item = f32> + '_ {
        let inner = self.shape[1];
        self.elements()[i * inner..][..inner].iter().map(|x| x.to_f32())
    }

    fn elements(&self) -> &[Bf16Bytes] {
        self.bytes.as_chunks().0
    }
}

/// `x` [n, inner] → [n, out].
pub fn bf16_linear(x: &Tensor, weight: &Bf16) -> Result<Tensor> {
    x.apply_op1(Op(weight.clone()))
}

struct Op(Bf16);

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        "bf16_linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((n, width), [out, inner]) = (layout.shape().dims2()?, self.0.shape);
        if width != inner {
            bail!("bf16_linear: x {:?} and weight {:?} do not fit", layout.shape(), self.0.shape);
        }
        let x = f32s(x, layout, "bf16_linear")?;
        let mut y = vec![0f32; n * out];
        let columns = Right::Bf16Columns(self.0.elements());
        product(&mut y, Left { data: x, stride: inner }, columns, [inner, out]);
        Ok((CpuStorage::F32(y), (n, out).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [out, inner] = self.0.shape;
        let grad = grad.contiguous()?;
        let g = host(&grad)?;
        let mut dx = vec![0f32; x.elem_count()];
        product(&mut dx, Left { data: &g, stride: out }, Right::Bf16Rows(self.0.elements()), [out, inner]);
        Ok(Some(tensor(dx, x.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::kernel::{
        linear::linear,
        testing::{bits, check_gradients, gradient, noise, var},
    };

    /// Random weights [out, inner] behind `shift` bytes of something else.
    fn weight(out: usize, inner: usize, shift: usize) -> Bf16 {
        let values = noise(3, out * inner, 1.0);
        let numbers = values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes());
        let bytes: Vec<u8> = std::iter::repeat_n(7, shift).chain(numbers).collect();
        Bf16::new(Bytes::from(bytes).slice(shift..), [out, inner])
    }

    #[test]
    fn every_bit_is_that_of_the_map_in_f32() {
        for ([n, inner, out], shift) in
            [([3, 5, 7], 0), ([40, 64, 1100], 1), ([1, 800, 33], 3), ([0, 4, 5], 0)]
        {
            let (w, x) = (weight(out, inner, shift), var(1, &[n, inner], 1.0));
            let dense = tensor(w.to_f32(), (out, inner)).unwrap();
            let (got, want) = (bf16_linear(&x, &w).unwrap(), linear(&x, &dense, None, false).unwrap());
            assert_eq!(bits(&got), bits(&want));
            if n > 0 {
                assert_eq!(gradient(&got, &x), gradient(&want, &x));
            }
        }
    }

    #[test]
    fn gradients_of_the_input() {
        let (w, x) = (weight(6, 5, 0), var(1, &[4, 5], 1.0));
        check_gradients(&[&x], 2e-3, || bf16_linear(&x, &w));
    }

    #[test]
    fn rows_are_those_of_the_matrix_and_shapes_are_checked() {
        let w = weight(4, 3, 0);
        assert_eq!(w.row(2).collect::<Vec<_>>(), w.to_f32()[6..9]);
        assert!(bf16_linear(&var(1, &[2, 4], 1.0), &w).is_err());
    }
}
