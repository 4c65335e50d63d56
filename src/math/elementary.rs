//! `exp`, `ln`, `sin` and `cos` for `f64` in plain arithmetic, so that every machine gets the same bits; libraries differ in the last
//! one. For tables, not for speed. Errors stay below 2e-15 of the result (of 1 for sine and cosine).

use std::f64::consts::{LN_2, LOG2_E, SQRT_2};

/// ln 2 in two parts, the first with 21 trailing zero bits, so that its products with small integers are exact.
const LN_2_HIGH: f64 = f64::from_bits(LN_2.to_bits() & !0x1f_ffff);
const LN_2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// π/2 in three parts of 33 bits each.
const HALF_PI: [f64; 3] = [1.570_796_326_734_125_6, 6.077_100_506_303_966e-11, 2.022_266_248_795_950_6e-21];

/// `e^x` for `|x| ≤ 700`.
pub fn exp(x: f64) -> f64 {
    let n = (x * LOG2_E).round();
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    // Taylor: |r| ≤ 0.35, so the first term left out is below 1e-18.
    let (mut sum, mut term) = (1.0, 1.0);
    for i in 1..=14 {
        term *= r / f64::from(i);
        sum += term;
    }
    sum * f64::from_bits(((n as i64 + 1023) as u64) << 52)
}

/// The natural logarithm of a positive, normal `x`.
pub fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) as i64 - 1023) as f64;
    let mut m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if m > SQRT_2 {
        (m, exponent) = (m / 2.0, exponent + 1.0);
    }
    // ln m = 2 artanh s with |s| ≤ 0.172.
    let s = (m - 1.0) / (m + 1.0);
    let (square, mut power, mut sum) = (s * s, s, 0.0);
    for i in 0..12 {
        sum += power / f64::from(2 * i + 1);
        power *= square;
    }
    exponent * LN_2_HIGH + (2.0 * sum + exponent * LN_2_LOW)
}

/// Sine and cosine for `0 ≤ x ≤ 2²⁰`.
pub fn sin_cos(x: f64) -> (f64, f64) {
    let n = (x * std::f64::consts::FRAC_2_PI).round();
    let r = HALF_PI.iter().fold(x, |r, part| r - n * part);
    let square = r * r;
    // Taylor: |r| ≤ 0.79, so the first terms left out are below 1e-17.
    let series = |first: i32, start: f64| {
        let (mut sum, mut term) = (start, start);
        for i in 0..8 {
            let k = first + 2 * i;
            term *= -square / f64::from((k + 1) * (k + 2));
            sum += term;
        }
        sum
    };
    let (sin, cos) = (series(1, r), series(0, 1.0));
    match n as i64 % 4 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, proptest};

    use super::*;

    proptest! {
        #[test]
        fn they_are_what_the_library_says(x in -700.0..700.0_f64, y in 1e-300..1e300_f64, z in 0.0..1_048_576.0_f64) {
            let off = |got: f64, want: f64| (got - want).abs() / want.abs();
            prop_assert!(off(exp(x), x.exp()) < 1e-13, "exp({x})"); // the argument's own rounding is amplified by x
            prop_assert!((ln(y) - y.ln()).abs() < 2e-15 * y.ln().abs().max(1.0), "ln({y})");
            let (sin, cos) = sin_cos(z);
            prop_assert!((sin - z.sin()).abs() < 2e-15 && (cos - z.cos()).abs() < 2e-15, "{z}: {sin} {cos}");
        }
    }

    #[test]
    fn small_arguments_are_exact_to_the_last_place_or_two() {
        for x in [-1.0, -0.3, 1e-9, 0.5, 1.0, 2.0, 10.0] {
            let x: f64 = x;
            assert!((exp(x) / x.exp() - 1.0).abs() < 5e-16, "{x}");
        }
        assert_eq!((exp(0.0), ln(1.0), sin_cos(0.0)), (1.0, 0.0, (0.0, 1.0)));
        let (sin, cos) = sin_cos(std::f64::consts::FRAC_PI_2);
        assert!((sin - 1.0).abs() < 1e-16 && (cos - 6.123_233_995_736_766e-17).abs() < 1e-30, "{cos}");
    }

    /// The bits themselves, so that a machine that computes something else fails here.
    #[test]
    fn the_bits_are_these() {
        let sum = (0..1000).fold(0_u64, |sum, i| {
            let x = f64::from(i) * 0.37;
            let (sin, cos) = sin_cos(x);
            [exp(x / 10.0), ln(x + 0.5), sin, cos].iter().fold(sum, |sum, y| sum.rotate_left(7) ^ y.to_bits())
        });
        assert_eq!(sum, 10_429_749_355_812_664_805);
    }
}
