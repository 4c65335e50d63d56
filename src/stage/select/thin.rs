//! Rules that take documents out again: those that repeat another one, and those that do not fit a budget of tokens. Knows no
//! text and no reason why a document was chosen.

use std::collections::BTreeSet;

use rayon::prelude::*;

use super::{
    decision::{Decision, What},
    golden::Pick,
};

/// Vectors of all documents.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vectors<'a> {
    pub(super) dim: usize,
    pub(super) data: &'a [i16],
}

impl Vectors<'_> {
    fn row(&self, i: usize) -> &[i16] {
        &self.data[i * self.dim..][..self.dim]
    }

    /// The exact squared distance of two documents. Vectors of zeros say nothing, so they are far from all.
    fn apart(&self, i: usize, j: usize) -> i64 {
        let (a, b) = (self.row(i), self.row(j));
        if [a, b].iter().any(|row| row.iter().all(|&q| q == 0)) {
            return FAR;
        }
        // Rows were checked to be short enough for i32 sums.
        let sum: i32 = a.iter().zip(b).map(|(&a, &b)| (i32::from(a) - i32::from(b)).pow(2)).sum();
        i64::from(sum)
    }
}

/// More than any squared distance on the grid.
const FAR: i64 = 1 << 40;

/// A document that was taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) index: usize,
    /// `similar` or `budget`.
    pub(super) reason: &'static str,
    /// With `similar`: the document that it repeats.
    pub(super) of: Option<usize>,
}

/// What is left.
#[derive(Debug)]
pub(super) struct Thinned<T> {
    pub(super) kept: Vec<T>,
    pub(super) dropped: Vec<Dropped>,
    pub(super) decisions: Vec<Decision>,
}

