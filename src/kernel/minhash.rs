//! The smallest hashes of a set, by many hash functions at once. Knows no text.
//!
//! Integers, so every instruction set gives the same: the loop is compiled for the widest vectors that the machine has, whose 64-bit
//! products make it several times faster.
#![expect(
    clippy::inline_always,
    reason = "it becomes part of the loops that are compiled for several instruction sets"
)]

use pulp::{Simd, WithSimd};

use super::arch::arch;
use crate::math::hash::mix;

/// Hash functions whose minima are kept in registers while the set passes by.
const LANES: usize = 16;

/// Of each of `count` hash functions, function `j` being `mix(x ^ salt(j))`, the smallest value over the set; `u64::MAX` where the
/// set is empty.
pub fn smallest(set: &[u64], count: usize) -> Vec<u64> {
    let mut smallest = vec![u64::MAX; count.next_multiple_of(LANES)];
    arch().dispatch(Task { set, smallest: &mut smallest });
    smallest.truncate(count);
    smallest
}

struct Task<'a> {
    set: &'a [u64],
    smallest: &'a mut [u64],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (group, smallest) in self.smallest.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let salts: [u64; LANES] = std::array::from_fn(|lane| salt(group * LANES + lane));
            let mut least = *smallest;
            for &x in self.set {
                for lane in 0..LANES {
                    least[lane] = mix(x ^ salts[lane]).min(least[lane]);
                }
            }
            *smallest = least;
        }
    }
}

/// What tells hash function `j` from the others: an odd multiple of the golden ratio's bits, never 0.
fn salt(j: usize) -> u64 {
    (j as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The definition: one function after the other.
pub fn definition(set: &[u64], count: usize) -> Vec<u64> {
    let least = |j| set.iter().map(|x| mix(x ^ salt(j))).min().unwrap_or(u64::MAX);
    (0..count).map(least).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{arch::testing::on_all, testing::fastest};

    fn set(n: u64) -> Vec<u64> {
        (0..n).map(|i| mix(i * i)).collect()
    }

    #[test]
    fn every_instruction_set_gives_the_smallest_of_the_definition() {
        for n in [0, 1, 2, 7, 100, 1003] {
            for count in [0, 1, LANES - 1, LANES, LANES + 1, 112, 4096] {
                let (set, want) = (set(n), definition(&set(n), count));
                for got in on_all(|| smallest(&set, count)) {
                    assert_eq!(got, want, "{n} hashes, {count} functions");
                }
            }
        }
    }

    #[test]
    fn the_functions_differ_and_neither_order_nor_repeats_matter() {
        let (mut some, count) = (set(50), 112);
        let before = smallest(&some, count);
        some.reverse();
        some.extend(some.clone());
        assert_eq!(smallest(&some, count), before);
        let mut distinct = before.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), count);
        assert_eq!(smallest(&[], 3), [u64::MAX; 3]);
    }

    #[test]
    fn bytes_are_pinned() {
        // Frozen: another value changes which documents are near duplicates. `mix` is a bijection, so this set gives 0 for function 0.
        assert_eq!(smallest(&[0x9e37_79b9_7f4a_7c15], 1), [0]);
        assert_eq!(smallest(&[0], 1), [0xe220_a839_7b1d_cdaf]);
    }

    /// `cargo test --release minhash -- --ignored --nocapture`
    #[test]
    #[ignore = "a measurement"]
    fn speed() {
        let set = set(100_000);
        let time = |run: &dyn Fn() -> Vec<u64>| fastest(10, run) * 1e9 / (set.len() * 112) as f64;
        let (fast, plain) = (time(&|| smallest(&set, 112)), time(&|| definition(&set, 112)));
        println!("{fast:.3} ns a hash, one function after the other {plain:.3}, ratio {:.1}", plain / fast);
    }
}
