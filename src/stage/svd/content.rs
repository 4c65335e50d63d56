//! What the latent holds, for every width of it: keys and values together, or each in channels of its own. Knows no weights.

use faer::{Mat, MatRef};

use super::pieces::LatentKind;
use crate::math::{
    linalg::{LinalgError, Roots},
    low_rank::{Components, LowRank},
};

/// Un-rotated keys and values in components.
pub(super) enum Content {
    /// Both in each.
    Joint(Components),
    /// Keys apart from values.
    Separate(Box<Apart>),
}

/// Components of keys and of values.
pub(super) struct Apart {
    keys: Components,
    values: Components,
    /// Channels of each that can carry anything.
    useful: (usize, usize),
}

impl Content {
    /// Decomposes `sigma`, whose first `keys` rows are keys; of both sides so many dimensions are `useful`.
    pub(super) fn new(
        kind: LatentKind,
        sigma: MatRef<'_, f64>,
        roots: Roots,
        (keys, useful): (usize, (usize, usize)),
    ) -> Result<Self, LinalgError> {
        if kind == LatentKind::Joint {
            return Ok(Self::Joint(Components::new(sigma, roots)?));
        }
        let part = |from: usize, n: usize| {
            let own = |m: &Mat<f64>| m.submatrix(from, from, n, n).to_owned();
            let roots = Roots { root: own(&roots.root), inverse: own(&roots.inverse) };
            Components::new(sigma.submatrix(from, from, n, n), roots)
        };
        let values = part(keys, sigma.nrows() - keys)?;
        Ok(Self::Separate(Box::new(Apart { keys: part(0, keys)?, values, useful })))
    }

    /// The weighted error that is left at `rank`; of channels apart, `keys` are of keys.
    pub(super) fn error(&self, rank: usize, keys: Option<usize>) -> f64 {
        match self {
            Self::Joint(all) => all.error(rank),
            Self::Separate(apart) => {
                let (k, v) = share((rank, keys), apart.useful);
                apart.keys.error(k) + apart.values.error(v)
            }
        }
    }

    /// The map of that rank.
    pub(super) fn truncate(&self, rank: usize, keys: Option<usize>) -> LowRank {
        match self {
            Self::Joint(all) => all.truncate(rank),
            Self::Separate(apart) => {
                let (k, v) = share((rank, keys), apart.useful);
                beside(&apart.keys.truncate(k), &apart.values.truncate(v))
            }
        }
    }
}

/// Channels of keys and of values: as wanted or half and half, unless one of them needs less.
fn share((rank, wanted): (usize, Option<usize>), (keys, values): (usize, usize)) -> (usize, usize) {
    let k = wanted.unwrap_or(rank / 2).min(keys).max(rank.saturating_sub(values));
    (k, rank - k)
}

/// Two maps as one of both inputs.
fn beside(a: &LowRank, b: &LowRank) -> LowRank {
    let join = |a: &Mat<f64>, b: &Mat<f64>| {
        let mut out = Mat::zeros(a.nrows() + b.nrows(), a.ncols() + b.ncols());
        out.as_mut().submatrix_mut(0, 0, a.nrows(), a.ncols()).copy_from(a);
        out.as_mut().submatrix_mut(a.nrows(), a.ncols(), b.nrows(), b.ncols()).copy_from(b);
        out
    };
    LowRank { down: join(&a.down, &b.down), up: join(&a.up, &b.up) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::{
        linalg::{congruence, product},
        testing::{distance, random},
    };

    fn unit(n: usize) -> Roots {
        Roots { root: Mat::identity(n, n), inverse: Mat::identity(n, n) }
    }

    #[test]
    fn channels_are_shared_evenly_until_one_side_has_enough() {
        for (rank, useful, expected) in [
            ((8, None), (10, 10), (4, 4)),
            ((7, None), (10, 10), (3, 4)),
            ((8, None), (2, 10), (2, 6)),
            ((8, None), (10, 3), (5, 3)),
            ((0, None), (4, 4), (0, 0)),
            ((8, None), (4, 4), (4, 4)),
            ((8, Some(7)), (10, 10), (7, 1)),
            ((8, Some(7)), (5, 10), (5, 3)),
            ((8, Some(1)), (10, 6), (2, 6)),
        ] {
            assert_eq!(share(rank, useful), expected, "{rank:?} {useful:?}");
        }
    }

    /// Joint channels can do all that separate ones can.
    #[test]
    fn separate_channels_are_never_better_and_equal_without_cross_moments() {
        let moment = random(3, 10, 24);
        let sigma = congruence(moment.as_ref(), Mat::<f64>::identity(24, 24).as_ref());
        let apart = Mat::from_fn(10, 10, |i, j| if (i < 6) == (j < 6) { sigma[(i, j)] } else { 0.0 });
        let of = |kind, sigma: &Mat<f64>| Content::new(kind, sigma.as_ref(), unit(10), (6, (6, 4))).unwrap();
        let (joint, separate) = (of(LatentKind::Joint, &sigma), of(LatentKind::Separate, &sigma));
        for rank in 0..=10 {
            assert!(joint.error(rank, None) <= separate.error(rank, None) + 1e-9, "rank {rank}");
            let map = separate.truncate(rank, None);
            assert_eq!((map.down.nrows(), map.up.ncols()), (rank, rank));
            let kept = product(map.up.as_ref(), map.down.as_ref());
            let residual = Mat::from_fn(10, 10, |i, j| f64::from(u8::from(i == j)) - kept[(i, j)]);
            let left = congruence(residual.as_ref(), apart.as_ref());
            let trace: f64 = (0..10).map(|i| left[(i, i)]).sum();
            assert!((trace - separate.error(rank, None)).abs() < 1e-9, "rank {rank}");
        }
        assert!(distance(&separate.truncate(10, None).up, &Mat::zeros(10, 10)) > 0.1);
        assert!(separate.error(10, None) < 1e-9 && joint.error(10, None) < 1e-9);
    }
}
