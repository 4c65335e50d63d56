//! Decompositions rebuild what they were given, and refuse what cannot be decomposed.

use faer::c64;

use super::*;
use crate::kernel::testing::on_threads;
use crate::math::testing::{distance, random};

fn gram(seed: u64, n: usize) -> Mat<f64> {
    congruence(random(seed, n, 2 * n).as_ref(), Mat::<f64>::identity(2 * n, 2 * n).as_ref())
}

#[test]
fn eigenvectors_rebuild_the_matrix_and_are_sorted() {
    for n in [1, 2, 7, 40] {
        let a = gram(n as u64, n);
        let eigen = eigh(a.as_ref()).unwrap();
        assert!(eigen.values.windows(2).all(|pair| pair[0] >= pair[1]));
        let scaled = Mat::from_fn(n, n, |i, j| eigen.vectors[(i, j)] * eigen.values[j]);
        assert!(distance(&product(scaled.as_ref(), eigen.vectors.transpose()), &a) < 1e-12 * n as f64);
    }
}

#[test]
fn hermitian_eigenvectors_rebuild_the_matrix_are_unitary_and_sorted() {
    for n in [1, 2, 8] {
        let (re, im) = (random(11, n, 2 * n), random(12, n, 2 * n));
        let x = Mat::from_fn(n, 2 * n, |i, t| c64::new(re[(i, t)], im[(i, t)]));
        let sum = |i: usize, j: usize| -> c64 { (0..2 * n).map(|t| x[(i, t)] * x[(j, t)].conj()).sum() };
        let a = Mat::from_fn(n, n, sum);
        let Eigen { values, vectors } = eigh(a.as_ref()).unwrap();
        assert!(values.windows(2).all(|pair| pair[0] >= pair[1]));
        for i in 0..n {
            for j in 0..n {
                let again: c64 = (0..n).map(|c| vectors[(i, c)] * values[c] * vectors[(j, c)].conj()).sum();
                assert!((again - a[(i, j)]).norm() < 1e-11, "{i} {j}");
                let inner: c64 = (0..n).map(|g| vectors[(g, i)].conj() * vectors[(g, j)]).sum();
                assert!((inner.re - f64::from(u8::from(i == j))).abs() < 1e-12 && inner.im.abs() < 1e-12);
            }
        }
    }
    let broken = Mat::from_fn(2, 2, |_, _| c64::new(0.0, f64::NAN));
    assert!(matches!(eigh(broken.as_ref()), Err(LinalgError::Convergence(_, 2))));
}

#[test]
fn singular_values_rebuild_tall_and_wide_matrices() {
    for (m, n) in [(5, 3), (3, 5), (30, 30)] {
        let a = random(3, m, n);
        let Svd { left, values, right } = thin_svd(a.as_ref()).unwrap();
        let scaled = Mat::from_fn(m, values.len(), |i, j| left[(i, j)] * values[j]);
        assert!(distance(&product(scaled.as_ref(), right.transpose()), &a) < 1e-12);
    }
}

#[test]
fn cholesky_rebuilds_and_refuses() {
    let a = gram(5, 12);
    let l = cholesky(a.as_ref()).unwrap();
    assert!(distance(&product(l.as_ref(), l.transpose()), &a) < 1e-12);
    assert_eq!(cholesky(Mat::<f64>::zeros(3, 3).as_ref()).err(), Some(LinalgError::NotPositive(3)));
}

#[test]
fn roots_are_roots_and_inverse_to_each_other() {
    let a = gram(6, 9);
    let Roots { root, inverse } = roots(a.as_ref(), 0.0).unwrap();
    assert!(distance(&product(root.as_ref(), root.as_ref()), &a) < 1e-11);
    assert!(distance(&product(root.as_ref(), inverse.as_ref()), &Mat::identity(9, 9)) < 1e-11);
    assert!(roots(Mat::<f64>::zeros(2, 2).as_ref(), 0.0).is_err());
    assert!(roots(Mat::<f64>::zeros(2, 2).as_ref(), 1e-3).is_ok());
}

#[test]
fn effective_rank_of_known_spectra() {
    assert!((effective_rank(&[2.0, 2.0, 2.0, 0.0]) - 3.0).abs() < 1e-12);
    assert!((effective_rank(&[5.0]) - 1.0).abs() < 1e-12);
    assert!(effective_rank(&[0.0, 0.0]).abs() < 1e-12);
}

fn orthonormal(columns: &Mat<f64>) -> bool {
    let n = columns.ncols();
    distance(&product(columns.transpose(), columns.as_ref()), &Mat::identity(n, n)) < 1e-12
}

#[test]
fn eigenvectors_are_orthonormal_where_values_repeat_and_where_they_are_zero() {
    let repeated = Mat::from_fn(5, 5, |i, j| if i == j { [3.0, 3.0, 1.0, 0.0, 0.0][i] } else { 0.0 });
    let turned = thin_svd(random(8, 5, 5).as_ref()).unwrap().left;
    let eigen = eigh(congruence(turned.as_ref(), repeated.as_ref()).as_ref()).unwrap();
    assert!(orthonormal(&eigen.vectors));
    for (got, want) in eigen.values.iter().zip([3.0, 3.0, 1.0, 0.0, 0.0]) {
        assert!((got - want).abs() < 1e-12);
    }
    let zero = eigh(Mat::<f64>::zeros(3, 3).as_ref()).unwrap();
    assert!(orthonormal(&zero.vectors) && zero.values.iter().all(|x| x.abs() < 1e-300));
}