/// Goes through `items` in their order and takes out each whose squared distance to one that is kept is below `threshold`. `gap`
/// says how firm the order of two items is. Distances are compared rather than products, since rounding to the grid changes
/// lengths: the product of equal vectors need not be 1.
///
/// The result depends on nothing but distances of kept items and, for each that is taken out, its distance to one kept item and
/// the order of those two; so these are the decisions.
pub(super) fn distinct<T: Copy + Sync>(
    items: &[T],
    index: impl Fn(&T) -> usize + Sync,
    gap: impl Fn(&T, &T) -> i64,
    (vectors, threshold, what): (Vectors<'_>, i64, What),
) -> Thinned<T> {
    let mut thinned = Thinned { kept: Vec::<T>::new(), dropped: Vec::new(), decisions: Vec::new() };
    for item in items {
        let here = index(item);
        let apart: Vec<i64> =
            thinned.kept.par_iter().map(|other| vectors.apart(index(other), here)).collect();
        let near = || thinned.kept.iter().zip(&apart).filter(|(_, apart)| **apart < threshold);
        let of = near().next().map(|(other, _)| index(other));
        let kept = of.is_none();
        let mut decided = |what, margin| {
            thinned.decisions.push(Decision { index: here, what, kept, margin });
        };
        let firmest = near().map(|(other, apart)| (threshold - apart, gap(other, item)));
        if let Some((margin, order)) = firmest.max_by_key(|(margin, order)| *margin.min(order)) {
            decided(what, margin);
            if order < i64::MAX {
                decided(What::Order, order);
            }
        } else if let Some(nearest) = apart.iter().min() {
            decided(what, nearest - threshold);
        }
        match of {
            Some(_) => thinned.dropped.push(Dropped { index: here, reason: "similar", of }),
            None => thinned.kept.push(*item),
        }
    }
    thinned
}

/// Takes picks until their tokens reach the budget: all lists at the same pace relative to their lengths, each by rank. One that
/// does not fit is left out, and later ones that do are taken.
pub(super) fn within(lists: &[&[Pick]], tokens: impl Fn(usize) -> usize, budget: u64) -> Thinned<Pick> {
    // The middle of each place as a fraction of its list, compared without rounding.
    let mut order: Vec<(usize, usize)> =
        lists.iter().enumerate().flat_map(|(list, picks)| (0..picks.len()).map(move |i| (i, list))).collect();
    let paced = |&(i, list): &(usize, usize), &(j, other): &(usize, usize)| {
        let (left, right) = ((2 * i + 1) * lists[other].len(), (2 * j + 1) * lists[list].len());
        left.cmp(&right).then(list.cmp(&other))
    };
    order.sort_by(paced);

    let mut thinned = Thinned { kept: Vec::new(), dropped: Vec::new(), decisions: Vec::new() };
    let mut left = budget;
    let mut first = None;
    for (at, &(i, list)) in order.iter().enumerate() {
        let pick = lists[list][i];
        if let Some(rest) = left.checked_sub(tokens(pick.index) as u64) {
            left = rest;
            thinned.kept.push(pick);
        } else {
            first.get_or_insert(at);
            thinned.dropped.push(Dropped { index: pick.index, reason: "budget", of: None });
        }
    }
    if let Some(first) = first {
        thinned.decisions = cut(lists, &order, first, &thinned.dropped);
    }
    thinned
}

/// Margins of the budget's decisions. Until the first that does not fit, only the set of those before matters, so each is as firm as
/// its rank against the next of its list; after it, everything depends on the exact order.
fn cut(lists: &[&[Pick]], order: &[(usize, usize)], first: usize, dropped: &[Dropped]) -> Vec<Decision> {
    let dropped: BTreeSet<usize> = dropped.iter().map(|d| d.index).collect();
    let mut taken = vec![0; lists.len()];
    for &(_, list) in &order[..first] {
        taken[list] += 1;
    }
    let (_, first_list) = order[first];
    let decision = |(at, &(i, list)): (usize, &(usize, usize))| {
        let pick = &lists[list][i];
        let key = pick.key?;
        let next = lists[list].get(taken[list] + usize::from(list == first_list && at == first));
        let margin = match next.and_then(|next| next.key) {
            _ if at > first => 0,
            Some(next) => (next - key).abs(),
            None => i64::MAX,
        };
        let kept = !dropped.contains(&pick.index);
        Some(Decision { index: pick.index, what: What::Budget, kept, margin })
    };
    order.iter().enumerate().filter_map(decision).collect()
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn pick(index: usize, reason: &'static str, key: Option<i64>) -> Pick {
        Pick { index, reason, rank: 0, margin: 0, key }
    }

    /// One coordinate a document, so that distances are easy.
    fn thin(order: &[usize], values: &[i16], threshold: i64) -> Thinned<usize> {
        distinct(order, |&i| i, |_, _| 9, (Vectors { dim: 1, data: values }, threshold, What::Similar))
    }

    #[test]
    fn a_row_that_repeats_one_that_is_kept_is_taken_out() {
        let thinned = thin(&[0, 1, 2, 3], &[10, 9, 1, 8], 5);
        assert_eq!(thinned.kept, [0, 2]);
        let similar = |index| Dropped { index, reason: "similar", of: Some(0) };
        assert_eq!(thinned.dropped, [similar(1), similar(3)]);
        let margins: Vec<_> = thinned.decisions.iter().map(|d| (d.index, d.what, d.kept, d.margin)).collect();
        let (like, order) = (What::Similar, What::Order);
        let expected = [
            (1, like, false, 4),
            (1, order, false, 9),
            (2, like, true, 76),
            (3, like, false, 1),
            (3, order, false, 9),
        ];
        assert_eq!(margins, expected);
        assert_eq!(thin(&[0, 1], &[10, 8], 4).kept, [0, 1], "at the threshold it stays");
        assert_eq!(thin(&[1, 0], &[10, 9], 5).kept, [1], "the first in order stays");
        assert_eq!(thin(&[0, 1, 2], &[0, 0, 1], 100).kept, [0, 1, 2], "zeros are like nothing");
    }

    #[test]
    fn one_that_was_taken_out_takes_nothing_out() {
        // 0 and 1 are alike, 1 and 2 are, 0 and 2 are not: 2 stays, since 1 is gone.
        let thinned = thin(&[0, 1, 2], &[10, 12, 14], 5);
        assert_eq!(thinned.kept, [0, 2]);
        assert!(thin(&[], &[], 0).kept.is_empty());
    }

    #[test]
    fn a_budget_is_filled_at_the_same_pace_from_each_list() {
        let near: Vec<_> = (0..2).map(|i| pick(i, "near", Some(100 - i as i64))).collect();
        let outliers: Vec<_> = (2..6).map(|i| pick(i, "outlier", Some(i as i64))).collect();
        let kept = |budget| -> Vec<usize> {
            within(&[&near, &outliers], |_| 10, budget).kept.iter().map(|p| p.index).collect()
        };
        assert_eq!(kept(60), [2, 0, 3, 4, 1, 5]);
        assert_eq!(kept(35), [2, 0, 3]);
        assert!(kept(9).is_empty());
        assert!(within(&[&near], |_| 10, 20).decisions.is_empty(), "all fit, so nothing was decided");
    }

    #[test]
    fn a_long_row_is_passed_over_and_ranks_are_as_firm_as_their_gaps() {
        let near: Vec<_> =
            [90, 80, 75, 60].into_iter().enumerate().map(|(i, key)| pick(i, "near", Some(key))).collect();
        let thinned = within(&[&near], |i| [10, 10, 50, 5][i], 30);
        assert_eq!(thinned.kept.iter().map(|p| p.index).collect::<Vec<_>>(), [0, 1, 3]);
        assert_eq!(thinned.dropped, [Dropped { index: 2, reason: "budget", of: None }]);
        let margins: Vec<_> = thinned.decisions.iter().map(|d| (d.index, d.kept, d.margin)).collect();
        assert_eq!(margins, [(0, true, 15), (1, true, 5), (2, false, 15), (3, true, 0)]);
        let drawn = [pick(0, "mix", None), pick(1, "mix", None)];
        assert!(within(&[&drawn], |_| 10, 10).decisions.is_empty(), "no vector decides about a draw");
    }

    proptest! {
        #[test]
        fn a_budget_is_kept_and_only_what_does_not_fit_is_left_out(
            tokens in vec(0_usize..50, 0..30),
            cut in 0_usize..30,
            budget in 0_u64..400,
        ) {
            let picks: Vec<_> = (0..tokens.len()).map(|i| pick(i, "near", Some(i as i64))).collect();
            let (near, far) = picks.split_at(cut.min(picks.len()));
            let thinned = within(&[near, far], |i| tokens[i], budget);
            let sum: u64 = thinned.kept.iter().map(|p| tokens[p.index] as u64).sum();
            prop_assert!(sum <= budget);
            prop_assert_eq!(thinned.kept.len() + thinned.dropped.len(), tokens.len());
            prop_assert!(thinned.dropped.iter().all(|d| sum + tokens[d.index] as u64 > budget));
        }
    }
}
