//! The tokenizer of small texts, and of the synthetic corpus with its closed sets and marks.

use super::*;
use crate::{
    artifact::texts::Text,
    stage::{
        corpus::synthetic::{Synthetic, closed_sets, generate},
        testing::Bench,
    },
};

fn trained(texts: &[&str], vocab_size: usize) -> Tokenizer {
    train(texts.iter().copied(), vocab_size).unwrap()
}

fn tokens(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let encoded = tokenizer.encode_with_offsets(text).unwrap();
    encoded.offsets.into_iter().map(|(start, end)| text[start..end].to_owned()).collect()
}

#[test]
fn the_most_frequent_pair_first_and_of_equals_the_smallest() {
    let words = Words::from([("abab".to_owned(), 3), ("bc".to_owned(), 6), ("cd".to_owned(), 1)]);
    let mut vocab: Vec<String> = ["a", "b", "c", "d"].map(str::to_owned).into();
    let merges = Merger::new(&words, &vocab).run(&mut vocab, 100);
    // ab and bc both occur 6 times; then ab·ab 3 times; cd once only.
    assert_eq!(merges, [(0, 1), (1, 2), (4, 4)]);
    assert_eq!(vocab[4..], ["ab", "bc", "abab"]);
}

#[test]
fn a_pair_that_overlaps_itself_is_counted_as_merged() {
    let words = Words::from([("aaaaa".to_owned(), 2)]);
    let mut vocab = vec!["a".to_owned()];
    let merges = Merger::new(&words, &vocab).run(&mut vocab, 100);
    assert_eq!(vocab, ["a", "aa", "aaa", "aaaaa"]);
    assert_eq!(merges, [(0, 0), (1, 0), (1, 2)]);
}

#[test]
fn digits_stand_alone_and_words_take_the_space_before_them() {
    let text = "So x = 1234, isn't it? x = 1234\n  if x = 12.\n";
    let tokenizer = trained(&[text; 3], 2_048);
    let expected = [
        "So", " x", " =", " 1", "2", "3", "4", ",", " isn", "'t", " it", "?", " x", " =", " 1", "2", "3",
        "4", "\n ", " if", " x", " =", " 1", "2", ".", "\n",
    ];
    assert_eq!(tokens(&tokenizer, text), expected);
}

#[test]
fn any_text_comes_back() {
    let tokenizer = trained(&["a small text, a small vocabulary"], 280);
    for text in ["", " ", "naïve \u{1f600}\r\n\t\0", "<|endoftext|>", "日本語 12", "a  small   text \n\n\n x"]
    {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
    }
}

#[test]
fn the_vocabulary_is_full_or_no_pair_occurs_twice() {
    let text = "the cat and the hat and the bat";
    assert_eq!(trained(&[text], 262).vocab_size(), 262);
    let all = trained(&[text], 2_048);
    assert!((263..300).contains(&all.vocab_size()), "{}", all.vocab_size());
    assert_eq!((all.start(), all.end(), all.pad()), (0, 1, 2));
}

fn corpus(n: u32, seed: u64) -> Vec<Text> {
    generate(&Synthetic { prose: n, programs: n, maths: n, ..Synthetic::default() }, seed)
}

#[test]
fn the_same_bytes_for_any_threads_and_order() {
    let stage = TrainTokenizer { texts: Input::new("corpus"), vocab_size: 2_048 };
    let bytes = |threads: usize, reverse: bool| {
        let mut texts = corpus(20, 1);
        if reverse {
            texts.reverse();
        }
        let bench = Bench::new().input("texts", &Texts(texts));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bench.run(&stage)).unwrap();
        bench.bytes()
    };
    let one = bytes(1, false);
    assert_eq!(one.len(), 3);
    assert_eq!(one, bytes(2, true));
    assert_eq!(one, bytes(7, false));
}

#[test]
fn every_word_of_the_closed_sets_is_one_token() {
    let texts = corpus(100, 0);
    let tokenizer = train(texts.iter().map(|text| text.text.as_str()), 2_048).unwrap();
    for word in closed_sets() {
        let word = format!(" {word}");
        assert_eq!(tokens(&tokenizer, &word), [word]);
    }
}

/// The generator only estimates tokens; here they are counted.
#[test]
fn marked_answers_are_one_token_at_the_promised_distance() {
    let texts = corpus(100, 0);
    let tokenizer = train(texts.iter().map(|text| text.text.as_str()), 2_048).unwrap();
    for text in corpus(15, 1) {
        let encoded = tokenizer.encode_with_offsets(&text.text).unwrap();
        assert!((100..=8_000).contains(&encoded.ids.len()), "{} tokens", encoded.ids.len());
        let at = |byte: usize| {
            encoded.offsets.iter().position(|&(start, end)| start <= byte && byte < end).unwrap()
        };
        for mark in &text.marks {
            let (answer, stated) = (at(mark.start), at(mark.stated));
            assert_eq!(encoded.offsets[answer], (mark.start - 1, mark.end));
            assert_eq!(encoded.ids[answer], encoded.ids[stated]);
            assert!((100..=4_000).contains(&(answer - stated)), "{} tokens", answer - stated);
        }
    }
}

#[test]
fn a_vocabulary_below_the_bytes_and_an_empty_corpus_are_refused() {
    let stage = |vocab_size| TrainTokenizer { texts: Input::new("corpus"), vocab_size };
    assert_eq!(stage(258).check().unwrap_err().message, "is 258, but must lie in 259..=1048576");
    assert!(stage(259).check().is_ok());
    let error = Bench::new().input("texts", &Texts(vec![])).run(&stage(300)).unwrap_err().to_string();
    assert!(error.starts_with("there is no text to learn from"), "{error}");
}
