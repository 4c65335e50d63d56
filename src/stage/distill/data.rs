//! Documents in a seeded order that can be resumed anywhere. Knows no model and no loss.

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{math::random::shuffle, stage::Finite};

/// A share of the tokens that comes from long documents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Long {
    /// Of all tokens.
    pub share: Finite,
    /// A document is long that has more tokens.
    #[serde(default = "from")]
    pub from: usize,
}

fn from() -> usize {
    4096
}

/// Documents as token ids, dealt out in batches of about `batch_tokens`; every epoch in another order.
pub(crate) struct Feed<'a> {
    batch_tokens: usize,
    /// Of all tokens, those that come from the second pool.
    share: f64,
    pools: [Pool<'a>; 2],
    cursor: Cursor,
}

/// Where the feed stands; with the seed it decides all later batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Cursor {
    pools: [At; 2],
    /// Tokens that each pool has given.
    tokens: [u64; 2],
}

/// Where a pool stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct At {
    epoch: u64,
    next: usize,
}

/// Documents that are dealt out in one order.
struct Pool<'a> {
    documents: Vec<&'a [u32]>,
    seed: u64,
    /// Added to the epoch, so that pools are shuffled apart.
    stream: u64,
    order: Vec<usize>,
}

impl<'a> Feed<'a> {
    /// A feed over non-empty documents, standing at `cursor`; `None` where long ones are asked for and there is none.
    pub(crate) fn new(
        documents: &'a [Vec<u32>],
        (batch_tokens, long): (usize, Option<&Long>),
        seed: u64,
        cursor: Cursor,
    ) -> Option<Self> {
        let is_long = |ids: &&[u32]| long.is_some_and(|long| ids.len() > long.from);
        let (far, near): (Vec<_>, Vec<_>) = documents.iter().map(Vec::as_slice).partition(is_long);
        if long.is_some() && far.is_empty() {
            return None;
        }
        let share = if near.is_empty() { 1.0 } else { long.map_or(0.0, |long| long.share.0) };
        let pool = |documents: Vec<&'a [u32]>, stream: u64, at: At| {
            let order = shuffled(documents.len(), seed, stream + at.epoch);
            Pool { documents, seed, stream, order }
        };
        let pools = [pool(near, 0, cursor.pools[0]), pool(far, 1 << 62, cursor.pools[1])];
        Some(Self { batch_tokens, share, pools, cursor })
    }

    /// Where it stands now.
    pub(crate) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// The next batch: documents, each cut after `limit` tokens, until `batch_tokens` are reached, at least one.
    pub(crate) fn next(&mut self, limit: usize) -> Vec<&'a [u32]> {
        let mut chosen: Vec<&'a [u32]> = Vec::new();
        let mut tokens = 0;
        while tokens < self.batch_tokens {
            let [near, far] = self.cursor.tokens.map(|tokens| tokens as f64);
            let which = usize::from(self.share >= 1.0 || far < self.share * (near + far));
            let document = self.pools[which].at(&mut self.cursor.pools[which]);
            let document = &document[..document.len().min(limit)];
            if tokens > 0 && tokens + document.len() > self.batch_tokens + self.batch_tokens / 4 {
                break; // a long document waits for the next batch
            }
            tokens += document.len();
            chosen.push(document);
            self.cursor.tokens[which] += document.len() as u64;
            self.cursor.pools[which].next += 1;
        }
        chosen
    }
}

impl<'a> Pool<'a> {
    /// The document that is next; after the last one a new epoch begins.
    fn at(&mut self, at: &mut At) -> &'a [u32] {
        if at.next == self.order.len() {
            *at = At { epoch: at.epoch + 1, next: 0 };
            self.order = shuffled(self.documents.len(), self.seed, self.stream + at.epoch);
        }
        self.documents[self.order[at.next]]
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

