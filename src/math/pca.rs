//! The plane in which grid vectors spread most, for pictures. Knows no document.
//!
//! The covariance is exact in integers. What follows is f64 in a fixed order with operations that IEEE 754 rounds correctly, so
//! the coordinates are the same everywhere.

use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
use rayon::prelude::*;

use super::{grid, hash};

/// Rows that are widened to f64 at a time.
const BLOCK: usize = 4096;
/// Directions that are followed, of which the first two count: the others let those two settle.
const FOLLOWED: usize = 8;
const ROUNDS: usize = 64;
const SWEEPS: usize = 16;

/// Two orthogonal directions and the mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Plane {
    axes: [Vec<f64>; 2],
    mean: Vec<f64>,
    /// The share of the variance along each, in thousandths, rounded down.
    pub share: [u32; 2],
}

impl Plane {
    /// The two main directions of row-major `rows` of `dim` coordinates. The largest coordinate of a direction is positive.
    pub fn of(dim: usize, rows: &[i16]) -> Self {
        let n = (rows.len() / dim).max(1);
        let mut sum = vec![0_i64; dim];
        rows.chunks_exact(dim).for_each(|row| grid::add(&mut sum, row));
        let mean = sum.iter().map(|&s| s as f64 / n as f64).collect();
        let covariance = covariance(dim, rows, &sum);
        let trace: f64 = (0..dim).map(|i| covariance[i * dim + i]).sum();
        if trace <= 0.0 {
            return Self { axes: [vec![0.0; dim], vec![0.0; dim]], mean, share: [0, 0] };
        }
        let mut found = main_directions(dim, &covariance, trace).into_iter();
        let mut next = || found.next().unwrap_or((0.0, vec![0.0; dim]));
        let [(first, x), (second, y)] = [next(), next()];
        let share = [first, second].map(|value| (value / trace * 1000.0) as u32);
        Self { axes: [x, y].map(upright), mean, share }
    }

    /// The coordinates of each row in the plane, in grid units.
    pub fn project(&self, rows: &[i16]) -> Vec<[i32; 2]> {
        let along = |row: &[i16], axis: &[f64]| {
            let terms = row.iter().zip(&self.mean).zip(axis).map(|((&q, mean), a)| (f64::from(q) - mean) * a);
            terms.sum::<f64>().round_ties_even() as i32
        };
        let one = |row: &[i16]| [along(row, &self.axes[0]), along(row, &self.axes[1])];
        rows.par_chunks_exact(self.mean.len()).map(one).collect()
    }
}

/// `n Σ q qᵀ − s sᵀ` with `s = Σ q`. Sums of products are integers below 2⁵³, so f64 has them exactly, in any order.
fn covariance(dim: usize, rows: &[i16], sum: &[i64]) -> Vec<f64> {
    let n = (rows.len() / dim) as i128;
    let mut moment = vec![0.0_f64; dim * dim];
    for block in rows.chunks(BLOCK * dim) {
        let wide: Vec<f64> = block.iter().map(|&q| f64::from(q)).collect();
        let wide = MatRef::from_row_major_slice(&wide, block.len() / dim, dim);
        let out = MatMut::from_row_major_slice_mut(&mut moment, dim, dim);
        matmul(out, Accum::Add, wide.transpose(), wide, 1.0, Par::rayon(0));
    }
    for (i, row) in moment.chunks_exact_mut(dim).enumerate() {
        for (j, m) in row.iter_mut().enumerate() {
            *m = (n * (*m as i128) - i128::from(sum[i]) * i128::from(sum[j])) as f64;
        }
    }
    moment
}

