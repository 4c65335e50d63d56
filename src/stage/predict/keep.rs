//! What is kept of one distribution. Knows no model and no file.

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;

use crate::{
    artifact::predictions::{Entries, digest},
    math::{random::unit, softmax::log_sum_exp},
};

/// What to keep.
pub(super) struct Keep {
    pub(super) top_k: usize,
    /// Fewer than `top_k` where they have this much of the probability.
    pub(super) mass: f64,
    /// So many draws instead.
    pub(super) draws: Option<usize>,
    pub(super) seed: u64,
}

/// What was kept.
#[derive(Debug, PartialEq)]
pub(super) struct Row {
    /// Token ids and probabilities, the greatest first; or shares of the draws by ascending id.
    pub(super) entries: Vec<(u32, f32)>,
    /// Of the whole distribution, in nats.
    pub(super) entropy: f32,
}

impl Keep {
    pub(super) fn entries(&self) -> Entries {
        if self.draws.is_some() { Entries::Draws } else { Entries::TopK }
    }

    /// What to keep of the softmax of `logits`; `at` is the stream and the row in it. `None` where a logit is no number.
    pub(super) fn row(&self, logits: &[f32], at: (u64, usize)) -> Option<Row> {
        let all = log_sum_exp(logits)?;
        let p: Vec<f64> = logits.iter().map(|&z| (f64::from(z) - all).exp()).collect();
        let mean: f64 = p.iter().zip(logits).map(|(p, &z)| p * f64::from(z)).sum();
        let entries = match self.draws {
            Some(draws) => self.drawn(&p, draws, at),
            None => self.most_probable(&p),
        };
        Some(Row { entries, entropy: (all - mean).max(0.0) as f32 })
    }

    fn most_probable(&self, p: &[f64]) -> Vec<(u32, f32)> {
        let mut ids: Vec<u32> = (0..p.len() as u32).collect();
        let before = |a: &u32, b: &u32| p[*b as usize].total_cmp(&p[*a as usize]).then(a.cmp(b));
        if self.top_k < ids.len() {
            ids.select_nth_unstable_by(self.top_k, before);
            ids.truncate(self.top_k);
        }
        ids.sort_unstable_by(before);
        let mut held = 0.0;
        let enough = |&id: &u32| {
            let goes_on = held < self.mass;
            held += p[id as usize];
            goes_on
        };
        ids.into_iter().take_while(enough).map(|id| (id, p[id as usize] as f32)).collect()
    }

    fn drawn(&self, p: &[f64], draws: usize, (stream, row): (u64, usize)) -> Vec<(u32, f32)> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(stream);
        random.set_word_pos(2 * (row * draws) as u128);
        let mut points: Vec<f64> = (0..draws).map(|_| unit(&mut random)).collect();
        points.sort_unstable_by(f64::total_cmp);
        let sum: f64 = p.iter().sum();
        let (mut passed, mut next, mut entries) = (0.0, 0, Vec::new());
        // What rounding leaves falls on the last token that can be drawn.
        let last = p.iter().rposition(|p| *p > 0.0).unwrap_or(0);
        for (id, p) in p.iter().enumerate().take(last + 1) {
            passed += p / sum;
            let from = next;
            while next < draws && (points[next] < passed || id == last) {
                next += 1;
            }
            if next > from {
                entries.push((id as u32, (next - from) as f32 / draws as f32));
            }
        }
        entries
    }
}

/// The stream that a document's draws come from: its own, whatever other documents there are.
pub(super) fn stream(ids: &[u32]) -> u64 {
    u64::from_le_bytes(*digest(ids).as_bytes().first_chunk().expect("it has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOP: Keep = Keep { top_k: 3, mass: 1.0, draws: None, seed: 5 };

    fn logits(p: &[f32]) -> Vec<f32> {
        p.iter().map(|p| p.ln() + 2.0).collect()
    }

    fn ids(row: &Row) -> Vec<u32> {
        row.entries.iter().map(|(id, _)| *id).collect()
    }

    #[test]
    fn the_most_probable_are_kept_in_order_until_they_have_enough() {
        let z = logits(&[0.05, 0.5, 0.05, 0.3, 0.1]);
        let row = TOP.row(&z, (0, 0)).unwrap();
        assert_eq!(ids(&row), [1, 3, 4]);
        let want = [0.5, 0.3, 0.1];
        assert!(row.entries.iter().zip(want).all(|((_, p), want)| (p - want).abs() < 1e-6));
        let entropy: f32 = -[0.05f32, 0.5, 0.05, 0.3, 0.1].iter().map(|p| p * p.ln()).sum::<f32>();
        assert!((row.entropy - entropy).abs() < 1e-5);
        assert_eq!(ids(&Keep { mass: 0.6, ..TOP }.row(&z, (0, 0)).unwrap()), [1, 3]);
        assert_eq!(ids(&Keep { mass: 0.4, ..TOP }.row(&z, (0, 0)).unwrap()), [1]);
        // Of equals the first; and where there are fewer, all.
        assert_eq!(ids(&Keep { top_k: 4, ..TOP }.row(&z, (0, 0)).unwrap()), [1, 3, 4, 0]);
        assert_eq!(ids(&Keep { top_k: 9, ..TOP }.row(&z, (0, 0)).unwrap()), [1, 3, 4, 0, 2]);
    }

    #[test]
    fn draws_fall_on_tokens_as_their_probabilities_say() {
        let keep = Keep { draws: Some(20_000), ..TOP };
        let p = [0.1, 1e-30, 0.6, 0.3, 1e-30];
        let row = keep.row(&logits(&p), (7, 0)).unwrap();
        assert_eq!(ids(&row), [0, 2, 3]);
        assert!(row.entries.iter().all(|(id, share)| (share - p[*id as usize]).abs() < 0.01), "{row:?}");
        assert!((row.entries.iter().map(|(_, share)| share).sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn rows_streams_and_seeds_draw_apart_and_again_the_same() {
        let z: Vec<f32> = (0..200).map(|i| (i % 17) as f32 / 9.0).collect();
        let keep = Keep { draws: Some(30), ..TOP };
        let first = keep.row(&z, (7, 3)).unwrap();
        assert_eq!(keep.row(&z, (7, 3)).unwrap(), first);
        for (keep, at) in
            [(&keep, (7, 4)), (&keep, (8, 3)), (&Keep { draws: Some(30), seed: 6, ..TOP }, (7, 3))]
        {
            assert_ne!(keep.row(&z, at).unwrap(), first);
        }
        assert_ne!(stream(&[1, 2]), stream(&[2, 1]));
    }

    #[test]
    fn logits_that_are_no_numbers_are_noticed() {
        assert_eq!(TOP.row(&[0.0, f32::NAN], (0, 0)), None);
    }
}
