//! How dense the surroundings of each point are: the mean product with its nearest others, in exact integers. Knows no document.
//!
//! Products are those of [`nearest`](super::nearest): exact in f32 in any order. A CPU form only; it is exact, so a run whose device
//! is a GPU gets the same numbers from it.

use rayon::prelude::*;

use super::{nearest::Rows, whole::Packed};

/// Points per block of rows, and of columns. Columns are packed once for each block of rows.
const ROWS: usize = 384;
const COLUMNS: usize = 1024;

/// For each point the mean product with the `k` other points that are nearest, rounded down; with all others where there are
/// fewer, and 0 where there is none. `each` is called once per block of `ROWS` points, with their number, and may stop.
pub fn density<E: Send>(
    points: Rows<'_>,
    k: usize,
    each: impl Fn(usize) -> Result<(), E> + Sync,
) -> Result<Vec<i64>, E> {
    let block = |(at, rows): (usize, &[i16])| {
        each(rows.len() / points.dim)?;
        Ok(of_block(points, at * ROWS, rows, k))
    };
    let blocks: Result<Vec<_>, E> =
        points.data.par_chunks(ROWS * points.dim).enumerate().map(block).collect();
    Ok(blocks?.concat())
}

fn of_block(points: Rows<'_>, first: usize, rows: &[i16], k: usize) -> Vec<i64> {
    let (dim, n) = (points.dim, rows.len() / points.dim);
    let mut largest: Vec<Largest> = (0..n).map(|_| Largest::new(k)).collect();
    for (at, columns) in points.data.chunks(COLUMNS * dim).enumerate() {
        let width = columns.len() / dim;
        let products = Packed::of(Rows { dim, data: columns }).products(rows);
        for (i, (row, largest)) in products.chunks_exact(width).zip(&mut largest).enumerate() {
            for (j, &product) in row.iter().enumerate() {
                if at * COLUMNS + j != first + i {
                    largest.offer(product as i32);
                }
            }
        }
    }
    largest.iter().map(Largest::mean).collect()
}

/// The largest `k` of the values offered, ascending.
struct Largest {
    k: usize,
    values: Vec<i32>,
}

impl Largest {
    fn new(k: usize) -> Self {
        Self { k, values: Vec::with_capacity(k + 1) }
    }

    fn offer(&mut self, value: i32) {
        if self.values.len() == self.k && self.values.first().is_none_or(|&least| value <= least) {
            return;
        }
        let at = self.values.partition_point(|&v| v < value);
        self.values.insert(at, value);
        if self.values.len() > self.k {
            self.values.remove(0);
        }
    }

    fn mean(&self) -> i64 {
        let sum: i64 = self.values.iter().map(|&v| i64::from(v)).sum();
        sum.div_euclid(self.values.len().max(1) as i64)
    }
}

/// The definition: all products of a point, sorted.
pub fn definition(points: Rows<'_>, k: usize) -> Vec<i64> {
    let row = |i: usize| &points.data[i * points.dim..][..points.dim];
    let product =
        |a: &[i16], b: &[i16]| -> i64 { a.iter().zip(b).map(|(&a, &b)| i64::from(a) * i64::from(b)).sum() };
    let one = |i: usize| {
        let mut products: Vec<i64> =
            (0..points.len()).filter(|&j| j != i).map(|j| product(row(i), row(j))).collect();
        products.sort_unstable();
        let nearest = &products[products.len().saturating_sub(k)..];
        nearest.iter().sum::<i64>().div_euclid(nearest.len().max(1) as i64)
    };
    (0..points.len()).map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use super::*;
    use crate::{
        kernel::testing::{grid_vectors, on_threads},
        math::grid,
    };

    fn vectors(n: usize, dim: usize, coarse: bool) -> Vec<i16> {
        grid_vectors(n, dim, if coarse { 3 } else { 2001 }, n as u64)
    }

    fn dense(data: &[i16], dim: usize, k: usize) -> Vec<i64> {
        density(Rows::new(dim, data).unwrap(), k, |_| Ok::<_, Infallible>(())).unwrap()
    }

    #[test]
    fn the_fast_form_equals_the_definition() {
        for (n, dim) in
            [(1, 4), (2, 4), (ROWS - 1, 9), (ROWS + 1, 33), (COLUMNS + 1, 8), (300, grid::MAX_DIM)]
        {
            for (k, coarse) in [(1, true), (10, false), (2000, true)] {
                let data = vectors(n, dim, coarse);
                let expected = definition(Rows::new(dim, &data).unwrap(), k);
                assert_eq!(dense(&data, dim, k), expected, "{n} × {dim}, {k} neighbours");
            }
        }
    }

    #[test]
    fn threads_do_not_matter() {
        let data = vectors(700, 24, false);
        let [one, two, five] = on_threads(|| dense(&data, 24, 10));
        assert!(one == two && two == five);
    }

    #[test]
    fn a_point_is_not_its_own_neighbour_and_a_copy_is_one() {
        assert_eq!(dense(&[4000, 0, 0, 4000], 2, 3), [0, 0]);
        assert_eq!(dense(&[4000, 0, 4000, 0], 2, 3), [16_000_000; 2]);
        assert_eq!(dense(&[4000, 0], 2, 3), [0], "alone");
        assert_eq!(dense(&[], 2, 3), [0_i64; 0]);
        // Means of -1 and 0, and of 1 and 0, go down.
        assert_eq!(dense(&[1, 0, -1, 0, 0, 1], 2, 2), [-1, -1, 0]);
    }

    #[test]
    fn every_point_is_reported_and_a_stop_ends_it() {
        let data = vectors(300, 8, false);
        let seen = AtomicUsize::new(0);
        let count = |n| {
            seen.fetch_add(n, Ordering::Relaxed);
            Ok::<_, Infallible>(())
        };
        density(Rows::new(8, &data).unwrap(), 3, count).unwrap();
        assert_eq!(seen.into_inner(), 300);
        assert_eq!(density(Rows::new(8, &data).unwrap(), 3, |_| Err("stop")), Err("stop"));
    }
}
