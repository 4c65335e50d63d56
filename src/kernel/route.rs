//! Moving token rows to their experts and back: gather before the experts, weighted sum after them. Knows no router.
//!
//! Each op is one pass over memory in parallel, with its own backward pass; composed of index and broadcast ops the same costs several
//! serial ones. Sums over a token's experts run in the order of its slots.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::{f32s, host, tensor};

/// Which row of the grouped order belongs to which slot of which token.
#[derive(Debug, Clone)]
pub struct Route {
    /// Row → slot: `token · per_token + place`.
    order: Arc<[u32]>,
    /// Slot → row.
    inverse: Arc<[u32]>,
    /// Slots of a token.
    per_token: usize,
}

impl Route {
    /// A route from the grouped order, a permutation of all slots.
    pub fn new(order: &[u32], per_token: usize) -> Self {
        let mut inverse = vec![0; order.len()];
        for (row, &slot) in order.iter().enumerate() {
            inverse[slot as usize] = row as u32;
        }
        Self { order: order.into(), inverse: inverse.into(), per_token }
    }

    fn tokens(&self) -> usize {
        self.order.len() / self.per_token
    }
}

/// `x` [t, d] → [t · per_token, d]: each token's row once for each of its experts, in grouped order.
pub fn gather(x: &Tensor, route: &Route) -> Result<Tensor> {
    x.apply_op1(Gather(route.clone()))
}

/// `y` [t · per_token, d] in grouped order and `gates` [t, per_token] → [t, d]: each token's weighted sum.
pub fn combine(y: &Tensor, gates: &Tensor, route: &Route) -> Result<Tensor> {
    y.apply_op2(gates, Combine(route.clone()))
}

struct Gather(Route);

impl CustomOp1 for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((t, d), route) = (layout.shape().dims2()?, &self.0);
        if t != route.tokens() {
            bail!("gather: {t} rows for a route of {} tokens", route.tokens());
        }
        let x = f32s(x, layout, "gather")?;
        let mut out = vec![0f32; route.order.len() * d];
        out.par_chunks_exact_mut(d).zip(route.order.par_iter()).with_min_len(256).for_each(|(out, &slot)| {
            out.copy_from_slice(&x[slot as usize / route.per_token * d..][..d]);
        });
        Ok((CpuStorage::F32(out), (route.order.len(), d).into()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (grad, route, d) = (grad.contiguous()?, &self.0, x.dim(1)?);
        let g = host(&grad)?;
        let mut dx = vec![0f32; x.elem_count()];
        let slots = route.inverse.par_chunks_exact(route.per_token);
        dx.par_chunks_exact_mut(d).zip(slots).with_min_len(256).for_each(|(dx, rows)| {
            for &row in rows {
                for (dx, g) in dx.iter_mut().zip(&g[row as usize * d..][..d]) {
                    *dx += g;
                }
            }
        });
        Ok(Some(tensor(dx, x.shape())?))
    }
}

struct Combine(Route);

