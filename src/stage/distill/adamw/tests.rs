//! The optimiser against the paper, step by step, and its saved state.

use super::*;
use crate::{
    artifact::{Artifact, checkpoint::files_in},
    kernel::testing::{close, var},
    stage::distill::weights::Weights,
};

fn vars() -> BTreeMap<String, Var> {
    BTreeMap::from([("matrix".to_owned(), var(1, &[3, 4], 1.0)), ("vector".to_owned(), var(2, &[5], 1.0))])
}

/// Matrices decay by so much.
fn adamw(vars: &BTreeMap<String, Var>, decay: f32, clip: f32) -> AdamW {
    in_precision(Precision::F32, vars, decay, clip)
}

fn in_precision(precision: Precision, vars: &BTreeMap<String, Var>, decay: f32, clip: f32) -> AdamW {
    let rates = |var: &Var| Rates { lr: 1.0, weight_decay: if var.rank() > 1 { decay } else { 0.0 } };
    let rates = vars.iter().map(|(name, var)| (name.clone(), rates(var))).collect();
    AdamW::new(vars, rates, (precision, clip))
}

fn values(vars: &BTreeMap<String, Var>) -> Vec<Vec<f32>> {
    vars.values().map(|v| v.flatten_all().unwrap().to_vec1().unwrap()).collect()
}

/// Gradients of half the squared distance of every variable from 1.
fn grads(vars: &BTreeMap<String, Var>) -> Gradients {
    let loss = |v: &Var| ((v.as_tensor() - 1.0).unwrap().sqr().unwrap().sum_all().unwrap() * 0.5).unwrap();
    let found = vars.values().map(loss).reduce(|a, b| (a + b).unwrap()).unwrap().backward().unwrap();
    let mut sum = Gradients::default();
    sum.add(vars, &found).unwrap();
    sum
}

fn step(adam: &mut AdamW, vars: &BTreeMap<String, Var>, lr: f32) {
    let gradients = grads(vars);
    adam.step(vars, &gradients, (gradients.norm(), lr)).unwrap();
}

#[test]
fn the_first_step_moves_by_lr_against_the_sign() {
    let vars = vars();
    let before = values(&vars);
    step(&mut adamw(&vars, 0.0, f32::INFINITY), &vars, 0.01);
    for (old, new) in before.iter().flatten().zip(values(&vars).iter().flatten()) {
        assert!((new - old - 0.01 * (1.0 - old).signum()).abs() < 1e-5);
    }
}

#[test]
fn decay_touches_matrices_only_and_clipping_bounds_the_moments() {
    let vars = vars();
    let before = values(&vars);
    let mut adam = adamw(&vars, 0.5, 1e-3);
    assert!(grads(&vars).norm() > 1.0);
    step(&mut adam, &vars, 0.1);
    let first = |moments: &Moments| match &moments.first {
        Moment::F32(m) => m.iter().map(|m| m * m).sum::<f32>(),
        Moment::Eight { .. } => panic!("asked for f32"),
    };
    let m: f32 = adam.moments.values().map(first).sum();
    assert!((m.sqrt() - 1e-4).abs() < 1e-6);
    let after = values(&vars);
    let moved = |old: f32, new: f32, decay: f32| new - (old - decay * old) - 0.1 * (1.0 - old).signum();
    assert!(before[0].iter().zip(&after[0]).all(|(a, b)| moved(*a, *b, 0.05).abs() < 1e-3));
    assert!(before[1].iter().zip(&after[1]).all(|(a, b)| moved(*a, *b, 0.0).abs() < 1e-3));
}

fn saved(adam: &AdamW, vars: &BTreeMap<String, Var>) -> (tempfile::TempDir, Checkpoint) {
    let (dir, mut draft) = (tempfile::tempdir().unwrap(), Draft::default());
    adam.save(vars, &mut draft);
    draft.save(dir.path()).unwrap();
    let saved = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
    (dir, saved)
}

#[test]
fn saved_and_restored_goes_on_with_the_same_bits() {
    let (a, b) = (vars(), vars());
    let mut straight = adamw(&a, 0.1, 1.0);
    for _ in 0..3 {
        step(&mut straight, &a, 0.05);
    }
    let saved = saved(&straight, &a);
    Weights::of(&a).unwrap().put(&b).unwrap();
    let mut resumed = adamw(&b, 0.1, 1.0);
    resumed.restore(&b, &saved.1).unwrap();
    for _ in 0..3 {
        step(&mut straight, &a, 0.05);
        step(&mut resumed, &b, 0.05);
    }
    assert_eq!(values(&a), values(&b));
    let other = BTreeMap::from([("other".to_owned(), var(1, &[3], 1.0))]);
    let error = adamw(&other, 0.1, 1.0).restore(&other, &saved.1).unwrap_err();
    assert!(error.to_string().contains("`m.other` is missing"), "{error}");
}

/// The paper's algorithm 2 in f64, one number at a time, after clipping by the global norm.
struct Paper {
    w: Vec<Vec<f64>>,
    m: Vec<Vec<f64>>,
    v: Vec<Vec<f64>>,
    t: i32,
}

impl Paper {
    fn step(&mut self, lr: f64, decay: f64, clip: f64) {
        self.t += 1;
        let grads: Vec<Vec<f64>> = self.w.iter().map(|w| w.iter().map(|w| w - 1.0).collect()).collect();
        let norm = grads.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
        let scale = (clip / norm).min(1.0);
        for (tensor, grads) in grads.iter().enumerate() {
            let decay = if tensor == 0 { decay } else { 0.0 }; // the matrix only
            for (i, g) in grads.iter().enumerate() {
                let g = g * scale;
                let (m, v) = (&mut self.m[tensor][i], &mut self.v[tensor][i]);
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.95 * *v + 0.05 * g * g;
                let (m, v) = (*m / (1.0 - 0.9f64.powi(self.t)), *v / (1.0 - 0.95f64.powi(self.t)));
                let w = &mut self.w[tensor][i];
                *w -= lr * (m / (v.sqrt() + 1e-8) + decay * *w);
            }
        }
    }
}