#[test]
fn only_the_lower_triangle_is_read() {
    let a = gram(9, 6);
    let garbage = Mat::from_fn(6, 6, |i, j| if j > i { 1e9 } else { a[(i, j)] });
    let (clean, spoilt) = (eigh(a.as_ref()).unwrap(), eigh(garbage.as_ref()).unwrap());
    assert_eq!(clean.values, spoilt.values);
}

#[test]
fn singular_values_are_roots_of_the_grams_eigenvalues() {
    for (m, n) in [(1, 1), (1, 6), (6, 1), (7, 4)] {
        let a = random(4, m, n);
        let Svd { left, values, right } = thin_svd(a.as_ref()).unwrap();
        assert!(orthonormal(&left) && orthonormal(&right));
        let squares = eigh(product(a.as_ref(), a.transpose()).as_ref()).unwrap().values;
        for (value, square) in values.iter().zip(&squares) {
            assert!((value * value - square).abs() < 1e-12 * (1.0 + square));
        }
    }
    // Two equal columns: one direction is missing, and its value is zero.
    let a = random(5, 6, 2);
    let doubled = Mat::from_fn(6, 3, |i, j| a[(i, j % 2)]);
    let values = thin_svd(doubled.as_ref()).unwrap().values;
    assert!(values[1] > 0.1 && values[2] < 1e-12, "{values:?}");
}

#[test]
fn what_is_not_positive_definite_is_refused_with_its_size() {
    let bad = |m: &Mat<f64>| cholesky(m.as_ref()).err();
    let diagonal = |d: [f64; 3]| Mat::from_fn(3, 3, |i, j| if i == j { d[i] } else { 0.0 });
    assert_eq!(bad(&diagonal([1.0, 0.0, 1.0])), Some(LinalgError::NotPositive(3)));
    assert_eq!(bad(&diagonal([1.0, 1.0, -1e-9])), Some(LinalgError::NotPositive(3)));
    assert_eq!(bad(&diagonal([f64::NAN, 1.0, 1.0])), Some(LinalgError::NotPositive(3)));
    assert_eq!(bad(&diagonal([1e-300, 1.0, 1e300])), None);
    let l = cholesky(gram(5, 6).as_ref()).unwrap();
    assert!((0..6).all(|i| l[(i, i)] > 0.0 && (i + 1..6).all(|j| l[(i, j)] == 0.0)));
}

#[test]
fn values_that_are_not_numbers_do_not_converge() {
    for bad in [f64::NAN, f64::INFINITY] {
        let mut a = gram(2, 4);
        a[(2, 1)] = bad;
        let error = eigh(a.as_ref()).err().unwrap().to_string();
        assert!(error.starts_with("a symmetric eigenproblem of size 4 did not converge"), "{error}");
        assert!(roots(a.as_ref(), 1.0).is_err());
        let error = thin_svd(a.as_ref()).err().unwrap().to_string();
        assert!(error.starts_with("a singular value decomposition of size 4"), "{error}");
    }
}

#[test]
fn damping_raises_every_eigenvalue_and_rounding_below_zero_counts_as_zero() {
    let a = gram(6, 5);
    let Roots { root, .. } = roots(a.as_ref(), 0.25).unwrap();
    let raised = Mat::from_fn(5, 5, |i, j| a[(i, j)] + if i == j { 0.25 } else { 0.0 });
    assert!(distance(&product(root.as_ref(), root.as_ref()), &raised) < 1e-12);
    let below = Mat::from_fn(2, 2, |i, j| if i == j { [1.0, -1e-17][i] } else { 0.0 });
    let Roots { root, inverse } = roots(below.as_ref(), 0.04).unwrap();
    assert!((root[(1, 1)] - 0.2).abs() < 1e-9 && (inverse[(1, 1)] - 5.0).abs() < 1e-9);
}

#[test]
fn the_caller_s_pool_does_not_change_a_bit() {
    let a = gram(11, 70);
    let [one, two, five] = on_threads(|| {
        let svd = thin_svd(a.as_ref()).unwrap();
        let bits = |values: &[f64]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        (bits(&eigh(a.as_ref()).unwrap().values), bits(&svd.values), product(a.as_ref(), a.as_ref()))
    });
    assert!(one == two && one == five);
}

#[test]
fn the_effective_rank_lies_between_one_and_the_number_of_values() {
    for values in [&[1.0, 1e-6, 0.0][..], &[5.0, 4.0, 3.0, 2.0, 1.0], &[1e300, 1e300]] {
        let rank = effective_rank(values);
        assert!((1.0..=values.len() as f64 + 1e-9).contains(&rank), "{values:?}: {rank}");
        let scaled: Vec<f64> = values.iter().map(|x| x * 1e-3).collect();
        assert!((effective_rank(&scaled) - rank).abs() < 1e-9, "a factor does not matter");
    }
    assert!((effective_rank(&[3.0, 3.0, -1e-12]) - 2.0).abs() < 1e-9, "rounding below zero does not count");
    assert!(effective_rank(&[]).abs() < 1e-12);
}

#[test]
fn eigenvalues_alone_are_those_with_vectors() {
    for n in [1, 2, 7, 40, 130] {
        let a = gram(n as u64, n);
        let (values, with) = (eigvalsh(a.as_ref()).unwrap(), eigh(a.as_ref()).unwrap().values);
        assert!(values.iter().zip(&with).all(|(a, b)| (a - b).abs() < 1e-12 * with[0]), "{n}");
    }
    let nan = Mat::from_fn(2, 2, |_, _| f64::NAN);
    assert_eq!(eigvalsh(nan.as_ref()).err(), Some(LinalgError::Convergence("symmetric eigenproblem", 2)));
}
