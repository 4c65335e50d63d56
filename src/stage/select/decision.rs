//! Decisions and by how much each could have gone the other way. Knows no text and no file.

use serde::Serialize;

/// What was decided about a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum What {
    /// That it is the nearest of its cluster, rather than the next one.
    Near,
    /// That it belongs to its cluster, where that matters: it is the nearest, or might become the nearest of another.
    Assignment,
    /// On which side of the outliers' cut it lies.
    Outlier,
    /// Whether another document of the corpus repeats it.
    Repeat,
    /// Whether it is like another row of the split.
    Similar,
    /// That it ranks behind the row that it is like.
    Order,
    /// Whether it fits the budget of tokens.
    Budget,
}

/// One decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decision {
    /// The document's index.
    pub(super) index: usize,
    pub(super) what: What,
    /// Whether it was for the document.
    pub(super) kept: bool,
    /// How far the values that were compared are from where it would change, in grid units squared.
    pub(super) margin: i64,
}

/// By how much the difference of two values that decide can change when vectors are off by some length and centroids stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Bounds {
    /// Grid units per unit of length.
    pub(super) scale: u32,
    /// How far a vector may be off, in grid units.
    pub(super) radius: i64,
    /// Two products with centroids: each changes by at most the radius times a centroid's length.
    pub(super) centroid: i64,
    /// Two densities: each is a mean of products of two documents, both off, rounded down.
    pub(super) density: i64,
    /// The squared distance of two documents of the corpus against the threshold for repeats.
    pub(super) repeat: i64,
    /// The same against the threshold within a split.
    pub(super) similar: i64,
    /// Whether outliers were told by density.
    #[serde(skip)]
    pub(super) by_density: bool,
}

impl Bounds {
    /// For vectors of `dim` coordinates at `scale`. The radius is `noise` times the scale, or what rounding to the grid alone
    /// may have done: half a unit in each coordinate, so `√dim / 2`. Both are rounded up.
    /// `thresholds` are squared distances, for repeats and within a split.
    pub(super) fn new(
        noise: Option<f64>,
        (dim, scale): (usize, u32),
        by_density: bool,
        thresholds: [Option<i64>; 2],
    ) -> Self {
        let scale_units = i64::from(scale);
        let rounding = half_root(dim);
        let radius = noise.map_or(rounding, |noise| (noise * f64::from(scale)).ceil() as i64);
        let longest = scale_units + rounding;
        let pair = 2 * radius * longest + radius * radius;
        // A distance changes by at most two radii, so it must be that near to the threshold.
        let squared = |threshold: Option<i64>| {
            let edge = threshold.map_or(0, |t| t.max(0).isqrt() + 1);
            4 * radius * (edge + radius)
        };
        let [repeat, similar] = thresholds.map(squared);
        Self {
            scale,
            radius,
            centroid: 2 * radius * longest,
            density: 2 * pair + 1,
            repeat,
            similar,
            by_density,
        }
    }

    /// The largest margin at which a decision could still change.
    fn limit(&self, what: What) -> i64 {
        match what {
            What::Repeat => self.repeat,
            What::Similar => self.similar,
            // These compare ranks, where outliers have theirs by density.
            What::Outlier | What::Order | What::Budget if self.by_density => self.density,
            What::Near | What::Assignment | What::Outlier | What::Order | What::Budget => self.centroid,
        }
    }

    /// Whether the decision could change. Without an error none can.
    pub(super) fn reach(&self, decision: &Decision) -> bool {
        self.radius > 0 && decision.margin <= self.limit(decision.what)
    }
}

/// `√n / 2`, rounded up.
fn half_root(n: usize) -> i64 {
    let root = n.isqrt();
    (root + usize::from(root * root < n)).div_ceil(2) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_moves_a_vector_by_half_a_unit_per_coordinate() {
        assert_eq!([0, 1, 4, 5, 16, 17, 384, 1024].map(half_root), [0, 1, 1, 2, 2, 3, 10, 16]);
        let bounds = Bounds::new(None, (1024, 4000), false, [None; 2]);
        assert_eq!((bounds.radius, bounds.centroid), (16, 2 * 16 * 4016));
        let of = |noise| Bounds::new(Some(noise), (384, 4000), false, [None; 2]);
        assert_eq!(of(0.001).radius, 4);
        assert_eq!(of(0.0001).radius, 1, "rounded up");
    }

    #[test]
    fn each_decision_has_the_bound_of_what_it_compares() {
        let bounds = |by_density| Bounds::new(Some(0.001), (16, 4000), by_density, [Some(100), Some(10_000)]);
        let reach = |by_density, what, margin| {
            bounds(by_density).reach(&Decision { index: 0, what, kept: true, margin })
        };
        let centroid = 2 * 4 * 4002;
        for what in [What::Near, What::Assignment, What::Outlier] {
            assert!(reach(false, what, centroid) && !reach(false, what, centroid + 1), "{what:?}");
        }
        // Distances of up to 10 + 8 and 100 + 8, with one for the root's rounding.
        let (repeat, similar) = (4 * 4 * (11 + 4), 4 * 4 * (101 + 4));
        assert!(reach(false, What::Repeat, repeat) && !reach(false, What::Repeat, repeat + 1));
        assert!(reach(false, What::Similar, similar) && !reach(false, What::Similar, similar + 1));
        assert!(repeat >= 18 * 18 - 100 && similar >= 108 * 108 - 10_000);
        let pair = centroid + 16;
        assert!(reach(true, What::Outlier, 2 * pair + 1) && !reach(true, What::Outlier, 2 * pair + 2));
        let exact = Bounds::new(Some(0.0), (16, 4000), false, [None; 2]);
        assert!(!exact.reach(&Decision { index: 0, what: What::Near, kept: true, margin: 0 }));
    }
}
