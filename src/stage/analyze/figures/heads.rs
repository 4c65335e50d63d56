//! Shares, lengths and distances of heads. Knows no pairs and no experts.

use super::{Of, filled, protocol};
use crate::artifact::{
    analysis::{Head, KvHead},
    moments::{BUCKETS, bucket},
};

/// Sums of norms for one head: norms and their number at position 0, at positions 1 to 3, at the others.
const PLACES: usize = 6;

/// The share of attention to tokens that lies within a head's reach.
const REACH: f64 = 0.9;

impl Of<'_> {
    pub(super) fn head(&self, h: usize) -> Head {
        let (sums, mass) = (self.sums, self.distances(h));
        let logit = sums.sink_logits[h];
        let row = |sums: &[f64]| sums[h * BUCKETS..][..BUCKETS].to_vec();
        let (sink, first) = (row(&sums.sink), row(&sums.first_token));
        let mut distance = vec![0.0; mass.len().checked_sub(1).map_or(0, |longest| bucket(longest) + 1)];
        for (i, x) in mass.iter().enumerate() {
            distance[bucket(i)] += x / self.tokens;
        }
        let (mean_distance, reach) = distances(mass);
        Head {
            // An architecture without sinks has logits of −∞.
            sink_logit: logit.is_finite().then_some(logit),
            sink_mass: sink.iter().sum::<f64>() / self.tokens,
            sink_by_position: if logit.is_finite() { self.by_position(&sink) } else { vec![] },
            first_token_mass: first.iter().sum::<f64>() / self.tokens,
            first_token_by_position: self.by_position(&first),
            distance,
            far: mass.iter().skip(protocol(self.about).far).fold(0.0, |sum, x| sum + x) / self.tokens,
            mean_distance,
            reach,
            query_norm: self.root_mean_square(sums.query_energy[h]),
        }
    }

    pub(super) fn kv_head(&self, g: usize) -> KvHead {
        let (keys, values) = (&self.sums.first_keys, &self.sums.first_values);
        KvHead {
            key_norm: self.root_mean_square(self.sums.key_energy[g]),
            first_key_ratio: first_ratio(keys, g),
            first_four_keys_ratio: first_four_ratio(keys, g),
            first_value_ratio: first_ratio(values, g),
        }
    }

    /// Of a sum of squares over tokens, without YaRN's factor.
    pub(super) fn root_mean_square(&self, energy: f64) -> f64 {
        (energy / self.tokens).sqrt() / self.about.model.concentration
    }

    /// Head `h`'s attention by distance.
    pub(super) fn distances(&self, h: usize) -> &[f64] {
        let width = self.sums.distance.len() / self.heads();
        &self.sums.distance[h * width..][..width]
    }

    /// Means over the tokens at each position.
    fn by_position(&self, sums: &[f64]) -> Vec<f64> {
        let tokens = filled(&self.sums.positions);
        // A window of powers of two that no text ends in holds tokens, because positions have no holes.
        tokens.iter().zip(sums).map(|(n, sum)| sum / n.max(1.0)).collect()
    }
}

/// The mean distance and the reach of attention by distance; 0 where there is none.
pub(super) fn distances(mass: &[f64]) -> (f64, usize) {
    let total: f64 = mass.iter().sum();
    if total <= 0.0 {
        return (0.0, 0);
    }
    let mean = mass.iter().enumerate().map(|(i, x)| i as f64 * x).sum::<f64>() / total;
    let mut within = 0.0;
    let reach = mass.iter().position(|x| {
        within += x;
        within >= REACH * total
    });
    (mean, reach.unwrap_or(mass.len() - 1))
}

/// The mean norm at position 0 over the mean at all others, for row `row`; 1 where either is missing.
pub(super) fn first_ratio(sums: &[f64], row: usize) -> f64 {
    let [first, firsts, next, nexts, rest, rests] = places(sums, row);
    ratio((first, firsts), (next + rest, nexts + rests))
}

/// The mean norm at positions 0 to 3 over the mean at all others, for row `row`; 1 where either is missing.
pub(super) fn first_four_ratio(sums: &[f64], row: usize) -> f64 {
    let [first, firsts, next, nexts, rest, rests] = places(sums, row);
    ratio((first + next, firsts + nexts), (rest, rests))
}

fn places(sums: &[f64], row: usize) -> [f64; PLACES] {
    sums[row * PLACES..][..PLACES].try_into().expect("as many as asked for")
}

/// One mean over another.
fn ratio((a, of_a): (f64, f64), (b, of_b): (f64, f64)) -> f64 {
    if of_a > 0.0 && b > 0.0 { (a / of_a) / (b / of_b) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-12, "{got} {want}");
    }

    #[test]
    fn the_reach_holds_nine_tenths() {
        assert_eq!(distances(&[8.0, 1.0, 1.0]), (0.3, 1));
        assert_eq!(distances(&[8.0, 0.9, 1.1]).1, 2, "a little less is not enough");
        assert_eq!((distances(&[0.0, 0.0]), distances(&[])), ((0.0, 0), (0.0, 0)));
        assert_eq!(distances(&[0.0, 0.0, 3.0]), (2.0, 2));
    }

    #[test]
    fn ratios_are_those_of_means() {
        // Row 1: one key of 12 first, three of 4 in all behind it, two of 6 in all after those.
        let sums = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 12.0, 1.0, 4.0, 3.0, 6.0, 2.0];
        near(first_ratio(&sums, 1), 12.0 / (10.0 / 5.0));
        near(first_four_ratio(&sums, 1), (16.0 / 4.0) / (6.0 / 2.0));
        assert_eq!((first_ratio(&sums, 0), first_four_ratio(&sums, 0)), (1.0, 1.0), "no token, no ratio");
        let short = [5.0, 1.0, 5.0, 2.0, 0.0, 0.0];
        near(first_ratio(&short, 0), 2.0);
        near(first_four_ratio(&short, 0), 1.0);
        near(first_ratio(&[5.0, 1.0, 0.0, 3.0, 0.0, 2.0], 0), 1.0);
    }
}
