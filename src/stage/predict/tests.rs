//! The stage on a tiny model, against its probabilities.

use super::*;
use crate::{
    artifact::{checkpoint::Draft, encoder::tests::LETTERS},
    model::testing::{checkpoint, draft, log_probabilities},
    stage::testing::{Bench, Says, texts},
};

fn model() -> Draft {
    let mut draft = draft(&["sliding_attention", "full_attention"]);
    draft.side_files.insert("tokenizer.json".to_owned(), LETTERS.into());
    draft
}

fn bench(draft: &Draft, of: &[&str]) -> Bench {
    Bench::new().input("model", &checkpoint(draft).1).input("texts", &texts(of))
}

fn stage(toml: &str) -> Predict {
    toml::from_str(&format!("model = 'model'\ntexts = 'corpus'\n{toml}")).unwrap()
}

const TEXTS: [&str; 4] = ["abcab cabd", "e", "deedeedeed", "abcab cabd"];

fn ids(text: &str) -> Vec<u32> {
    text.chars().map(|c| "abcde ".find(c).unwrap() as u32).collect()
}

#[test]
fn what_is_kept_are_the_models_own_probabilities() {
    let whole = Model::frozen(&checkpoint(&model()).1).unwrap();
    for toml in ["top-k = 3", "top-k = 3\nmicro-batch-tokens = 4"] {
        let bench = bench(&model(), &TEXTS);
        bench.run(&stage(toml)).unwrap();
        let predictions: Predictions = bench.load(OUTPUT);
        assert_eq!(
            (predictions.len(), predictions.about.vocab_size),
            (2, 31),
            "each document once, none of one token"
        );
        for text in ["abcab cabd", "deedeedeed"] {
            let ids = ids(text);
            let kept = predictions.document(&id(&ids)).unwrap().unwrap();
            assert_eq!(kept.lengths, [vec![3; ids.len() - 1], vec![0]].concat());
            let all = log_probabilities(&whole, &Batch::new([&ids[..]]));
            for (t, row) in all.iter().enumerate().take(ids.len() - 1) {
                let mut best: Vec<(usize, f64)> = row.iter().map(|p| p.exp()).enumerate().collect();
                best.sort_by(|a, b| b.1.total_cmp(&a.1));
                for (i, (id, p)) in best.into_iter().take(3).enumerate() {
                    assert_eq!(kept.ids[3 * t + i] as usize, id);
                    assert!((f64::from(kept.weights[3 * t + i]) - p).abs() < 1e-5);
                }
                let entropy = -row.iter().map(|p| p.exp() * p).sum::<f64>();
                assert!((f64::from(kept.entropies[t]) - entropy).abs() < 1e-4);
            }
        }
    }
}

#[test]
fn shards_give_the_bytes_of_the_whole() {
    for toml in ["top-k = 3", "draws = 9"] {
        let whole = bench(&model(), &TEXTS).seed(4);
        whole.run(&stage(toml)).unwrap();
        for of in [1, 2, 3] {
            let merged = bench(&model(), &TEXTS).seed(4).run_shards(&stage(toml), of).unwrap();
            assert_eq!(merged.bytes(), whole.bytes(), "{of} shards, {toml}");
        }
    }
}

#[test]
fn documents_are_cut_and_draws_do_not_depend_on_the_others() {
    let run = |texts: &[&str], toml: &str| {
        let (bench, says) = (bench(&model(), texts).seed(4), Says::default());
        let none = &crate::engine::action::NoCheckpoints;
        bench.run_with(&stage(toml), &says, none, &crate::engine::action::Stop::default()).unwrap();
        (bench, says.0.into_inner().unwrap().concat())
    };
    let (all, said) = run(&TEXTS, "draws = 20\nmax-length = 6");
    let all = all.load::<Predictions>(OUTPUT);
    assert!(said.contains("3 of 4 documents have more than 6 tokens; 12 are not seen"), "{said}");
    let (alone, _) = run(&TEXTS[2..3], "draws = 20\nmax-length = 6\nmicro-batch-tokens = 2");
    let key = id(&ids("deedee"));
    let drawn = alone.load::<Predictions>(OUTPUT).document(&key).unwrap().unwrap();
    assert_eq!(all.document(&key).unwrap().unwrap(), drawn);
    assert_eq!(drawn.lengths.len(), 6);
    assert!((drawn.weights.iter().sum::<f32>() - 5.0).abs() < 1e-5, "the shares of each token add up to one");
}

#[test]
fn what_cannot_be_predicted_is_told() {
    let fault = |draft: &Draft, texts: &[&str]| bench(draft, texts).run(&stage("")).unwrap_err().to_string();
    assert!(fault(&model(), &["a", ""]).contains("no document has two tokens"));
    let mut broken = model();
    crate::model::testing::scale(&mut broken, "model.norm.weight", f32::NAN);
    assert!(fault(&broken, &["abc"]).contains("begins with the tokens [0, 1, 2]"));
}

#[test]
fn parameters_without_meaning_are_refused() {
    for (toml, at) in [
        ("top-k = 0", "top-k"),
        ("draws = 0", "draws"),
        ("mass = 0.0", "mass"),
        ("mass = 1.5", "mass"),
        ("max-length = 1", "max-length"),
        ("micro-batch-tokens = 0", "micro-batch-tokens"),
    ] {
        assert_eq!(stage(toml).check().unwrap_err().param, at);
    }
    assert!(stage("").check().is_ok());
    let none: Predict = toml::from_str("model = 'model'").unwrap();
    assert_eq!(none.check().unwrap_err().param, "splits");
}
