//! Figures for plots: sizes of clusters, lengths, sources before and after, and the documents in the plane. Knows no drawing.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    choice::{Choice, Fact, Place},
    golden::Pick,
};
use crate::math::pca::Plane;

/// What is written as `report.json`. Lists of three are by split.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Report {
    splits: [&'static str; 3],
    clusters: Vec<Size>,
    lengths: Vec<Length>,
    sources: Vec<Origin>,
    /// Shares of the variance along both axes of the scatter, in thousandths.
    #[serde(skip_serializing_if = "Option::is_none")]
    spread: Option<[u32; 2]>,
}

/// Documents of one cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Size {
    cluster: usize,
    documents: usize,
    chosen: [usize; 3],
}

/// Documents of `from` to `to` tokens; bounds are powers of two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Length {
    from: usize,
    to: usize,
    documents: usize,
    chosen: [usize; 3],
}

/// Documents of one source.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Origin {
    source: String,
    documents: usize,
    tokens: usize,
    chosen: [usize; 3],
    chosen_tokens: [usize; 3],
}

/// A document in the plane, in grid units.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Point<'a> {
    pub(super) id: &'a str,
    pub(super) x: i32,
    pub(super) y: i32,
    pub(super) cluster: u32,
    /// The reasons why each split has it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) chosen: BTreeMap<&'static str, &'static str>,
}

impl Report {
    pub(super) fn new(
        splits: [&'static str; 3],
        (facts, places, clusters): (&[Fact<'_>], &[Place], usize),
        choice: &Choice,
        plane: Option<&Plane>,
    ) -> Self {
        let cluster = |cluster| Size { cluster, ..Size::default() };
        let mut report = Self {
            splits,
            clusters: (0..clusters).map(cluster).collect(),
            lengths: Vec::new(),
            sources: Vec::new(),
            spread: plane.map(|plane| plane.share),
        };
        let mut sources: BTreeMap<&str, Origin> = BTreeMap::new();
        for (fact, place) in facts.iter().zip(places) {
            report.clusters[place.cluster as usize].documents += 1;
            report.length(fact.n_tokens).documents += 1;
            let source = sources.entry(fact.group).or_default();
            source.documents += 1;
            source.tokens += fact.n_tokens;
        }
        for (split, outcome) in choice.splits.iter().enumerate() {
            for &Pick { index, .. } in &outcome.picks {
                let fact = &facts[index];
                report.clusters[places[index].cluster as usize].chosen[split] += 1;
                report.length(fact.n_tokens).chosen[split] += 1;
                let source = sources.entry(fact.group).or_default();
                source.chosen[split] += 1;
                source.chosen_tokens[split] += fact.n_tokens;
            }
        }
        let named = |(name, source): (&str, Origin)| Origin { source: name.to_owned(), ..source };
        report.sources = sources.into_iter().map(named).collect();
        report
    }

    /// The bar that a length falls into; shorter ones are there as well.
    fn length(&mut self, n_tokens: usize) -> &mut Length {
        let bar = n_tokens.checked_ilog2().map_or(0, |log| log as usize + 1);
        for i in self.lengths.len()..=bar {
            let from = if i == 0 { 0 } else { 1 << (i - 1) };
            let to = if i == 0 { 0 } else { (1 << i) - 1 };
            self.lengths.push(Length { from, to, ..Length::default() });
        }
        &mut self.lengths[bar]
    }
}

/// Every document in the plane, in the order of ids.
pub(super) fn points<'a>(
    splits: [&'static str; 3],
    (facts, places): (&[Fact<'a>], &[Place]),
    choice: &Choice,
    plane: (&Plane, &[i16]),
) -> Vec<Point<'a>> {
    let at = plane.0.project(plane.1);
    let point = |((fact, place), [x, y]): ((&Fact<'a>, &Place), [i32; 2])| Point {
        id: fact.id,
        x,
        y,
        cluster: place.cluster,
        chosen: BTreeMap::new(),
    };
    let mut points: Vec<_> = facts.iter().zip(places).zip(at).map(point).collect();
    for (split, outcome) in splits.into_iter().zip(&choice.splits) {
        for pick in &outcome.picks {
            points[pick.index].chosen.insert(split, pick.reason);
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stage::select::choice::{Rules, choose};

    const NAMES: [&str; 3] = ["s", "f", "m"];

    fn facts() -> Vec<Fact<'static>> {
        let fact = |(id, group, n_tokens)| Fact { id, group, bucket: "swa", n_tokens, eligible: true };
        [("a", "x", 0), ("b", "x", 4), ("c", "y", 7), ("d", "x", 8)].map(fact).to_vec()
    }

    fn places() -> Vec<Place> {
        let place =
            |i: usize| Place { cluster: (i % 2) as u32, score: i as i64, margin: Some(0), density: None };
        (0..4).map(place).collect()
    }

    fn choice() -> Choice {
        let budgets = [None; 3];
        let rules = Rules {
            clusters: 3,
            outlier_percent: 0,
            mixed: 0,
            seed: 0,
            semantic: None,
            distinct: None,
            budgets,
        };
        choose(&rules, &facts(), &places(), None)
    }

    #[test]
    fn every_document_is_counted_before_and_after() {
        let report = Report::new(NAMES, (&facts(), &places(), 3), &choice(), None);
        let sizes: Vec<_> = report.clusters.iter().map(|c| (c.cluster, c.documents, c.chosen[0])).collect();
        assert_eq!(sizes, [(0, 2, 1), (1, 2, 1), (2, 0, 0)]);
        let bars: Vec<_> = report.lengths.iter().map(|l| (l.from, l.to, l.documents, l.chosen[0])).collect();
        assert_eq!(bars, [(0, 0, 1, 0), (1, 1, 0, 0), (2, 3, 0, 0), (4, 7, 2, 1), (8, 15, 1, 1)]);
        let source = |s: &Origin| (s.source.clone(), s.documents, s.tokens, s.chosen[0], s.chosen_tokens[0]);
        let sources: Vec<_> = report.sources.iter().map(source).collect();
        assert_eq!(sources, [("x".into(), 3, 12, 1, 8), ("y".into(), 1, 7, 1, 7)]);
    }

    #[test]
    fn points_say_which_splits_have_them_and_why() {
        let vectors = [4000, 0, 0, 4000, -4000, 0, 0, -4000_i16];
        let plane = Plane::of(2, &vectors);
        let (facts, places) = (facts(), places());
        let points = points(NAMES, (&facts, &places), &choice(), (&plane, &vectors));
        assert_eq!(points.iter().map(|p| p.id).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
        assert!(points[0].chosen.is_empty() && points[3].chosen == BTreeMap::from([("s", "near")]));
        assert!(points.iter().all(|p| p.x.abs().max(p.y.abs()) > 2000), "{points:?}");
        let report = Report::new(NAMES, (&facts, &places, 3), &choice(), Some(&plane));
        assert_eq!(report.spread, Some([500, 500]));
    }
}
