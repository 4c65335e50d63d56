//! MXFP4: blocks of 32 four-bit floats (E2M1) with one power-of-two scale (E8M0). Knows no checkpoint.
//!
//! Layout as in GPT-OSS checkpoints: a block is 16 bytes, byte `j` holds value `2j` in its low nibble and `2j + 1` in its high one;
//! blocks run along the input dimension. Value = code · 2^(scale − 127) (OCP Microscaling Formats 1.0).

/// Values per block.
pub const BLOCK: usize = 32;

/// The eight magnitudes of E2M1; bit 3 of a code is the sign.
const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// A scale byte that MXFP4 reserves for NaN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("scale {index} is 255, which MXFP4 reserves for NaN")]
pub struct NanScale {
    /// The block's index.
    pub index: usize,
}

/// Expands packed blocks; exact. `out` holds 32 values per scale.
pub fn dequantize(blocks: &[u8], scales: &[u8], out: &mut [f32]) -> Result<(), NanScale> {
    assert!(
        blocks.len() == scales.len() * BLOCK / 2 && out.len() == scales.len() * BLOCK,
        "sizes of an MXFP4 tensor"
    );
    for (index, ((bytes, &scale), out)) in
        blocks.chunks_exact(16).zip(scales).zip(out.chunks_exact_mut(BLOCK)).enumerate()
    {
        if scale == 255 {
            return Err(NanScale { index });
        }
        let bytes = bytes.first_chunk().expect("a block has 16 bytes");
        out.copy_from_slice(&decode_block(bytes, scale));
    }
    Ok(())
}

/// The values of one block whose scale is not the NaN one.
pub(super) fn decode_block(bytes: &[u8; BLOCK / 2], scale: u8) -> [f32; BLOCK] {
    let factor = exp2(i32::from(scale) - 127);
    let mut out = [0f32; BLOCK];
    for (byte, pair) in bytes.iter().zip(out.as_chunks_mut::<2>().0) {
        *pair = PAIRS[usize::from(*byte)].map(|value| value * factor);
    }
    out
}

/// The two values of every byte.
static PAIRS: [[f32; 2]; 256] = {
    let (mut pairs, mut byte) = ([[0.0; 2]; 256], 0);
    while byte < 256 {
        pairs[byte] = [decode(byte as u8 & 15), decode(byte as u8 >> 4)];
        byte += 1;
    }
    pairs
};

/// Packs finite values: the scale is the smallest power of two that clips nothing (2^⌈log2(max/6)⌉), magnitudes round half away from zero.
///
/// Values that came out of [`dequantize`] survive the round trip exactly.
pub fn quantize(values: &[f32], blocks: &mut [u8], scales: &mut [u8]) {
    assert!(
        blocks.len() == scales.len() * BLOCK / 2 && values.len() == scales.len() * BLOCK,
        "sizes of an MXFP4 tensor"
    );
    for ((values, bytes), scale) in values.chunks_exact(BLOCK).zip(blocks.chunks_exact_mut(16)).zip(scales) {
        let max = values.iter().fold(0f32, |m, x| m.max(x.abs()));
        *scale = scale_of(max);
        let factor = exp2(127 - i32::from(*scale));
        for (byte, pair) in bytes.iter_mut().zip(values.chunks_exact(2)) {
            *byte = if max == 0.0 { 0 } else { encode(pair[0] * factor) | encode(pair[1] * factor) << 4 };
        }
    }
}

/// Rounds values to MXFP4 and back, in place.
pub fn round_trip(values: &mut [f32]) {
    let n = values.len() / BLOCK;
    let (mut blocks, mut scales) = (vec![0u8; n * BLOCK / 2], vec![0u8; n]);
    quantize(values, &mut blocks, &mut scales);
    dequantize(&blocks, &scales, values).expect("finite values never get the NaN scale");
}

