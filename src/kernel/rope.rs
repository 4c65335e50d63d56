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
    use crate::kernel::testing::{check_gradients, close, flat, gradient, noise, var};

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

    fn turned(x: &[f32], position: u32, inv_freq: &[f64], m: f64) -> Vec<f32> {
        let table = RopeTable::new(&[position], inv_freq, m);
        flat(&rope(&tensor(x.to_vec(), (1, 1, x.len())).unwrap(), &table).unwrap())
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    const FREQUENCIES: [f64; 4] = [1.0, 0.1, 0.013, 0.000_01];

    #[test]
    fn matches_f64_at_long_positions() {
        for position in [0, 1, 127, 4096, 131_071, 10_000_000] {
            let x = noise(1, 8, 1.0);
            let turn = |i: usize| {
                let (p, angle) = (i % 4, f64::from(position) * FREQUENCIES[i % 4]);
                let (a, b) = (f64::from(x[p]), f64::from(x[4 + p]));
                1.3 * if i < 4 {
                    a * angle.cos() - b * angle.sin()
                } else {
                    b * angle.cos() + a * angle.sin()
                }
            };
            let want: Vec<f64> = (0..8).map(turn).collect();
            close(&turned(&x, position, &FREQUENCIES, 1.3), &want, 1e-6);
        }
    }

    #[test]
    fn positions_are_not_rounded_as_bf16_would() {
        // bf16 has eight bits, so 257 would become 256, and so on.
        for position in [257, 513, 1023, 65_537] {
            let x = noise(1, 8, 1.0);
            let near = [position, position - 1].map(|position| turned(&x, position, &FREQUENCIES, 1.0));
            let apart = near[0].iter().zip(&near[1]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart > 0.1, "{position}: {apart}");
        }
    }

    #[test]
    fn lengths_stay_and_only_distances_count() {
        let (q, k) = (noise(2, 8, 1.0), noise(3, 8, 1.0));
        let at = |x: &[f32], position| turned(x, position, &FREQUENCIES, 1.0);
        for position in [0, 5, 999, 65_536] {
            let y = at(&q, position);
            assert!((dot(&y, &y) - dot(&q, &q)).abs() < 1e-5);
        }
        for distance in [0, 1, 77] {
            let near = dot(&at(&q, distance), &at(&k, 0));
            for start in [1, 300, 100_000] {
                let far = dot(&at(&q, start + distance), &at(&k, start));
                assert!((near - far).abs() < 1e-5, "{distance} from {start}: {near} {far}");
            }
        }
        assert_eq!(at(&q, 0), q, "the first position does not turn");
    }

    #[test]
    fn every_head_of_a_token_turns_alike_and_tokens_by_their_own_positions() {
        let x = noise(4, 3 * 2 * 8, 1.0);
        let table = RopeTable::new(&[7, 0, 7], &FREQUENCIES, 1.0);
        let y = flat(&rope(&tensor(x.clone(), (3, 2, 8)).unwrap(), &table).unwrap());
        for (i, (x, y)) in x.chunks(8).zip(y.chunks(8)).enumerate() {
            assert_eq!(turned(x, [7, 0, 7][i / 2], &FREQUENCIES, 1.0), y);
        }
    }

    #[test]
    fn the_backward_pass_turns_back() {
        let table = RopeTable::new(&[3, 1000], &FREQUENCIES, 1.0);
        let x = var(6, &[2, 1, 8], 1.0);
        let y = rope(&x, &table).unwrap();
        // The gradient of half the squared length is `Rᵀ R x`, which is `x`.
        let half = (y.sqr().unwrap() * 0.5).unwrap();
        let want: Vec<f64> = flat(&x).iter().map(|&x| f64::from(x)).collect();
        close(&gradient(&half, &x), &want, 1e-6);
    }

    #[test]
    fn a_table_of_another_size_is_refused() {
        let table = RopeTable::new(&[0, 1], &FREQUENCIES, 1.0);
        for shape in [[2, 1, 6], [3, 1, 8], [1, 2, 8]] {
            assert!(rope(&var(1, &shape, 1.0), &table).is_err(), "{shape:?}");
        }
    }
}
