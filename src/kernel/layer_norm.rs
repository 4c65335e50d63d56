//! Layer normalisation with weight and bias, the same bits on every machine: sums in f64, in sixteen lanes whatever the width of the
//! machine's vectors.
#![expect(
    clippy::inline_always,
    reason = "it becomes part of the loops that are compiled for several instruction sets"
)]

use super::arch::vectorised;

const LANES: usize = 16;

/// `(x − mean) / √(variance + eps) · weight + bias` for every row of `weight.len()` values.
pub fn layer_norm(rows: &mut [f32], weight: &[f32], bias: &[f32], eps: f64) {
    vectorised(
        #[inline(always)]
        || {
            for row in rows.chunks_exact_mut(weight.len()) {
                let n = row.len() as f64;
                let mean = sum(row, |x| x) / n;
                let variance = sum(row, |x| (x - mean) * (x - mean)) / n;
                let scale = 1.0 / (variance + eps).sqrt();
                for ((x, w), b) in row.iter_mut().zip(weight).zip(bias) {
                    *x = ((f64::from(*x) - mean) * scale) as f32 * w + b;
                }
            }
        },
    );
}

#[inline(always)]
fn sum(row: &[f32], term: impl Fn(f64) -> f64) -> f64 {
    let mut lanes = [0_f64; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += term(f64::from(*x));
        }
    }
    let rest = rest.iter().fold(0.0, |sum, x| sum + term(f64::from(*x)));
    lanes.into_iter().fold(rest, |sum, lane| sum + lane)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::noise;

    #[test]
    fn rows_are_normalised_scaled_and_shifted() {
        for width in [1, 3, 16, 33, 384] {
            let (x, w, b) = (noise(1, 5 * width, 3.0), noise(2, width, 1.0), noise(3, width, 1.0));
            let mut got = x.clone();
            layer_norm(&mut got, &w, &b, 1e-5);
            for (got, x) in got.chunks(width).zip(x.chunks(width)) {
                let n = width as f64;
                let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
                let variance = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
                for (i, x) in x.iter().enumerate() {
                    let unit = (f64::from(*x) - mean) / (variance + 1e-5).sqrt();
                    let want = unit * f64::from(w[i]) + f64::from(b[i]);
                    assert!((f64::from(got[i]) - want).abs() < 1e-6, "{width}");
                }
            }
        }
    }

    #[test]
    fn a_row_of_equal_values_is_the_bias() {
        let mut row = [7.0; 20];
        layer_norm(&mut row, &[2.0; 20], &[0.5; 20], 1e-12);
        assert_eq!(row.map(f32::to_bits), [0.5_f32.to_bits(); 20]);
    }

    #[test]
    fn large_values_keep_their_spread() {
        // In f32 the mean of these would swallow the spread.
        let mut row: Vec<f32> = (0..64).map(|i| 16_777_216.0 + 2.0 * (i % 2) as f32).collect();
        layer_norm(&mut row, &[1.0; 64], &[0.0; 64], 1e-12);
        assert!(row.iter().all(|x| (x.abs() - 1.0).abs() < 1e-5), "{row:?}");
    }
}
