//! The losses against torch's autograd in float64, and what must hold whatever the numbers.

use serde::Deserialize;

use super::*;
use crate::kernel::testing::noise;

impl Real for f64 {
    fn of(x: f64) -> Self {
        x
    }
    fn wide(self) -> f64 {
        self
    }
    fn exp(self) -> Self {
        self.exp()
    }
    fn ln(self) -> Self {
        self.ln()
    }
    fn log_sum_exp(row: &[Self]) -> Self {
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        top + row.iter().map(|x| (x - top).exp()).sum::<f64>().ln()
    }
    fn exp_all(row: &mut [Self], shift: Self) {
        for x in row.iter_mut() {
            *x = (*x - shift).exp();
        }
    }
}

#[derive(Deserialize)]
struct Golden {
    teacher: Vec<Vec<f64>>,
    student: Vec<Vec<f64>>,
    target: Vec<usize>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    kind: String,
    beta: f64,
    temperature: f64,
    cross_entropy: f64,
    value: Vec<f64>,
    gradient: Vec<Vec<f64>>,
}

fn golden() -> Golden {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/divergence/expected.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

impl Case {
    fn loss(&self) -> Loss {
        let divergence = match self.kind.as_str() {
            "forward" => Divergence::Forward,
            "reverse" => Divergence::Reverse,
            _ => Divergence::Jsd(self.beta),
        };
        Loss { divergence, temperature: self.temperature, cross_entropy: self.cross_entropy }
    }
}

/// The largest difference of a value or a gradient from autograd's.
fn worst<R: Real>(golden: &Golden, case: &Case) -> f64 {
    let mut worst = 0f64;
    for (i, (student, teacher)) in golden.student.iter().zip(&golden.teacher).enumerate() {
        let narrow = |row: &[f64]| row.iter().map(|&x| R::of(x)).collect::<Vec<R>>();
        let (mut z, mut u) = (narrow(student), narrow(teacher));
        let value = case.loss().row(&mut z, &mut u, golden.target[i]);
        worst = worst.max((value - case.value[i]).abs() / (1.0 + case.value[i]));
        let pairs = z.iter().zip(&case.gradient[i]);
        worst = pairs.map(|(got, want)| (got.wide() - want).abs()).fold(worst, f64::max);
    }
    worst
}

#[test]
fn values_and_gradients_are_those_of_autograd() {
    let golden = golden();
    assert_eq!(golden.cases.len(), 20);
    for case in &golden.cases {
        let (double, single) = (worst::<f64>(&golden, case), worst::<f32>(&golden, case));
        assert!(double < 1e-12, "{:?} in f64: {double:e}", case.loss());
        assert!(single < 1e-5, "{:?} in f32: {single:e}", case.loss());
    }
}

#[test]
fn equal_models_cost_nothing_and_pull_nowhere() {
    for divergence in [Divergence::Forward, Divergence::Reverse, Divergence::Jsd(0.3)] {
        for temperature in [0.5, 1.0, 3.0] {
            let (mut z, loss) = (noise(1, 40, 3.0), Loss { divergence, temperature, cross_entropy: 0.0 });
            let mut u: Vec<f32> = z.iter().map(|z| z + 5.0).collect(); // a shift is no difference
            assert!(loss.row(&mut z, &mut u, 0) < 1e-5, "{loss:?}");
            assert!(z.iter().all(|g| g.abs() < 1e-6), "{loss:?}");
        }
    }
}

#[test]
fn gradients_of_a_row_sum_to_nothing() {
    for case in golden().cases {
        let (mut z, mut u) = (noise(2, 50, 2.0), noise(3, 50, 2.0));
        case.loss().row(&mut z, &mut u, 7);
        assert!(z.iter().map(|&g| f64::from(g)).sum::<f64>().abs() < 1e-5, "{:?}", case.loss());
    }
}

#[test]
fn distributions_that_are_far_apart_stay_finite() {
    for divergence in [Divergence::Forward, Divergence::Reverse, Divergence::Jsd(0.5)] {
        let (mut z, mut u) = (vec![0f32; 9], vec![0f32; 9]);
        (z[0], u[8]) = (1e4, 1e4);
        let loss = Loss { divergence, temperature: 1.0, cross_entropy: 0.1 };
        let value = loss.row(&mut z, &mut u, 8);
        assert!(value.is_finite() && value > 0.1 && z.iter().all(|g| g.is_finite()), "{loss:?} {value}");
    }
    // The mixture holds at least a share of each, so this divergence has a bound.
    let (mut z, mut u) = (vec![0f32; 9], vec![0f32; 9]);
    (z[0], u[8]) = (1e4, 1e4);
    let bound = Loss { divergence: Divergence::Jsd(0.5), ..Loss::default() }.row(&mut z, &mut u, 0);
    assert!((bound - 2f64.ln()).abs() < 1e-6, "{bound}");
}

/// A row that is worked on in strips, against the formula for the whole of it.
#[test]
fn a_long_row_is_one_distribution() {
    let n = 2 * STRIP + 77;
    let wide = |seed| noise(seed, n, 4.0).into_iter().map(f64::from).collect::<Vec<f64>>();
    let (z, u, target) = (wide(1), wide(2), STRIP + 3);
    let loss = Loss { temperature: 1.5, cross_entropy: 0.3, ..Loss::default() };
    let softmax = |x: &[f64], t: f64| {
        let sum: f64 = x.iter().map(|x| (x / t).exp()).sum();
        x.iter().map(|x| (x / t).exp() / sum).collect::<Vec<f64>>()
    };
    let (p, q, plain) = (softmax(&u, 1.5), softmax(&z, 1.5), softmax(&z, 1.0));
    let kl: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
    let want = 1.5f64.powi(2) * kl - 0.3 * plain[target].ln();
    let mut gradient = z.clone();
    let got = loss.row(&mut gradient, &mut u.clone(), target);
    assert!((got - want).abs() < 1e-12 * want, "{got} {want}");
    for (i, g) in gradient.iter().enumerate() {
        let hot = if i == target { 1.0 } else { 0.0 };
        let want = 1.5 * (q[i] - p[i]) + 0.3 * (plain[i] - hot);
        assert!((g - want).abs() < 1e-14, "{i}: {g} {want}");
    }
    let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    let mut single = narrow(&z);
    let near = loss.row(&mut single, &mut narrow(&u), target);
    assert!((near - want).abs() < 1e-5 * want);
    assert!(single.iter().zip(&gradient).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6));
}
