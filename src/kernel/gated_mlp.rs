//! Llama's MLP in one piece, `down(silu(gate(x)) · up(x))`, for passes that nothing is learned from: no inner activation of more than a
//! block of rows lies in memory. Knows no model.
//!
//! The bits are those of the three maps one after the other: a part of the inner dimension at a time continues each output's chain of
//! fused multiply-adds where the part before left it (`ordered.rs`).

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::{
    host,
    ordered::{BLOCK, Left, PART, Packed, product_here, set_product_here},
    silu_mul::silu_mul_here,
    tensor,
};

/// `x` [n, hidden], `gate` and `up` [inner, hidden], `down` [hidden, inner], all `f32` → [n, hidden], without a gradient.
pub fn gated_mlp(x: &Tensor, [gate, up, down]: [&Tensor; 3]) -> Result<Tensor> {
    let ((n, hidden), (inner, width)) = (x.dims2()?, gate.dims2()?);
    if width != hidden || up.dims() != [inner, hidden] || down.dims() != [hidden, inner] {
        bail!("gated_mlp: x {x:?}, gate {gate:?}, up {up:?} and down {down:?} do not fit");
    }
    let (x, gate, up, down) = (host(x)?, host(gate)?, host(up)?, host(down)?);
    let mut out = vec![0f32; n * hidden];
    for from in (0..inner).step_by(PART) {
        let width = PART.min(inner - from);
        let inward = |w: &[f32]| Packed::of_weights(&w[from * hidden..][..width * hidden], hidden);
        let (gate, up) = (inward(&gate), inward(&up));
        let down = Packed::of_columns(Left { data: &down[from..], stride: inner }, width, hidden);
        out.par_chunks_mut((BLOCK * hidden).max(1)).enumerate().for_each(|(block, out)| {
            let rows = Left { data: &x[block * BLOCK * hidden..], stride: hidden };
            let mut gated = vec![0f32; out.len() / hidden * width];
            let mut raised = gated.clone();
            set_product_here(&mut gated, rows, gate.whole());
            set_product_here(&mut raised, rows, up.whole());
            silu_mul_here(&mut gated, &raised);
            product_here(out, Left { data: &gated, stride: width }, down.whole());
        });
    }
    tensor(out, (n, hidden))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{
        linear::linear,
        silu_mul::silu_mul,
        testing::{bits, noise},
    };

    fn random(seed: u64, shape: (usize, usize)) -> Tensor {
        tensor(noise(seed, shape.0 * shape.1, 0.3), shape).unwrap()
    }

    #[test]
    fn the_bits_of_the_three_maps_one_after_the_other() {
        for (n, hidden, inner) in
            [(1, 8, 3), (7, 40, 19), (BLOCK + 5, 40, PART + 17), (2 * BLOCK, 19, 2 * PART), (0, 8, 8)]
        {
            let x = random(1, (n, hidden));
            let [gate, up, down] = [(2, inner, hidden), (3, inner, hidden), (4, hidden, inner)]
                .map(|(seed, rows, cols)| random(seed, (rows, cols)));
            let map = |x: &Tensor, w: &Tensor| linear(x, w, None, false).unwrap();
            let apart = map(&silu_mul(&map(&x, &gate), &map(&x, &up)).unwrap(), &down);
            let made = gated_mlp(&x, [&gate, &up, &down]).unwrap();
            assert_eq!(bits(&made), bits(&apart), "{n} x {hidden} x {inner}");
            assert_eq!(made.dims(), [n, hidden]);
        }
    }

    #[test]
    fn matrices_that_do_not_fit_are_refused() {
        let (x, gate, down) = (random(1, (2, 4)), random(2, (3, 4)), random(3, (4, 3)));
        assert!(gated_mlp(&x, [&gate, &gate, &down]).is_ok());
        assert!(gated_mlp(&x, [&gate, &gate, &gate]).is_err());
        assert!(gated_mlp(&x, [&gate, &down, &down]).is_err());
        assert!(gated_mlp(&random(1, (2, 5)), [&gate, &gate, &down]).is_err());
    }
}
