//! The embedded model on text that it was not trained on: a fact stated before the window gives it the answer, and only that fact.

use super::*;
use crate::{
    artifact::texts::Mark,
    stage::corpus::synthetic::{Synthetic, generate},
};

const WINDOW: usize = 64;

/// Documents of facts that are asked for later.
fn documents() -> Vec<Text> {
    generate(&Synthetic { prose: 3, programs: 3, maths: 3, min_tokens: 300, max_tokens: 700 }, 1_000_003)
}

/// The first tokens of answers whose fact was last stated before the window.
fn answers(offsets: &[(usize, usize)], marks: &[Mark]) -> Vec<usize> {
    // Token ends never descend, so the first that ends behind a byte is the one that holds it.
    let holding = |byte: usize| offsets.partition_point(|&(_, end)| end <= byte);
    let places = marks.iter().map(|mark| (holding(mark.start), holding(mark.stated)));
    let mut far: Vec<usize> =
        places.filter(|(at, stated)| at - stated > WINDOW + 8).map(|(at, _)| at).collect();
    far.dedup();
    far
}

/// The gain of each of these tokens.
fn gains(forward: &Forward<'_>, ids: Vec<u32>, places: Vec<usize>) -> Vec<f64> {
    let plan = Plan { window: WINDOW, samples: 1, max_tokens: 8192, min_tokens: 0, bos: None, seed: 0 };
    let documents = [Document { id: "d".into(), tokens: ids.len(), ids, places }];
    let tasks: Vec<Task> = plan.tasks(0, &documents[0]).collect();
    let losses = forward.losses(&tasks, &documents).unwrap().concat();
    let (full, short) = losses.split_at(losses.len() / 2);
    short.iter().zip(full).map(|(short, full)| short - full).collect()
}

#[test]
fn answers_gain_from_their_own_past_and_not_from_anothers() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/tiny");
    let checkpoint = Checkpoint::load(&files_in(&folder).unwrap()).unwrap();
    let encoder = Encoder::from_file(checkpoint.file("tokenizer.json").unwrap()).unwrap();
    let documents: Vec<(Vec<u32>, Vec<usize>)> = documents()
        .iter()
        .map(|text| {
            let encoded = encoder.with_offsets(&text.text, text.special_tokens).unwrap();
            (encoded.ids, answers(&encoded.offsets, &text.marks))
        })
        .collect();
    let (mut own, mut foreign, mut others) = (Vec::new(), Vec::new(), Vec::new());
    Bench::new()
        .run_in(&[], |cx| {
            let forward = Forward::load(cx, &checkpoint)?;
            for (i, (ids, answers)) in documents.iter().enumerate() {
                own.extend(gains(&forward, ids.clone(), answers.clone()));
                // What is no answer, spread over the document.
                let rest: Vec<usize> =
                    (WINDOW + 1..ids.len()).step_by(23).filter(|at| !answers.contains(at)).collect();
                others.extend(gains(&forward, ids.clone(), rest));
                // The same tokens with the same window, behind the past of the next document.
                let past = &documents[(i + 1) % documents.len()].0;
                for &at in answers.iter().step_by(3) {
                    let far: Vec<u32> = past.iter().copied().take(at - WINDOW).collect();
                    let ids = [&far, &ids[at - WINDOW..=at]].concat();
                    let last = ids.len() - 1;
                    foreign.extend(gains(&forward, ids, vec![last]));
                }
            }
            Ok(())
        })
        .unwrap();
    let means = [&own, &others, &foreign].map(|gains| mean(gains));
    assert!(own.len() > 100 && others.len() > 100 && foreign.len() > 30, "{} {}", own.len(), others.len());
    assert!(means[0] > 2.0 && means[1].abs() < 0.5 && means[2] < 0.0, "{means:?}");
}
