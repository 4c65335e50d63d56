//! Text that the model wrote itself, beside the calibration text.

use super::*;

const SAMPLES: &str = "samples = 'own'\nmax-tokens = 120\nmax-length = 64\nheld-out-tokens = 24";

fn part(of: &Texts, range: std::ops::Range<usize>) -> Texts {
    Texts(of.0[range].to_vec())
}

#[test]
fn all_of_it_counts_and_each_kind_has_its_share_of_what_is_held_out() {
    let (_dir, bench) = bench("gptoss-dense", &[60, 9, 70]);
    let bench = bench.input("samples", &texts(&[30, 50, 5, 90]));
    bench.run(&stage(SAMPLES)).unwrap();
    let moments: Moments = bench.load("moments");
    assert_eq!((moments.about.tokens, moments.about.sequences), (120 + 30 + 50 + 64, 5));
    let lengths = |of: &[Vec<u32>]| of.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(lengths(&moments.calibration), [30, 60, 50, 60, 64], "spread over the text");
    assert_eq!(lengths(&moments.held_out), [9, 5], "10 and 14 tokens are theirs");
}

#[test]
fn it_counts_as_the_same_text_given_as_text() {
    let (all, (_dir, checkpoint)) = (texts(&[40, 33, 30, 50]), golden("gptoss-dense"));
    let model = || Bench::new().input("model", &checkpoint);
    let (mixed, plain) = (
        model().input("texts", &part(&all, 0..2)).input("samples", &part(&all, 2..4)),
        model().input("texts", &all),
    );
    mixed.run(&stage("samples = 'own'\nheld-out-tokens = 0")).unwrap();
    plain.run(&stage("held-out-tokens = 0")).unwrap();
    let [mixed, plain] = [mixed, plain].map(|bench| bench.load::<Moments>("moments").layer(1).unwrap().plain);
    let most = plain.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
    assert!(most > 0.0 && mixed.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-6 * most));
}