#[test]
fn many_steps_follow_the_paper() {
    for (decay, clip) in [(0.0, 1e9), (0.1, 1e9), (0.0, 0.5), (0.3, 0.05)] {
        let vars = vars();
        let w: Vec<Vec<f64>> =
            values(&vars).iter().map(|w| w.iter().map(|&w| f64::from(w)).collect()).collect();
        let zeros: Vec<Vec<f64>> = w.iter().map(|w| vec![0.0; w.len()]).collect();
        let mut paper = Paper { w, m: zeros.clone(), v: zeros, t: 0 };
        let mut adam = adamw(&vars, decay, clip);
        for i in 0..40 {
            let lr = 0.02 / f64::from(1 + i % 5);
            step(&mut adam, &vars, lr as f32);
            paper.step(lr, f64::from(decay), f64::from(clip));
            for (got, want) in values(&vars).iter().zip(&paper.w) {
                close(got, want, 2e-5);
            }
        }
    }
}

#[test]
fn a_rate_of_zero_moves_nothing() {
    for clip in [1e-3, 1e9] {
        let vars = vars();
        step(&mut adamw(&vars, 0.0, clip), &vars, 0.0);
        assert_eq!(values(&vars), values(&self::vars()));
    }
}

#[test]
fn a_variable_without_a_gradient_stays_as_it_is() {
    let vars = vars();
    let before = values(&vars);
    let only_vector: BTreeMap<_, _> =
        vars.iter().filter(|(name, _)| *name == "vector").map(|(n, v)| (n.clone(), v.clone())).collect();
    let gradients = grads(&only_vector);
    adamw(&vars, 0.5, 1.0).step(&vars, &gradients, (gradients.norm(), 0.1)).unwrap();
    assert_eq!(values(&vars)[0], before[0], "not even decay touches it");
    assert_ne!(values(&vars)[1], before[1]);
}

#[test]
fn a_saved_state_of_another_shape_or_without_its_step_is_refused() {
    let (dir, _) = saved(&adamw(&vars(), 0.0, 1.0), &vars());
    let load = || Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
    let wider = BTreeMap::from([
        ("matrix".to_owned(), var(1, &[4, 3], 1.0)),
        ("vector".to_owned(), var(2, &[5], 1.0)),
    ]);
    let error = adamw(&wider, 0.0, 1.0).restore(&wider, &load()).unwrap_err().to_string();
    assert!(error.contains("`m.matrix` is missing or has another shape"), "{error}");
    std::fs::write(dir.path().join("config.json"), "{\"step\": \"three\"}").unwrap();
    let error = adamw(&vars(), 0.0, 1.0).restore(&vars(), &load()).unwrap_err().to_string();
    assert!(error.contains("`step`"), "{error}");
}

#[test]
fn a_parameter_moves_at_its_own_rate() {
    let vars = vars();
    let before = values(&vars);
    let rates = BTreeMap::from([
        ("matrix".to_owned(), Rates { lr: 0.0, weight_decay: 0.5 }),
        ("vector".to_owned(), Rates { lr: 2.0, weight_decay: 0.5 }),
    ]);
    step(&mut AdamW::new(&vars, rates, (Precision::F32, f32::INFINITY)), &vars, 0.01);
    assert_eq!(values(&vars)[0], before[0], "no rate, no decay");
    for (old, new) in before[1].iter().zip(&values(&vars)[1]) {
        let want = old - 0.02 * 0.5 * old + 0.02 * (1.0 - old).signum();
        assert!((new - want).abs() < 1e-5, "{new} {want}");
    }
}

fn large() -> BTreeMap<String, Var> {
    BTreeMap::from([("a".to_owned(), var(1, &[70, 130], 1.0)), ("b".to_owned(), var(2, &[300], 1.0))])
}

/// The mean squared distance from 1.
fn apart(vars: &BTreeMap<String, Var>) -> f32 {
    let all: Vec<f32> = values(vars).concat();
    all.iter().map(|x| (x - 1.0).powi(2)).sum::<f32>() / all.len() as f32
}

#[test]
fn eight_bits_learn_what_32_learn_and_resume_with_the_same_bits() {
    let (whole, eight) = (large(), large());
    let mut adam =
        [Precision::F32, Precision::Eight].map(|precision| in_precision(precision, &whole, 0.0, 1e9));
    let start = apart(&whole);
    for i in 0..120 {
        let lr = 0.05 * (1.0 - i as f32 / 120.0);
        step(&mut adam[0], &whole, lr);
        step(&mut adam[1], &eight, lr);
    }
    let (whole_left, eight_left) = (apart(&whole) / start, apart(&eight) / start);
    assert!(whole_left < 1e-3 && eight_left < 0.01, "{whole_left} {eight_left}");
    assert_ne!(values(&whole), values(&eight));

    let saved = saved(&adam[1], &eight);
    let again = large();
    Weights::of(&eight).unwrap().put(&again).unwrap();
    let mut resumed = in_precision(Precision::Eight, &again, 0.0, 1e9);
    resumed.restore(&again, &saved.1).unwrap();
    for _ in 0..3 {
        step(&mut adam[1], &eight, 0.05);
        step(&mut resumed, &again, 0.05);
    }
    assert_eq!(values(&eight), values(&again));
    let error = adamw(&again, 0.0, 1.0).restore(&again, &saved.1).unwrap_err().to_string();
    assert!(error.contains("`m.a` is missing or has another shape"), "{error}");
}
