//! Components make the keys again, commute with rotations, and cost what they say.

use super::*;
use crate::math::{
    linalg::product,
    testing::{distance, random},
};

const SIZES: Sizes = Sizes { hidden: 8, heads: 6, kv_heads: 3, d: 4, concentration: 1.0 };

fn how(basis: RotaryBasis, query_weights: bool) -> How {
    How { basis, query_weights, kv_heads: 3 }
}

const OURS: How = How { basis: RotaryBasis::Complex, query_weights: true, kv_heads: 3 };

/// `Σ_t k kᴴ` of random complex keys at `pairs`, the heads' weights and misses.
fn group(seed: u64, pairs: Range<usize>) -> Group {
    let n = 3 * pairs.len();
    let (re, im, weights) = (random(seed, n, 9), random(seed + 1, n, 9), random(seed + 2, 6, 4));
    let k = Mat::from_fn(n, 9, |i, t| c64::new(re[(i, t)], im[(i, t)]));
    let each = |column: usize, most: f64| -> Vec<Vec<f64>> {
        let of = |pair: usize| (0..6).map(|h| weights[(h, column + pair)].abs().min(most)).collect();
        (0..pairs.len()).map(of).collect()
    };
    let drift = |i: usize, j: usize| vec![if i == j { 0.0 } else { 0.25 }; 6];
    Group {
        keys: Mat::from_fn(n, n, |i, j| (0..9).map(|t| k[(i, t)] * k[(j, t)].conj()).sum()),
        weights: each(0, f64::INFINITY),
        misses: each(2, 1.0),
        drifts: match pairs.len() {
            1 => vec![],
            n => (0..n).map(|i| (0..n).map(|j| drift(i, j)).collect()).collect(),
        },
        pairs,
    }
}

#[test]
fn all_components_make_the_keys_again_and_none_leaves_them() {
    for basis in [RotaryBasis::Complex, RotaryBasis::Real, RotaryBasis::Heads] {
        let how = how(basis, true);
        let each = [group(1, 0..1), group(4, 1..2)].map(|group| group.components(how).unwrap());
        let all = each.concat();
        assert_eq!(all.len(), 6);
        let nothing = rest(&all, SIZES);
        assert!(distance(&nothing, &Mat::zeros(12, 12)) < 1e-12, "{basis:?}");
        assert!(distance(&rest(&[], SIZES), &Mat::identity(12, 12)) < 1e-15);
        // What is left is a projection, and it commutes with the rotation of its frequency by any angle.
        let rest = rest(&[all[0].clone(), all[4].clone()], SIZES);
        assert!(distance(&product(rest.as_ref(), rest.as_ref()), &rest) < 1e-10);
        let angles = [0.7f64, -2.1];
        let turn = Mat::from_fn(12, 12, |i, j| {
            let (sin, cos) = angles[i % 2].sin_cos();
            match (i / 4 == j / 4 && i % 2 == j % 2, i % 4 / 2, j % 4 / 2) {
                (false, ..) => 0.0,
                (true, a, b) if a == b => cos,
                (true, 0, _) => -sin,
                _ => sin,
            }
        });
        let (one, other) = (product(rest.as_ref(), turn.as_ref()), product(turn.as_ref(), rest.as_ref()));
        assert!(distance(&one, &other) < 1e-10, "{basis:?}");
    }
}

#[test]
fn components_are_uncorrelated_and_costs_add_up() {
    let mut group = group(7, 0..1);
    let (keys, weights) = (group.keys.clone(), group.weights[0].clone());
    group.misses = vec![vec![1.0; 6]];
    let all = group.components(OURS).unwrap();
    for (i, j) in [(0, 1), (0, 2), (1, 2)] {
        let (a, b) = (&all[i].terms, &all[j].terms);
        let pairs = a.iter().flat_map(|a| b.iter().map(move |b| (a, b)));
        let cross: c64 = pairs.map(|(a, b)| a.down * keys[(a.head, b.head)] * b.down.conj()).sum();
        assert!(cross.norm() < 1e-10, "{i} {j}: {cross}");
    }
    for component in &all {
        let length: f64 = component.terms.iter().map(|term| term.down.norm_sqr()).sum();
        assert!((length - 1.0).abs() < 1e-12, "as large as keys are: {length}");
    }
    // Deleting every rotation costs what deleting the keys costs.
    let sum: f64 = all.iter().map(|component| component.cost).sum();
    let deleted: f64 = (0..6).map(|h| weights[h] * keys[(h / 2, h / 2)].re).sum();
    assert!((sum - deleted).abs() < 1e-10 * deleted, "{sum} {deleted}");
    assert!(all.iter().all(|component| component.error() == 0.0));
}

