//! The whole choice as a function of places among clusters, so that it can be made again with other vectors. Knows no text and no
//! file.

use super::{
    decision::{Decision, What},
    golden::{self, Candidate, Golden, Pick},
    mix,
    thin::{self, Dropped, Thinned, Vectors},
};

/// What is known of a document without its vector; documents are in the order of their ids.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fact<'a> {
    pub(super) id: &'a str,
    /// Where it came from, as quotas see it.
    pub(super) group: &'a str,
    pub(super) bucket: &'static str,
    pub(super) n_tokens: usize,
    /// Whether it may be in the split of its own stratum.
    pub(super) eligible: bool,
}

/// Where a document's vector lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) cluster: u32,
    pub(super) score: i64,
    pub(super) margin: Option<i64>,
    pub(super) density: Option<i64>,
}

/// The parameters, as integers.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    /// Number of centroids.
    pub(super) clusters: usize,
    pub(super) outlier_percent: u32,
    pub(super) mixed: usize,
    pub(super) seed: u64,
    /// Squared distance below which a document repeats another of the corpus.
    pub(super) semantic: Option<i64>,
    /// Squared distance below which a row is like another of its split.
    pub(super) distinct: Option<i64>,
    /// Largest number of tokens of each split.
    pub(super) budgets: [Option<u64>; 3],
}

/// One split.
#[derive(Debug)]
pub(super) struct Outcome {
    /// By index.
    pub(super) picks: Vec<Pick>,
    pub(super) dropped: Vec<Dropped>,
    pub(super) decisions: Vec<Decision>,
}

/// Everything that was chosen and left out.
#[derive(Debug)]
pub(super) struct Choice {
    /// Documents that repeat another one, taken out before all else.
    pub(super) repeats: Vec<Dropped>,
    /// Decisions about repeats.
    pub(super) decisions: Vec<Decision>,
    /// Short, long and mixed.
    pub(super) splits: [Outcome; 3],
}

