//! Documents in a seeded order that can be resumed anywhere. Knows no model and no loss.

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;

use crate::math::random::shuffle;

/// Documents as token ids, dealt out in batches of about `batch_tokens`; every epoch in another order.
pub(crate) struct Feed<'a> {
    documents: &'a [Vec<u32>],
    batch_tokens: usize,
    seed: u64,
    order: Vec<usize>,
    cursor: Cursor,
}

/// Where the feed stands; with the seed it decides all later batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Cursor {
    epoch: u64,
    next: usize,
}

impl<'a> Feed<'a> {
    /// A feed over non-empty documents, standing at `cursor`.
    pub(crate) fn new(documents: &'a [Vec<u32>], batch_tokens: usize, seed: u64, cursor: Cursor) -> Self {
        let order = shuffled(documents.len(), seed, cursor.epoch);
        Self { documents, batch_tokens, seed, order, cursor }
    }

    /// Where it stands now.
    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The next batch: whole documents until `batch_tokens` are reached, at least one.
    pub(crate) fn next(&mut self) -> Vec<&'a [u32]> {
        let mut chosen: Vec<&'a [u32]> = Vec::new();
        let mut tokens = 0;
        while tokens < self.batch_tokens {
            if self.cursor.next == self.order.len() {
                self.cursor = Cursor { epoch: self.cursor.epoch + 1, next: 0 };
                self.order = shuffled(self.documents.len(), self.seed, self.cursor.epoch);
            }
            let document = &self.documents[self.order[self.cursor.next]];
            if tokens > 0 && tokens + document.len() > self.batch_tokens + self.batch_tokens / 4 {
                break; // a long document waits for the next batch
            }
            tokens += document.len();
            chosen.push(document);
            self.cursor.next += 1;
        }
        chosen
    }
}

/// The documents of one epoch in random order (a ChaCha stream of its own).
pub(crate) fn shuffled(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch);
    let mut order: Vec<usize> = (0..n).collect();
    shuffle(&mut order, &mut rng);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents() -> Vec<Vec<u32>> {
        (0..23u32).map(|i| vec![i; 3 + i as usize % 7]).collect()
    }

    fn tokens(batch: &[&[u32]]) -> usize {
        batch.iter().map(|document| document.len()).sum()
    }

    #[test]
    fn an_epoch_shows_every_document_once() {
        let documents = documents();
        let mut feed = Feed::new(&documents, 10, 5, Cursor::default());
        let mut seen = Vec::new();
        while feed.cursor().epoch == 0 && feed.cursor().next < 23 {
            seen.extend(feed.next().iter().map(|document| document[0]));
        }
        let first: Vec<u32> = seen.drain(..23).collect();
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..23).collect::<Vec<_>>());
        assert_ne!(first, sorted);
    }

    #[test]
    fn batches_respect_the_budget() {
        let documents = documents();
        let mut feed = Feed::new(&documents, 20, 5, Cursor::default());
        for _ in 0..50 {
            let n = tokens(&feed.next());
            assert!((12..=25).contains(&n), "{n}");
        }
        let documents = [vec![1; 99], vec![2; 3]];
        let mut long = Feed::new(&documents, 20, 5, Cursor::default());
        assert!((0..4).map(|_| tokens(&long.next())).all(|n| n == 99 || n <= 25));
    }

    #[test]
    fn a_cursor_resumes_exactly() {
        let documents = documents();
        let mut straight = Feed::new(&documents, 15, 9, Cursor::default());
        for _ in 0..11 {
            straight.next();
        }
        let mut resumed = Feed::new(&documents, 15, 9, straight.cursor());
        for _ in 0..20 {
            assert_eq!(straight.next(), resumed.next());
        }
    }

    #[test]
    fn every_seed_and_every_epoch_has_its_own_order() {
        let orders = [(5, 0), (5, 1), (5, 2), (6, 0), (6, 1)].map(|(seed, epoch)| shuffled(23, seed, epoch));
        for (i, order) in orders.iter().enumerate() {
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert!(sorted.into_iter().eq(0..23));
            assert!(orders[..i].iter().all(|other| other != order));
        }
        assert_eq!(shuffled(1, 5, 0), [0]);
    }

    #[test]
    fn the_size_of_batches_does_not_change_the_order_of_documents() {
        let documents = documents();
        let seen = |batch_tokens| {
            let mut feed = Feed::new(&documents, batch_tokens, 5, Cursor::default());
            let mut seen = Vec::new();
            while seen.len() < 60 {
                seen.extend(feed.next().iter().map(|document| document[0]));
            }
            seen.truncate(60);
            seen
        };
        let one = seen(1);
        assert_eq!(seen(7), one);
        assert_eq!(seen(40), one);
    }
}