    fn plain(documents: &[Vec<u32>], batch_tokens: usize, seed: u64, cursor: Cursor) -> Feed<'_> {
        Feed::new(documents, (batch_tokens, None), seed, cursor).unwrap()
    }

    fn tokens(batch: &[&[u32]]) -> usize {
        batch.iter().map(|document| document.len()).sum()
    }

    #[test]
    fn an_epoch_shows_every_document_once() {
        let documents = documents();
        let mut feed = plain(&documents, 10, 5, Cursor::default());
        let mut seen = Vec::new();
        while feed.cursor().pools[0].epoch == 0 && feed.cursor().pools[0].next < 23 {
            seen.extend(feed.next(usize::MAX).iter().map(|document| document[0]));
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
        let mut feed = plain(&documents, 20, 5, Cursor::default());
        for _ in 0..50 {
            let n = tokens(&feed.next(usize::MAX));
            assert!((12..=25).contains(&n), "{n}");
        }
        let documents = [vec![1; 99], vec![2; 3]];
        let mut long = plain(&documents, 20, 5, Cursor::default());
        assert!((0..4).map(|_| tokens(&long.next(usize::MAX))).all(|n| n == 99 || n <= 25));
    }

    #[test]
    fn a_cursor_resumes_exactly() {
        let documents = documents();
        let mut straight = plain(&documents, 15, 9, Cursor::default());
        for _ in 0..11 {
            straight.next(usize::MAX);
        }
        let mut resumed = plain(&documents, 15, 9, straight.cursor());
        for _ in 0..20 {
            assert_eq!(straight.next(usize::MAX), resumed.next(usize::MAX));
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

    /// Twenty documents of 10 tokens and three of 100.
    fn mixed() -> Vec<Vec<u32>> {
        (0..23u32).map(|i| vec![i; if i % 8 == 3 { 100 } else { 10 }]).collect()
    }

    #[test]
    fn long_documents_make_up_their_share() {
        let documents = mixed();
        for share in [0.1, 0.3, 0.8] {
            let long = Long { share: Finite(share), from: 50 };
            let of = |cursor| Feed::new(&documents, (60, Some(&long)), 5, cursor).unwrap();
            let mut feed = of(Cursor::default());
            let (mut all, mut far) = (0, 0);
            for i in 0..200 {
                if i == 77 {
                    feed = of(feed.cursor()); // a resumed feed does as the first
                }
                for document in feed.next(usize::MAX) {
                    all += document.len();
                    far += if document.len() == 100 { 100 } else { 0 };
                }
            }
            let got = f64::from(far as u32) / f64::from(all as u32);
            assert!((got - share).abs() < 0.02, "{share}: {got}");
        }
        let only_long = Long { share: Finite(0.2), from: 9 };
        let mut feed = Feed::new(&documents, (60, Some(&only_long)), 5, Cursor::default()).unwrap();
        assert!(!feed.next(usize::MAX).is_empty(), "where all are long there is no other pool");
        let none = Long { share: Finite(0.2), from: 100 };
        assert!(Feed::new(&documents, (60, Some(&none)), 5, Cursor::default()).is_none());
    }

    #[test]
    fn documents_are_cut_and_more_of_them_fit() {
        let documents = mixed();
        let mut feed = plain(&documents, 60, 5, Cursor::default());
        for _ in 0..20 {
            let batch = feed.next(7);
            assert!(batch.iter().all(|document| document.len() == 7));
            assert_eq!(batch.len(), 9);
        }
        assert!((0..20).any(|_| feed.next(usize::MAX).iter().any(|document| document.len() == 100)));
    }

    #[test]
    fn the_size_of_batches_does_not_change_the_order_of_documents() {
        let documents = documents();
        let seen = |batch_tokens| {
            let mut feed = plain(&documents, batch_tokens, 5, Cursor::default());
            let mut seen = Vec::new();
            while seen.len() < 60 {
                seen.extend(feed.next(usize::MAX).iter().map(|document| document[0]));
            }
            seen.truncate(60);
            seen
        };
        let one = seen(1);
        assert_eq!(seen(7), one);
        assert_eq!(seen(40), one);
    }
}