/// Makes the choice. Rules that compare documents need vectors.
pub(super) fn choose(
    rules: &Rules,
    facts: &[Fact<'_>],
    places: &[Place],
    vectors: Option<Vectors<'_>>,
) -> Choice {
    let all: Vec<usize> = (0..facts.len()).collect();
    let repeats = match vectors.zip(rules.semantic) {
        // Ids are hashes, so the order is firm.
        Some((vectors, threshold)) => {
            thin::distinct(&all, |&i| i, |_, _| i64::MAX, (vectors, threshold, What::Repeat))
        }
        None => Thinned { kept: all, dropped: Vec::new(), decisions: Vec::new() },
    };
    let thinning = Thinning { rules, facts, distinct: vectors.zip(rules.distinct) };
    let golden = |bucket| {
        let candidates = candidates(&repeats.kept, facts, places, bucket);
        golden::choose(&candidates, rules.clusters, rules.outlier_percent)
    };
    let splits = [
        thinning.apply(golden("swa"), 0),
        thinning.apply(golden("full"), 1),
        thinning.apply(mixed(rules, &repeats.kept, facts, places), 2),
    ];
    Choice { repeats: repeats.dropped, decisions: repeats.decisions, splits }
}

fn candidates(kept: &[usize], facts: &[Fact<'_>], places: &[Place], bucket: &str) -> Vec<Candidate> {
    let candidate = |&index: &usize| {
        let Place { cluster, score, margin, density } = places[index];
        Candidate { index, cluster, score, margin, depth: density.unwrap_or(score) }
    };
    let here = |&&i: &&usize| facts[i].bucket == bucket && facts[i].eligible;
    kept.iter().filter(here).map(candidate).collect()
}

/// Quotas of every source and stratum. A row's margin is that of its cluster, since no score decided about it.
fn mixed(rules: &Rules, kept: &[usize], facts: &[Fact<'_>], places: &[Place]) -> Golden {
    let item = |&index: &usize| {
        let Fact { id, group, bucket, .. } = facts[index];
        mix::Item { index, cell: (group, bucket), id }
    };
    let items: Vec<_> = kept.iter().map(item).collect();
    let drawn = mix::choose(&items, mix::drawn(items.len(), rules.mixed), rules.seed);
    let pick = |(rank, index): (usize, usize)| Pick {
        index,
        reason: "mix",
        rank: rank as u32,
        margin: places[index].margin.unwrap_or(i64::MAX),
        key: None,
    };
    Golden { near: drawn.into_iter().enumerate().map(pick).collect(), ..Golden::default() }
}

/// The rules that take rows out of a split.
struct Thinning<'a> {
    rules: &'a Rules,
    facts: &'a [Fact<'a>],
    distinct: Option<(Vectors<'a>, i64)>,
}

impl Thinning<'_> {
    fn apply(&self, golden: Golden, split: usize) -> Outcome {
        let Golden { near, outliers, mut decisions } = golden;
        let first = near.len();
        let mut picks = [near, outliers].concat();
        let mut dropped = Vec::new();
        // All near ones come before all outliers, so only the order within a reason can change.
        let mut near_left = first;
        if let Some((vectors, threshold)) = self.distinct {
            let rule = (vectors, threshold, What::Similar);
            let thinned = thin::distinct(&picks, |pick| pick.index, gap, rule);
            near_left = thinned.kept.iter().filter(|pick| pick.reason != "outlier").count();
            (picks, dropped) = (thinned.kept, thinned.dropped);
            decisions.extend(thinned.decisions);
        }
        if let Some(budget) = self.rules.budgets[split] {
            let (near, outliers) = picks.split_at(near_left);
            let thinned = thin::within(&[near, outliers], |i| self.facts[i].n_tokens, budget);
            picks = thinned.kept;
            dropped.extend(thinned.dropped);
            decisions.extend(thinned.decisions);
        }
        picks.sort_unstable_by_key(|pick| pick.index);
        dropped.sort_unstable_by_key(|dropped| dropped.index);
        decisions.sort_unstable_by_key(|d| (d.index, d.what as u8));
        Outcome { picks, dropped, decisions }
    }
}

/// How firm the order of two picks is.
fn gap(a: &Pick, b: &Pick) -> i64 {
    match (a.key, b.key) {
        (Some(x), Some(y)) if a.reason == b.reason => (x - y).abs(),
        _ => i64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const IDS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

    fn rules() -> Rules {
        let budgets = [None; 3];
        Rules { clusters: 1, outlier_percent: 50, mixed: 4, seed: 0, semantic: None, distinct: None, budgets }
    }

    fn facts() -> Vec<Fact<'static>> {
        IDS.map(|id| Fact { id, group: "g", bucket: "swa", n_tokens: 10, eligible: true }).to_vec()
    }

    fn places() -> Vec<Place> {
        (0..6).map(|i| Place { cluster: 0, score: 100 - 10 * i, margin: None, density: None }).collect()
    }

    /// Documents 0 and 3 are alike, 4 and 5 too.
    const VECTORS: Vectors<'static> =
        Vectors { dim: 3, data: &[10, 0, 0, 0, 10, 0, 0, 0, 10, 10, 1, 0, -9, 0, 0, -9, 0, 1] };

    fn indices(outcome: &Outcome) -> Vec<usize> {
        outcome.picks.iter().map(|pick| pick.index).collect()
    }

    #[test]
    fn without_rules_nothing_is_taken_out() {
        let choice = choose(&rules(), &facts(), &places(), None);
        assert_eq!(indices(&choice.splits[0]), [0, 3, 4, 5]);
        assert!(choice.splits[1].picks.is_empty());
        assert_eq!(choice.splits[2].picks.len(), 3, "at most half");
        assert!(choice.repeats.is_empty() && choice.splits.iter().all(|s| s.dropped.is_empty()));
    }

    #[test]
    fn who_may_not_be_in_its_stratum_is_no_candidate_but_may_be_mixed() {
        let mut facts = facts();
        for i in [0, 5] {
            facts[i].eligible = false;
        }
        let choice = choose(&rules(), &facts, &places(), None);
        // Of 1 to 4, the nearest is 1, and half are outliers.
        assert_eq!(indices(&choice.splits[0]), [1, 3, 4]);
        assert!(choice.splits[0].decisions.iter().all(|d| ![0, 5].contains(&d.index)));
        let all = choose(&rules(), &super::tests::facts(), &places(), None);
        assert_eq!(indices(&choice.splits[2]), indices(&all.splits[2]));
    }

    #[test]
    fn a_row_like_one_that_ranks_higher_goes() {
        let rules = Rules { distinct: Some(10), ..rules() };
        let choice = choose(&rules, &facts(), &places(), Some(VECTORS));
        // The farthest, 5, is the first outlier, so 4 repeats it; 3 repeats the nearest.
        assert_eq!(indices(&choice.splits[0]), [0, 5]);
        let dropped: Vec<_> = choice.splits[0].dropped.iter().map(|d| (d.index, d.of)).collect();
        assert_eq!(dropped, [(3, Some(0)), (4, Some(5))]);
        let order = choice.splits[0].decisions.iter().filter(|d| d.what == What::Order);
        let firm: Vec<_> = order.map(|d| (d.index, d.margin)).collect();
        assert_eq!(firm, [(4, 10)], "the nearest is before all outliers whatever the scores");
    }

    #[test]
    fn a_repeat_is_gone_from_every_split_and_the_smallest_id_stays() {
        let rules = Rules { semantic: Some(10), mixed: 6, ..rules() };
        let choice = choose(&rules, &facts(), &places(), Some(VECTORS));
        let repeats: Vec<_> = choice.repeats.iter().map(|d| (d.index, d.of)).collect();
        assert_eq!(repeats, [(3, Some(0)), (5, Some(4))]);
        let all: BTreeSet<_> = choice.splits.iter().flat_map(indices).collect();
        assert!(!all.contains(&3) && !all.contains(&5), "{all:?}");
    }

    #[test]
    fn each_split_has_its_own_budget() {
        let rules = Rules { budgets: [Some(20), None, Some(10)], ..rules() };
        let choice = choose(&rules, &facts(), &places(), None);
        // One near, at half of its list, and three outliers, of which the first stands at a sixth.
        assert_eq!(indices(&choice.splits[0]), [0, 5]);
        assert_eq!([0, 2].map(|i| choice.splits[i].picks.len()), [2, 1]);
        assert_eq!(choice.splits[0].dropped.len(), 2);
    }
}
