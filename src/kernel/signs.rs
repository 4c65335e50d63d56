//! A random ±1 projection of weighted features, its signs made from the features themselves. Knows no text.
//!
//! Integers, so every instruction set gives the same: the loop is compiled for the widest vectors that the machine has.
#![expect(
    clippy::inline_always,
    reason = "it becomes part of the loops that are compiled for several instruction sets"
)]

use pulp::{Simd, WithSimd};

use super::arch::arch;
use crate::math::hash::mix;

/// Coordinates whose signs are the bits of one word.
const BLOCK: usize = 64;

/// Adds ±weight to every coordinate of `sum` for each feature `(name, weight)`. The signs are bits of a counter-mode generator keyed
/// by the name. The caller keeps sums of absolute weights within an i32.
pub fn add(features: &[(u64, i32)], sum: &mut [i32]) {
    arch().dispatch(Task { features, sum });
}

struct Task<'a> {
    features: &'a [(u64, i32)],
    sum: &'a mut [i32],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (block, coordinates) in self.sum.chunks_mut(BLOCK).enumerate() {
            // The sums of a whole block stay in registers.
            let mut sums = [0_i32; BLOCK];
            sums[..coordinates.len()].copy_from_slice(coordinates);
            for &(name, weight) in self.features {
                add_block(bits(name, block), weight, &mut sums);
            }
            coordinates.copy_from_slice(&sums[..coordinates.len()]);
        }
    }
}

/// The signs of a block of coordinates, 1 for plus, the first coordinate in the lowest bit.
fn bits(name: u64, block: usize) -> u64 {
    mix(name.wrapping_add((block as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// Both halves of the word by themselves, so that 32-bit lanes shift them.
#[inline(always)]
fn add_block(bits: u64, weight: i32, sums: &mut [i32; BLOCK]) {
    for (i, sum) in sums.iter_mut().enumerate() {
        let half = if i < BLOCK / 2 { bits as u32 } else { (bits >> 32) as u32 };
        // 0 for a bit that is set and −1 for one that is not: then `(w ^ m) − m` is −w.
        let minus = (half >> (i % (BLOCK / 2)) & 1) as i32 - 1;
        *sum += (weight ^ minus) - minus;
    }
}

/// The definition: one feature and one coordinate after the other.
pub fn definition(features: &[(u64, i32)], sum: &mut [i32]) {
    for &(name, weight) in features {
        for (i, s) in sum.iter_mut().enumerate() {
            let plus = bits(name, i / BLOCK) >> (i % BLOCK) & 1 == 1;
            *s += if plus { weight } else { -weight };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{arch::testing::on_all, testing::fastest};

    fn features(n: u64) -> Vec<(u64, i32)> {
        (0..n).map(|i| (mix(i), 64 + (mix(i + 1000) % 5000) as i32)).collect()
    }

    #[test]
    fn every_instruction_set_gives_the_sums_of_the_definition() {
        for n in [0, 1, 3, 500] {
            for dim in [1, 8, 31, 32, 33, 63, 64, 65, 256, 384, 1000, 1024] {
                let start: Vec<i32> = (0..dim).map(|i| i * 7 - 300).collect();
                let mut want = start.clone();
                definition(&features(n), &mut want);
                let run = || {
                    let mut sum = start.clone();
                    add(&features(n), &mut sum);
                    sum
                };
                assert!(on_all(run).iter().all(|got| *got == want), "{n} features, {dim} coordinates");
            }
        }
    }

    #[test]
    fn a_feature_alone_is_plus_or_minus_its_weight_in_equal_parts() {
        let mut sum = vec![0; 1024];
        add(&[(12345, 77)], &mut sum);
        assert!(sum.iter().all(|s| s.abs() == 77));
        let plus = sum.iter().filter(|&&s| s > 0).count();
        assert!((448..576).contains(&plus), "{plus}"); // four standard deviations
        add(&[(12345, -77)], &mut sum);
        assert_eq!(sum, [0; 1024]);
    }

    #[test]
    fn the_largest_sums_fit() {
        let mut sum = vec![0; 64];
        add(&[(5, 1 << 30), (5, (1 << 30) - 1)], &mut sum);
        assert!(sum.iter().all(|s| s.abs() == i32::MAX));
    }

    /// `cargo test --release signs -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        let features = features(4096);
        let time = |run: &dyn Fn(&mut [i32])| {
            let mut sum = vec![0; 256];
            let once = || {
                sum.fill(0);
                run(std::hint::black_box(&mut sum));
            };
            fastest(20, once) * 1e9 / (features.len() * 256) as f64
        };
        let (fast, plain) = (time(&|sum| add(&features, sum)), time(&|sum| definition(&features, sum)));
        println!("{fast:.3} ns a coordinate, by the definition {plain:.3}, ratio {:.1}", plain / fast);
    }
}
