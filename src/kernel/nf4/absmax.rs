//! Double quantisation: the scales of NF4 as bytes, less their mean, in blocks of 256 under a scale of their own. Knows no NF4 codes.
//!
//! Scale = `map[code]` · nested absmax + offset, each operation rounded to `f32`. The map has a dynamic exponent: levels lie denser towards 0,
//! over seven decades (Dettmers, 8-bit approximations for parallelism in deep learning, 2015).

use super::{NotFinite, finite, magnitude, nearest};

/// Scales per nested block.
pub const NESTED_BLOCK: usize = 256;

/// Packed scales.
#[derive(Debug, Clone, PartialEq)]
pub struct Nested {
    /// One code per scale.
    pub codes: Vec<u8>,
    /// The largest distance from the offset in each nested block.
    pub absmax: Vec<f32>,
    /// The mean of all scales.
    pub offset: f32,
}

/// Expands scales packed with `map` in nested blocks of `block`. Small scales beside a large one can come back negative.
pub fn dequantize(nested: &Nested, map: &[f32; 256], block: usize) -> Result<Vec<f32>, NotFinite> {
    assert!(
        block > 0 && nested.absmax.len() == nested.codes.len().div_ceil(block),
        "sizes of doubly quantised scales"
    );
    let scale = |(i, &code): (usize, &u8)| map[usize::from(code)] * nested.absmax[i / block] + nested.offset;
    let scales: Vec<f32> = nested.codes.iter().enumerate().map(scale).collect();
    finite("absmax", &scales)?;
    Ok(scales)
}

/// Packs scales with [`map`] in nested blocks of [`NESTED_BLOCK`]: the nearest level, of two that are equally near the lower.
///
/// The offset is summed in `f64`; bitsandbytes sums in `f32`, in an order of its own, so offset and nested absmax can differ from its in
/// their last bits.
pub fn quantize(scales: &[f32]) -> Result<Nested, NotFinite> {
    finite("absmax", scales)?;
    let sum = scales.iter().fold(0.0, |sum, &x| sum + f64::from(x));
    let offset = (sum / scales.len().max(1) as f64) as f32;
    let map = map();
    let borders: Vec<f32> = map.windows(2).map(|pair| f32::midpoint(pair[0], pair[1])).collect();
    let centred: Vec<f32> = scales.iter().map(|x| x - offset).collect();
    let absmax: Vec<f32> = centred.chunks(NESTED_BLOCK).map(magnitude).collect();
    let code = |(i, &x): (usize, &f32)| nearest(&borders, x, absmax[i / NESTED_BLOCK]);
    let codes = centred.iter().enumerate().map(code).collect();
    Ok(Nested { codes, absmax, offset })
}

/// The signed dynamic map of eight bits, ascending: for each exponent `e` from −6 to 0, ±10^e times the midpoints of the `2^(e + 6)` equal
/// parts of [0.1, 1], and 0 and 1.
pub fn map() -> [f32; 256] {
    let mut map = [0.0; 256];
    map[1] = 1.0;
    let mut at = 2;
    for (exponent, power) in [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1f32].into_iter().enumerate() {
        let parts = 1 << exponent;
        for part in 0..parts {
            let level = power * f32::midpoint(boundary(part, parts), boundary(part + 1, parts));
            (map[at], map[at + 1]) = (level, -level);
            at += 2;
        }
    }
    map.sort_unstable_by(f32::total_cmp);
    map
}

