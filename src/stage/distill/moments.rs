//! A moment of the gradient for every element of a variable: in f32, or in 8 bits with a scale for each block. Knows no optimiser.
//!
//! The 8 bits are a sign, a power of ten and a fraction whose width depends on it ("dynamic tree", arXiv 2110.02861, section 2.2), so that
//! what is a millionth of the largest of its block is still told from nothing.

use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the optimiser keeps its moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Precision {
    /// 8 bytes a parameter.
    #[default]
    #[serde(rename = "f32")]
    F32,
    /// Two bytes a parameter, and a thirty-second of one for scales.
    #[serde(rename = "8-bit")]
    Eight,
}

/// Elements with a scale in common.
pub(crate) const BLOCK: usize = 256;

/// One moment of one variable.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Moment {
    F32(Vec<f32>),
    Eight {
        codes: Vec<u8>,
        /// The largest size in each block.
        scales: Vec<f32>,
    },
}

/// A run of whole blocks of a moment; the last block of a variable may be short.
pub(crate) enum Part<'a> {
    F32(&'a mut [f32]),
    Eight(&'a mut [u8], &'a mut [f32]),
}

impl Moment {
    /// Nothing yet, for `n` elements.
    pub(crate) fn zeros(precision: Precision, n: usize) -> Self {
        match precision {
            Precision::F32 => Self::F32(vec![0.0; n]),
            Precision::Eight => Self::Eight { codes: vec![ZERO; n], scales: vec![0.0; n.div_ceil(BLOCK)] },
        }
    }

    /// In pieces of `piece` elements, a multiple of [`BLOCK`].
    pub(crate) fn parts(&mut self, piece: usize) -> Vec<Part<'_>> {
        match self {
            Self::F32(values) => values.chunks_mut(piece).map(Part::F32).collect(),
            Self::Eight { codes, scales } => {
                let scales = scales.chunks_mut(piece / BLOCK);
                codes
                    .chunks_mut(piece)
                    .zip(scales)
                    .map(|(codes, scales)| Part::Eight(codes, scales))
                    .collect()
            }
        }
    }
}

impl Part<'_> {
    /// The values of a block.
    pub(crate) fn read(&self, block: usize, out: &mut [f32]) {
        let from = block * BLOCK;
        match self {
            Self::F32(values) => out.copy_from_slice(&values[from..from + out.len()]),
            Self::Eight(codes, scales) => {
                let codes = &codes[from..from + out.len()];
                for (out, &code) in out.iter_mut().zip(codes) {
                    *out = TABLE[usize::from(code)] * scales[block];
                }
            }
        }
    }

    /// Stores the values of a block.
    pub(crate) fn write(&mut self, block: usize, values: &[f32]) {
        let from = block * BLOCK;
        match self {
            Self::F32(kept) => kept[from..from + values.len()].copy_from_slice(values),
            Self::Eight(codes, scales) => {
                let most = values.iter().fold(0f32, |most, x| most.max(x.abs()));
                scales[block] = most;
                let inverse = if most > 0.0 { 1.0 / most } else { 0.0 };
                for (code, x) in codes[from..].iter_mut().zip(values) {
                    *code = nearest(x * inverse);
                }
            }
        }
    }
}

/// The code of 0.
const ZERO: u8 = 127;

/// What the codes stand for, ascending: ± (0.1 to 1, in equal steps) · 10^-e, in half as many steps for each next e; 0; and 1.
static TABLE: LazyLock<[f32; 256]> = LazyLock::new(|| {
    let mut sizes: Vec<f64> = Vec::new();
    for e in 0..7 {
        let steps = 1 << (6 - e);
        let middle = |i: i32| 0.1 + 0.9 * (f64::from(i) + 0.5) / f64::from(steps);
        sizes.extend((0..steps).map(|i| middle(i) * 10f64.powi(-e)));
    }
    let mut all: Vec<f64> = sizes.iter().flat_map(|&x| [x, -x]).chain([0.0, 1.0]).collect();
    all.sort_unstable_by(f64::total_cmp);
    std::array::from_fn(|i| all[i] as f32)
});

