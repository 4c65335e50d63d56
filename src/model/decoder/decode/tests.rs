//! Decoding with a cache against the whole text in one pass.

use crate::{
    artifact::checkpoint::Draft,
    kernel::testing::{close, flat},
    model::{
        Batch, KvCache, Model,
        config::Storage,
        probe::NoProbe,
        storage::Stored,
        testing::{FULL, LATENT, SLIDING, VOCAB, checkpoint, draft, lossless, lossless_shared},
    },
};

/// Longer than the window by far.
const TEXTS: [&[u32]; 3] =
    [&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], &[30, 2, 0, 30, 2, 9, 9], &[4, 3, 2, 1, 0, 1, 2, 3, 4]];

fn frozen(draft: &Draft) -> Model {
    stored(draft, Storage::default())
}

fn stored(draft: &Draft, storage: Storage) -> Model {
    Model::stored(&checkpoint(draft).1, storage).unwrap()
}

fn in_bf16() -> Storage {
    Storage { cache: Stored::Bf16, ..Storage::default() }
}

/// Logits behind each prefix of each text from `first` tokens on, decoded with a cache, until the shortest text ends.
fn decoded(model: &Model, first: [usize; 3]) -> (Vec<Vec<f32>>, KvCache) {
    let mut cache = KvCache::new(&model.config, 3);
    let mut batch = Batch::new(TEXTS.iter().zip(first).map(|(text, n)| &text[..n]));
    let mut seen = vec![Vec::new(); 3];
    for step in 0.. {
        let logits = flat(&model.decode(&batch, &mut cache).unwrap());
        seen.iter_mut().zip(logits.chunks(VOCAB)).for_each(|(seen, logits)| seen.extend(logits));
        let next = (0..3).map(|i| TEXTS[i].get(first[i] + step).map(|&id| (id, cache.seen(i))));
        let Some(next) = next.collect::<Option<Vec<_>>>() else { break };
        batch = Batch::of_next(next);
    }
    (seen, cache)
}

/// The same in one pass without a cache.
fn whole(model: &Model, i: usize, rows: std::ops::Range<usize>) -> Vec<f64> {
    let logits = flat(&model.logits(&Batch::new([TEXTS[i]]), &mut NoProbe).unwrap());
    logits[rows.start * VOCAB..rows.end * VOCAB].iter().map(|&z| f64::from(z)).collect()
}

fn drafts() -> Vec<Draft> {
    let original = draft(&[SLIDING, FULL, FULL]);
    let one = lossless(&original, 1);
    vec![
        draft(&[SLIDING, LATENT, FULL]),
        draft(&[LATENT, LATENT]),
        lossless_shared(&original, 1),
        lossless_shared(&one, 2),
        one,
        original,
    ]
}

#[test]
fn decoding_with_a_cache_gives_the_logits_of_the_whole_text() {
    for draft in drafts() {
        let model = frozen(&draft);
        for first in [[1, 1, 1], [6, 2, 1]] {
            let (seen, cache) = decoded(&model, first);
            for i in 0..3 {
                let rows = first[i] - 1..cache.seen(i);
                close(&seen[i], &whole(&model, i, rows), 2e-5);
            }
        }
    }
}

#[test]
fn a_latent_layer_that_is_always_absorbed_decodes_to_the_same() {
    let draft = draft(&[SLIDING, LATENT, FULL]);
    let (want, _) = decoded(&frozen(&draft), [4, 2, 1]);
    let (got, _) = decoded(&stored(&draft, Storage { absorbed: true, ..Storage::default() }), [4, 2, 1]);
    for (got, want) in got.iter().zip(want) {
        close(got, &want.iter().map(|&z| f64::from(z)).collect::<Vec<_>>(), 2e-5);
    }
}

#[test]
fn the_cache_takes_what_was_predicted_from_shapes() {
    for draft in drafts() {
        for storage in [Storage::default(), in_bf16()] {
            let model = stored(&draft, storage);
            let (_, cache) = decoded(&model, [6, 2, 1]);
            let predicted: usize =
                (0..3).map(|i| KvCache::predicted_bytes(&model.config, cache.seen(i))).sum();
            assert_eq!(cache.bytes(), predicted);
        }
    }
}

#[test]
fn a_cache_in_bf16_is_the_whole_text_with_one() {
    let draft = draft(&[SLIDING, LATENT, FULL]);
    let exact = whole(&frozen(&draft), 0, 0..7);
    let model = stored(&draft, in_bf16());
    let (seen, _) = decoded(&model, [1, 1, 1]);
    let want = whole(&model, 0, 0..7);
    close(&seen[0], &want, 2e-5);
    assert!(want.iter().zip(exact).any(|(a, b)| (a - b).abs() > 1e-3), "rounding shows");
}

#[test]
fn sequences_that_are_dropped_leave_the_others_as_they_are() {
    let model = frozen(&draft(&[SLIDING, LATENT, FULL]));
    let mut cache = KvCache::new(&model.config, 3);
    model.decode(&Batch::new(TEXTS.iter().map(|text| &text[..5])), &mut cache).unwrap();
    cache.retain(&[true, false, true]);
    let next = [0, 2].map(|i| (TEXTS[i][5], 5));
    let logits = flat(&model.decode(&Batch::of_next(next), &mut cache).unwrap());
    for (i, logits) in [0, 2].into_iter().zip(logits.chunks(VOCAB)) {
        close(logits, &whole(&model, i, 5..6), 2e-5);
    }
    assert_eq!(cache.sequences(), 2);
}

#[test]
#[should_panic(expected = "where it stands")]
fn a_token_at_another_position_is_refused() {
    let model = frozen(&draft(&[FULL]));
    let mut cache = KvCache::new(&model.config, 1);
    model.decode(&Batch::new([&[1, 2][..]]), &mut cache).unwrap();
    drop(model.decode(&Batch::of_next([(3, 1)]), &mut cache));
}
