//! Which documents are contaminated, by which file, and what the rule says about its own mistakes.

use std::collections::BTreeSet;

use proptest::{
    prelude::{ProptestConfig, any},
    prop_assert_eq, proptest,
};

use super::*;

fn index(ngram: usize, shared: usize, files: &[(&str, &str)]) -> Index {
    let rule = Decontaminate { ngram, shared, ..Index::default().rule };
    let mut index = Index { rule, ..Index::default() };
    for (i, (name, text)) in files.iter().enumerate() {
        index.files.push((*name).to_owned());
        grams(text, ngram, &mut |run| index.runs.push((run, i as u32)));
    }
    index.finish();
    index
}

#[test]
fn case_signs_and_space_do_not_hide_a_run() {
    let index = index(4, 1, &[("quiz", "What is the capital of France?")]);
    let hit = |text: &str| index.source_of(text).is_some();
    assert!(hit("We ask: \"what is the\n CAPITAL -- of\" it"));
    assert!(hit("is the capital, of"));
    assert!(!hit("is the capital"), "three words are no run of four");
    assert!(!hit("capital the of is What France"), "the order counts");
    assert!(!hit("what is a capital of France"));
    assert!(!hit(""));
}

#[test]
fn words_are_told_apart_from_their_joins() {
    let index = index(2, 1, &[("a", "ab c")]);
    assert_eq!(index.source_of("a bc"), None);
    assert_eq!(index.source_of("abc"), None);
    assert_eq!(index.source_of("x AB, c"), Some("a"));
}

#[test]
fn the_file_with_most_shared_runs_is_named() {
    let files = [("one", "a b c d"), ("two", "a b c d e"), ("three", "c d e a b")];
    let named = |shared, text: &str| index(2, shared, &files).source_of(text).map(str::to_owned);
    assert_eq!(named(1, "a b c d").as_deref(), Some("one"), "the first of equal ones");
    assert_eq!(named(1, "a b c d e").as_deref(), Some("two"));
    assert_eq!(named(4, "a b c d e").as_deref(), Some("two"));
    assert_eq!(named(5, "a b c d e"), None);
    assert_eq!(named(2, "a b a b a b"), None, "one run many times is one");
}

#[test]
fn mistakes_name_the_parameter() {
    for (rule, param) in [
        ("", "decontaminate"),
        ("files = 'a'\njsonl = 'b'", "decontaminate"),
        ("files = 'a'\nfields = ['x']", "decontaminate.fields"),
        ("jsonl = 'a'\nfields = []", "decontaminate.fields"),
        ("parquet = 'a'\nrevision = 'v1'", "decontaminate.revision"),
        ("parquet = 'a'\nhub = 'gsm8k'", "decontaminate.hub"),
        ("files = 'a'\nngram = 0", "decontaminate.ngram"),
        ("files = 'a'\nngram = 65", "decontaminate.ngram"),
        ("files = 'a'\nshared = 0", "decontaminate.shared"),
    ] {
        let rule: Decontaminate = toml::from_str(rule).unwrap();
        assert_eq!(rule.check().unwrap_err().param, param);
    }
}

/// The words as the manual has them, and their runs as lists.
fn plain_runs(text: &str, n: usize) -> BTreeSet<Vec<String>> {
    let clean = |piece: &str| {
        piece.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase().replace('ς', "σ")
    };
    let words: Vec<String> = text.split_whitespace().map(clean).filter(|word| !word.is_empty()).collect();
    words.windows(n).map(<[String]>::to_vec).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn hashes_find_what_lists_of_words_find(
        eval in proptest::collection::vec("[a-cA-C]{1,2}[.,]?", 0..40),
        text in proptest::collection::vec("[a-cA-C]{1,2}[.,]?", 0..40),
        n in 1usize..4,
        shared in 1usize..5,
        odd in any::<String>(),
    ) {
        let (eval, text) = (eval.join(" ") + &odd, text.join("\n") + &odd);
        let common = plain_runs(&eval, n).intersection(&plain_runs(&text, n)).count();
        let found = index(n, shared, &[("e", &eval)]).source_of(&text).is_some();
        prop_assert_eq!(found, common >= shared);
    }
}
