//! The basis of the latent. Any invertible map between `kv_a_proj` and `kv_b_proj` is free: the model computes the same. Knows no layer.

use std::f64::consts::{PI, SQRT_2};

use faer::Mat;

use crate::{math::linalg::product, model::storage::GROUP};

/// Scales each latent channel so that its row of `down` (without the bias, its last column) and its column of `up` have equal norms.
///
/// If `λ` is what a component adds to the output, its channel then has a standard deviation of about `λ^¼`. For channels that are mixed
/// and rounded alike that is the best choice: with variances `t` rounding costs `(Σ t)(Σ λ/t)`, which is least where `t = √λ`.
pub(super) fn balance(down: &mut Mat<f64>, up: &mut Mat<f64>) {
    let hidden = down.ncols() - 1;
    for channel in 0..down.nrows() {
        let row = (0..hidden).map(|j| down[(channel, j)].powi(2)).sum::<f64>().sqrt();
        let column = (0..up.nrows()).map(|i| up[(i, channel)].powi(2)).sum::<f64>().sqrt();
        if row > 0.0 && column > 0.0 {
            let scale = (column / row).sqrt();
            (0..=hidden).for_each(|j| down[(channel, j)] *= scale);
            (0..up.nrows()).for_each(|i| up[(i, channel)] /= scale);
        }
    }
}

/// Deals the channels out to groups of as many as share a scale in an INT4 cache, strongest first, and turns each group by a cosine transform (DCT-II), whose rows are all about equally
/// wide: every cached channel is then a sum of strong and weak components, and has no tails of its own.
pub(super) fn mix(down: &Mat<f64>, up: &Mat<f64>) -> (Mat<f64>, Mat<f64>) {
    let rank = down.nrows();
    let turn = rotation(rank);
    (product(turn.as_ref(), down.as_ref()), product(up.as_ref(), turn.transpose()))
}

/// The orthogonal map of [`mix`] [rank, rank].
fn rotation(rank: usize) -> Mat<f64> {
    let groups = rank.div_ceil(GROUP).max(1);
    let mut turn = Mat::zeros(rank, rank);
    let mut row = 0;
    for group in 0..groups {
        let members: Vec<usize> = (group..rank).step_by(groups).collect();
        let n = members.len() as f64;
        for k in 0..members.len() {
            for (i, &member) in members.iter().enumerate() {
                let wave = (PI / n * (i as f64 + 0.5) * k as f64).cos();
                turn[(row, member)] = wave * if k == 0 { 1.0 } else { SQRT_2 } / n.sqrt();
            }
            row += 1;
        }
    }
    turn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::testing::{distance, random};

    #[test]
    fn neither_changes_what_the_two_maps_make_together() {
        let (mut down, mut up) = (random(1, 70, 11), random(2, 9, 70));
        let whole = product(up.as_ref(), down.as_ref());
        balance(&mut down, &mut up);
        assert!(distance(&product(up.as_ref(), down.as_ref()), &whole) < 1e-10);
        let (down, up) = mix(&down, &up);
        assert!(distance(&product(up.as_ref(), down.as_ref()), &whole) < 1e-10);
    }

    #[test]
    fn rows_and_columns_have_equal_norms() {
        let (mut down, mut up) = (random(1, 5, 11), random(2, 9, 5));
        (0..11).for_each(|j| down[(3, j)] = 0.0);
        balance(&mut down, &mut up);
        for channel in [0, 1, 2, 4] {
            let row: f64 = (0..10).map(|j| down[(channel, j)].powi(2)).sum();
            let column: f64 = (0..9).map(|i| up[(i, channel)].powi(2)).sum();
            assert!((row / column - 1.0).abs() < 1e-12);
        }
        assert!((0..9).all(|i| up[(i, 3)].is_finite()));
    }

    #[test]
    fn mixing_is_a_rotation_within_groups_of_all_strengths() {
        for rank in [1, 31, 32, 33, 100] {
            let turn = rotation(rank);
            let square = product(turn.as_ref(), turn.transpose());
            assert!(distance(&square, &Mat::identity(rank, rank)) < 1e-12, "{rank}");
        }
        let turn = rotation(64);
        let from = |row: usize| (0..64).filter(|&j| turn[(row, j)].abs() > 0.0).collect::<Vec<_>>();
        assert_eq!(from(0), (0..64).step_by(2).collect::<Vec<_>>());
        let largest = (0..64 * 64).map(|at| turn[(at / 64, at % 64)].abs()).fold(0.0, f64::max);
        assert!(largest < 0.26, "no component fills a channel: {largest}");
    }
}
