//! Calibration sequences: cut, divided from those that are kept out, and packed into batches. Knows no text and no weights.

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;

use crate::{math::random::below, model::Batch};

/// How texts become sequences.
pub(super) struct Limits {
    /// Tokens in all sequences together.
    pub(super) max_tokens: usize,
    /// Tokens of one sequence.
    pub(super) max_length: usize,
    /// Tokens set aside for measuring.
    pub(super) held_out: usize,
}

/// The calibration sequences and those kept out of them.
#[derive(Debug, PartialEq, Eq, Default)]
pub(super) struct Sequences {
    pub(super) calibration: Vec<Vec<u32>>,
    pub(super) held_out: Vec<Vec<u32>>,
}

/// Tokens that go through a layer at once, unless one sequence is longer.
const BATCH: usize = 4096;

impl Sequences {
    /// Sets sequences aside until `held_out` tokens are reached, then takes `max_tokens` for calibration. The first text always
    /// goes to calibration.
    pub(super) fn divide(ids: Vec<Vec<u32>>, limits: &Limits) -> Self {
        let mut sequences = Self::default();
        let (mut kept, mut aside) = (0, 0);
        for mut ids in ids {
            ids.truncate(limits.max_length);
            if ids.is_empty() {
                continue;
            }
            if kept > 0 && aside + ids.len() <= limits.held_out {
                aside += ids.len();
                sequences.held_out.push(ids);
                continue;
            }
            ids.truncate(limits.max_tokens - kept);
            kept += ids.len();
            sequences.calibration.push(ids);
            if kept == limits.max_tokens {
                break;
            }
        }
        sequences
    }

    /// Adds what `more` has to both parts, spread evenly, so that every beginning of them has about the same share of it.
    pub(super) fn mix_in(&mut self, more: Self) {
        mix(&mut self.calibration, more.calibration);
        mix(&mut self.held_out, more.held_out);
    }

    /// Replaces every calibration token by one of `vocab` at random; their number and what was set aside stay.
    pub(super) fn drown(&mut self, vocab: usize, seed: u64) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        for id in self.calibration.iter_mut().flatten() {
            *id = below(&mut random, vocab) as u32;
        }
    }

    /// Leaves of the calibration sequences every `of`-th, from number `index` on.
    pub(super) fn keep_share(&mut self, index: usize, of: usize) {
        let mut at = 0;
        self.calibration.retain(|_| {
            at += 1;
            (at - 1) % of == index
        });
    }

    /// Whether each calibration sequence is among those that have about `tokens` tokens together: the first, and then as evenly as they come.
    pub(super) fn spread(&self, tokens: usize) -> Vec<bool> {
        let all: usize = self.calibration.iter().map(Vec::len).sum();
        let (mut seen, mut taken) = (0, 0);
        let mut takes = |ids: &Vec<u32>| {
            // So many should be there before this one; it is taken if they are not.
            let takes = taken * all <= seen * tokens.min(all) && tokens > 0;
            seen += ids.len();
            taken += if takes { ids.len() } else { 0 };
            takes
        };
        self.calibration.iter().map(&mut takes).collect()
    }

    /// Batches of whole sequences, in order.
    pub(super) fn batches(&self) -> Vec<Batch> {
        Batch::packed(self.calibration.iter().map(Vec::as_slice), BATCH)
    }
}