/// The largest eigenvalues of a symmetric matrix with their vectors, in descending order, by subspace iteration and Jacobi's
/// rotations of what is left.
fn main_directions(dim: usize, matrix: &[f64], trace: f64) -> Vec<(f64, Vec<f64>)> {
    let count = FOLLOWED.min(dim);
    let start =
        |i: usize, j: usize| (hash::mix((i * dim + j) as u64) >> 40) as f64 / f64::from(1 << 23) - 1.0;
    let mut basis: Vec<Vec<f64>> = (0..count).map(|i| (0..dim).map(|j| start(i, j)).collect()).collect();
    orthonormalise(&mut basis);
    // Keeps directions without variance from vanishing.
    let shift = trace * 1e-9;
    for _ in 0..ROUNDS {
        for v in &mut basis {
            let image = times(dim, matrix, v);
            v.iter_mut().zip(image).for_each(|(v, image)| *v = image + shift * *v);
        }
        orthonormalise(&mut basis);
    }
    let images: Vec<Vec<f64>> = basis.iter().map(|v| times(dim, matrix, v)).collect();
    let mut small: Vec<f64> = basis.iter().flat_map(|v| images.iter().map(|image| dot(v, image))).collect();
    let turned = jacobi(count, &mut small);
    let mut found: Vec<(f64, usize)> = (0..count).map(|i| (small[i * count + i], i)).collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let vector = |i: usize| {
        let coordinate = |j: usize| (0..count).map(|k| turned[k * count + i] * basis[k][j]).sum();
        (0..dim).map(coordinate).collect()
    };
    found.into_iter().map(|(value, i)| (value, vector(i))).collect()
}

