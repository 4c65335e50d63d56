//! Evidence that a document needs long attention: rare tokens that come again after more than a window. Knows no text, only ids.
//!
//! It costs no model. A rare token that returns after a thousand others is mostly a name or a term that is recalled; within the
//! window, a sliding layer would do.

use std::sync::{Mutex, PoisonError};

/// In how many documents each token stands.
#[derive(Debug, Default)]
pub(super) struct Frequencies(Mutex<Vec<u32>>);

impl Frequencies {
    /// Counts one document. Sums of integers, so the order of documents does not matter.
    pub(super) fn add(&self, ids: &[u32]) {
        let mut distinct = ids.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        // A count is whole at any time, whatever became of another thread.
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&last) = distinct.last() {
            let len = counts.len().max(last as usize + 1);
            counts.resize(len, 0);
        }
        for id in distinct {
            counts[id as usize] += 1;
        }
    }

    /// What is rare among `n` documents: a token that stands in one document alone, or in at most one of a hundred.
    pub(super) fn rare(self, n: usize) -> Rare {
        let limit = (n / 100).max(1) as u32;
        Rare { limit, counts: self.0.into_inner().unwrap_or_else(PoisonError::into_inner) }
    }
}

/// Which tokens are rare.
#[derive(Debug)]
pub(super) struct Rare {
    limit: u32,
    counts: Vec<u32>,
}

/// Rare tokens that come again beyond a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Recalls {
    /// How often.
    pub(super) count: u32,
    /// The median distance from the last time, in tokens; the lower of two.
    pub(super) typical: u32,
    /// The largest.
    pub(super) longest: u32,
}

impl Rare {
    fn holds(&self, id: u32) -> bool {
        self.counts.get(id as usize).is_some_and(|&count| count <= self.limit)
    }

    /// Recalls in one document of those that were counted.
    pub(super) fn recalls(&self, ids: &[u32], window: usize) -> Recalls {
        let mut places: Vec<(u32, usize)> =
            ids.iter().enumerate().filter(|(_, id)| self.holds(**id)).map(|(at, &id)| (id, at)).collect();
        places.sort_unstable();
        let again = places.windows(2).filter(|pair| pair[0].0 == pair[1].0);
        let mut distances: Vec<usize> =
            again.map(|pair| pair[1].1 - pair[0].1).filter(|&distance| distance > window).collect();
        distances.sort_unstable();
        let count = distances.len();
        let typical = distances.get(count.saturating_sub(1) / 2).map_or(0, |&d| d as u32);
        Recalls { count: count as u32, typical, longest: distances.last().map_or(0, |&d| d as u32) }
    }
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    fn counted(documents: &[Vec<u32>]) -> Rare {
        let frequencies = Frequencies::default();
        documents.par_iter().for_each(|ids| frequencies.add(ids));
        frequencies.rare(documents.len())
    }

    fn recalls(count: u32, typical: u32, longest: u32) -> Recalls {
        Recalls { count, typical, longest }
    }

    #[test]
    fn distances_count_from_the_last_time_and_beyond_the_window() {
        // 7 stands at 0, 3, 9 and 10, and 8 at 1 and 8; all others once.
        let ids = vec![7, 8, 20, 7, 21, 22, 23, 24, 8, 7, 7];
        let rare = counted(std::slice::from_ref(&ids));
        assert_eq!(rare.recalls(&ids, 2), recalls(3, 6, 7), "3, 6 and 7");
        assert_eq!(rare.recalls(&ids, 5), recalls(2, 6, 7), "the lower of two");
        assert_eq!(rare.recalls(&ids, 7), Recalls::default(), "7 is not beyond 7");
        assert_eq!(rare.recalls(&[], 0), Recalls::default());
    }

    #[test]
    fn what_many_documents_share_is_no_evidence() {
        let mut documents = vec![vec![1, 2, 3, 1]; 199];
        documents.push(vec![1, 9, 3, 3, 9, 1]);
        documents.push(vec![9]);
        let rare = counted(&documents);
        assert_eq!(rare.recalls(&documents[199], 0), recalls(1, 3, 3), "9 stands in two of 201");
        assert_eq!(counted(&documents[..=199]).recalls(&[2, 2], 0), Recalls::default());
        let few = counted(&[vec![5, 6, 5], vec![5]]);
        assert_eq!(few.recalls(&[5, 6, 5], 0), Recalls::default(), "in both of two documents");
        assert_eq!(few.recalls(&[77, 77], 0), Recalls::default(), "never counted");
    }
}