fn mix(into: &mut Vec<Vec<u32>>, more: Vec<Vec<u32>>) {
    let spread = |ids: Vec<Vec<u32>>| {
        let n = ids.len();
        ids.into_iter().enumerate().map(move |(i, ids)| ((2 * i + 1) as f64 / (2 * n) as f64, ids))
    };
    let mut all: Vec<(f64, Vec<u32>)> = spread(std::mem::take(into)).chain(spread(more)).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    into.extend(all.into_iter().map(|(_, ids)| ids));
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn ids(lengths: &[usize]) -> Vec<Vec<u32>> {
        lengths.iter().enumerate().map(|(i, &n)| vec![i as u32; n]).collect()
    }

    fn lengths(sequences: &[Vec<u32>]) -> Vec<(u32, usize)> {
        sequences.iter().map(|ids| (ids[0], ids.len())).collect()
    }

    #[test]
    fn nothing_is_in_both_parts_and_limits_hold() {
        let limits = Limits { max_tokens: 25, max_length: 10, held_out: 12 };
        let sequences = Sequences::divide(ids(&[8, 30, 0, 5, 2, 9, 9, 9]), &limits);
        assert_eq!(lengths(&sequences.held_out), [(1, 10), (4, 2)]);
        assert_eq!(lengths(&sequences.calibration), [(0, 8), (3, 5), (5, 9), (6, 3)]);
    }

    #[test]
    fn what_is_mixed_in_is_spread_over_both_parts() {
        let of = |calibration: &[usize], held_out: &[usize]| Sequences {
            calibration: ids(calibration),
            held_out: ids(held_out),
        };
        let mut sequences = of(&[9, 9, 9, 9], &[5, 6]);
        sequences.mix_in(of(&[10, 3], &[7]));
        let order = lengths(&sequences.calibration);
        assert_eq!(order, [(0, 9), (0, 10), (1, 9), (2, 9), (1, 3), (3, 9)]);
        assert_eq!(lengths(&sequences.held_out), [(0, 5), (0, 7), (1, 6)]);
        let mut few = of(&[9], &[]);
        few.mix_in(of(&[1, 1, 1], &[]));
        assert_eq!(lengths(&few.calibration), [(0, 1), (0, 9), (1, 1), (2, 1)]);
    }

    #[test]
    fn noise_keeps_the_lengths_and_what_was_set_aside() {
        let limits = Limits { max_tokens: 2000, max_length: 1000, held_out: 10 };
        let mut sequences = Sequences::divide(ids(&[900, 10, 900]), &limits);
        let before = sequences.held_out.clone();
        sequences.drown(50, 3);
        assert_eq!(sequences.held_out, before);
        assert_eq!(sequences.calibration.iter().map(Vec::len).collect::<Vec<_>>(), [900, 900]);
        let mut counts = [0usize; 50];
        sequences.calibration.iter().flatten().for_each(|&id| counts[id as usize] += 1);
        assert!(counts.iter().all(|&n| (12..70).contains(&n)), "about 36 each: {counts:?}");
    }

    #[test]
    fn the_first_text_always_calibrates() {
        let limits = Limits { max_tokens: 25, max_length: 10, held_out: 100 };
        let sequences = Sequences::divide(ids(&[4]), &limits);
        assert_eq!((lengths(&sequences.calibration), sequences.held_out.len()), (vec![(0, 4)], 0));
    }

    #[test]
    fn shares_are_all_there_is_and_none_twice() {
        let share = |index| {
            let mut sequences = Sequences { calibration: ids(&[1, 2, 3, 4, 5]), held_out: ids(&[9]) };
            sequences.keep_share(index, 2);
            assert_eq!(sequences.held_out, ids(&[9]));
            lengths(&sequences.calibration)
        };
        assert_eq!((share(0), share(1)), (vec![(0, 1), (2, 3), (4, 5)], vec![(1, 2), (3, 4)]));
    }

    #[test]
    fn what_gradients_are_taken_of_is_spread_evenly() {
        let spread = |lengths: &[usize], tokens| {
            let sequences = Sequences { calibration: ids(lengths), held_out: Vec::new() };
            sequences.spread(tokens)
        };
        assert_eq!(spread(&[10; 8], 40), [true, false].repeat(4));
        assert_eq!(spread(&[10; 8], 25), [true, false, false, false, true, false, false, true]);
        assert_eq!(spread(&[5, 50, 5, 5], 10), [true, false, true, false]);
        assert_eq!((spread(&[10; 3], 99), spread(&[10; 3], 30)), (vec![true; 3], vec![true; 3]));
        assert_eq!((spread(&[10; 3], 0), spread(&[], 10)), (vec![false; 3], vec![]));
    }

    proptest! {
        #[test]
        fn limits_hold_and_no_sequence_is_seen_twice(
            given in vec(0usize..40, 1..30),
            max_tokens in 1usize..200,
            max_length in 1usize..30,
            held_out in 0usize..100,
        ) {
            let sequences = Sequences::divide(ids(&given), &Limits { max_tokens, max_length, held_out });
            let tokens = |part: &[Vec<u32>]| part.iter().map(Vec::len).sum::<usize>();
            prop_assert!(tokens(&sequences.calibration) <= max_tokens && tokens(&sequences.held_out) <= held_out);
            let (calibration, held_out) = (lengths(&sequences.calibration), lengths(&sequences.held_out));
            for part in [&calibration, &held_out] {
                prop_assert!(part.windows(2).all(|pair| pair[0].0 < pair[1].0), "in the order given");
            }
            prop_assert!(calibration.iter().all(|(i, _)| held_out.iter().all(|(j, _)| i != j)));
            for (i, length) in &held_out {
                prop_assert_eq!(*length, given[*i as usize].min(max_length), "what is held out is whole");
            }
            // Unless the budget is used up, every text that has a token is in one of the parts.
            let texts = given.iter().filter(|&&n| n > 0).count();
            prop_assert!(tokens(&sequences.calibration) == max_tokens || calibration.len() + held_out.len() == texts);
            let batched: Vec<u32> = sequences.batches().iter().flat_map(|batch| batch.ids.clone()).collect();
            prop_assert_eq!(batched, sequences.calibration.concat());
        }
    }
}