const fn decode(code: u8) -> f32 {
    let magnitude = MAGNITUDES[(code & 7) as usize];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

fn encode(x: f32) -> u8 {
    // Each border belongs to the larger magnitude: half away from zero.
    const BORDERS: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
    let code = BORDERS.iter().filter(|&&border| x.abs() >= border).count() as u8;
    if x.is_sign_negative() && code > 0 { code | 8 } else { code }
}

/// The E8M0 byte of 2^⌈log2(max / 6)⌉; 0 for an all-zero block.
fn scale_of(max: f32) -> u8 {
    if max == 0.0 {
        return 0;
    }
    // In f64, where a sixth of the smallest f32 is not yet zero.
    let max = f64::from(max);
    let mut exponent = (max / 6.0).log2().floor() as i32 - 1;
    while 6.0 * 2f64.powi(exponent) < max {
        exponent += 1;
    }
    (exponent + 127).clamp(0, 254) as u8
}

/// 2^e exactly, subnormals included.
fn exp2(e: i32) -> f32 {
    if e >= -126 { f32::from_bits(((e + 127) as u32) << 23) } else { f32::from_bits(1 << (e + 149).max(0)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::testing::noise;

    #[test]
    fn every_code_at_every_scale() {
        for scale in [0u8, 1, 121, 127, 130, 254] {
            let blocks: Vec<u8> = (0..16).map(|i| (i % 16) | ((15 - i) << 4)).collect();
            let mut out = [0f32; 32];
            dequantize(&blocks, &[scale], &mut out).unwrap();
            for (j, byte) in blocks.iter().enumerate() {
                for (value, code) in [(out[2 * j], byte & 15), (out[2 * j + 1], byte >> 4)] {
                    let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
                    let want = sign
                        * f64::from(MAGNITUDES[usize::from(code & 7)])
                        * 2f64.powi(i32::from(scale) - 127);
                    assert!(
                        (f64::from(value) - want).abs() <= f64::from(f32::from_bits(1)) * 0.5
                            || want.abs() > f64::from(f32::MAX)
                    );
                }
            }
        }
    }

    #[test]
    fn the_nan_scale_is_refused() {
        let error = dequantize(&[0; 32], &[127, 255], &mut [0.0; 64]).unwrap_err();
        assert_eq!(error.index, 1);
    }

    #[test]
    fn nothing_clips_and_the_round_trip_is_exact() {
        for seed in 0..50 {
            let mut values = noise(seed, 64, 10f32.powi(seed as i32 % 9 - 4));
            let before = values.clone();
            round_trip(&mut values);
            for (block, old) in values.chunks(32).zip(before.chunks(32)) {
                let max = old.iter().fold(0f32, |m, x| m.max(x.abs()));
                assert!(
                    block.iter().zip(old).all(|(new, old)| (new - old).abs() <= max / 3.0),
                    "{old:?} {block:?}"
                );
            }
            let once = values.clone();
            round_trip(&mut values);
            assert_eq!(
                once.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
                values.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn borders_round_away_from_zero() {
        let mut values = [0f32; 32];
        values[..6].copy_from_slice(&[6.0, 0.25, -0.75, 2.5, -5.0, 0.24]);
        round_trip(&mut values);
        assert_eq!(
            values[..6].iter().map(|x| x * 2.0).map(|x| x as i32).collect::<Vec<_>>(),
            [12, 1, -2, 6, -12, 0]
        );
    }

    /// What a block with this scale byte and all sixteen codes stands for, in f64.
    fn meaning(scale: i32) -> Vec<f64> {
        let code = |c: usize| if c < 8 { f64::from(MAGNITUDES[c]) } else { -f64::from(MAGNITUDES[c - 8]) };
        (0..32).map(|i| code(i % 16) * 2f64.powi(scale - 127)).collect()
    }

    #[test]
    fn every_value_of_every_scale_survives_packing_and_unpacking() {
        let codes: Vec<u8> = (0..16).map(|j| (2 * j % 16) | ((2 * j + 1) % 16) << 4).collect();
        // With 253 and 254 the largest code is beyond f32.
        for scale in 0..=252u8 {
            let mut values = [0f32; 32];
            dequantize(&codes, &[scale], &mut values).unwrap();
            let exact: Vec<f64> = values.iter().map(|&x| f64::from(x)).collect();
            assert_eq!(exact, meaning(i32::from(scale)), "scale {scale}");
            let (mut blocks, mut scales) = ([0u8; 16], [0u8]);
            quantize(&values, &mut blocks, &mut scales);
            // Code 8 is −0, which is packed as 0.
            let plain: Vec<u8> = codes.iter().map(|c| if c & 15 == 8 { c & 0xf0 } else { *c }).collect();
            assert_eq!((&blocks[..], scales), (&plain[..], [scale]));
        }
    }

    /// The nearest of the eight magnitudes times `2^(scale − 127)`, the larger of two that are equally near.
    fn nearest(x: f32, scale: u8) -> f64 {
        let unit = 2f64.powi(i32::from(scale) - 127);
        let far = |m: f64| (f64::from(x.abs()) - m * unit).abs();
        let magnitudes = MAGNITUDES.map(f64::from);
        let best = magnitudes.into_iter().reduce(|best, m| if far(m) <= far(best) { m } else { best });
        best.unwrap() * unit * f64::from(x.signum())
    }

    proptest! {
        #[test]
        fn values_go_to_the_nearest_code_of_the_smallest_scale_that_clips_nothing(
            values in prop::collection::vec(-1.0f32..1.0, 32),
            exponent in -149i32..125,
        ) {
            let values: Vec<f32> = values.iter().map(|x| (f64::from(*x) * 2f64.powi(exponent)) as f32).collect();
            let (mut blocks, mut scales) = ([0u8; 16], [0u8]);
            quantize(&values, &mut blocks, &mut scales);
            let max = values.iter().fold(0f64, |m, x| m.max(f64::from(x.abs())));
            let reach = |scale: i32| 6.0 * 2f64.powi(scale - 127);
            prop_assert!(reach(i32::from(scales[0])) >= max);
            prop_assert!(scales[0] == 0 || reach(i32::from(scales[0]) - 1) < max);
            let mut back = [0f32; 32];
            dequantize(&blocks, &scales, &mut back).unwrap();
            for (x, y) in values.iter().zip(back) {
                let want = nearest(*x, scales[0]).abs();
                prop_assert_eq!(f64::from(y).abs().to_bits(), want.to_bits(), "{} under {}", x, scales[0]);
                prop_assert!(y.abs() == 0.0 || (y < 0.0) == (*x < 0.0));
            }
        }
    }

    #[test]
    fn zeros_and_the_smallest_numbers_are_packed_as_zero() {
        for x in [0.0, -0.0, f32::from_bits(1), -f32::from_bits(3), f32::from_bits(4)] {
            let (mut blocks, mut scales) = ([255u8; 16], [255u8]);
            quantize(&[x; 32], &mut blocks, &mut scales);
            assert_eq!((blocks, scales), ([0; 16], [0]), "{x:e}");
        }
    }

    #[test]
    fn blocks_do_not_know_each_other() {
        let mut values = noise(4, 96, 1.0);
        values[32..64].iter_mut().for_each(|x| *x *= 1e6);
        let mut apart = values.clone();
        apart.chunks_mut(32).for_each(round_trip);
        round_trip(&mut values);
        assert_eq!(values, apart);
    }

    #[test]
    #[should_panic(expected = "sizes of an MXFP4 tensor")]
    fn a_block_without_its_scale_is_refused() {
        let _ = dequantize(&[0; 32], &[127], &mut [0.0; 64]);
    }
}
