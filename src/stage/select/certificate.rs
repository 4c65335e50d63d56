//! The certificate of stability: which decisions an error in the vectors could change, and how much does change when they are moved.
//! Knows no text.
//!
//! A split is proved unchanged, for the same centroids and any errors up to the radius, if none of its decisions is listed and none
//! about repeats is. Otherwise it can change only if one of those goes the other way.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{
    choice::{Choice, Outcome},
    decision::{Bounds, Decision, What},
    thin::Dropped,
};

/// What is written as `certificate.json`.
#[derive(Debug, Serialize)]
pub(super) struct Certificate {
    bounds: Bounds,
    /// Decisions about repeats in the whole corpus.
    repeats: Decided,
    splits: Vec<Proof>,
    /// How much of each split is the same after all vectors were moved by the radius.
    copies: Vec<Overlap>,
}

#[derive(Debug, Serialize)]
struct Proof {
    split: &'static str,
    /// Chosen rows with a listed decision.
    rows: usize,
    #[serde(flatten)]
    decided: Decided,
}

/// The decisions of one choice.
#[derive(Debug, Serialize)]
struct Decided {
    decisions: usize,
    /// Those that could change, by document.
    borderline: Vec<Listed>,
    /// What was taken out.
    dropped: Vec<Gone>,
}

#[derive(Debug, Serialize)]
struct Listed {
    id: String,
    what: What,
    kept: bool,
    margin: i64,
}

#[derive(Debug, Serialize)]
struct Gone {
    id: String,
    reason: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    of: Option<String>,
}

/// The rows that two selections have in common, and those in either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Share {
    common: usize,
    either: usize,
}

/// One split of the given vectors against that of a moved copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Overlap {
    copy: u32,
    split: &'static str,
    all: Share,
    near: Share,
    outlier: Share,
}

impl Share {
    fn of(a: &BTreeSet<usize>, b: &BTreeSet<usize>) -> Self {
        Self { common: a.intersection(b).count(), either: a.union(b).count() }
    }

    /// In per cent, rounded down; two empty selections are equal.
    fn percent(self) -> usize {
        (self.common * 100).checked_div(self.either).unwrap_or(100)
    }
}

