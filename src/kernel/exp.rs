//! `exp` for `f32` and sums over rows of it, in plain arithmetic that gives the same bits on every machine.
//!
//! Rows are worked on in sixteen lanes whatever the width of the machine's vectors, so the order of the additions is fixed; `pulp`
//! picks the instruction set at run time, and Rust never fuses a product with a sum by itself.
#![expect(
    clippy::inline_always,
    reason = "it becomes part of the loops that are compiled for several instruction sets"
)]

use super::arch::vectorised;

/// `e^x`, relative error below 2 ulp on `[-87, 88]`; below −87 it is 0, above 88 it is `e^88`.
///
/// Range reduction by multiples of ln 2 in two parts, then a degree-6 polynomial (Cody and Waite; coefficients of the Cephes library).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding and taking it away rounds to the nearest integer
    let y = x.clamp(-87.0, 88.0);
    let rounded = y * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (y - n * 0.693_359_4) - n * -2.121_944_4e-4;
    // The integer stands in the low bits of what was rounded.
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let p = 1.987_569_1e-4_f32;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let value = (p * r * r + r + 1.0) * f32::from_bits(exponent << 23);
    if x < -87.0 { 0.0 } else { value }
}

/// Lanes of every reduction.
const LANES: usize = 16;

/// The largest value of a row; −∞ when it is empty.
pub fn max(row: &[f32]) -> f32 {
    vectorised(
        #[inline(always)]
        || {
            let mut lanes = [f32::NEG_INFINITY; LANES];
            let chunks = row.chunks_exact(LANES);
            let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, larger);
            for chunk in chunks {
                for (lane, x) in lanes.iter_mut().zip(chunk) {
                    *lane = larger(*lane, *x);
                }
            }
            lanes.into_iter().fold(rest, larger)
        },
    )
}

/// Replaces every `x` by `e^(x − shift)` and returns their sum.
pub fn exp_in_place(row: &mut [f32], shift: f32) -> f32 {
    vectorised(
        #[inline(always)]
        || {
            let mut lanes = [0f32; LANES];
            let mut chunks = row.chunks_exact_mut(LANES);
            for chunk in &mut chunks {
                for (lane, x) in lanes.iter_mut().zip(chunk) {
                    *x = exp(*x - shift);
                    *lane += *x;
                }
            }
            let mut rest = 0f32;
            for x in chunks.into_remainder() {
                *x = exp(*x - shift);
                rest += *x;
            }
            lanes.into_iter().fold(rest, |sum, x| sum + x)
        },
    )
}

/// The sum of `e^(x − shift)`; the bits of [`exp_in_place`]'s.
pub fn exp_sum(row: &[f32], shift: f32) -> f32 {
    vectorised(
        #[inline(always)]
        || {
            let mut lanes = [0f32; LANES];
            let chunks = row.chunks_exact(LANES);
            let mut rest = 0f32;
            for x in chunks.remainder() {
                rest += exp(*x - shift);
            }
            for chunk in chunks {
                for (lane, x) in lanes.iter_mut().zip(chunk) {
                    *lane += exp(*x - shift);
                }
            }
            lanes.into_iter().fold(rest, |sum, x| sum + x)
        },
    )
}

/// `max` without the care for NaN that keeps it from being vectorised.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if b > a { b } else { a }
}

#[cfg(test)]
mod tests {
    use super::{exp, exp_in_place, exp_sum, max};
    use crate::kernel::{arch::testing::on_all, testing::noise};

    #[test]
    fn close_to_f64_everywhere() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) - want).abs() <= 2.4e-7 * want, "{x}: {} {want}", exp(x));
        }
    }

    #[test]
    fn ends_of_the_range() {
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp(-1e9).to_bits(), 0);
        assert_eq!(exp(0.0).to_bits(), 1.0f32.to_bits());
        assert!(exp(1e9).is_finite());
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for n in [1, 16, 37, 500] {
            let row = noise(n as u64, n, 100.0);
            let made = on_all(|| {
                let mut changed = row.clone();
                let sums = [exp_in_place(&mut changed, 3.0), exp_sum(&row, 3.0), max(&row)];
                changed.into_iter().chain(sums).map(f32::to_bits).collect::<Vec<_>>()
            });
            assert!(made.iter().all(|other| *other == made[0]), "{n}");
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        assert!(exp(f32::NAN).is_nan());
        assert!(exp_in_place(&mut [1.0, f32::NAN, 2.0], 0.0).is_nan());
    }

    #[test]
    fn rows_of_every_length() {
        for n in [0, 1, 15, 16, 17, 33, 1000] {
            let row = noise(n as u64, n, 5.0);
            let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&row).to_bits(), top.to_bits());
            let mut changed = row.clone();
            let sum = exp_in_place(&mut changed, 0.5);
            assert_eq!(sum.to_bits(), exp_sum(&row, 0.5).to_bits());
            let want: f64 = row.iter().map(|x| (f64::from(*x) - 0.5).exp()).sum();
            assert!((f64::from(sum) - want).abs() <= 1e-5 * want);
            assert!(row.iter().zip(&changed).all(|(x, e)| exp(x - 0.5).to_bits() == e.to_bits()));
        }
    }
}
