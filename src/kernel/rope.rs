//! Rotary position embedding in the half-split (NeoX) layout, forward and backward. Knows no model.
//!
//! For pair p of a head with `2·P` dimensions: `o[p] = x[p]·c − x[P+p]·s`, `o[P+p] = x[P+p]·c + x[p]·s`, with
//! `c = m·cos(t·f_p)` and `s = m·sin(t·f_p)`. Angles are computed in f64, so long positions stay exact.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{f32s, host, tensor};

/// Cosines and sines of every token, already multiplied by the concentration factor `m`.
#[derive(Debug, Clone)]
pub struct RopeTable {
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    pairs: usize,
}

impl RopeTable {
    /// A table for tokens at `positions`, frequencies `inv_freq` `[P]` in radians per token and concentration `m`.
    pub fn new(positions: &[u32], inv_freq: &[f64], m: f64) -> Self {
        let pairs = inv_freq.len();
        let angle = |i: usize| f64::from(positions[i / pairs]) * inv_freq[i % pairs];
        let turn = |i: usize| {
            let (sin, cos) = angle(i).sin_cos();
            ((m * cos) as f32, (m * sin) as f32)
        };
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            (0..positions.len() * pairs).into_par_iter().with_min_len(4096).map(turn).unzip();
        Self { cos: cos.into(), sin: sin.into(), pairs }
    }
}

/// Rotates `x` [tokens, heads, 2·P].
pub fn rope(x: &Tensor, table: &RopeTable) -> Result<Tensor> {
    x.apply_op1(Rope { table: table.clone() })
}

struct Rope {
    table: RopeTable,
}

impl Rope {
    fn rotate(&self, x: &[f32], heads: usize, sign: f32) -> Vec<f32> {
        let pairs = self.table.pairs;
        let mut out = vec![0f32; x.len()];
        let row = heads * 2 * pairs;
        out.par_chunks_exact_mut(row).zip(x.par_chunks_exact(row)).enumerate().with_min_len(64).for_each(
            |(t, (out, x))| {
                let (cos, sin) =
                    (&self.table.cos[t * pairs..][..pairs], &self.table.sin[t * pairs..][..pairs]);
                for (out, x) in out.chunks_exact_mut(2 * pairs).zip(x.chunks_exact(2 * pairs)) {
                    let ((a, b), (x1, x2)) = (out.split_at_mut(pairs), x.split_at(pairs));
                    for p in 0..pairs {
                        a[p] = x1[p] * cos[p] - sign * x2[p] * sin[p];
                        b[p] = x2[p] * cos[p] + sign * x1[p] * sin[p];
                    }
                }
            },
        );
        out
    }
}

impl CustomOp1 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (tokens, heads, dim) = layout.shape().dims3()?;
        if dim != 2 * self.table.pairs || tokens * self.table.pairs != self.table.cos.len() {
            candle_core::bail!(
                "rope: table for {} pairs does not fit {:?}",
                self.table.pairs,
                layout.shape()
            );
        }
        Ok((CpuStorage::F32(self.rotate(f32s(x, layout, "rope")?, heads, 1.0)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let heads = x.dim(1)?;
        Ok(Some(tensor(self.rotate(&host(&grad)?, heads, -1.0), x.shape())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{check_gradients, var};

    #[test]
    fn a_quarter_turn_and_the_concentration() {
        let table = RopeTable::new(&[0, 1], &[std::f64::consts::FRAC_PI_2], 2.0);
        let x = tensor(vec![1.0, 3.0, 1.0, 3.0], (2, 1, 2)).unwrap();
        let y = rope(&x, &table).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let want = [2.0, 6.0, -6.0, 2.0];
        assert!(y.iter().zip(want).all(|(y, w)| (y - w).abs() < 1e-5), "{y:?}");
    }

    #[test]
    fn gradients() {
        let table = RopeTable::new(&[0, 3, 700], &[1.0, 0.01], 1.3);
        let x = var(6, &[3, 2, 4], 1.0);
        check_gradients(&[&x], 1e-3, || rope(&x, &table));
    }
}
