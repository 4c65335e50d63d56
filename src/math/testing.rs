//! Seeded matrices.

use faer::Mat;

use crate::kernel::testing::noise;

pub(crate) fn random(seed: u64, rows: usize, cols: usize) -> Mat<f64> {
    let values = noise(seed, rows * cols, 1.0);
    Mat::from_fn(rows, cols, |i, j| f64::from(values[i * cols + j]))
}

pub(crate) fn distance(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
    assert_eq!((a.nrows(), a.ncols()), (b.nrows(), b.ncols()));
    let cells = (0..a.nrows()).flat_map(|i| (0..a.ncols()).map(move |j| (i, j)));
    cells.map(|at| (a[at] - b[at]).abs()).fold(0.0, f64::max)
}
