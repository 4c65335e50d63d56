//! The golden choice within one stratum: nearest to each centroid, and the farthest few per cent. Knows no text.
//!
//! Documents are indices in the order of their ids, so "the lower index" is "the lower id". Scores are products with the
//! document's own centroid: the larger, the nearer.

use std::{cmp::Reverse, collections::BTreeMap};

use super::decision::{Decision, What};

/// A document as the choice sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Its index among all documents.
    pub(super) index: usize,
    pub(super) cluster: u32,
    pub(super) score: i64,
    /// How much smaller the product with the next centroid is; none where there is one centroid.
    pub(super) margin: Option<i64>,
    /// What tells outliers, the smallest first: the score, or the density.
    pub(super) depth: i64,
}

/// A chosen document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) index: usize,
    pub(super) reason: &'static str,
    pub(super) rank: u32,
    /// How far the deciding score is from where the decision would change.
    pub(super) margin: i64,
    /// The value that decided about its rank; none where a draw did.
    pub(super) key: Option<i64>,
}

/// What is chosen in one stratum, by rank, and every decision that led there.
#[derive(Debug, Default)]
pub(super) struct Golden {
    /// The nearest document of each cluster.
    pub(super) near: Vec<Pick>,
    /// The outliers that are no cluster's nearest.
    pub(super) outliers: Vec<Pick>,
    pub(super) decisions: Vec<Decision>,
}

/// How many of `n` are outliers: the share rounded down, so that few documents give none.
pub(super) fn outlier_count(n: usize, percent: u32) -> usize {
    n * percent as usize / 100
}

/// The nearest document of each of `k` clusters, and the outliers. A document that is both counts as `near`.
pub(super) fn choose(candidates: &[Candidate], k: usize, outlier_percent: u32) -> Golden {
    let mut golden = Golden::default();
    golden.nearest(candidates, k);
    golden.add_outliers(candidates, outlier_percent);
    golden
}

impl Golden {
    fn nearest(&mut self, candidates: &[Candidate], k: usize) {
        let mut clusters: BTreeMap<u32, Vec<&Candidate>> = BTreeMap::new();
        for candidate in candidates {
            clusters.entry(candidate.cluster).or_default().push(candidate);
        }
        let mut near: Vec<(&Candidate, i64)> = Vec::new();
        for members in clusters.values_mut() {
            members.sort_unstable_by_key(|c| (Reverse(c.score), c.index));
            let next = members.get(1).map(|next| members[0].score - next.score);
            let decided = |margin| Decision { index: members[0].index, what: What::Near, kept: true, margin };
            self.decisions.extend(next.map(decided));
            // Another document could take its place, or it could go to another cluster.
            let margin = next.into_iter().chain(members[0].margin).min().unwrap_or(i64::MAX);
            near.push((members[0], margin));
        }
        // A cluster without a document here takes any that comes to it.
        let lowest = if clusters.len() < k { None } else { near.iter().map(|(c, _)| c.score).min() };
        for members in clusters.values() {
            let decided = |(i, c): (usize, &&Candidate)| assignment(c, i == 0, lowest);
            self.decisions.extend(members.iter().enumerate().filter_map(decided));
        }
        near.sort_unstable_by_key(|(c, _)| (Reverse(c.score), c.index));
        let pick = |(rank, (c, margin)): (usize, (&Candidate, i64))| Pick {
            index: c.index,
            reason: "near",
            rank: rank as u32,
            margin,
            key: Some(c.score),
        };
        self.near = near.into_iter().enumerate().map(pick).collect();
    }

    fn add_outliers(&mut self, candidates: &[Candidate], percent: u32) {
        let mut far: Vec<&Candidate> = candidates.iter().collect();
        far.sort_unstable_by_key(|c| (c.depth, c.index));
        let count = outlier_count(far.len(), percent);
        let (Some(last_in), Some(first_out)) =
            (count.checked_sub(1).map(|last| far[last].depth), far.get(count).map(|c| c.depth))
        else {
            return;
        };
        let near: std::collections::BTreeSet<usize> = self.near.iter().map(|pick| pick.index).collect();
        let kept = far[..count].iter().filter(|c| !near.contains(&c.index));
        let pick = |(rank, c): (usize, &&Candidate)| Pick {
            index: c.index,
            reason: "outlier",
            rank: rank as u32,
            margin: first_out - c.depth,
            key: Some(c.depth),
        };
        self.outliers = kept.enumerate().map(pick).collect();
        let decided = |(i, c): (usize, &&Candidate)| {
            let kept = i < count;
            let margin = if kept { first_out - c.depth } else { c.depth - last_in };
            Decision { index: c.index, what: What::Outlier, kept, margin }
        };
        self.decisions.extend(far.iter().enumerate().map(decided));
    }
}

