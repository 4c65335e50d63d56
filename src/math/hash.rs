//! A fast 64-bit hash with the same values everywhere. Not for names of content: those are BLAKE3.

/// FNV-1a over a tag and the parts, with a separator after each, then [`mix`].
pub fn hash<'a>(tag: u64, parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let step = |h: u64, byte: u64| (h ^ byte).wrapping_mul(0x0000_0100_0000_01b3);
    let start = step(0xcbf2_9ce4_8422_2325, tag);
    let part = |h: u64, part: &[u8]| step(part.iter().fold(h, |h, &b| step(h, u64::from(b))), 0x1f);
    mix(parts.into_iter().fold(start, part))
}

/// The finaliser of `SplitMix64`: a bijection that spreads every bit.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_and_tags_are_told_apart() {
        let h = |tag, parts: &[&str]| hash(tag, parts.iter().map(|part| part.as_bytes()));
        let all =
            [h(1, &["ab", "c"]), h(1, &["a", "bc"]), h(1, &["abc"]), h(2, &["ab", "c"]), h(1, &["c", "ab"])];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }

    #[test]
    fn the_mix_is_split_mix_64() {
        // The first output of the reference generator for seed 0.
        assert_eq!(mix(0x9e37_79b9_7f4a_7c15), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn the_mix_is_a_bijection_and_spreads_every_bit() {
        // Its inverse, from the inverses of both factors modulo 2^64.
        let unshift = |z: u64, by: u32| (0..3).fold(z, |x, _| z ^ (x >> by));
        let back = |z: u64| {
            let z = unshift(z, 31).wrapping_mul(0x3196_42b2_d24d_8ec3);
            let z = unshift(z, 27).wrapping_mul(0x96de_1b17_3f11_9089);
            unshift(z, 30)
        };
        for x in (0..64).map(|i| 1u64 << i).chain([0, u64::MAX, 12_345]) {
            assert_eq!(back(mix(x)), x);
        }
        // Flipping any input bit flips about half of the output bits.
        for bit in 0..64 {
            let flipped: u32 =
                (0..64u64).map(|x| (mix(x * 977) ^ mix((x * 977) ^ (1 << bit))).count_ones()).sum();
            assert!((28 * 64..36 * 64).contains(&flipped), "bit {bit}: {flipped}");
        }
    }
}
