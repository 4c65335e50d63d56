//! NF4: blocks of four-bit codes for sixteen levels, quantiles of a normal distribution, under one scale. Knows no checkpoint.
//!
//! Layout as bitsandbytes writes it: blocks run over the flattened row-major tensor and the last may be short; byte `j` holds value
//! `2j` in its high nibble and `2j + 1` in its low one (MXFP4 has them the other way round). Value = level · absmax, in `f32`, where
//! absmax is the largest magnitude of the block (Dettmers et al., QLoRA, 2023). [`absmax`] packs these scales a second time.

pub mod absmax;

/// Values per block when [`quantize`] is left to choose; bitsandbytes' own default.
pub const BLOCK: usize = 64;

/// The block sizes that bitsandbytes has.
pub const BLOCKS: [usize; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/// What each code stands for, ascending.
#[expect(
    clippy::excessive_precision,
    clippy::unreadable_literal,
    reason = "as they were published; the nearest f32 is meant"
)]
pub const LEVELS: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// The code of level 0. The unused half of an odd tensor's last byte holds it.
const ZERO: u8 = 7;

/// Where one code ends and the next begins, as a part of absmax: the midpoints in `f32`, the precision that bitsandbytes has them in.
const BORDERS: [f32; 15] = {
    let mut borders = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        borders[i] = f32::midpoint(LEVELS[i], LEVELS[i + 1]);
        i += 1;
    }
    borders
};

/// A number that NF4 cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{what} {index} is {value}, and NF4 takes finite numbers only")]
pub struct NotFinite {
    /// What it is: `value`, `absmax`.
    pub what: &'static str,
    /// Where it stands.
    pub index: usize,
    /// NaN or an infinity.
    pub value: f32,
}

/// Expands codes: `level · absmax`, rounded once to `f32`. `out` says how many values there are; `block` is even.
pub fn dequantize(codes: &[u8], absmax: &[f32], block: usize, out: &mut [f32]) -> Result<(), NotFinite> {
    check_sizes(out.len(), block, codes, absmax);
    finite("absmax", absmax)?;
    let blocks = out.chunks_mut(block).zip(codes.chunks(block / 2)).zip(absmax);
    for ((out, codes), &absmax) in blocks {
        for (pair, byte) in out.chunks_mut(2).zip(codes) {
            let levels = [byte >> 4, byte & 15].map(|code| LEVELS[usize::from(code)]);
            pair.iter_mut().zip(levels).for_each(|(out, level)| *out = level * absmax);
        }
    }
    Ok(())
}

/// Packs values: absmax is the largest magnitude of each block, each code that of the level nearest to value / absmax, of two that are
/// equally near the lower.
///
/// The quotient is compared exactly. bitsandbytes rounds it to `f32` first, so a value within a rounding of a border can get the
/// code on the other side there. A block of zeros has absmax 0 and the codes of 0. What came out of [`dequantize`] survives the
/// round trip.
pub fn quantize(values: &[f32], block: usize, codes: &mut [u8], absmax: &mut [f32]) -> Result<(), NotFinite> {
    check_sizes(values.len(), block, codes, absmax);
    finite("value", values)?;
    for ((values, codes), absmax) in values.chunks(block).zip(codes.chunks_mut(block / 2)).zip(absmax) {
        *absmax = magnitude(values);
        for (byte, pair) in codes.iter_mut().zip(values.chunks(2)) {
            let low = pair.get(1).map_or(ZERO, |&x| nearest(&BORDERS, x, *absmax));
            *byte = nearest(&BORDERS, pair[0], *absmax) << 4 | low;
        }
    }
    Ok(())
}

/// The largest magnitude; 0 of nothing.
fn magnitude(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |max, x| max.max(x.abs()))
}

/// How many of the ascending `borders` lie below `x / scale`. Exact, because a product of two `f32` is exact in `f64`. Under scale 0 lie
/// only zeros.
fn nearest(borders: &[f32], x: f32, scale: f32) -> u8 {
    let scale = if scale == 0.0 { 1.0 } else { f64::from(scale) };
    borders.partition_point(|&border| f64::from(x) > f64::from(border) * scale) as u8
}

fn finite(what: &'static str, values: &[f32]) -> Result<(), NotFinite> {
    let bad = values.iter().position(|x| !x.is_finite());
    bad.map_or(Ok(()), |index| Err(NotFinite { what, index, value: values[index] }))
}

fn check_sizes(n: usize, block: usize, codes: &[u8], absmax: &[f32]) {
    assert!(
        block > 0
            && block.is_multiple_of(2)
            && codes.len() == n.div_ceil(2)
            && absmax.len() == n.div_ceil(block),
        "sizes of an NF4 tensor"
    );
}

#[cfg(test)]
mod tests;
