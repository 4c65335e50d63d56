//! One file per kernel: the op, its CPU twin (the definition, written to be read) and, where there is one, its launch.
//!
//! Knows tensors and sizes; knows no model, no stage and no file. Ops that training goes through define their own backward pass,
//! so that a frozen operand never gets a gradient buffer.

use std::ops::Deref;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

pub(crate) mod arch;
pub mod attention;
pub mod bf16_linear;
pub mod cached;
pub mod cross_entropy;
pub mod divergence;
pub mod exp;
pub mod fake_quant;
pub mod gated_mlp;
pub mod gelu;
pub mod gemm;
pub mod grouped_linear;
pub mod kept;
pub mod layer_norm;
pub mod linear;
pub mod linear_divergence;
pub mod minhash;
pub mod mxfp4;
pub mod mxfp4_linear;
pub mod nearest;
pub mod neighbours;
pub mod nf4;
pub mod ordered;
pub mod rms_norm;
pub mod rope;
pub mod route;
pub mod signs;
pub mod silu_mul;
pub mod sink;
pub mod swiglu;
#[cfg(test)]
pub(crate) mod testing;
pub mod transpose;
mod whole;

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
