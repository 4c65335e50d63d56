//! Draws from a seeded stream: the same seed gives the same everywhere. Knows no use of them.

use rand_chacha::ChaCha8Rng;
use rand_core::Rng;

/// A number below `n`; for every `n` that occurs the bias of the remainder is below one in a billion.
pub fn below(random: &mut ChaCha8Rng, n: usize) -> usize {
    (random.next_u64() % n as u64) as usize
}

/// A number from 0 up to, but not, 1: 53 random bits.
pub fn unit(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Any order of `items` is as likely as any other (Fisher and Yates).
pub fn shuffle<T>(items: &mut [T], random: &mut ChaCha8Rng) {
    for i in (1..items.len()).rev() {
        items.swap(i, below(random, i + 1));
    }
}

#[cfg(test)]
mod tests {
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn a_unit_is_anywhere_below_one() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let drawn: Vec<f64> = (0..4000).map(|_| unit(&mut random)).collect();
        assert!(drawn.iter().all(|x| (0.0..1.0).contains(x)));
        assert!((drawn.iter().sum::<f64>() / 4000.0 - 0.5).abs() < 0.02);
    }

    #[test]
    fn a_seed_gives_an_order_and_every_order_is_likely() {
        let order = |seed| {
            let mut items = [0, 1, 2];
            shuffle(&mut items, &mut ChaCha8Rng::seed_from_u64(seed));
            items
        };
        let mut seen = std::collections::BTreeMap::new();
        (0..600).for_each(|seed| *seen.entry(order(seed)).or_insert(0) += 1);
        assert_eq!(order(7), order(7));
        assert!(seen.len() == 6 && seen.values().all(|&n| (70..130).contains(&n)), "{seen:?}");
    }
}
