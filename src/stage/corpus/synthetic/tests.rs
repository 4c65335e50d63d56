//! What every corpus must hold, whatever the seed.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    page::count,
    words::{ATOMS, COLOURS, DIGITS, GIFTS, ROLES},
    *,
};

fn small(seed: u64) -> Vec<Text> {
    generate(&Synthetic { prose: 60, programs: 60, maths: 60, ..Synthetic::default() }, seed)
}

/// Raise the corpus stage's version when this changes on purpose.
#[test]
fn the_same_seed_gives_the_same_bytes_forever() {
    let mut hasher = blake3::Hasher::new();
    for text in generate(&Synthetic { prose: 8, programs: 8, maths: 8, ..Synthetic::default() }, 7) {
        hasher.update(serde_json::to_string(&text).unwrap().as_bytes());
    }
    assert_eq!(
        hasher.finalize().to_hex().as_str(),
        "dbaa0d7279d9cfc3cf989cb04a5557b0f228b18d19c69cb1a3cc8c0a83302ba1"
    );
    assert_ne!(small(1), small(2));
}

#[test]
fn a_document_does_not_depend_on_how_many_there_are_nor_on_threads() {
    let few = generate(&Synthetic { prose: 5, programs: 0, maths: 3, ..Synthetic::default() }, 3);
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let many = one.install(|| small(3));
    assert_eq!(few.len(), 8);
    assert!(few.iter().all(|text| many.contains(text)));
    assert_eq!(many, small(3));
}

#[test]
fn documents_are_sorted_differ_and_keep_their_bounds() {
    let texts = small(4);
    assert!(texts.is_sorted_by(|a, b| a.id < b.id));
    assert_eq!(texts.len(), 180);
    for text in &texts {
        assert_eq!(text.id, blake3::hash(text.text.as_bytes()).to_hex().to_string());
        assert!(text.text.is_ascii() && !text.text.contains('\r'));
        let tokens = count(&text.text);
        assert!((100..=8_000).contains(&tokens), "{tokens} tokens in {}", text.source);
    }
    let mut sources: Vec<_> = texts.iter().map(|text| text.source.as_str()).collect();
    sources.sort_unstable();
    sources.dedup();
    assert_eq!(sources, ["synthetic/maths", "synthetic/programs", "synthetic/prose"]);
    let long = texts.iter().filter(|text| count(&text.text) > 4_000).count();
    assert!((10..60).contains(&long), "{long} of 180 documents are long");
}

#[test]
fn a_mark_names_an_answer_and_an_equal_statement_far_before() {
    let mut farthest = 0;
    for text in small(5) {
        for mark in &text.marks {
            let answer = &text.text[mark.start..mark.end];
            assert_eq!(&text.text[mark.stated..mark.stated + answer.len()], answer);
            let word_ends = |at: usize| !text.text[at..].starts_with(|c: char| c.is_ascii_alphanumeric());
            assert!(word_ends(mark.end) && word_ends(mark.stated + answer.len()));
            let key = |at: usize| text.text[..at].rsplit(' ').find(|word| !["", "="].contains(word)).unwrap();
            assert_eq!(key(mark.start), key(mark.stated), "the key stands before both");
            let distance = count(&text.text[mark.stated..mark.start]);
            assert!((100..=4_000).contains(&distance), "{distance} tokens");
            farthest = farthest.max(distance);
            assert!([10, 16].contains(&mark.choices));
        }
        assert!(text.marks.is_sorted_by_key(|mark| mark.start));
    }
    assert!(farthest > 3_000, "{farthest}");
}

/// A reader who remembers the last value said after each key answers every marked question.
#[test]
fn the_last_statement_of_a_key_is_the_one_that_is_marked() {
    let values: BTreeSet<&str> =
        [&COLOURS[..], &ROLES, &GIFTS, &ATOMS, &DIGITS].into_iter().flatten().copied().collect();
    for text in small(6) {
        for mark in &text.marks {
            let cue = text.text[..mark.start].trim_end().trim_end_matches(" =");
            let cue = &text.text[cue.rfind(' ').unwrap()..mark.start]; // ` alpha = ` or ` Mira `
            let said = text.text[..mark.start - cue.len()].rmatch_indices(cue).map(|(at, _)| at + cue.len());
            let value = |at: &usize| {
                let word = text.text[*at..].split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap();
                values.contains(word)
            };
            assert_eq!({ said }.find(value), Some(mark.stated), "{cue:?} in {}", text.source);
        }
    }
}

#[test]
fn every_domain_asks_often_and_from_afar() {
    let mut shares: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for text in small(8) {
        let share = shares.entry(text.source.clone()).or_default();
        share.0 += text.marks.len();
        share.1 += count(&text.text);
    }
    for (source, (marks, tokens)) in shares {
        assert!((15..80).contains(&(1_000 * marks / tokens)), "{source}: {marks} marks in {tokens} tokens");
    }
}

#[test]
fn bounds_out_of_range_name_the_parameter() {
    let check = |min_tokens, max_tokens, expected: &str| {
        let params = Synthetic { min_tokens, max_tokens, ..Synthetic::default() };
        let found = params
            .check("sources.0.synthetic")
            .map_or_else(|e| format!("{} {}", e.param, e.message), |()| String::new());
        assert!(found.starts_with(expected) && found.is_empty() == expected.is_empty(), "{found}");
    };
    check(100, 8_000, "");
    check(64, 128, "");
    check(63, 8_000, "sources.0.synthetic.min-tokens is 63");
    check(100, 199, "sources.0.synthetic.max-tokens is 199; twice");
    check(100, 2_000_000, "sources.0.synthetic.max-tokens is 2000000, but at most");
}