/// Between which values the nearest code changes.
static MIDDLES: LazyLock<[f32; 255]> =
    LazyLock::new(|| std::array::from_fn(|i| 0.5 * (TABLE[i] + TABLE[i + 1])));

fn nearest(x: f32) -> u8 {
    MIDDLES.partition_point(|&middle| middle < x) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::noise;

    #[test]
    fn the_codes_are_those_of_the_paper() {
        assert!(TABLE.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((TABLE[usize::from(ZERO)], TABLE[255]), (0.0, 1.0));
        for i in 0..127 {
            assert_eq!(TABLE[i].to_bits(), (-TABLE[254 - i]).to_bits(), "as many below 0 as above");
        }
        // 64 steps in the first decade, one in the seventh.
        let in_decade = |e: i32| {
            let (low, high) = (10f32.powi(-e - 1), 10f32.powi(-e));
            TABLE.iter().filter(|&&x| x > low && x < high).count()
        };
        assert_eq!([0, 1, 2, 3, 4, 5, 6].map(in_decade), [64, 32, 16, 8, 4, 2, 1]);
        assert!((TABLE[254] - (1.0 - 0.9 / 128.0)).abs() < 1e-6);
        assert!((TABLE[usize::from(ZERO) + 1] - 0.55e-6).abs() < 1e-10);
    }

    #[test]
    fn the_nearest_code_is_found() {
        for (i, x) in TABLE.iter().enumerate() {
            assert_eq!(usize::from(nearest(*x)), i);
        }
        for x in noise(3, 2000, 1.0) {
            let distance = |i: usize| (TABLE[i] - x).abs();
            let best = (0..256).map(distance).fold(f32::INFINITY, f32::min);
            assert!(distance(usize::from(nearest(x))) <= best, "{x}");
        }
        assert_eq!((nearest(-7.0), nearest(7.0), nearest(f32::NAN)), (0, 255, 0));
    }

    #[test]
    fn blocks_come_back_within_a_step_of_their_decade() {
        let n = 2 * BLOCK + 77;
        let values: Vec<f32> =
            noise(5, n, 1.0).iter().enumerate().map(|(i, x)| x * 10f32.powi(-(i as i32 % 9))).collect();
        let blocks =
            |moment: &mut Moment, each: &mut dyn FnMut(&mut Part<'_>, usize, std::ops::Range<usize>)| {
                for (p, mut part) in moment.parts(2 * BLOCK).into_iter().enumerate() {
                    for b in 0..2 {
                        let from = (2 * p + b) * BLOCK;
                        if from < n {
                            each(&mut part, b, from..n.min(from + BLOCK));
                        }
                    }
                }
            };
        for precision in [Precision::F32, Precision::Eight] {
            let mut moment = Moment::zeros(precision, n);
            let mut back = vec![1f32; n];
            blocks(&mut moment, &mut |part, b, at| part.read(b, &mut back[at]));
            assert!(back.iter().all(|x| x.abs() < f32::MIN_POSITIVE), "nothing at first");
            blocks(&mut moment, &mut |part, b, at| part.write(b, &values[at]));
            blocks(&mut moment, &mut |part, b, at| part.read(b, &mut back[at]));
            for (from, chunk) in values.chunks(BLOCK).enumerate() {
                let most = chunk.iter().fold(0f32, |most, x| most.max(x.abs()));
                for (x, got) in chunk.iter().zip(&back[from * BLOCK..]) {
                    let bound = match precision {
                        Precision::F32 => 0.0,
                        // Half a step of the first decade, or a share of the value, or what is nothing.
                        Precision::Eight => (0.0071 * most).min(0.72 * x.abs()).max(0.6e-6 * most),
                    };
                    assert!((x - got).abs() <= bound, "{x} {got} of {most}");
                }
            }
        }
    }

    #[test]
    fn a_block_of_nothing_stays_nothing() {
        let mut moment = Moment::zeros(Precision::Eight, 10);
        let mut back = [1f32; 10];
        let mut parts = moment.parts(BLOCK);
        parts[0].write(0, &[0.0; 10]);
        parts[0].read(0, &mut back);
        assert_eq!(back.map(f32::to_bits), [0; 10]);
    }
}
