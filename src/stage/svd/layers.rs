//! Divides a total cache budget among layers by what converting each of them alone costs, measured. Knows no tensor.
//!
//! Single-layer divergences nearly add (reference: first-order expansion of the KL divergence), so the sum of the layers' curves is
//! what is minimised. Spectra are no substitute: relative energies of different layers are not comparable.

/// Mean KL divergence of converting one layer alone, by its cached elements, ascending.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Curve(Vec<(usize, f64)>);

/// The least divergence that is told from rounding.
const FLOOR: f64 = 1e-9;

impl Curve {
    /// A curve through measured points; more elements never count as worse.
    pub(super) fn new(mut points: Vec<(usize, f64)>) -> Self {
        points.sort_by_key(|&(elements, _)| elements);
        points.dedup_by_key(|&mut (elements, _)| elements);
        let mut least = f64::INFINITY;
        for (_, kl) in &mut points {
            least = least.min(kl.max(FLOOR));
            *kl = least;
        }
        Self(points)
    }

    /// The divergence at any number of elements: its logarithm is linear between two points, and goes on beyond the outer ones.
    pub(super) fn at(&self, elements: usize) -> f64 {
        let points = &self.0;
        if points.len() < 2 {
            return points.first().map_or(0.0, |&(_, kl)| kl);
        }
        let above = points.partition_point(|&(at, _)| at < elements).clamp(1, points.len() - 1);
        let ((x0, y0), (x1, y1)) = (points[above - 1], points[above]);
        let along = (elements as f64 - x0 as f64) / (x1 - x0) as f64;
        (y0.ln() + along * (y1.ln() - y0.ln())).exp()
    }
}

/// What a division in two sizes may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Elements of all layers together, at most.
    pub(super) total: usize,
    /// Every layer has a multiple of this.
    pub(super) step: usize,
    /// The fewest elements of a layer.
    pub(super) least: usize,
    /// The most.
    pub(super) most: usize,
}

impl Bounds {
    fn sizes(&self) -> Vec<usize> {
        (self.least.div_ceil(self.step)..=self.most / self.step).map(|n| n * self.step).collect()
    }
}

/// Something that a layer may have more or less of: its rotated keys, its latent, or both together.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    /// Its divergence by elements.
    pub(super) curve: Curve,
    /// The elements that it may have, ascending; the first are the fewest.
    pub(super) sizes: Vec<usize>,
}

/// Elements on each axis with the least sum of divergences, of together at most `total`: dynamic programming.
///
/// # Panics
/// If not even the fewest elements fit.
pub(super) fn free(axes: &[Axis], total: usize) -> Vec<usize> {
    // The least sum of the axes so far that uses at most so many elements, and what the last of them has.
    let mut best = vec![0.0; total + 1];
    let mut taken: Vec<Vec<usize>> = Vec::new();
    for Axis { curve, sizes } in axes {
        let costs: Vec<f64> = sizes.iter().map(|&size| curve.at(size)).collect();
        let one = |within: usize| {
            let fitting = sizes.iter().zip(&costs).filter(|(size, _)| **size <= within);
            let sums = fitting.map(|(&size, cost)| (size, best[within - size] + cost));
            sums.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, f64::INFINITY))
        };
        let (size, next): (Vec<usize>, Vec<f64>) = (0..=total).map(one).unzip();
        taken.push(size);
        best = next;
    }
    assert!(best[total].is_finite(), "the total is enough for the fewest elements");
    let mut left = total;
    let mut elements: Vec<usize> = Vec::new();
    for sizes in taken.iter().rev() {
        elements.push(sizes[left]);
        left -= sizes[left];
    }
    elements.reverse();
    elements
}

