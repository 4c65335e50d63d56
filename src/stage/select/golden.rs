//! The golden choice within one stratum: nearest to each centroid, and the farthest few per cent. Knows no text.
//!
//! Documents are indices in the order of their ids, so "the lower index" is "the lower id". Scores are products with the
//! document's own centroid: the larger, the nearer.

use std::{cmp::Reverse, collections::BTreeMap};

/// A document as the choice sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Its index among all documents.
    pub(super) index: usize,
    pub(super) cluster: u32,
    pub(super) score: i64,
    /// How much smaller the product with the next centroid is; none where there is one centroid.
    pub(super) margin: Option<i64>,
}

/// A chosen document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pick {
    pub(super) index: usize,
    pub(super) reason: &'static str,
    pub(super) rank: u32,
    /// How far the deciding score is from where the decision would change.
    pub(super) margin: i64,
}

/// How many of `n` are outliers: the share rounded down, so that few documents give none.
pub(super) fn outlier_count(n: usize, percent: u32) -> usize {
    n * percent as usize / 100
}

/// The union of the nearest document of each cluster and the outliers, by index. A document that is both counts as `near`.
pub(super) fn choose(candidates: &[Candidate], outlier_percent: u32) -> Vec<Pick> {
    let mut picks = nearest(candidates);
    let near: Vec<usize> = picks.iter().map(|pick| pick.index).collect();
    picks.extend(outliers(candidates, outlier_percent, &near));
    picks.sort_unstable_by_key(|pick| pick.index);
    picks
}

fn nearest(candidates: &[Candidate]) -> Vec<Pick> {
    let mut clusters: BTreeMap<u32, Vec<&Candidate>> = BTreeMap::new();
    for candidate in candidates {
        clusters.entry(candidate.cluster).or_default().push(candidate);
    }
    let mut near: Vec<(&Candidate, i64)> = Vec::new();
    for members in clusters.values_mut() {
        members.sort_unstable_by_key(|c| (Reverse(c.score), c.index));
        let next = members.get(1).map(|next| members[0].score - next.score);
        // Another document could take its place, or it could go to another cluster.
        let margin = next.into_iter().chain(members[0].margin).min().unwrap_or(i64::MAX);
        near.push((members[0], margin));
    }
    near.sort_unstable_by_key(|(c, _)| (Reverse(c.score), c.index));
    let pick = |(rank, (c, margin)): (usize, (&Candidate, i64))| Pick {
        index: c.index,
        reason: "near",
        rank: rank as u32,
        margin,
    };
    near.into_iter().enumerate().map(pick).collect()
}

fn outliers(candidates: &[Candidate], percent: u32, near: &[usize]) -> Vec<Pick> {
    let mut far: Vec<&Candidate> = candidates.iter().collect();
    far.sort_unstable_by_key(|c| (c.score, c.index));
    let count = outlier_count(far.len(), percent);
    let Some(first_out) = far.get(count).map(|c| c.score) else { return Vec::new() };
    let kept = far[..count].iter().filter(|c| !near.contains(&c.index));
    let pick = |(rank, c): (usize, &&Candidate)| Pick {
        index: c.index,
        reason: "outlier",
        rank: rank as u32,
        margin: first_out - c.score,
    };
    kept.enumerate().map(pick).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(index: usize, cluster: u32, score: i64) -> Candidate {
        Candidate { index, cluster, score, margin: Some(50) }
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
        assert_eq!(chosen(&choose(&few, 5)), [(18, "near", 0, 1)]);
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        let all = [
            candidate(3, 0, 9),
            candidate(4, 0, 9),
            candidate(5, 1, 9),
            candidate(6, 1, 2),
            candidate(7, 1, 2),
        ];
        assert_eq!(chosen(&choose(&all, 20)), [(3, "near", 0, 0), (5, "near", 1, 7), (6, "outlier", 0, 0)]);
    }

    #[test]
    fn margins_say_how_close_the_decision_was() {
        // Alone in its cluster, only another cluster could take it.
        let all = [
            candidate(0, 0, 100),
            candidate(1, 1, 80),
            candidate(2, 1, 70),
            candidate(3, 1, 30),
            candidate(4, 1, 36),
        ];
        assert_eq!(chosen(&choose(&all, 20)), [(0, "near", 0, 50), (1, "near", 1, 10), (3, "outlier", 0, 6)]);
        let alone = Candidate { margin: None, ..candidate(0, 0, 1) };
        assert_eq!(chosen(&choose(&[alone], 5)), [(0, "near", 0, i64::MAX)]);
    }

    #[test]
    fn a_document_that_is_both_is_near() {
        let all = [candidate(0, 0, 100), candidate(1, 0, 90), candidate(2, 1, 5), candidate(3, 0, 80)];
        assert_eq!(chosen(&choose(&all, 25)), [(0, "near", 0, 10), (2, "near", 1, 50)]);
        assert_eq!(choose(&[], 5), []);
    }

    #[test]
    fn the_order_of_candidates_does_not_matter() {
        let all: Vec<_> = (0..60).map(|i| candidate(i, (i % 4) as u32, (i * 37 % 11) as i64)).collect();
        let expected = choose(&all, 10);
        let mut turned = all.clone();
        turned.reverse();
        assert_eq!(choose(&turned, 10), expected);
        turned.rotate_left(17);
        assert_eq!(choose(&turned, 10), expected);
    }
}