fn times(dim: usize, matrix: &[f64], v: &[f64]) -> Vec<f64> {
    matrix.par_chunks_exact(dim).map(|row| dot(row, v)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Gram–Schmidt, twice, since the first pass loses digits where vectors are nearly parallel.
fn orthonormalise(basis: &mut [Vec<f64>]) {
    for i in 0..basis.len() {
        let (before, rest) = basis.split_at_mut(i);
        let v = &mut rest[0];
        for _ in 0..2 {
            for other in before.iter() {
                let part = dot(v, other);
                v.iter_mut().zip(other).for_each(|(v, o)| *v -= part * o);
            }
            let norm = dot(v, v).sqrt();
            if norm > 0.0 {
                for x in v.iter_mut() {
                    *x /= norm;
                }
            }
        }
    }
}

/// Turns a symmetric `n × n` matrix into its eigenvalues on the diagonal by rotations in a fixed order; gives the vectors as
/// columns.
fn jacobi(n: usize, a: &mut [f64]) -> Vec<f64> {
    let mut v: Vec<f64> = (0..n * n).map(|i| f64::from(u8::from(i % (n + 1) == 0))).collect();
    for _ in 0..SWEEPS {
        for p in 0..n {
            for q in p + 1..n {
                if a[p * n + q] != 0.0 {
                    rotate(n, a, &mut v, (p, q));
                }
            }
        }
    }
    v
}

fn rotate(n: usize, a: &mut [f64], v: &mut [f64], (p, q): (usize, usize)) {
    let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * a[p * n + q]);
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    let turn = |m: &mut [f64], i: usize, j: usize| (m[i], m[j]) = (c * m[i] - s * m[j], s * m[i] + c * m[j]);
    for k in 0..n {
        turn(a, k * n + p, k * n + q);
        turn(v, k * n + p, k * n + q);
    }
    for k in 0..n {
        turn(a, p * n + k, q * n + k);
    }
}

/// The direction or its opposite, whichever has a positive largest coordinate (the first of equal ones).
fn upright(mut axis: Vec<f64>) -> Vec<f64> {
    let largest = axis.iter().fold(0.0_f64, |m, a| if a.abs() > m.abs() { *a } else { m });
    if largest < 0.0 {
        for a in &mut axis {
            *a = -*a;
        }
    }
    axis
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{noise, on_threads};

    /// Vectors that spread most along the coordinate `a`, then along `b`.
    fn spread(dim: usize, n: usize, [a, b]: [usize; 2]) -> Vec<i16> {
        let x = noise(7, dim * n, 1.0);
        let scale = |j: usize| {
            if j == a {
                900.0
            } else if j == b {
                400.0
            } else {
                40.0
            }
        };
        x.iter().enumerate().map(|(i, x)| (x * scale(i % dim)) as i16).collect()
    }

    #[test]
    fn the_plane_is_that_of_the_largest_spread() {
        for dim in [2, 3, 8, 9, 40] {
            let rows = spread(dim, 500, [dim - 1, 0]);
            let plane = Plane::of(dim, &rows);
            assert!(plane.axes[0][dim - 1] > 0.99 && plane.axes[1][0] > 0.99, "{dim}: {:?}", plane.axes);
            assert!(plane.share[0] > plane.share[1] && plane.share.iter().sum::<u32>() <= 1000);
            let at = plane.project(&rows);
            let mean = at.iter().map(|p| i64::from(p[0])).sum::<i64>() / 500;
            assert!(mean.abs() <= 1 && at.len() == 500, "centred: {mean}");
        }
    }

    #[test]
    fn the_covariance_is_exact() {
        let (dim, rows) = (3, [5_i16, -7, 4000, 1, 2, -4000, 9, 9, 9, 0, -3, 17]);
        let mut sum = vec![0; dim];
        rows.chunks(dim).for_each(|row| grid::add(&mut sum, row));
        let got = covariance(dim, &rows, &sum);
        for i in 0..dim {
            for j in 0..dim {
                let products: i64 = rows.chunks(dim).map(|r| i64::from(r[i]) * i64::from(r[j])).sum();
                assert_eq!(got[i * dim + j] as i64, 4 * products - sum[i] * sum[j]);
            }
        }
    }

    #[test]
    fn rotations_find_eigenvalues_and_vectors() {
        // Eigenvalues 1, 2 and 4.
        let matrix = [3.0, 1.0, 0.0, 1.0, 3.0, 0.0, 0.0, 0.0, 1.0];
        let mut a = matrix;
        let v = jacobi(3, &mut a);
        let mut values = [a[0], a[4], a[8]];
        for (k, value) in values.iter().enumerate() {
            let column: Vec<f64> = (0..3).map(|i| v[i * 3 + k]).collect();
            let image = times(3, &matrix, &column);
            assert!(image.iter().zip(&column).all(|(got, x)| (got - value * x).abs() < 1e-12));
        }
        values.sort_by(f64::total_cmp);
        assert!(values.iter().zip([1.0, 2.0, 4.0]).all(|(a, b)| (a - b).abs() < 1e-12), "{values:?}");
    }

    #[test]
    fn threads_do_not_change_a_bit_and_mirrored_points_have_the_same_axes() {
        let rows = spread(20, 300, [4, 11]);
        let [one, two, five] = on_threads(|| Plane::of(20, &rows).project(&rows));
        assert!(one == two && two == five);
        let mirrored: Vec<i16> = rows.iter().map(|q| -q).collect();
        let (plane, other) = (Plane::of(20, &rows), Plane::of(20, &mirrored));
        assert_eq!(plane.axes, other.axes);
    }

    #[test]
    fn without_spread_all_lie_in_the_middle() {
        let same = [4000_i16, 0, 0].repeat(5);
        let plane = Plane::of(3, &same);
        assert_eq!((plane.share, plane.project(&same)), ([0, 0], vec![[0, 0]; 5]));
        assert!(Plane::of(3, &[]).project(&[]).is_empty());
        let line = Plane::of(1, &[4000, -4000]);
        assert_eq!(line.project(&[4000, -4000]), [[4000, 0], [-4000, 0]]);
        // Spread along one direction only: the other coordinate is 0 up to rounding.
        let flat = Plane::of(2, &[4000, 0, -4000, 0, 2000, 0]);
        assert_eq!(flat.share, [1000, 0]);
    }
}