/// The best division in which layers have one of two sizes.
///
/// # Panics
/// If not even the fewest elements fit.
pub(super) fn two_level(curves: &[Curve], bounds: Bounds) -> Vec<usize> {
    let sizes = bounds.sizes();
    let pairs =
        sizes.iter().enumerate().flat_map(|(i, &low)| sizes[i..].iter().map(move |&high| (low, high)));
    let fitting = pairs.filter(|&(low, _)| low * curves.len() <= bounds.total);
    let divide = |(low, high): (usize, usize)| {
        let gain = |i: &usize| curves[*i].at(low) - curves[*i].at(high);
        let mut order: Vec<usize> = (0..curves.len()).collect();
        order.sort_by(|a, b| gain(b).total_cmp(&gain(a)).then(a.cmp(b)));
        let spare = bounds.total - low * curves.len();
        let many = if high > low { (spare / (high - low)).min(curves.len()) } else { 0 };
        let mut elements = vec![low; curves.len()];
        order[..many].iter().for_each(|&i| elements[i] = high);
        let sum: f64 = curves.iter().zip(&elements).map(|(curve, &n)| curve.at(n)).sum();
        (elements, sum)
    };
    let best = fitting.map(divide).min_by(|a, b| a.1.total_cmp(&b.1));
    best.expect("the total is enough for the fewest elements").0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prop_assert, proptest};

    /// The freest division of layers that are one axis each.
    fn free(curves: &[Curve], bounds: Bounds) -> Vec<usize> {
        let axis = |curve: &Curve| Axis { curve: curve.clone(), sizes: bounds.sizes() };
        super::free(&curves.iter().map(axis).collect::<Vec<_>>(), bounds.total)
    }

    fn exponential(scale: f64, slope: f64) -> Curve {
        Curve::new([10, 20, 40].map(|n| (n, scale * (-slope * n as f64).exp())).into())
    }

    #[test]
    fn a_curve_goes_through_its_points_and_on() {
        let curve = exponential(2.0, 0.1);
        for n in [5, 10, 13, 20, 33, 40, 70] {
            let want = 2.0 * (-0.1 * n as f64).exp();
            assert!((curve.at(n) - want).abs() < 1e-12 * want, "{n}");
        }
        let noisy = Curve::new(vec![(20, 0.2), (10, 0.1), (30, -0.5)]);
        assert_eq!(noisy, Curve(vec![(10, 0.1), (20, 0.1), (30, FLOOR)]), "more is never worse");
        assert!((Curve::new(vec![(8, 0.5)]).at(100) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn who_loses_most_gets_most_and_the_total_is_kept() {
        let curves = [exponential(1.0, 0.05), exponential(0.01, 0.05), exponential(10.0, 0.05)];
        let bounds = Bounds { total: 96, step: 4, least: 8, most: 64 };
        let elements = free(&curves, bounds);
        assert!(elements.iter().sum::<usize>() <= 96 && elements.iter().all(|n| n % 4 == 0));
        assert!(elements[1] < elements[0] && elements[0] < elements[2], "{elements:?}");
        let two = two_level(&curves, bounds);
        let mut levels = two.clone();
        levels.sort_unstable();
        levels.dedup();
        assert!(levels.len() <= 2 && two.iter().sum::<usize>() <= 96, "{two:?}");
    }

    #[test]
    fn equal_layers_share_equally() {
        let curves = vec![exponential(1.0, 0.1); 4];
        let bounds = Bounds { total: 80, step: 4, least: 4, most: 40 };
        assert_eq!(free(&curves, bounds), [20; 4]);
        assert_eq!(two_level(&curves, bounds), [20; 4]);
    }

    #[test]
    fn two_axes_of_a_layer_share_with_those_of_the_others_whatever_their_sizes() {
        let axis =
            |scale, slope, sizes: &[usize]| Axis { curve: exponential(scale, slope), sizes: sizes.to_vec() };
        let axes =
            [axis(1.0, 0.2, &[6, 12, 18]), axis(0.1, 0.2, &[2, 4, 8, 30]), axis(1.0, 0.05, &[10, 20, 40])];
        let sum = |elements: &[usize]| -> f64 {
            axes.iter().zip(elements).map(|(axis, &n)| axis.curve.at(n)).sum()
        };
        let got = super::free(&axes, 61);
        let mut best = (f64::INFINITY, vec![]);
        for &a in &axes[0].sizes {
            for &b in &axes[1].sizes {
                for &c in &axes[2].sizes {
                    if a + b + c <= 61 && sum(&[a, b, c]) < best.0 {
                        best = (sum(&[a, b, c]), vec![a, b, c]);
                    }
                }
            }
        }
        assert_eq!(got, best.1, "the best of all");
    }

    proptest! {
        #[test]
        fn free_is_never_worse_than_two_levels_nor_these_than_one(
            layers in vec((0.001f64..10.0, 0.01f64..0.3), 1..6),
            each in 2usize..10,
        ) {
            let curves: Vec<Curve> = layers.iter().map(|&(a, b)| exponential(a, b)).collect();
            let bounds = Bounds { total: each * 4 * curves.len(), step: 4, least: 4, most: 60 };
            let sum = |elements: &[usize]| -> f64 {
                curves.iter().zip(elements).map(|(curve, &n)| curve.at(n)).sum()
            };
            let (free, two) = (free(&curves, bounds), two_level(&curves, bounds));
            prop_assert!(free.iter().sum::<usize>() <= bounds.total && two.iter().sum::<usize>() <= bounds.total);
            prop_assert!(sum(&free) <= sum(&two) * (1.0 + 1e-12));
            prop_assert!(sum(&two) <= sum(&vec![each * 4; curves.len()]) * (1.0 + 1e-12));
        }
    }
}