impl CustomOp2 for Combine {
    fn name(&self) -> &'static str {
        "combine"
    }

    fn cpu_fwd(
        &self,
        y: &CpuStorage,
        yl: &Layout,
        gates: &CpuStorage,
        gl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let ((rows, d), (t, per_token), route) = (yl.shape().dims2()?, gl.shape().dims2()?, &self.0);
        if rows != route.order.len() || t != route.tokens() || per_token != route.per_token {
            bail!(
                "combine: {rows} rows and gates {:?} for a route of {} rows",
                gl.shape(),
                route.order.len()
            );
        }
        let (y, gates) = (f32s(y, yl, "combine")?, f32s(gates, gl, "combine")?);
        let mut out = vec![0f32; t * d];
        let slots = route.inverse.par_chunks_exact(per_token).zip(gates.par_chunks_exact(per_token));
        out.par_chunks_exact_mut(d).zip(slots).with_min_len(256).for_each(|(out, (rows, gates))| {
            for (&row, gate) in rows.iter().zip(gates) {
                for (out, y) in out.iter_mut().zip(&y[row as usize * d..][..d]) {
                    *out += gate * y;
                }
            }
        });
        Ok((CpuStorage::F32(out), (t, d).into()))
    }

    fn bwd(
        &self,
        y: &Tensor,
        gates: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (grad, route, d) = (grad.contiguous()?, &self.0, y.dim(1)?);
        let (ys, weights, g) = (host(y)?, host(gates)?, host(&grad)?);
        let mut dy = vec![0f32; y.elem_count()];
        dy.par_chunks_exact_mut(d).zip(route.order.par_iter()).with_min_len(256).for_each(|(dy, &slot)| {
            let gate = weights[slot as usize];
            for (dy, g) in dy.iter_mut().zip(&g[slot as usize / route.per_token * d..][..d]) {
                *dy = gate * g;
            }
        });
        let dot = |(slot, &row): (usize, &u32)| -> f32 {
            let (g, y) = (&g[slot / route.per_token * d..][..d], &ys[row as usize * d..][..d]);
            g.iter().zip(y).map(|(g, y)| g * y).sum()
        };
        let dgates: Vec<f32> = route.inverse.par_iter().enumerate().with_min_len(256).map(dot).collect();
        Ok((Some(tensor(dy, y.shape())?), Some(tensor(dgates, gates.shape())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{bits, check_gradients, gradient, var};

    /// Three tokens of two slots; rows in the order of slots 2, 0, 5, 3, 1, 4.
    fn route() -> Route {
        Route::new(&[2, 0, 5, 3, 1, 4], 2)
    }

    #[test]
    fn rows_go_out_and_come_back_weighted() {
        let x = tensor(vec![1.0, 10.0, 2.0, 20.0, 3.0, 30.0], (3, 2)).unwrap();
        let rows = gather(&x, &route()).unwrap();
        let first: Vec<f32> = rows.to_vec2::<f32>().unwrap().iter().map(|row| row[0]).collect();
        assert_eq!(first, [2.0, 1.0, 3.0, 2.0, 1.0, 3.0]);
        let gates = tensor(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], (3, 2)).unwrap();
        let back = combine(&rows, &gates, &route()).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(back, [[3.0, 30.0], [14.0, 140.0], [33.0, 330.0]]);
    }

    #[test]
    fn gradients() {
        let (x, y, gates) = (var(1, &[3, 5], 1.0), var(2, &[6, 5], 1.0), var(3, &[3, 2], 1.0));
        check_gradients(&[&x], 1e-3, || gather(&x, &route()));
        check_gradients(&[&y, &gates], 1e-3, || combine(&y, &gates, &route()));
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let (x, gates) = (var(1, &[4, 5], 1.0), var(3, &[3, 2], 1.0));
        assert!(gather(&x, &route()).is_err());
        assert!(combine(&x, &gates, &route()).is_err());
    }

    /// A shuffled route of `t` tokens.
    fn shuffled(t: usize, per_token: usize) -> Route {
        let mut order: Vec<u32> = (0..(t * per_token) as u32).collect();
        order.sort_by_key(|&slot| slot.wrapping_mul(2_654_435_761));
        Route::new(&order, per_token)
    }

    #[test]
    fn what_goes_out_comes_back_at_every_size() {
        for (t, per_token) in [(1, 1), (1, 4), (7, 3), (300, 2), (257, 4)] {
            let (x, route) = (var(1, &[t, 3], 1.0), shuffled(t, per_token));
            let rows = gather(&x, &route).unwrap();
            assert_eq!(rows.dims(), [t * per_token, 3]);
            for place in 0..per_token {
                // Only one slot of each token counts, whichever: the token's row comes back as it was.
                let gates = (0..t * per_token).map(|slot| f32::from(u8::from(slot % per_token == place)));
                let gates = tensor(gates.collect(), (t, per_token)).unwrap();
                assert_eq!(
                    bits(&combine(&rows, &gates, &route).unwrap()),
                    bits(&x),
                    "{t} {per_token} {place}"
                );
            }
            let counts = gradient(&rows, &x);
            assert!(
                counts.iter().all(|&g| (g - per_token as f32).abs() < 1e-6),
                "each row went out so often"
            );
        }
    }

    #[test]
    fn gradients_of_a_larger_route() {
        let (route, y, gates) = (shuffled(9, 4), var(2, &[36, 2], 1.0), var(3, &[9, 4], 1.0));
        check_gradients(&[&y, &gates], 1e-3, || combine(&y, &gates, &route));
    }

    #[test]
    fn gates_of_another_shape_are_refused() {
        let y = var(1, &[6, 5], 1.0);
        for shape in [[2, 2], [3, 1], [2, 3], [6, 1]] {
            assert!(combine(&y, &var(3, &shape, 1.0), &route()).is_err(), "{shape:?}");
        }
    }
}
