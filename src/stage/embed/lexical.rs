//! The lexical embedder: hashed n-grams, square-root counts, a random ±1 projection. Knows no model and needs no download.
//!
//! All sums are integers, so a vector depends on the text, the seed and the parameters only. Letters are folded in ASCII only,
//! so that no Unicode table of a particular release enters the result.

use crate::{
    kernel::signs,
    math::{grid, hash::hash},
};

/// Which n-grams count, and how many coordinates they are projected to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lexical {
    pub(super) dim: usize,
    pub(super) word_ngrams: usize,
    pub(super) char_ngrams: usize,
    pub(super) seed: u64,
}

impl Lexical {
    /// The grid vector of a text.
    pub(super) fn embed(&self, text: &str, out: &mut [i16]) {
        let mut features = self.features(text);
        features.sort_unstable();
        let weighted: Vec<(u64, i32)> =
            features.chunk_by(|a, b| a == b).map(|same| (same[0] ^ self.seed, weight(same.len()))).collect();
        let mut sum = vec![0_i64; self.dim];
        let mut chunk = vec![0_i32; self.dim];
        for part in weighted.chunks(FLUSH) {
            signs::add(part, &mut chunk);
            flush(&mut chunk, &mut sum);
        }
        grid::quantise(&sum, out);
    }

    /// One hash per occurrence of an n-gram.
    fn features(&self, text: &str) -> Vec<u64> {
        let folded = text.to_ascii_lowercase();
        let words = words(folded.as_bytes());
        let mut features = Vec::with_capacity(words.len() * (self.word_ngrams + 4));
        for n in 1..=self.word_ngrams {
            for window in words.windows(n) {
                features.push(hash(n as u64, window.iter().copied()));
            }
        }
        if self.char_ngrams > 0 {
            let tag = 0x100 + self.char_ngrams as u64;
            for word in words.iter().filter(|word| word.len() > self.char_ngrams) {
                for gram in word.windows(self.char_ngrams) {
                    features.push(hash(tag, std::iter::once(gram)));
                }
            }
        }
        features
    }
}

/// Maximal runs of letters, digits, `_` and bytes beyond ASCII; every other visible character stands alone.
fn words(text: &[u8]) -> Vec<&[u8]> {
    let inside = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b >= 0x80;
    let mut words = Vec::new();
    for run in text.chunk_by(|&a, &b| inside(a) && inside(b)) {
        if inside(run[0]) || run[0].is_ascii_graphic() {
            words.push(run);
        }
    }
    words
}

/// `round(64 √count)`: a word that comes a hundred times counts ten times. The count is capped so that sums of [`FLUSH`] weights
/// fit an i32.
fn weight(count: usize) -> i32 {
    ((count.min(1 << 24) as f64).sqrt() * 64.0).round_ties_even() as i32
}

/// How many features fit an i32 sum: 2¹² features of weight 64 · √2²⁴ = 2¹⁸ reach 2³⁰.
const FLUSH: usize = 4096;