#[test]
fn heads_that_are_turned_copies_of_one_another_share_one_complex_component() {
    let factors = [c64::new(1.0, 0.0), c64::new(0.0, 2.0), c64::new(-0.6, 0.8)];
    let keys = Mat::from_fn(3, 3, |i, j| factors[i] * factors[j].conj());
    let ones = || vec![vec![1.0; 6]];
    let group = Group { pairs: 0..1, keys, weights: ones(), misses: ones(), drifts: vec![] };
    let costs = |basis| -> Vec<f64> {
        group.components(how(basis, true)).unwrap().iter().map(|component| component.cost).collect()
    };
    let complex = costs(RotaryBasis::Complex);
    assert!(complex[0] > 1.0 && complex[1] < 1e-12 && complex[2] < 1e-12, "{complex:?}");
    // Real components cannot see this: the heads differ in phase.
    let real = costs(RotaryBasis::Real);
    assert!(real[1] > 1.0, "{real:?}");
    assert_eq!(costs(RotaryBasis::Heads).iter().filter(|&&cost| cost > 1.0).count(), 3);
}

/// TransMLA: one real orthogonal matrix for both halves, from the Gram of both stacked.
#[test]
fn real_components_without_weights_are_orthogonal_and_those_of_both_halves_stacked() {
    let group = group(11, 0..2);
    let all = group.components(how(RotaryBasis::Real, false)).unwrap();
    let row = |component: &Component| component.terms.iter().map(|term| term.down.re).collect::<Vec<_>>();
    for (i, a) in all.iter().enumerate() {
        assert!(a.terms.iter().all(|term| term.down.im == 0.0 && (term.down - term.up).norm() < 1e-12));
        for (j, b) in all.iter().enumerate() {
            let dot: f64 = row(a).iter().zip(row(b)).map(|(a, b)| a * b).sum();
            assert!((dot - f64::from(u8::from(i == j))).abs() < 1e-12);
            // `uᵀ (Re Re ᵀ + Im Imᵀ) u` is diagonal.
            let gram = |x: &[f64], y: &[f64]| -> f64 {
                (0..6)
                    .flat_map(|r| (0..6).map(move |c| (r, c)))
                    .map(|(r, c)| x[r] * group.keys[(r, c)].re * y[c])
                    .sum()
            };
            let cross = gram(&row(a), &row(b));
            assert!(i == j || cross.abs() < 1e-9, "{i} {j}: {cross}");
        }
    }
    assert_eq!(all.len(), 6, "two frequencies of three heads");
}

#[test]
fn a_component_of_folded_frequencies_turns_with_the_one_that_costs_least() {
    let mut group = group(13, 4..6);
    // Nearly all that matters is at the second frequency.
    group.weights = vec![vec![1e-9; 6], vec![1.0; 6]];
    let all = group.components(OURS).unwrap();
    assert_eq!((all[0].pair, all[0].first), (5, 4));
    assert!(all[0].error() < all[0].turned[0] && all[0].gain() <= all[0].cost);
    let other = all[0].with_frequency(0);
    assert_eq!((other.pair, other.error()), (4, all[0].turned[0]));
    let pairs: Vec<usize> = all[0].terms.iter().map(|term| term.pair).collect();
    assert_eq!(pairs, [4, 4, 4, 5, 5, 5]);
}

#[test]
fn rows_read_a_component_from_keys() {
    let component = &group(15, 1..2).components(OURS).unwrap()[0];
    let (rows, key) = (rows(component, SIZES), random(16, 12, 1));
    let value = |at: usize| c64::new(key[(at, 0)], key[(at + 2, 0)]);
    let want: c64 = component.terms.iter().map(|term| term.down * value(term.head * 4 + 1)).sum();
    let read = product(rows.as_ref(), key.as_ref());
    assert!((read[(0, 0)] - want.re).abs() < 1e-12 && (read[(1, 0)] - want.im).abs() < 1e-12);
}

#[test]
fn a_head_that_nobody_asks_is_no_obstacle() {
    let mut lonely = group(9, 0..1);
    lonely.weights = vec![vec![0.0, 0.0, 1.0, 1.0, 1.0, 1.0]];
    assert!(lonely.components(OURS).unwrap().iter().all(|component| component.cost.is_finite()));
    let zeros = || vec![vec![0.0; 6]];
    let keys = Mat::zeros(3, 3);
    let zero = Group { pairs: 0..1, keys, weights: zeros(), misses: zeros(), drifts: vec![] };
    let all = zero.components(OURS).unwrap();
    assert!(rest(&all, SIZES)[(0, 0)].is_finite());
}
