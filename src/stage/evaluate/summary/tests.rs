//! Figures worked out by hand, and what holds for any figures.

use proptest::{collection::vec, prop_assert, prop_assert_eq, proptest};

use super::*;

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-12, "{a} is not {b}");
}

fn token(kl: f64, nll: f64, agrees: bool, right: bool) -> Predicted {
    Predicted { kl, nll, agrees, right }
}

/// Two documents of two and three predicted tokens.
fn places() -> Vec<Place> {
    [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)].map(|(document, position)| Place { document, position }).into()
}

fn original() -> Vec<Predicted> {
    [1.0, 2.0, 0.5, 1.5, 1.0].map(|nll| token(0.0, nll, true, true)).into()
}

fn model() -> Vec<Predicted> {
    vec![
        token(0.1, 1.2, true, true),
        token(0.3, 2.2, false, false),
        token(0.0, 0.5, true, true),
        token(0.2, 1.4, true, false),
        token(0.4, 1.7, false, true),
    ]
}

#[test]
fn figures_worked_out_by_hand() {
    let (places, original, model) = (places(), original(), model());
    let all = Beside { places: &places, original: &original, model: &model }.all();
    assert_eq!(all.tokens, 5);
    close(all.kl_mean, 0.2);
    close(all.kl_median, 0.2);
    close(all.kl_p90, 0.3 + 0.6 * 0.1);
    close(all.kl_p95, 0.3 + 0.8 * 0.1);
    close(all.kl_p99, 0.3 + 0.96 * 0.1);
    close(all.kl_p999, 0.3 + 0.996 * 0.1);
    close(all.kl_max, 0.4);
    close(all.top1, 0.6);
    // Deviations of the agreement: 0.4 − 0.6 in one document, 0.4 + 0.4 − 0.6 in the other.
    close(all.top1_se.unwrap(), (2.0 * 0.08f64).sqrt() / 5.0);
    let p = |nll: f64| (-nll).exp();
    let changes = [p(1.2) - p(1.0), p(2.2) - p(2.0), 0.0, p(1.4) - p(1.5), p(1.7) - p(1.0)];
    close(all.delta_p_mean, changes.iter().sum::<f64>() / 5.0);
    close(all.delta_p_rms, (changes.iter().map(|x| x * x).sum::<f64>() / 5.0).sqrt());
    close(all.perplexity, 1.4f64.exp());
    close(all.ln_ratio, 0.2);
    close(all.perplexity_ratio, 0.2f64.exp());
    // Deviations of the KL: (−0.1 + 0.1) in one document, (−0.2 + 0 + 0.2) in the other.
    close(all.kl_mean_se.unwrap(), 0.0);
    // Differences 0.2 0.2 | 0 −0.1 0.7: sums of deviations 0 and 0.
    close(all.ln_ratio_se.unwrap(), 0.0);
}

#[test]
fn the_standard_error_is_over_documents() {
    let (places, original) = (places(), original());
    let mut model = model();
    model[4].kl = 0.9; // mean 0.3: sums of deviations −0.2 and 0.2
    let seen = Beside { places: &places, original: &original, model: &model };
    close(seen.all().kl_mean_se.unwrap(), (2.0 * 0.08f64).sqrt() / 5.0);
    let one = Beside { places: &places[..2], original: &original[..2], model: &model[..2] };
    assert_eq!(one.all().kl_mean_se, None);
}

#[test]
fn the_original_beside_itself_is_exact() {
    let (places, original) = (places(), original());
    let all = Beside { places: &places, original: &original, model: &original }.all();
    assert_eq!((all.kl_mean, all.kl_max, all.perplexity_ratio, all.top1), (0.0, 0.0, 1.0, 1.0));
}

#[test]
fn buckets_are_half_open_and_empty_ones_are_left_out() {
    let (places, original, model) = (places(), original(), model());
    let seen = Beside { places: &places, original: &original, model: &model };
    let spans = |edges: &[usize], end| {
        let buckets = seen.buckets(edges, end);
        buckets.iter().map(|b| (b.from, b.to, b.figures.tokens)).collect::<Vec<_>>()
    };
    assert_eq!(spans(&[1, 2, 5], 8), [(0, 1, 2), (1, 2, 2), (2, 5, 1)]);
    assert_eq!(spans(&[100], 4), [(0, 4, 5)]);
    close(seen.buckets(&[1], 8)[0].figures.kl_mean, 0.05);
}

#[test]
fn quantiles_lie_between_ranks() {
    for (sorted, q, expected) in
        [(&[3.0][..], 0.99, 3.0), (&[0.0, 1.0], 0.5, 0.5), (&[0.0, 1.0, 10.0], 0.75, 5.5), (&[], 0.5, 0.0)]
    {
        close(quantile(sorted, q), expected);
    }
}

#[test]
fn an_answer_needs_all_its_tokens() {
    let answer = |first, tokens, distance, choices| Answer { first, tokens, distance, choices };
    let answers = [answer(0, 1, 100, 4), answer(0, 2, 128, 4), answer(4, 1, 4000, 2)];
    let seen = recall(&answers, 3, &model(), &[128, 1024]).unwrap();
    assert_eq!((seen.answers, seen.skipped), (3, 3));
    close(seen.accuracy, 2.0 / 3.0);
    close(seen.chance, 1.0 / 3.0);
    let rows: Vec<_> = seen.by_distance.iter().map(|d| (d.from, d.to, d.answers, d.accuracy)).collect();
    assert_eq!(rows, [(0, Some(128), 1, 1.0), (128, Some(1024), 1, 0.0), (1024, None, 1, 1.0)]);
    assert_eq!(recall(&[], 0, &model(), &[128]), None);
}

proptest! {
    #[test]
    fn quantiles_ascend_between_the_least_and_the_greatest(mut values in vec(0.0f64..9.0, 1..50)) {
        values.sort_by(f64::total_cmp);
        let at: Vec<f64> = (0..=20).map(|i| quantile(&values, f64::from(i) / 20.0)).collect();
        prop_assert!(at.windows(2).all(|pair| pair[0] <= pair[1] + 1e-12));
        prop_assert!((at[0] - values[0]).abs() < 1e-12);
        prop_assert!((at[20] - values[values.len() - 1]).abs() < 1e-12);
        // Half of the values lie on either side of the median.
        let below = values.iter().filter(|&&v| v <= at[10] + 1e-12).count();
        prop_assert!(2 * below >= values.len());
    }

    #[test]
    fn buckets_are_a_partition_whose_means_add_up(kls in vec(0.0f64..3.0, 1..40), edges in vec(1usize..40, 0..4)) {
        let mut edges = edges;
        edges.sort_unstable();
        edges.dedup();
        let places: Vec<Place> = (0..kls.len()).map(|position| Place { document: 0, position }).collect();
        let model: Vec<Predicted> = kls.iter().map(|&kl| token(kl, kl, true, true)).collect();
        let seen = Beside { places: &places, original: &model, model: &model };
        let buckets = seen.buckets(&edges, 40);
        prop_assert_eq!(buckets.iter().map(|b| b.figures.tokens).sum::<usize>(), kls.len());
        let total: f64 = buckets.iter().map(|b| b.figures.kl_mean * b.figures.tokens as f64).sum();
        prop_assert!((total / kls.len() as f64 - seen.all().kl_mean).abs() < 1e-12);
        prop_assert!(buckets.windows(2).all(|pair| pair[0].to <= pair[1].from));
    }
}
