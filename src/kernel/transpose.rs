//! Transposes of row-major matrices. Knows no product.

use rayon::prelude::*;

/// Rows and columns of a tile whose lines stay in the cache.
const TILE: usize = 16;

/// The transpose of a row-major matrix with `cols` columns.
pub fn transposed(x: &[f32], cols: usize) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    transpose_into(&mut out, x, cols);
    out
}

/// The same into `out`, which is as long as `x`.
pub fn transpose_into(out: &mut [f32], x: &[f32], cols: usize) {
    let rows = x.len() / cols.max(1);
    out.par_chunks_mut((TILE * rows).max(1)).enumerate().for_each(|(tile, out)| {
        for from in (0..rows).step_by(TILE) {
            for (j, to) in out.chunks_exact_mut(rows).enumerate() {
                for (i, to) in to[from..].iter_mut().enumerate().take(TILE) {
                    *to = x[(from + i) * cols + tile * TILE + j];
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::noise;

    #[test]
    fn rows_become_columns_at_every_edge_of_a_tile() {
        for (rows, cols) in [(0, 3), (1, 1), (1, 40), (40, 1), (16, 16), (17, 15), (33, 50)] {
            let x = noise(1, rows * cols, 1.0);
            let turned = transposed(&x, cols);
            let want: Vec<f32> = (0..cols)
                .flat_map(|j| (0..rows).map(move |i| (i, j)))
                .map(|(i, j)| x[i * cols + j])
                .collect();
            assert_eq!(turned, want, "{rows} × {cols}");
            assert_eq!(transposed(&turned, rows), x);
        }
    }
}