/// The decision that a document belongs to its cluster. One that is not the nearest there matters only if it could become the
/// nearest elsewhere: then its product with that centroid, at most the second best, must reach the nearest's, at least `lowest`.
fn assignment(c: &Candidate, nearest: bool, lowest: Option<i64>) -> Option<Decision> {
    let own = c.margin?;
    let margin = match lowest {
        Some(lowest) if !nearest => own.max(lowest - (c.score - own)),
        _ => own,
    };
    Some(Decision { index: c.index, what: What::Assignment, kept: nearest, margin })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(index: usize, cluster: u32, score: i64) -> Candidate {
        Candidate { index, cluster, score, margin: Some(50), depth: score }
    }

    /// All picks by index.
    fn all(candidates: &[Candidate], percent: u32) -> Vec<Pick> {
        let Golden { near, outliers, .. } = choose(candidates, 2, percent);
        let mut picks = [near, outliers].concat();
        picks.sort_unstable_by_key(|pick| pick.index);
        picks
    }

    /// Index, whether it was chosen, and margin of the decisions of one kind.
    fn decided(candidates: &[Candidate], k: usize, what: What) -> Vec<(usize, bool, i64)> {
        let mut decisions = choose(candidates, k, 25).decisions;
        decisions.retain(|d| d.what == what);
        decisions.sort_unstable_by_key(|d| d.index);
        decisions.iter().map(|d| (d.index, d.kept, d.margin)).collect()
    }

    fn chosen(picks: &[Pick]) -> Vec<(usize, &str, u32, i64)> {
        picks.iter().map(|p| (p.index, p.reason, p.rank, p.margin)).collect()
    }

    #[test]
    fn few_documents_give_no_outliers_and_never_all() {
        assert_eq!([0, 1, 19, 20, 39, 40, 100].map(|n| outlier_count(n, 5)), [0, 0, 0, 1, 1, 2, 5]);
        assert_eq!(outlier_count(1, 50), 0);
        // One cluster of 19: the nearest alone is chosen.
        let few: Vec<_> = (0..19).map(|i| candidate(i, 0, i as i64)).collect();
        assert_eq!(chosen(&all(&few, 5)), [(18, "near", 0, 1)]);
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        let rows = [
            candidate(3, 0, 9),
            candidate(4, 0, 9),
            candidate(5, 1, 9),
            candidate(6, 1, 2),
            candidate(7, 1, 2),
        ];
        assert_eq!(chosen(&all(&rows, 20)), [(3, "near", 0, 0), (5, "near", 1, 7), (6, "outlier", 0, 0)]);
    }

    #[test]
    fn margins_say_how_close_the_decision_was() {
        // Alone in its cluster, only another cluster could take it.
        let rows = [
            candidate(0, 0, 100),
            candidate(1, 1, 80),
            candidate(2, 1, 70),
            candidate(3, 1, 30),
            candidate(4, 1, 36),
        ];
        assert_eq!(chosen(&all(&rows, 20)), [(0, "near", 0, 50), (1, "near", 1, 10), (3, "outlier", 0, 6)]);
        let alone = Candidate { margin: None, ..candidate(0, 0, 1) };
        assert_eq!(chosen(&all(&[alone], 5)), [(0, "near", 0, i64::MAX)]);
    }

    #[test]
    fn a_document_that_is_both_is_near() {
        let rows = [candidate(0, 0, 100), candidate(1, 0, 90), candidate(2, 1, 5), candidate(3, 0, 80)];
        assert_eq!(chosen(&all(&rows, 25)), [(0, "near", 0, 10), (2, "near", 1, 50)]);
        assert_eq!(all(&[], 5), []);
    }

    #[test]
    fn the_order_of_candidates_does_not_matter() {
        let rows: Vec<_> = (0..60).map(|i| candidate(i, (i % 4) as u32, (i * 37 % 11) as i64)).collect();
        let expected = all(&rows, 10);
        let mut turned = rows.clone();
        turned.reverse();
        assert_eq!(all(&turned, 10), expected);
        turned.rotate_left(17);
        assert_eq!(all(&turned, 10), expected);
    }

    #[test]
    fn every_decision_keeps_its_margin() {
        let rows = [candidate(0, 0, 100), candidate(1, 0, 90), candidate(2, 1, 80), candidate(3, 1, 10)];
        assert_eq!(decided(&rows, 2, What::Near), [(0, true, 10), (2, true, 70)]);
        // One outlier of four: the cut lies between 10 and 80.
        let expected = [(0, false, 90), (1, false, 80), (2, false, 70), (3, true, 70)];
        assert_eq!(decided(&rows, 2, What::Outlier), expected);
        // Of those that are not the nearest, 1 has at most 40 elsewhere, where 80 is the nearest; 3 has at most -40.
        let expected = [(0, true, 50), (1, false, 50), (2, true, 50), (3, false, 120)];
        assert_eq!(decided(&rows, 2, What::Assignment), expected);
        // A third cluster has no document here: whoever comes is its nearest.
        assert_eq!(decided(&rows, 3, What::Assignment)[3], (3, false, 50));
    }

    #[test]
    fn density_tells_outliers_where_it_is_given() {
        let mut rows: Vec<_> = (0..20).map(|i| candidate(i, 0, 100 - i as i64)).collect();
        rows[3].depth = -7;
        assert_eq!(chosen(&all(&rows, 5)), [(0, "near", 0, 1), (3, "outlier", 0, 88)]);
    }
}
