//! The exact GELU, `x · ½ (1 + erf(x / √2))`, in plain arithmetic that gives the same bits on every machine. (The tanh form that
//! ports of BERT use is another function.)
#![expect(
    clippy::inline_always,
    reason = "it becomes part of the loops that are compiled for several instruction sets"
)]

use super::arch::vectorised;

/// The error function, absolute error below 4e-7: a rational function of degree 5/5 in x², fitted on `[0, 4]` to within 2.2e-8; the
/// rest is f32 rounding.
#[inline(always)]
#[expect(clippy::approx_constant, reason = "a fitted coefficient that comes near one")]
pub fn erf(x: f32) -> f32 {
    let y = x.clamp(-4.0, 4.0);
    let t = y * y;
    let p = 1.974_797e-6_f32;
    let p = p * t + 2.880_383_7e-4;
    let p = p * t + 4.003_631_4e-3;
    let p = p * t + 5.346_743_8e-2;
    let p = p * t + 1.962_490_4e-1;
    let p = p * t + 1.128_379;
    let q = 3.748_035_3e-5_f32;
    let q = q * t + 1.216_351e-3;
    let q = q * t + 1.544_44e-2;
    let q = q * t + 1.164_764_1e-1;
    let q = q * t + 5.072_523_4e-1;
    let q = q * t + 1.0;
    (y * p / q).clamp(-1.0, 1.0)
}

/// GELU of every value.
pub fn gelu_in_place(values: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || values.iter_mut().for_each(|x| *x = gelu(*x)),
    );
}

/// `out = gelu(gate) · up`, as gated networks have it.
pub fn gated_gelu(out: &mut [f32], up: &[f32], gate: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for ((out, up), gate) in out.iter_mut().zip(up).zip(gate) {
                *out = gelu(*gate) * up;
            }
        },
    );
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erf by its series, in f64.
    fn series(x: f64) -> f64 {
        let (mut sum, mut term) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn erf_is_close_to_its_series_everywhere() {
        for i in -4000..=4000 {
            let x = i as f32 / 1000.0;
            let off = (f64::from(erf(x)) - series(f64::from(x))).abs();
            assert!(off < 4e-7, "erf({x}) is off by {off:e}");
        }
        let ends = [erf(0.0), erf(9.0), erf(-50.0), erf(f32::INFINITY)].map(f32::to_bits);
        assert_eq!(ends, [0.0, 1.0, -1.0, 1.0].map(f32::to_bits));
        assert!(erf(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_is_the_exact_form_and_not_that_with_tanh() {
        let mut values = [-3.0, -1.0, 0.0, 0.5, 1.0, 3.0];
        gelu_in_place(&mut values);
        let expected = [-0.004_049_694, -0.158_655_25, 0.0, 0.345_731_23, 0.841_344_7, 2.995_950_3];
        assert!(values.iter().zip(expected).all(|(x, y): (&f32, f32)| (x - y).abs() < 1e-6), "{values:?}");
        // tanh's form gives 0.8411920 at 1 and −0.0036374 at −3.
        assert!((values[4] - 0.841_192).abs() > 1e-4);
    }

    #[test]
    fn the_gate_goes_through_gelu_and_up_does_not() {
        let mut out = [0.0; 3];
        gated_gelu(&mut out, &[2.0, -1.0, 5.0], &[1.0, 1.0, -50.0]);
        let expected = [2.0 * 0.841_344_7, -0.841_344_7, 0.0];
        assert!(out.iter().zip(expected).all(|(x, y): (&f32, f32)| (x - y).abs() < 1e-6), "{out:?}");
    }

    /// The bits themselves, and that vectors of every width give them.
    #[test]
    fn the_bits_are_these_with_every_instruction_set() {
        let values: Vec<f32> = (-2000..2000).map(|i| i as f32 * 0.003).collect();
        let plain: Vec<u32> = values.iter().map(|&x| gelu(x).to_bits()).collect();
        let mut fast = values;
        gelu_in_place(&mut fast);
        assert!(fast.iter().map(|x| x.to_bits()).eq(plain.iter().copied()));
        assert_eq!(plain.iter().fold(0_u32, |sum, bits| sum.rotate_left(5) ^ bits), 286_455_208);
    }
}