fn flush(chunk: &mut [i32], sum: &mut [i64]) {
    for (s, c) in sum.iter_mut().zip(chunk) {
        *s += i64::from(std::mem::take(c));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEXICAL: Lexical = Lexical { dim: 256, word_ngrams: 2, char_ngrams: 4, seed: 0 };

    fn embed(lexical: Lexical, text: &str) -> Vec<i16> {
        let mut out = vec![0; lexical.dim];
        lexical.embed(text, &mut out);
        out
    }

    fn cosine(a: &[i16], b: &[i16]) -> f64 {
        let dot: i64 = a.iter().zip(b).map(|(&a, &b)| i64::from(a) * i64::from(b)).sum();
        dot as f64 / f64::from(grid::SCALE).powi(2)
    }

    #[test]
    fn words_are_runs_and_lone_signs() {
        let found: Vec<_> = words("let x_1 = caf\u{e9}(2);".as_bytes())
            .into_iter()
            .map(|w| String::from_utf8_lossy(w).into_owned())
            .collect();
        assert_eq!(found, ["let", "x_1", "=", "caf\u{e9}", "(", "2", ")", ";"]);
    }

    #[test]
    fn texts_that_share_words_are_closer() {
        let a = embed(LEXICAL, "the kernel schedules processes on each processor core");
        let b = embed(LEXICAL, "each processor core runs the processes the kernel schedules");
        let c = embed(LEXICAL, "a triangle with equal sides has equal angles");
        assert!(cosine(&a, &a) > 0.999);
        assert!(cosine(&a, &b) > 0.5, "{}", cosine(&a, &b));
        assert!(cosine(&a, &c).abs() < 0.25, "{}", cosine(&a, &c));
    }

    #[test]
    fn case_does_not_matter_but_the_seed_does() {
        assert_eq!(embed(LEXICAL, "Some Text"), embed(LEXICAL, "some text"));
        let other = embed(Lexical { seed: 1, ..LEXICAL }, "some text");
        assert!(cosine(&embed(LEXICAL, "some text"), &other).abs() < 0.3);
    }

    #[test]
    fn a_count_weighs_its_square_root() {
        assert_eq!([1, 4, 100, usize::MAX].map(weight), [64, 128, 640, 64 << 12]);
        assert!(FLUSH as i64 * i64::from(weight(usize::MAX)) <= i64::from(i32::MAX));
    }

    #[test]
    fn long_texts_keep_exact_sums() {
        // More features than one i32 chunk takes; the definition below has no chunks.
        use std::fmt::Write;
        let mut text = String::new();
        for i in 0..3 * FLUSH {
            write!(text, "w{i} ").unwrap();
        }
        let lexical = Lexical { word_ngrams: 1, char_ngrams: 0, dim: 70, ..LEXICAL };
        let mut sum = vec![0_i64; 70];
        for feature in lexical.features(&text) {
            let mut one = vec![0_i32; 70];
            signs::definition(&[(feature, 64)], &mut one);
            sum.iter_mut().zip(one).for_each(|(s, v)| *s += i64::from(v));
        }
        let mut expected = vec![0; 70];
        grid::quantise(&sum, &mut expected);
        assert_eq!(embed(lexical, &text), expected);
    }

    #[test]
    fn bytes_are_pinned() {
        // Frozen: a change here changes every embedding, and must raise the stage's version.
        assert_eq!(embed(Lexical { dim: 8, ..LEXICAL }, "one text, two texts")[..], PINNED);
    }

    const PINNED: [i16; 8] = [-1279, -426, -1279, 2132, 426, 1279, -2132, -1279];

    #[test]
    fn what_counts_is_set_by_the_figures() {
        let check = |lexical: Lexical, a: &str, b: &str, same: bool| {
            assert_eq!(embed(lexical, a) == embed(lexical, b), same, "{a:?} {b:?}");
        };
        let bag = Lexical { word_ngrams: 1, char_ngrams: 0, ..LEXICAL };
        check(bag, "one two three", "three one two", true);
        check(bag, "one two two", "one two", false);
        check(bag, "one two", "one twos", false);
        check(LEXICAL, "one two three", "three one two", false);
        // White space only parts words, however much there is of it.
        check(LEXICAL, "one two", " one\n\n two\t", true);
        check(LEXICAL, "one two", "one, two", false);
        check(LEXICAL, "STRASSE", "strasse", true);
        check(LEXICAL, "\u{c9}t\u{e9}", "\u{e9}t\u{e9}", false); // letters beyond ASCII are not folded
        // Runs of four letters find a shared stem; without them nothing is shared.
        let near = |lexical| cosine(&embed(lexical, "transformation"), &embed(lexical, "transformational"));
        assert!(near(LEXICAL) > 0.5 && near(bag).abs() < 0.4, "{} {}", near(LEXICAL), near(bag));
    }

    #[test]
    fn a_text_without_words_is_the_zero_vector_and_others_are_of_unit_length() {
        for text in ["", " \n\t", "\u{0}\u{7}"] {
            assert_eq!(embed(LEXICAL, text), [0; 256], "{text:?}");
        }
        for text in ["a", "!", "\u{1f600}", "a b c d e f g"] {
            let row = embed(LEXICAL, text);
            assert!((cosine(&row, &row) - 1.0).abs() < 5e-3, "{text}: {}", cosine(&row, &row));
        }
    }

    #[test]
    fn unrelated_texts_are_nearly_orthogonal_in_many_dimensions() {
        let wide = Lexical { dim: 1024, ..LEXICAL };
        let rows: Vec<_> = (0..12).map(|i| embed(wide, &format!("x{i}y z{i}w q{i}p k{i}l m{i}n"))).collect();
        for (i, a) in rows.iter().enumerate() {
            for b in &rows[..i] {
                assert!(cosine(a, b).abs() < 0.16, "{}", cosine(a, b)); // 5 / √1024
            }
        }
    }
}
