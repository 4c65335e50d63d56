//! Where the first centroids are. Knows no document: a point is its index, in the order of content hashes.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use rayon::prelude::*;

use super::kmeans::Points;

/// The first `k` points.
pub(super) fn first(points: Points<'_>, k: usize) -> Vec<i16> {
    points.data[..k * points.dim].to_vec()
}

/// k-means++: each next centroid is a point drawn with its squared distance to the nearest centroid so far as weight. Weights are
/// exact integers and draws are from a seeded ChaCha, so no float decides. Once every point lies on a centroid, the lowest
/// indices that are not chosen yet follow. `each` is called once per centroid and may stop.
pub(super) fn spread<E>(
    points: Points<'_>,
    k: usize,
    seed: u64,
    mut each: impl FnMut() -> Result<(), E>,
) -> Result<Vec<i16>, E> {
    let n = points.data.len() / points.dim;
    let mut rng = ChaCha8Rng::from_seed(blake3::derive_key("mla-run first centroids", &seed.to_le_bytes()));
    let mut weights = vec![1_u64; n];
    let mut chosen: Vec<usize> = Vec::with_capacity(k);
    for _ in 0..k {
        each()?;
        let next = match weights.iter().sum() {
            0 => (0..n).find(|i| !chosen.contains(i)),
            total => at(&weights, below(&mut rng, total)),
        };
        let Some(next) = next else { break };
        let centroid = points.row(next);
        let fresh = chosen.is_empty();
        weights.par_iter_mut().zip(points.data.par_chunks_exact(points.dim)).for_each(|(weight, row)| {
            let distance = squared(row, centroid);
            *weight = if fresh { distance } else { distance.min(*weight) };
        });
        chosen.push(next);
    }
    Ok(chosen.iter().flat_map(|&i| points.row(i)).copied().collect())
}

/// Exact squared distance.
fn squared(a: &[i16], b: &[i16]) -> u64 {
    a.iter().zip(b).map(|(&a, &b)| u64::from(a.abs_diff(b)).pow(2)).sum()
}

/// The point that `ticket` falls on when each takes as many tickets as its weight.
fn at(weights: &[u64], mut ticket: u64) -> Option<usize> {
    weights.iter().position(|&weight| {
        let here = ticket < weight;
        ticket = ticket.saturating_sub(weight);
        here
    })
}

/// A uniform number below `bound`: draws of the last, incomplete run of `bound` are thrown away.
fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    let rest = (u64::MAX % bound + 1) % bound;
    loop {
        let draw = rng.next_u64();
        if draw <= u64::MAX - rest {
            return draw % bound;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, convert::Infallible};

    use super::*;
    use crate::device::Device;

    fn points(data: &[i16]) -> Points<'_> {
        Points { dim: 2, data, device: Device::Cpu }
    }

    fn started(data: &[i16], k: usize, seed: u64) -> Vec<i16> {
        spread(points(data), k, seed, || Ok::<_, Infallible>(())).unwrap()
    }

    #[test]
    fn tickets_fall_in_proportion_to_weights() {
        assert_eq!((0..6).map(|t| at(&[2, 0, 3, 1], t)).collect::<Vec<_>>(), [0, 0, 2, 2, 2, 3].map(Some));
        assert_eq!(at(&[2, 1], 3), None);
    }

    #[test]
    fn draws_are_uniform_and_below_the_bound() {
        let mut rng = ChaCha8Rng::from_seed([1; 32]);
        let mut counts = [0; 3];
        (0..3000).for_each(|_| counts[below(&mut rng, 3) as usize] += 1);
        assert!(counts.iter().all(|c| (900..1100).contains(c)), "{counts:?}");
        assert_eq!(below(&mut rng, 1), 0);
        assert!(below(&mut rng, (1 << 63) + 1) <= 1 << 63);
    }

    #[test]
    fn far_points_are_preferred_and_the_seed_decides() {
        // Twenty points at one place, one at the opposite: it is always among two.
        let mut data = [4000, 0].repeat(20);
        data.extend([-4000, 0]);
        for seed in 0..8 {
            let both: BTreeSet<_> = started(&data, 2, seed).chunks(2).map(<[i16]>::to_vec).collect();
            assert_eq!(both, [vec![4000, 0], vec![-4000, 0]].into());
        }
        let circle: Vec<i16> = (0..40).flat_map(|i| [i * 100, 4000 - i * 100]).collect();
        assert_eq!(started(&circle, 5, 3), started(&circle, 5, 3));
        assert_ne!(started(&circle, 5, 3), started(&circle, 5, 4));
    }

    #[test]
    fn equal_points_give_the_first_ones_and_a_stop_ends_it() {
        assert_eq!(started(&[7, 1].repeat(5), 3, 0), [7, 1].repeat(3));
        assert_eq!(started(&[7, 1].repeat(2), 9, 0), [7, 1].repeat(2), "no more than there are");
        assert_eq!(first(points(&[1, 2, 3, 4, 5, 6]), 2), [1, 2, 3, 4]);
        assert_eq!(spread(points(&[1, 2]), 1, 0, || Err("stop")), Err("stop"));
    }

    #[test]
    fn threads_do_not_matter() {
        let data: Vec<i16> = (0..600).flat_map(|i: i16| [i * 7 % 3001, 3000 - i * 13 % 2003]).collect();
        let [one, two, five] = crate::kernel::testing::on_threads(|| started(&data, 9, 1));
        assert!(one == two && two == five);
    }
}
