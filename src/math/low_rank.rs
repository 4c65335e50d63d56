//! The best linear map of low rank under a weighted error: principal components in a metric. Knows matrices, no attention.
//!
//! For `y` with second moment `Σ` and an error `‖M^½ (y − U B y)‖²`, the optimum of rank `r` is `B = E_rᵀ M^½`, `U = M^−½ E_r` with
//! `E_r` the first eigenvectors of `M^½ Σ M^½`; what is lost is the sum of the other eigenvalues (Eckart and Young). With `M = 1`
//! and `Σ = W C Wᵀ` this equals the singular value decomposition of `W C^½`.

use faer::{Mat, MatRef};

use super::linalg::{Eigen, LinalgError, Roots, congruence, eigh, product};

/// All ranks at once: one eigendecomposition.
#[derive(Debug, Clone)]
pub struct Components {
    eigen: Eigen,
    roots: Roots,
}

/// `y ≈ up · (down · y)`.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// `B` [rank, width].
    pub down: Mat<f64>,
    /// `U` [width, rank].
    pub up: Mat<f64>,
}

impl Components {
    /// Decomposes the second moment `sigma` in the metric whose roots are given.
    pub fn new(sigma: MatRef<'_, f64>, roots: Roots) -> Result<Self, LinalgError> {
        let mut eigen = eigh(congruence(roots.root.as_ref(), sigma).as_ref())?;
        for value in &mut eigen.values {
            *value = value.max(0.0); // rounding of an eigenvalue that is zero
        }
        Ok(Self { eigen, roots })
    }

    /// The energies of the components, largest first.
    pub fn energies(&self) -> &[f64] {
        &self.eigen.values
    }

    /// The weighted error that is left at `rank`.
    pub fn error(&self, rank: usize) -> f64 {
        self.eigen.values.iter().skip(rank).rev().sum()
    }

    /// The first `rank` components.
    pub fn truncate(&self, rank: usize) -> LowRank {
        let first = self.eigen.vectors.subcols(0, rank);
        LowRank {
            down: product(first.transpose(), self.roots.root.as_ref()),
            up: product(self.roots.inverse.as_ref(), first),
        }
    }
}

