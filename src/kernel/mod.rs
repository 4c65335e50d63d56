//! One file per kernel: the op, its CPU twin (the definition, written to be read) and, where there is one, its launch.
//!
//! Knows tensors and sizes; knows no model, no stage and no file. Ops that training goes through define their own backward pass,
//! so that a frozen operand never gets a gradient buffer.

use std::ops::Deref;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

pub mod attention;
pub mod cross_entropy;
pub mod exp;
pub mod fake_quant;
pub mod gemm;
pub mod grouped_linear;
pub mod linear;
pub mod linear_kl;
pub mod mxfp4;
pub mod nearest;
pub mod rms_norm;
pub mod rope;
pub mod route;
pub mod sink;
pub mod swiglu;

/// The contiguous `f32` elements that a custom op was given.
pub(crate) fn f32s<'a>(storage: &'a CpuStorage, layout: &Layout, op: &str) -> Result<&'a [f32]> {
    let data = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&data[from..to]),
        None => bail!("{op}: operands must be contiguous, got {layout:?}"),
    }
}

/// A read view of a contiguous `f32` tensor in host memory.
struct Host<G> {
    guard: G,
    from: usize,
    to: usize,
}

impl<G: Deref<Target = Storage>> Deref for Host<G> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.from..self.to],
            _ => unreachable!("checked when the view was made"),
        }
    }
}

/// Views a contiguous `f32` tensor that lies in host memory.
pub(crate) fn host(tensor: &Tensor) -> Result<impl Deref<Target = [f32]> + Sync + '_> {
    let (guard, layout) = tensor.storage_and_layout();
    let Some((from, to)) = layout.contiguous_offsets() else {
        bail!("expected a contiguous tensor, got {layout:?}")
    };
    match &*guard {
        Storage::Cpu(CpuStorage::F32(_)) => Ok(Host { guard, from, to }),
        _ => bail!("expected an f32 tensor in host memory"),
    }
}

/// A tensor made of `data`, on the host.
pub(crate) fn tensor<S: Into<candle_core::Shape>>(data: Vec<f32>, shape: S) -> Result<Tensor> {
    Tensor::from_vec(data, shape, &candle_core::Device::Cpu)
}

#[cfg(test)]
pub(crate) mod testing {
    //! Seeded data and finite differences for kernel tests.

    use candle_core::{Device, Result, Tensor, Var};

    /// Reproducible values, roughly uniform in `[-scale, scale]`.
    pub(crate) fn noise(seed: u64, n: usize, scale: f32) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let step = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
        };
        (0..n).map(step).collect()
    }

    /// A tracked tensor of noise.
    pub(crate) fn var(seed: u64, shape: &[usize], scale: f32) -> Var {
        let n = shape.iter().product();
        Var::from_tensor(&Tensor::from_vec(noise(seed, n, scale), shape, &Device::Cpu).unwrap()).unwrap()
    }

    /// Compares the gradient of `sum(f(vars) * weight)` with central differences, for up to 24 entries of each variable.
    pub(crate) fn check_gradients(vars: &[&Var], tolerance: f32, f: impl Fn() -> Result<Tensor>) {
        let out = f().unwrap();
        let weight = Tensor::from_vec(noise(77, out.elem_count(), 1.0), out.shape(), &Device::Cpu).unwrap();
        let loss = || {
            (f().unwrap() * &weight).unwrap().to_dtype(candle_core::DType::F64).unwrap().sum_all().unwrap()
        };
        let value = || loss().to_scalar::<f64>().unwrap();
        let grads = (out * &weight).unwrap().sum_all().unwrap().backward().unwrap();
        for (which, var) in vars.iter().enumerate() {
            let grad = grads
                .get(var.as_tensor())
                .expect("gradient")
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap();
            let start = var.as_tensor().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for i in (0..start.len()).step_by(start.len().div_ceil(24)) {
                let eps = 1e-2f32;
                let at = |delta: f32| {
                    let mut x = start.clone();
                    x[i] += delta;
                    var.set(&Tensor::from_vec(x, var.shape(), &Device::Cpu).unwrap()).unwrap();
                    value()
                };
                let numeric = ((at(eps) - at(-eps)) / (2.0 * f64::from(eps))) as f32;
                var.set(&Tensor::from_vec(start.clone(), var.shape(), &Device::Cpu).unwrap()).unwrap();
                let error = (numeric - grad[i]).abs() / (1.0 + numeric.abs());
                assert!(
                    error < tolerance,
                    "variable {which} entry {i}: numeric {numeric}, analytic {}",
                    grad[i]
                );
            }
        }
    }
}