/// Where part `i` of `n` of [0.1, 1] begins. Counted from the nearer end with one rounding, as torch's `linspace` does, because maps
/// are compared bit by bit.
fn boundary(i: u16, n: u16) -> f32 {
    let step = (1.0 - 0.1f32) / f32::from(n);
    let from_start = i < n.div_ceil(2);
    if from_start { step.mul_add(f32::from(i), 0.1) } else { (-step).mul_add(f32::from(n - i), 1.0) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(scales: &[f32]) -> Vec<f32> {
        dequantize(&quantize(scales).unwrap(), &map(), NESTED_BLOCK).unwrap()
    }

    #[test]
    fn the_map_is_the_one_of_the_paper() {
        let mut want = vec![0.0, 1.0];
        for exponent in 0..7 {
            let parts = 2f64.powi(exponent);
            for part in 0..1 << exponent {
                let middle = 0.1 + 0.9 * (f64::from(part) + 0.5) / parts;
                want.extend([1.0, -1.0].map(|sign| sign * 10f64.powi(exponent - 6) * middle));
            }
        }
        want.sort_by(f64::total_cmp);
        assert_eq!(want.len(), 256);
        for (got, want) in map().iter().zip(want) {
            assert!((f64::from(*got) - want).abs() <= 2e-7 * want.abs(), "{got}, should be {want}");
        }
        assert!(map().is_sorted_by(|a, b| a < b));
        assert_eq!(map()[127].to_bits(), 0);
    }

    #[test]
    fn equal_scales_come_back_exactly() {
        for scale in [0.0, 1.0, 0.1, 1e-40, f32::MAX] {
            let nested = quantize(&[scale; 300]).unwrap();
            assert_eq!((nested.codes.as_slice(), nested.absmax.as_slice()), (&[127; 300][..], &[0.0; 2][..]));
            assert_eq!(round_trip(&[scale; 300]), [scale; 300]);
        }
        assert_eq!(quantize(&[]).unwrap(), Nested { codes: vec![], absmax: vec![], offset: 0.0 });
    }

    #[test]
    fn levels_lie_denser_near_the_mean() {
        let mut scales = vec![1.0; 256];
        (scales[3], scales[4], scales[5]) = (2.0, 0.0, 1.001);
        let back = round_trip(&scales);
        let error = |i: usize| (back[i] - scales[i]).abs();
        assert!(error(3) < 1e-2 && error(4) < 1e-2, "{back:?}");
        assert!(error(5) < 1e-4, "{back:?}");
    }

    #[test]
    fn nested_blocks_have_scales_of_their_own() {
        let mut scales = vec![1.0f32; 257];
        (scales[0], scales[256]) = (1e3, 5.0);
        let nested = quantize(&scales).unwrap();
        assert_eq!(nested.absmax.len(), 2);
        assert!((nested.absmax[1] - (5.0 - nested.offset).abs()).abs() < 1e-6);
        let back = dequantize(&nested, &map(), NESTED_BLOCK).unwrap();
        assert!((back[256] - 5.0).abs() < 1e-5, "{}", back[256]);
    }

    #[test]
    fn what_is_not_finite_is_refused() {
        let error = quantize(&[1.0, f32::NAN]).unwrap_err().to_string();
        assert_eq!(error, "absmax 1 is NaN, and NF4 takes finite numbers only");
        let beyond = Nested { codes: vec![127, 255], absmax: vec![f32::MAX], offset: f32::MAX };
        let error = dequantize(&beyond, &map(), 256).unwrap_err().to_string();
        assert_eq!(error, "absmax 1 is inf, and NF4 takes finite numbers only");
    }

    #[test]
    #[should_panic(expected = "sizes of doubly quantised scales")]
    fn a_nested_block_without_its_scale_is_a_mistake_of_the_caller() {
        let nested = Nested { codes: vec![0; 257], absmax: vec![1.0], offset: 0.0 };
        drop(dequantize(&nested, &map(), 256));
    }

    proptest! {
        #[test]
        fn each_scale_comes_back_as_near_as_the_map_allows(
            parts in prop::collection::vec(0.0f32..1.0, 1..600),
            exponent in -100i32..100,
        ) {
            let scales: Vec<f32> = parts.iter().map(|x| x * 2f32.powi(exponent)).collect();
            let nested = quantize(&scales).unwrap();
            let exact = scales.iter().map(|&x| f64::from(x)).sum::<f64>() / scales.len() as f64;
            prop_assert!((f64::from(nested.offset) - exact).abs() <= 1e-7 * exact);
            for (i, (x, code)) in scales.iter().zip(&nested.codes).enumerate() {
                let unit = f64::from(nested.absmax[i / NESTED_BLOCK]);
                let far = |level: f32| {
                    (f64::from(*x) - f64::from(nested.offset) - f64::from(level) * unit).abs()
                };
                let best = map().into_iter().map(far).fold(f64::INFINITY, f64::min);
                let got = far(map()[usize::from(*code)]);
                prop_assert!(got <= best + 2f64.powi(-23) * unit, "scale {}: {} > {}", i, got, best);
            }
        }
    }
}