impl LowRank {
    /// The map that keeps the last `rank` of `width` values; lossless where all others are zero.
    pub fn last(rank: usize, width: usize) -> Self {
        let kept = |channel: usize, at: usize| f64::from(u8::from(channel + width == at + rank));
        Self { down: Mat::from_fn(rank, width, kept), up: Mat::from_fn(width, rank, |at, c| kept(c, at)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::{
        linalg::{cholesky, roots, thin_svd},
        testing::{distance, random},
    };

    fn gram(seed: u64, n: usize) -> Mat<f64> {
        congruence(random(seed, n, 2 * n).as_ref(), Mat::<f64>::identity(2 * n, 2 * n).as_ref())
    }

    fn unit(n: usize) -> Roots {
        Roots { root: Mat::identity(n, n), inverse: Mat::identity(n, n) }
    }

    fn error(sigma: &Mat<f64>, metric: &Mat<f64>, map: &LowRank) -> f64 {
        let n = sigma.nrows();
        let kept = product(map.up.as_ref(), map.down.as_ref());
        let residual = Mat::from_fn(n, n, |i, j| f64::from(u8::from(i == j)) - kept[(i, j)]);
        let sigma = congruence(residual.as_ref(), sigma.as_ref());
        let weighted = product(metric.as_ref(), sigma.as_ref());
        (0..n).map(|i| weighted[(i, i)]).sum()
    }

    #[test]
    fn principal_components_equal_the_svd_of_whitened_weights() {
        let (w, c) = (random(1, 14, 9), gram(2, 9));
        let pca = Components::new(congruence(w.as_ref(), c.as_ref()).as_ref(), unit(14)).unwrap();
        let root = roots(c.as_ref(), 0.0).unwrap().root;
        for whitening in [root, cholesky(c.as_ref()).unwrap()] {
            let svd = thin_svd(product(w.as_ref(), whitening.as_ref()).as_ref()).unwrap();
            for (energy, value) in pca.energies().iter().zip(&svd.values) {
                assert!((energy - value * value).abs() < 1e-10, "{energy} {value}");
            }
            for rank in [1, 4, 8] {
                let map = pca.truncate(rank);
                let first = svd.left.subcols(0, rank);
                let (ours, theirs) =
                    (product(map.up.as_ref(), map.down.as_ref()), product(first, first.transpose()));
                assert!(distance(&ours, &theirs) < 1e-10);
            }
        }
    }

    #[test]
    fn the_error_is_what_it_says_falls_with_rank_and_beats_the_plain_metric() {
        let (sigma, metric) = (gram(3, 10), gram(4, 10));
        let components = Components::new(sigma.as_ref(), roots(metric.as_ref(), 0.0).unwrap()).unwrap();
        let plain = Components::new(sigma.as_ref(), unit(10)).unwrap();
        let mut last = f64::INFINITY;
        for rank in 0..=10 {
            let measured = error(&sigma, &metric, &components.truncate(rank));
            assert!((measured - components.error(rank)).abs() < 1e-9, "rank {rank}");
            assert!(components.error(rank) <= last);
            assert!(measured <= error(&sigma, &metric, &plain.truncate(rank)) + 1e-9);
            last = components.error(rank);
        }
        assert!(last < 1e-9);
    }

    #[test]
    fn full_rank_gives_everything_back() {
        let components =
            Components::new(gram(5, 8).as_ref(), roots(gram(6, 8).as_ref(), 1e-3).unwrap()).unwrap();
        let map = components.truncate(8);
        assert!(distance(&product(map.up.as_ref(), map.down.as_ref()), &Mat::identity(8, 8)) < 1e-10);
        let lossless = LowRank::last(3, 3);
        assert!(distance(&lossless.up, &lossless.down) < 1e-300);
    }

    /// A second moment of `n` dimensions of which only `rank` are used.
    fn flat(seed: u64, n: usize, rank: usize) -> Mat<f64> {
        congruence(random(seed, n, rank).as_ref(), gram(seed + 1, rank).as_ref())
    }

    #[test]
    fn a_moment_of_low_rank_is_kept_whole_by_that_rank() {
        for (n, rank) in [(6, 1), (9, 4), (20, 7)] {
            let sigma = flat(3, n, rank);
            let components = Components::new(sigma.as_ref(), unit(n)).unwrap();
            let all = components.error(0);
            assert!(components.error(rank) < 1e-12 * all, "nothing is left at rank {rank}");
            assert!(components.error(rank - 1) > 1e-6 * all, "and something below it");
            assert!(components.energies()[rank..].iter().all(|&e| (0.0..1e-12 * all).contains(&e)));
            let map = components.truncate(rank);
            let kept = product(map.up.as_ref(), map.down.as_ref());
            assert!(distance(&congruence(kept.as_ref(), sigma.as_ref()), &sigma) < 1e-9);
        }
    }

    #[test]
    fn rank_nothing_drops_the_weighted_trace() {
        let (sigma, metric) = (gram(3, 7), gram(4, 7));
        let components = Components::new(sigma.as_ref(), roots(metric.as_ref(), 0.0).unwrap()).unwrap();
        let weighted = product(metric.as_ref(), sigma.as_ref());
        let trace: f64 = (0..7).map(|i| weighted[(i, i)]).sum();
        assert!((components.error(0) - trace).abs() < 1e-9 * trace);
        assert!((components.energies().iter().sum::<f64>() - trace).abs() < 1e-9 * trace);
        let nothing = components.truncate(0);
        assert_eq!((nothing.down.nrows(), nothing.up.ncols()), (0, 0));
    }

    #[test]
    fn going_down_and_up_again_is_a_projection() {
        let components =
            Components::new(gram(5, 9).as_ref(), roots(gram(6, 9).as_ref(), 1e-3).unwrap()).unwrap();
        for rank in 1..=9 {
            let map = components.truncate(rank);
            let there = product(map.down.as_ref(), map.up.as_ref());
            assert!(distance(&there, &Mat::identity(rank, rank)) < 1e-9, "rank {rank}");
        }
    }

    #[test]
    fn a_larger_moment_scales_the_error_and_keeps_the_map() {
        let sigma = gram(7, 6);
        let large = Mat::from_fn(6, 6, |i, j| 1e6 * sigma[(i, j)]);
        let [a, b] = [&sigma, &large].map(|s| Components::new(s.as_ref(), unit(6)).unwrap());
        for rank in 0..6 {
            assert!((b.error(rank) / a.error(rank) / 1e6 - 1.0).abs() < 1e-9);
        }
        let kept = |c: &Components| {
            let map = c.truncate(3);
            product(map.up.as_ref(), map.down.as_ref())
        };
        assert!(distance(&kept(&a), &kept(&b)) < 1e-9);
    }

    #[test]
    fn the_last_values_are_kept_and_all_others_are_zero() {
        let map = LowRank::last(2, 5);
        let kept = product(map.up.as_ref(), map.down.as_ref());
        let want = Mat::from_fn(5, 5, |i, j| f64::from(u8::from(i == j && i >= 3)));
        assert!(distance(&kept, &want) < 1e-15);
        assert_eq!((map.down.nrows(), map.up.ncols()), (2, 2));
    }
}
