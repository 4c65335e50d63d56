//! Tests of regression: against normal equations by elimination, against gradients, and of what is kept out.

use super::*;
use crate::kernel::testing::noise;

/// Rows of a linear map with a constant part, and noise.
struct Rows {
    x: Vec<f32>,
    y: Vec<f32>,
}

const INPUTS: usize = 7;
const OUTPUTS: usize = 70;

fn rows(seed: u64, n: usize, scatter: f32) -> Rows {
    let map = noise(99, OUTPUTS * (INPUTS + 1), 1.0);
    let x = noise(seed, n * INPUTS, 1.0);
    let jitter = noise(seed + 1, n * OUTPUTS, scatter);
    let value = |row: &[f32], o: usize| {
        let map = &map[o * (INPUTS + 1)..][..=INPUTS];
        map[INPUTS] + row.iter().zip(map).map(|(x, w)| x * w).sum::<f32>()
    };
    let plain = x.chunks_exact(INPUTS).flat_map(|row| (0..OUTPUTS).map(move |o| value(row, o)));
    let y = plain.zip(&jitter).map(|(y, jitter)| y + jitter).collect();
    Rows { x, y }
}

fn sums(rows: &Rows, bias: bool) -> Regression {
    let mut sums = Regression::new((INPUTS, OUTPUTS), bias);
    let cut = 3;
    sums.add(&rows.x[..cut * INPUTS], &rows.y[..cut * OUTPUTS]);
    sums.add(&rows.x[cut * INPUTS..], &rows.y[cut * OUTPUTS..]);
    sums
}

fn prior(width: usize) -> Mat<f64> {
    let values = noise(5, OUTPUTS * width, 0.5);
    Mat::from_fn(OUTPUTS, width, |i, j| f64::from(values[i * width + j]))
}

/// `Σ ‖y − W x̃‖²` row by row, and with the pull if there is one.
fn direct(rows: &Rows, map: &Mat<f64>, pull: Option<(f64, &Mat<f64>)>) -> f64 {
    let n = rows.x.len() / INPUTS;
    let input = |row: usize, j: usize| if j < INPUTS { f64::from(rows.x[row * INPUTS + j]) } else { 1.0 };
    let mut sum = 0.0;
    for row in 0..n {
        for o in 0..OUTPUTS {
            let got: f64 = (0..map.ncols()).map(|j| map[(o, j)] * input(row, j)).sum();
            sum += (f64::from(rows.y[row * OUTPUTS + o]) - got).powi(2);
        }
    }
    let Some((ridge, prior)) = pull else { return sum };
    let mean = rows.x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / INPUTS as f64;
    let away = |o: usize| (0..INPUTS).map(|j| (map[(o, j)] - prior[(o, j)]).powi(2)).sum::<f64>();
    sum + ridge * mean * (0..OUTPUTS).map(away).sum::<f64>()
}

fn whole(rows: &Rows) -> f64 {
    rows.y.iter().map(|&y| f64::from(y).powi(2)).sum()
}

#[test]
fn an_exact_map_is_found_with_its_bias_and_without_a_pull() {
    let (seen, kept_out) = (rows(1, 40, 0.0), rows(10, 20, 0.0));
    let fit = sums(&seen, true).fit(prior(INPUTS + 1).as_ref(), &[1e-12], &sums(&kept_out, true)).unwrap();
    assert!(fit.after < 1e-10 && fit.before > 0.1, "{} {}", fit.before, fit.after);
    assert!((direct(&kept_out, &fit.map, None) / whole(&kept_out) - fit.after).abs() < 1e-10);
}

#[test]
fn the_error_is_that_of_the_rows() {
    for bias in [false, true] {
        let (seen, map) = (rows(3, 30, 0.3), prior(INPUTS + usize::from(bias)));
        let want = direct(&seen, &map, None) / whole(&seen);
        assert!((sums(&seen, bias).error(map.as_ref()) - want).abs() < 1e-12 * want);
    }
}

#[test]
fn a_fit_is_where_no_step_lowers_the_pulled_sum() {
    for bias in [false, true] {
        let (seen, prior) = (rows(4, 25, 0.5), prior(INPUTS + usize::from(bias)));
        let sums = sums(&seen, bias);
        for ridge in [0.01, 0.5] {
            let fit = sums.fit(prior.as_ref(), &[ridge], &sums).unwrap();
            assert_eq!(fit.ridge, Some(ridge));
            let least = direct(&seen, &fit.map, Some((ridge, &prior)));
            for (o, j) in [(0, 0), (3, INPUTS - 1), (69, prior.ncols() - 1), (65, 2)] {
                for step in [-1e-3, 1e-3] {
                    let mut map = fit.map.clone();
                    map[(o, j)] += step;
                    assert!(direct(&seen, &map, Some((ridge, &prior))) > least, "{o} {j} {step}");
                }
            }
        }
    }
}

#[test]
fn rows_kept_out_choose_the_pull_and_may_refuse_all() {
    // Fewer rows than inputs: without a pull the fit follows the scatter.
    let (seen, kept_out) = (rows(6, 6, 2.0), sums(&rows(20, 200, 2.0), true));
    let truth = noise(99, OUTPUTS * (INPUTS + 1), 1.0);
    let truth = Mat::from_fn(OUTPUTS, INPUTS + 1, |i, j| f64::from(truth[i * (INPUTS + 1) + j]));
    let near = Mat::from_fn(OUTPUTS, INPUTS + 1, |i, j| truth[(i, j)] + 0.3);
    let ridges = [1e-9, 1e-3, 0.1, 1.0];
    let fit = sums(&seen, true).fit(near.as_ref(), &ridges, &kept_out).unwrap();
    let alone = |ridge| sums(&seen, true).fit(near.as_ref(), &[ridge], &kept_out).unwrap().after;
    let least = ridges.map(alone).into_iter().fold(fit.before, f64::min);
    assert!((fit.after - least).abs() < 1e-15 && fit.after <= fit.before);
    let refused = sums(&seen, true).fit(truth.as_ref(), &ridges, &kept_out).unwrap();
    assert_eq!((refused.ridge, refused.map), (None, truth), "nothing is better than the truth");
}

#[test]
fn threads_do_not_change_a_bit() {
    let (seen, kept_out) = (rows(8, 200, 0.5), rows(30, 50, 0.5));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let fit =
            || sums(&seen, true).fit(prior(INPUTS + 1).as_ref(), &[0.1], &sums(&kept_out, true)).unwrap();
        let fit = pool.install(fit);
        (fit.map, fit.after.to_bits())
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn sums_that_are_no_numbers_are_an_error() {
    let mut seen = rows(9, 10, 0.1);
    seen.x[3] = f32::NAN;
    let sums = sums(&seen, false);
    assert!(sums.fit(prior(INPUTS).as_ref(), &[0.1], &sums).is_err());
}
