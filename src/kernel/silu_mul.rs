//! The gate of Llama's MLP, `silu(gate) · up` (SwiGLU, arXiv 2002.05202), forward and backward. Knows no model.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{arch::vectorised, exp::exp, f32s, host, tensor};

/// Elements that one task works on.
const CHUNK: usize = 8192;

/// `gate` and `up` of one shape → the same shape.
pub fn silu_mul(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.apply_op2(up, SiluMul)
}

/// `gate = silu(gate) · up` by the caller's thread alone.
pub(super) fn silu_mul_here(gate: &mut [f32], up: &[f32]) {
    vectorised(
        #[inline(always)]
        || gate.iter_mut().zip(up).for_each(|(g, &u)| *g = gated(*g, u)),
    );
}

/// `silu(gate) · up`.
#[expect(
    clippy::inline_always,
    reason = "it becomes part of loops that are compiled for several instruction sets"
)]
#[inline(always)]
fn gated(gate: f32, up: f32) -> f32 {
    gate / (1.0 + exp(-gate)) * up
}

struct SiluMul;

impl CustomOp2 for SiluMul {
    fn name(&self) -> &'static str {
        "silu_mul"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gl: &Layout,
        up: &CpuStorage,
        ul: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        if gl.shape() != ul.shape() {
            bail!("silu_mul: gate {:?} and up {:?} differ", gl.shape(), ul.shape());
        }
        let (gate, up) = (f32s(gate, gl, "silu_mul")?, f32s(up, ul, "silu_mul")?);
        let mut y = vec![0f32; gate.len()];
        let work = y.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK));
        work.for_each(|((y, gate), up)| {
            vectorised(
                #[inline(always)]
                || {
                    for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
                        *y = gated(g, u);
                    }
                },
            );
        });
        Ok((CpuStorage::F32(y), gl.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (gs, us, dys) = (host(gate)?, host(up)?, host(&grad)?);
        let (mut dgate, mut dup) = (vec![0f32; gs.len()], vec![0f32; us.len()]);
        let inputs = gs.par_iter().zip(us.par_iter()).zip(dys.par_iter()).with_min_len(4096);
        dgate.par_iter_mut().zip(dup.par_iter_mut()).zip(inputs).for_each(|((dg, du), ((&g, &u), &dy))| {
            let sigma = 1.0 / (1.0 + exp(-g));
            *dg = dy * u * sigma * (1.0 + g * (1.0 - sigma));
            *du = dy * g * sigma;
        });
        Ok((Some(tensor(dgate, gate.shape())?), Some(tensor(dup, up.shape())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{
        arch::testing::on_all,
        testing::{bits, check_gradients, close, flat, var},
    };

    #[test]
    fn values_are_those_of_f64() {
        let axis = [-1e30, -100.0, -20.0, -1.0, -1e-20, 0.0, 1e-20, 0.5, 20.0, 100.0, 1e30];
        let (gate, up): (Vec<f32>, Vec<f32>) =
            axis.iter().flat_map(|&g| [-3.0, 0.0, 1.5].map(|u| (g, u))).unzip();
        let want: Vec<f64> = gate
            .iter()
            .zip(&up)
            .map(|(&g, &u)| f64::from(g) / (1.0 + (-f64::from(g)).exp()) * f64::from(u))
            .collect();
        let shape = (axis.len(), 3);
        let y = silu_mul(&tensor(gate, shape).unwrap(), &tensor(up, shape).unwrap()).unwrap();
        close(&flat(&y), &want, 1e-6);
    }

    #[test]
    fn gradients() {
        let (gate, up) = (var(1, &[5, 7], 3.0), var(2, &[5, 7], 2.0));
        check_gradients(&[&gate, &up], 2e-3, || silu_mul(&gate, &up));
    }

    #[test]
    fn the_same_bits_on_every_instruction_set_beyond_a_chunk_too() {
        let (gate, up) = (var(1, &[3, CHUNK / 2 + 5], 6.0), var(2, &[3, CHUNK / 2 + 5], 2.0));
        let made = on_all(|| bits(&silu_mul(&gate, &up).unwrap()));
        assert!(made.iter().all(|other| *other == made[0]));
    }

    #[test]
    fn shapes_that_differ_are_refused() {
        assert!(silu_mul(&var(1, &[2, 3], 1.0), &var(2, &[3, 2], 1.0)).is_err());
    }
}
