//! What is set aside, and what is measured on it against the definition.

use super::*;
use crate::model::testing::{FULL, LATENT, SLIDING, checkpoint, draft, log_probabilities, scale};

fn documents() -> Vec<Vec<u32>> {
    (0..40u32).map(|i| (0..5 + i % 9).map(|t| (i + t) % 30).collect()).collect()
}

#[test]
fn whole_documents_are_set_aside_and_the_others_keep_their_order() {
    let held_out = HeldOut { tokens: 30, ..HeldOut::default() };
    let (mut rest, all) = (documents(), documents());
    let aside = held_out.set_aside(&mut rest, 3);
    let tokens: usize = aside.iter().map(Vec::len).sum();
    assert!((22..=30).contains(&tokens), "{tokens}");
    let place = |document: &Vec<u32>| all.iter().position(|other| other == document).unwrap();
    for part in [&aside, &rest] {
        assert!(part.iter().map(place).is_sorted());
    }
    let mut both: Vec<usize> = aside.iter().chain(&rest).map(place).collect();
    both.sort_unstable();
    assert!(both.into_iter().eq(0..40));
    let of = |seed| held_out.set_aside(&mut documents(), seed);
    assert!(of(3) == aside && of(4) != aside);
}

#[test]
fn no_more_than_a_tenth_is_set_aside() {
    let of = |tokens: usize, mut documents: Vec<Vec<u32>>| {
        HeldOut { tokens, ..HeldOut::default() }
            .set_aside(&mut documents, 1)
            .iter()
            .map(Vec::len)
            .sum::<usize>()
    };
    let all: usize = documents().iter().map(Vec::len).sum();
    assert!(of(10_000, documents()) <= all / 10 && of(10_000, documents()) > all / 10 - 5);
    assert_eq!(of(0, documents()), 0);
    assert_eq!(of(100, vec![vec![1; 50], vec![2; 50]]), 0, "a document that is too long is left in");
    assert_eq!(of(100, vec![]), 0);
}

fn model(layers: &[&str]) -> Model {
    Model::frozen(&checkpoint(&draft(layers)).1).unwrap()
}

#[test]
fn the_measure_is_the_mean_over_predicted_tokens_and_so_is_that_of_each_bucket() {
    let (teacher, student) = (model(&[SLIDING, FULL]), model(&[SLIDING, LATENT]));
    let documents = documents()[..5].to_vec();
    let mut costs: Vec<(usize, f64, f64)> = Vec::new();
    for document in &documents {
        let alone = Batch::new([&document[..]]);
        let (p, q) = (log_probabilities(&teacher, &alone), log_probabilities(&student, &alone));
        for t in 0..document.len() - 1 {
            let kl = p[t].iter().zip(&q[t]).map(|(p, q)| p.exp() * (p - q)).sum();
            costs.push((t, kl, -q[t][document[t + 1] as usize]));
        }
    }
    let mean = |which: &dyn Fn(&(usize, f64, f64)) -> f64, range: std::ops::Range<usize>| {
        let chosen: Vec<f64> = costs.iter().filter(|cost| range.contains(&cost.0)).map(which).collect();
        (chosen.len(), chosen.iter().sum::<f64>() / chosen.len() as f64)
    };
    for (teacher, which) in [
        (Some(&teacher), &(|cost: &(usize, f64, f64)| cost.1) as &dyn Fn(&(usize, f64, f64)) -> f64),
        (None, &|cost| cost.2),
    ] {
        for micro_batch_tokens in [3, 100] {
            let exam = Exam::new(&documents, (teacher, None), micro_batch_tokens, &[2, 6, 50]).unwrap();
            assert_eq!(exam.tokens(), 35);
            let measure = exam.measure(&student).unwrap().unwrap();
            let want = mean(which, 0..99).1;
            assert!(
                want > 1e-3 && (f64::from(measure.loss) - want).abs() < 1e-5 * want,
                "{} {want}",
                measure.loss
            );
            assert_eq!(measure.buckets.iter().map(|bucket| bucket.from).collect::<Vec<_>>(), [0, 2, 6]);
            for (bucket, range) in measure.buckets.iter().zip([0..2, 2..6, 6..50]) {
                let (tokens, want) = mean(which, range);
                assert_eq!(bucket.tokens, tokens);
                assert!((f64::from(bucket.loss) - want).abs() < 1e-5 * want, "{} {want}", bucket.loss);
            }
        }
    }
}

#[test]
fn the_teacher_is_no_distance_from_itself_and_no_number_is_told() {
    let teacher = model(&[FULL]);
    let exam = Exam::new(&documents()[..2], (Some(&teacher), None), 100, &[]).unwrap();
    assert!(exam.measure(&teacher).unwrap().unwrap().loss < 1e-9);
    let mut broken = draft(&[FULL]);
    scale(&mut broken, "model.norm.weight", f32::NAN);
    let broken = Model::frozen(&checkpoint(&broken).1).unwrap();
    assert_eq!(exam.measure(&broken).unwrap(), None);
}

#[test]
fn values_without_meaning_are_refused() {
    let held_out = |toml: &str| toml::from_str::<HeldOut>(toml).unwrap();
    for wrong in ["every = 0", "buckets = [0, 5]", "buckets = [5, 5]", "buckets = [6, 5]"] {
        assert_eq!(held_out(wrong).check().unwrap_err().param, "held-out", "{wrong}");
    }
    assert!(held_out("tokens = 0").check().is_ok() && held_out("buckets = []").check().is_ok());
    assert_eq!(held_out(""), HeldOut::default());
}
