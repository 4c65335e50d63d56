//! The integer grid that unit vectors live on, so that similarities are exact. Knows no document and no cluster.
//!
//! A unit vector `u` becomes `q = round(4000 · u)` (half to even). For `d ≤ 1024` the rounding adds at most `√d / 2` to the norm,
//! so `‖q‖ ≤ 4016`, and by Cauchy–Schwarz every partial sum of a product `q · p` stays below 2²⁴: f32 arithmetic computes it
//! exactly in any order, on any device. The largest error of a cosine is about 5e-4.

/// Grid units per unit of length.
pub const SCALE: u32 = 4000;

/// The largest dimension for which dot products are exact in f32.
pub const MAX_DIM: usize = 1024;

/// Scales an integer vector to unit length and rounds it to the grid. The zero vector stays zero.
///
/// Uses only operations that IEEE 754 rounds correctly, so the result is the same everywhere.
pub fn quantise(x: &[i64], out: &mut [i16]) {
    debug_assert_eq!(x.len(), out.len());
    let square: u128 = x.iter().map(|&v| u128::from(v.unsigned_abs()).pow(2)).sum();
    let norm = (square as f64).sqrt();
    for (q, &v) in out.iter_mut().zip(x) {
        *q = if square == 0 { 0 } else { (v as f64 * f64::from(SCALE) / norm).round_ties_even() as i16 };
    }
}

/// Scales a vector to unit length and rounds it to the grid. The zero vector stays zero.
///
/// The norm is summed in the order of the coordinates, so the result is the same everywhere.
pub fn quantise_real(x: &[f64], out: &mut [i16]) {
    debug_assert_eq!(x.len(), out.len());
    let norm = x.iter().fold(0.0, |sum, x| sum + x * x).sqrt();
    for (q, &v) in out.iter_mut().zip(x) {
        *q = if norm == 0.0 { 0 } else { (v * f64::from(SCALE) / norm).round_ties_even() as i16 };
    }
}

/// Subtracts the mean of all rows from each row and scales it to unit length again.
pub fn centre(dim: usize, rows: &mut [i16]) {
    let n = (rows.len() / dim) as i64;
    let mut sum = vec![0_i64; dim];
    for row in rows.chunks_exact(dim) {
        add(&mut sum, row);
    }
    let mut shifted = vec![0_i64; dim];
    for row in rows.chunks_exact_mut(dim) {
        for ((s, &q), &total) in shifted.iter_mut().zip(row.iter()).zip(&sum) {
            *s = i64::from(q) * n - total;
        }
        quantise(&shifted, row);
    }
}

/// Adds a grid vector to an exact sum.
pub fn add(sum: &mut [i64], row: &[i16]) {
    for (s, &q) in sum.iter_mut().zip(row) {
        *s += i64::from(q);
    }
}

/// Takes a grid vector out of an exact sum again.
pub fn subtract(sum: &mut [i64], row: &[i16]) {
    for (s, &q) in sum.iter_mut().zip(row) {
        *s -= i64::from(q);
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn quantised(x: &[i64]) -> Vec<i16> {
        let mut out = vec![0; x.len()];
        quantise(x, &mut out);
        out
    }

    #[test]
    fn real_vectors_lie_on_the_grid_like_whole_ones() {
        let whole = [3_i64, -4, 0, 12];
        let mut real = [0; 4];
        quantise_real(&whole.map(|v| v as f64 * 0.25), &mut real);
        assert_eq!(real.to_vec(), quantised(&whole));
        quantise_real(&[0.0; 4], &mut real);
        assert_eq!(real, [0; 4]);
    }

    #[test]
    fn unit_vectors_land_on_the_grid() {
        assert_eq!(quantised(&[3, -4]), [2400, -3200]);
        assert_eq!(quantised(&[0, 0]), [0, 0]);
        assert_eq!(quantised(&[i64::MAX, 0, i64::MIN]), [2828, 0, -2828]);
        // The norm is 8000, so the first two stand at 0.5 and 1.5 exactly, and halves go to even.
        assert_eq!(quantised(&[1, 3, 7000, 2986, 2465, 87])[..2], [0, 2]);
    }

    #[test]
    fn norms_stay_within_the_exact_range() {
        // All coordinates just above half a unit: the worst case of rounding up.
        for dim in [1, 2, 255, 1024] {
            let x: Vec<i64> = (0..dim).map(|i| 1 + i % 3).collect();
            let square: i64 = quantised(&x).iter().map(|&q| i64::from(q).pow(2)).sum();
            assert!(square <= 4016 * 4016, "{dim}: {square}");
        }
    }

    #[test]
    fn centring_removes_what_all_rows_share() {
        // Two directions around a large common part.
        let mut rows = [quantised(&[100, 3, 0]), quantised(&[100, -3, 0])].concat();
        centre(3, &mut rows);
        assert_eq!(rows, [0, 4000, 0, 0, -4000, 0]);

        let mut alone = quantised(&[1, 1]);
        centre(2, &mut alone);
        assert_eq!(alone, [0, 0]);
    }

    proptest! {
        #[test]
        fn every_vector_lands_within_half_a_unit_of_its_direction(
            x in vec(-1_000_000i64..1_000_000, 1..200),
            factor in 1i64..1000,
        ) {
            let q = quantised(&x);
            let norm = x.iter().map(|&v| (v as f64).powi(2)).sum::<f64>().sqrt();
            for (&v, &q) in x.iter().zip(&q) {
                let want = if norm > 0.0 { 4000.0 * v as f64 / norm } else { 0.0 };
                prop_assert!((f64::from(q) - want).abs() <= 0.5 + 1e-9);
            }
            let mirrored: Vec<i64> = x.iter().map(|v| -v).collect();
            let negated: Vec<i16> = q.iter().map(|q| -q).collect();
            prop_assert_eq!(quantised(&mirrored), negated);
            // A longer vector of the same direction may differ where a value stands on a half.
            let longer: Vec<i64> = x.iter().map(|v| v * factor).collect();
            prop_assert!(quantised(&longer).iter().zip(&q).all(|(a, b)| (a - b).abs() <= 1));
        }

        #[test]
        fn centring_does_not_know_the_order_of_rows(rows in vec(-4000i16..=4000, 3..60)) {
            let mut rows = rows[..rows.len() / 3 * 3].to_vec();
            let mut turned = rows.clone();
            turned.rotate_left(3);
            centre(3, &mut rows);
            centre(3, &mut turned);
            turned.rotate_right(3);
            prop_assert_eq!(rows, turned);
        }
    }

    #[test]
    fn equal_rows_have_nothing_of_their_own() {
        let mut rows = quantised(&[5, -2, 9]).repeat(7);
        centre(3, &mut rows);
        assert_eq!(rows, [0; 21]);
        centre(3, &mut []);
    }
}
