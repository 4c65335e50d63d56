//! The product of a few rows and many weights, the other way round: the weights are the left-hand rows, so that no packed copy of them is
//! written to memory, and the few rows are the columns. Factors change places, sums keep their order, and so no bit changes.

use rayon::prelude::*;

use super::{BLOCK, Element, Factor, Left, Out, Packed, Right, Task, arch};
use crate::kernel::transpose::transpose_into;

/// `out = a · b`, or `out += a · b` with `add`. False, and nothing is done, where the weights do not lie as rows of terms.
pub(super) fn product(out: &mut [f32], add: bool, a: Left<'_>, b: Right<'_>, sizes: [usize; 2]) -> bool {
    match b {
        Right::Columns(weights) => by(weights, out, add, a, sizes),
        Right::Bf16Columns(weights) => by(weights, out, add, a, sizes),
        Right::Rows(_) | Right::Bf16Rows(_) => return false,
    }
    true
}

fn by<E: Element>(weights: &[E], out: &mut [f32], add: bool, a: Left<'_>, [inner, cols]: [usize; 2]) {
    let (rows, arch) = (out.len() / cols.max(1), arch());
    let columns = Packed::of_columns(a, inner, rows);
    let mut turned = vec![0_f32; out.len()];
    if add {
        transpose_into(&mut turned, out, cols);
    }
    let blocks = turned.par_chunks_mut((BLOCK * rows).max(1)).enumerate();
    blocks.for_each_init(Vec::new, |room, (block, out)| {
        let (from, height) = (block * BLOCK, out.len() / rows);
        let weights = E::floats(&weights[from * inner..(from + height) * inner], room);
        let (out, left) =
            (Out { rows: out, stride: rows, from: 0, add }, Left { data: weights, stride: inner });
        arch.dispatch(Task { out, a: Factor::Rows(left), b: columns.whole() });
    });
    transpose_into(out, &turned, rows);
}
