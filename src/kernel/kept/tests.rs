//! Costs against the formulas in f64, and gradients against differences.

use super::*;
use crate::kernel::{divergence::Loss, testing::noise};

const VOCAB: usize = 23;

fn logits(seed: u64) -> Vec<f64> {
    noise(seed, VOCAB, 3.0).into_iter().map(f64::from).collect()
}

fn softmax(z: &[f64]) -> Vec<f64> {
    let sum: f64 = z.iter().map(|z| z.exp()).sum();
    z.iter().map(|z| z.exp() / sum).collect()
}

fn kept(form: Form, ids: &[u32], weights: &[f32], entropy: f32) -> Kept {
    let mut kept = Kept::new(form);
    kept.push(Row { ids, weights, entropy });
    kept
}

/// The `n` most probable tokens of a teacher.
fn top(p: &[f64], n: usize) -> Kept {
    let mut ids: Vec<u32> = (0..VOCAB as u32).collect();
    ids.sort_by(|&a, &b| p[b as usize].total_cmp(&p[a as usize]));
    ids.truncate(n);
    let weights: Vec<f32> = ids.iter().map(|&id| p[id as usize] as f32).collect();
    kept(Form::Bucket, &ids, &weights, 0.0)
}

/// Compares the gradient with central differences.
fn check_gradient(kept: &Kept, z: &[f64]) {
    let mut gradient = z.to_vec();
    kept.cost(0, &mut gradient);
    for j in 0..VOCAB {
        let at = |step: f64| {
            let mut z = z.to_vec();
            z[j] += step;
            kept.cost(0, &mut z)
        };
        let want = (at(1e-5) - at(-1e-5)) / 2e-5;
        assert!((gradient[j] - want).abs() < 1e-8, "{j}: {} {want}", gradient[j]);
    }
}

#[test]
fn the_bucket_is_the_divergence_between_the_coarser_distributions() {
    let (z, p) = (logits(1), softmax(&logits(2)));
    let q = softmax(&z);
    for n in [1, 5, VOCAB - 1] {
        let kept = top(&p, n);
        let held = |of: &[f64]| kept.row(0).ids.iter().map(|&id| of[id as usize]).collect::<Vec<_>>();
        let (mut a, mut b) = (held(&p), held(&q));
        a.push(1.0 - a.iter().sum::<f64>());
        b.push(1.0 - b.iter().sum::<f64>());
        let want: f64 = a.iter().zip(&b).map(|(a, b)| a * (a / b).ln()).sum();
        let got = kept.cost(0, &mut z.clone());
        assert!((got - want).abs() < 1e-6, "{got} {want}");
        check_gradient(&kept, &z);
    }
}

#[test]
fn where_everything_is_kept_it_is_the_divergence() {
    let (z, u) = (logits(1), logits(2));
    let (mut one, mut other) = (z.clone(), z.clone());
    let want = Loss::default().row(&mut one, &mut u.clone(), 0);
    let got = top(&softmax(&u), VOCAB).cost(0, &mut other);
    assert!((got - want).abs() < 1e-6, "{got} {want}");
    assert!(one.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn what_the_bucket_leaves_out_is_what_lies_inside_it() {
    let (z, u) = (logits(3), logits(4));
    let whole = Loss::default().row(&mut z.clone(), &mut u.clone(), 0);
    let costs: Vec<f64> = (1..=VOCAB).map(|n| top(&softmax(&u), n).cost(0, &mut z.clone())).collect();
    assert!(costs.windows(2).all(|pair| pair[0] <= pair[1] + 1e-6), "{costs:?}");
    assert!(costs.iter().all(|&cost| cost > 0.0 && cost <= whole + 1e-6));
}

#[test]
fn the_mean_over_draws_is_the_divergence_and_so_is_the_gradient() {
    let (z, u) = (logits(5), logits(6));
    let (p, mut want) = (softmax(&u), z.clone());
    let whole = Loss::default().row(&mut want, &mut u.clone(), 0);
    let entropy = -p.iter().map(|p| p * p.ln()).sum::<f64>() as f32;
    // Every draw of one token, weighed by its probability, is what many draws come to.
    let (mut cost, mut gradient) = (0.0, vec![0.0; VOCAB]);
    for (id, &p) in p.iter().enumerate() {
        let one = kept(Form::Draws, &[id as u32], &[1.0], entropy);
        check_gradient(&one, &z);
        let mut z = z.clone();
        cost += p * one.cost(0, &mut z);
        gradient.iter_mut().zip(z).for_each(|(sum, g)| *sum += p * g);
    }
    assert!((cost - whole).abs() < 1e-6, "{cost} {whole}");
    assert!(gradient.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12));
}

#[test]
fn single_precision_is_near_enough() {
    let (z, p) = (logits(7), softmax(&logits(8)));
    let kept = top(&p, 4);
    let (mut wide, mut narrow) = (z.clone(), z.iter().map(|&z| z as f32).collect::<Vec<f32>>());
    let (a, b) = (kept.cost(0, &mut wide), kept.cost(0, &mut narrow));
    assert!((a - b).abs() < 1e-5, "{a} {b}");
    assert!(wide.iter().zip(narrow).all(|(a, b)| (a - f64::from(b)).abs() < 1e-6));
}

#[test]
fn a_certain_teacher_and_rows_of_many_lengths() {
    let mut all = kept(Form::Bucket, &[3], &[1.0], 0.0);
    all.extend(&[2, 0, 1], (&[7, 8, 9, 1], &[0.5, 0.25, 0.5, 0.0]), &[0.1, 0.2, 0.3, 0.4]);
    assert_eq!((all.len(), all.row(0).ids, all.form()), (4, &[3][..], Form::Bucket));
    assert_eq!(all.row(1), Row { ids: &[7, 8], weights: &[0.5, 0.25], entropy: 0.1 });
    assert_eq!((all.row(2).ids.len(), all.row(3)), (0, Row { ids: &[9], weights: &[0.5], entropy: 0.3 }));
    assert!(all.greatest().unwrap() >= 3);
    let z = logits(2);
    let want = -softmax(&z)[3].ln();
    assert!((all.cost(0, &mut z.clone()) - want).abs() < 1e-12, "nothing is left for the bucket");
    assert!(Kept::new(Form::Draws).is_empty());
}