impl Overlap {
    /// Compares the splits of two choices.
    pub(super) fn of(copy: u32, names: [&'static str; 3], given: &Choice, moved: &Choice) -> Vec<Self> {
        let chosen = |outcome: &Outcome, reason: Option<&str>| -> BTreeSet<usize> {
            let picks = outcome.picks.iter().filter(|p| reason.is_none_or(|reason| p.reason == reason));
            picks.map(|pick| pick.index).collect()
        };
        let pairs = names.into_iter().zip(given.splits.iter().zip(&moved.splits));
        let one = |(split, (a, b)): (&'static str, (&Outcome, &Outcome))| {
            let share = |reason| Share::of(&chosen(a, reason), &chosen(b, reason));
            Self { copy, split, all: share(None), near: share(Some("near")), outlier: share(Some("outlier")) }
        };
        pairs.map(one).collect()
    }
}

impl Certificate {
    /// Lists what is within the bounds.
    pub(super) fn new(
        bounds: Bounds,
        names: [&'static str; 3],
        choice: &Choice,
        ids: &[&str],
        copies: Vec<Overlap>,
    ) -> Self {
        let decided =
            |decisions: &[Decision], dropped: &[Dropped]| Decided::new(bounds, decisions, dropped, ids);
        let proof = |(split, outcome): (&'static str, &Outcome)| Proof {
            split,
            rows: borderline(bounds, outcome).len(),
            decided: decided(&outcome.decisions, &outcome.dropped),
        };
        Self {
            bounds,
            repeats: decided(&choice.decisions, &choice.repeats),
            splits: names.into_iter().zip(&choice.splits).map(proof).collect(),
            copies,
        }
    }

    /// Whether and how far the selection is proved, for the run's journal.
    pub(super) fn lines(&self) -> Vec<String> {
        let decisions: usize = self.all().map(|d| d.decisions).sum();
        let open: usize = self.all().map(|d| d.borderline.len()).sum();
        let mut lines = vec![format!(
            "certificate: {open} of {decisions} decisions could change if vectors were off by {} of {} units",
            self.bounds.radius, self.bounds.scale
        )];
        let worst = |of: fn(&Overlap) -> Share| self.copies.iter().map(|o| of(o).percent()).min();
        let (all, near, outlier) = (worst(|o| o.all), worst(|o| o.near), worst(|o| o.outlier));
        if let (Some(all), Some(near), Some(outlier)) = (all, near, outlier) {
            lines.push(format!(
                "moved by that much, the splits keep at least {all} % of their rows ({near} % of near, {outlier} % of outliers)"
            ));
        }
        lines
    }

    fn all(&self) -> impl Iterator<Item = &Decided> {
        std::iter::once(&self.repeats).chain(self.splits.iter().map(|proof| &proof.decided))
    }
}

impl Decided {
    fn new(bounds: Bounds, decisions: &[Decision], dropped: &[Dropped], ids: &[&str]) -> Self {
        let id = |index: usize| ids[index].to_owned();
        let listed = |d: &Decision| Listed { id: id(d.index), what: d.what, kept: d.kept, margin: d.margin };
        let gone = |d: &Dropped| Gone { id: id(d.index), reason: d.reason, of: d.of.map(id) };
        Self {
            decisions: decisions.len(),
            borderline: decisions.iter().filter(|d| bounds.reach(d)).map(listed).collect(),
            dropped: dropped.iter().map(gone).collect(),
        }
    }
}

/// The chosen documents of a split with a decision that could change.
pub(super) fn borderline(bounds: Bounds, outcome: &Outcome) -> BTreeSet<usize> {
    let open: BTreeSet<usize> =
        outcome.decisions.iter().filter(|d| bounds.reach(d)).map(|d| d.index).collect();
    outcome.picks.iter().map(|pick| pick.index).filter(|index| open.contains(index)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::select::golden::Pick;

    fn outcome(picks: &[(usize, &'static str)], margins: &[(usize, i64)]) -> Outcome {
        let pick =
            |&(index, reason): &(usize, &'static str)| Pick { index, reason, rank: 0, margin: 0, key: None };
        let decision =
            |&(index, margin): &(usize, i64)| Decision { index, what: What::Near, kept: true, margin };
        Outcome {
            picks: picks.iter().map(pick).collect(),
            dropped: vec![Dropped { index: 2, reason: "similar", of: Some(0) }],
            decisions: margins.iter().map(decision).collect(),
        }
    }

    fn choice(picks: &[(usize, &'static str)], margins: &[(usize, i64)]) -> Choice {
        let splits = [outcome(picks, margins), outcome(&[], &[]), outcome(&[], &[])];
        Choice { repeats: vec![], decisions: vec![], splits }
    }

    const NAMES: [&str; 3] = ["s", "f", "m"];

    #[test]
    fn only_what_could_change_is_listed() {
        let bounds = Bounds::new(Some(0.001), (4, 4000), false, [None; 2]);
        let edge = bounds.centroid;
        let choice = choice(&[(0, "near"), (1, "near")], &[(0, edge), (1, edge + 1), (2, 5)]);
        assert_eq!(borderline(bounds, &choice.splits[0]), [0].into(), "2 is not chosen");
        let certificate = Certificate::new(bounds, NAMES, &choice, &["a", "b", "c"], vec![]);
        let json = serde_json::to_value(&certificate).unwrap();
        let split = &json["splits"][0];
        let ids: Vec<_> =
            split["borderline"].as_array().unwrap().iter().map(|l| l["id"].as_str().unwrap()).collect();
        assert_eq!((ids, &split["decisions"], &split["rows"]), (vec!["a", "c"], &3.into(), &1.into()));
        assert_eq!(split["dropped"][0], serde_json::json!({ "id": "c", "reason": "similar", "of": "a" }));
        let line = "certificate: 2 of 3 decisions could change if vectors were off by 4 of 4000 units";
        assert_eq!(certificate.lines(), [line]);
    }

    #[test]
    fn copies_are_compared_by_reason() {
        let given = choice(&[(0, "near"), (1, "near"), (4, "outlier")], &[]);
        let moved = choice(&[(0, "near"), (2, "near"), (4, "outlier")], &[]);
        let overlaps = Overlap::of(3, NAMES, &given, &moved);
        let share = |common, either| Share { common, either };
        let (all, near, outlier) = (share(2, 4), share(1, 3), share(1, 1));
        assert_eq!(overlaps[0], Overlap { copy: 3, split: "s", all, near, outlier });
        assert_eq!(overlaps[1].all.percent(), 100, "both are empty");
        let bounds = Bounds::new(None, (4, 4000), false, [None; 2]);
        let certificate = Certificate::new(bounds, NAMES, &given, &["a"; 5], overlaps);
        let line = "moved by that much, the splits keep at least 50 % of their rows (33 % of near, 100 % of outliers)";
        assert_eq!(certificate.lines()[1], line);
    }
}
