//! Near duplicates by MinHash. Knows no source; the result does not depend on the order of the documents.

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    artifact::{drops::Drop, texts::Text},
    math::hash::{hash, mix},
    stage::Invalid,
};

/// How alike documents must be: with 14 bands of 8 rows, two documents that share 72 % of their runs of 5 words are found with a
/// probability of two thirds, at 80 % with 92 %, at 50 % with 5 %.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct NearDuplicates {
    /// Words in a run.
    pub words: usize,
    /// Bands: one that is equal makes two documents near duplicates.
    pub bands: usize,
    /// Minimum hashes per band.
    pub rows: usize,
}

impl Default for NearDuplicates {
    fn default() -> Self {
        Self { words: 5, bands: 14, rows: 8 }
    }
}

impl NearDuplicates {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        for (name, value) in [("words", self.words), ("bands", self.bands), ("rows", self.rows)] {
            if !(1..=64).contains(&value) {
                let why = format!("`{name}` is {value}, outside 1 to 64");
                return Err(Invalid::new(format!("near-duplicates.{name}"), why));
            }
        }
        Ok(())
    }

    /// Keeps, of every set of documents that are linked by near duplicates, the one with the smallest id. `texts` is sorted by id.
    pub(super) fn remove(&self, texts: Vec<Text>, drops: &mut Vec<Drop>) -> Vec<Text> {
        let mut bands: Vec<(usize, u64, usize)> = texts
            .par_iter()
            .enumerate()
            .flat_map_iter(|(i, text)| {
                self.bands(&text.text).into_iter().enumerate().map(move |(band, key)| (band, key, i))
            })
            .collect();
        bands.par_sort_unstable();
        let mut sets = Sets((0..texts.len()).collect());
        for equal in bands.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            for pair in equal.windows(2) {
                sets.join(pair[0].2, pair[1].2);
            }
        }
        let survivors: Vec<usize> = (0..texts.len()).map(|i| sets.first(i)).collect();
        let ids: Vec<String> = texts.iter().map(|text| text.id.clone()).collect();
        let mut kept = Vec::with_capacity(texts.len());
        for (i, text) in texts.into_iter().enumerate() {
            if survivors[i] == i {
                kept.push(text);
            } else {
                let kept = ids[survivors[i]].clone();
                drops.push(Drop { source: text.source, reason: "near-duplicate".to_owned(), kept });
            }
        }
        kept
    }

    /// One key per band: a hash of the smallest hashes of the text's runs of words.
    fn bands(&self, text: &str) -> Vec<u64> {
        let words: Vec<&[u8]> = text.split_whitespace().map(str::as_bytes).collect();
        let run = self.words.min(words.len()).max(1);
        let mut smallest = vec![u64::MAX; self.bands * self.rows];
        for window in words.windows(run) {
            let shingle = hash(0, window.iter().copied());
            for (j, least) in smallest.iter_mut().enumerate() {
                let one = mix(shingle ^ (j as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                *least = (*least).min(one);
            }
        }
        let key = |rows: &[u64]| rows.iter().fold(0, |key, &row| mix(key ^ row));
        smallest.chunks_exact(self.rows).map(key).collect()
    }
}

/// Disjoint sets whose representative is their smallest member.
struct Sets(Vec<usize>);

impl Sets {
    fn first(&mut self, mut i: usize) -> usize {
        while self.0[i] != i {
            self.0[i] = self.0[self.0[i]];
            i = self.0[i];
        }
        i
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.first(a), self.first(b));
        self.0[a.max(b)] = a.min(b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::on_threads;

    /// 200 words; `edits` of them, far apart, replaced.
    fn text(id: usize, topic: &str, edits: usize) -> Text {
        let word = |i: usize| {
            let edited = edits > 0 && i % (200 / edits) == 3;
            if edited { format!("edit{id}x{i}") } else { format!("{topic}{i}") }
        };
        let text = (0..200).map(word).collect::<Vec<_>>().join(" ");
        Text {
            id: format!("{id:04}"),
            source: format!("s/{id}"),
            licence: String::new(),
            text,
            marks: vec![],
        }
    }

    fn removed(texts: Vec<Text>) -> Vec<(String, String)> {
        let mut drops = Vec::new();
        let n = texts.len();
        let kept = NearDuplicates::default().remove(texts, &mut drops);
        assert_eq!(kept.len() + drops.len(), n);
        drops.into_iter().map(|drop| (drop.source, drop.kept)).collect()
    }

    #[test]
    fn a_small_edit_is_found_and_other_texts_stay() {
        let texts = vec![text(1, "a", 0), text(2, "b", 0), text(3, "a", 1), text(4, "a", 2), text(5, "c", 0)];
        let expected = [("s/3", "0001"), ("s/4", "0001")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(removed(texts), expected);
        // Half of the runs differ in this one.
        assert_eq!(removed(vec![text(1, "a", 0), text(2, "a", 20)]), []);
    }

    #[test]
    fn short_and_empty_texts_are_compared_whole() {
        let short = |id: usize, words: &str| Text { text: words.to_owned(), ..text(id, "", 0) };
        let texts = vec![short(1, "one two"), short(2, "one  two\n"), short(3, "one three"), short(4, "one")];
        assert_eq!(removed(texts), [("s/2".to_owned(), "0001".to_owned())]);
    }

    #[test]
    fn the_smallest_of_a_chain_stays() {
        let mut sets = Sets((0..6).collect());
        for (a, b) in [(4, 5), (2, 4), (5, 1)] {
            sets.join(a, b);
        }
        assert_eq!((0..6).map(|i| sets.first(i)).collect::<Vec<_>>(), [0, 1, 1, 3, 1, 1]);
    }

    #[test]
    fn figures_out_of_range_are_refused() {
        let stage = NearDuplicates { rows: 0, ..NearDuplicates::default() };
        assert_eq!(stage.check().unwrap_err().param, "near-duplicates.rows");
    }

    #[test]
    fn bands_and_rows_set_how_similar_is_too_similar() {
        let found = |bands, rows, edits| {
            let near = NearDuplicates { bands, rows, ..NearDuplicates::default() };
            near.remove(vec![text(1, "a", 0), text(2, "a", edits)], &mut Vec::new()).len() == 1
        };
        // Many bands of one row take nearly anything in common; one band of many rows wants nearly everything.
        assert!(found(64, 1, 8) && found(64, 1, 1));
        assert!(!found(1, 64, 8));
        assert!(found(1, 64, 0), "equal texts are near whatever the figures");
    }

    #[test]
    fn neither_the_order_nor_the_threads_decide_who_stays() {
        let texts: Vec<Text> = (0..24).map(|i| text(i, ["a", "b", "c"][i % 3], i / 12)).collect();
        let kept = |mut texts: Vec<Text>, turn: usize| {
            texts.rotate_left(turn);
            // The stage sorts by id before, as here.
            texts.sort_by(|a, b| a.id.cmp(&b.id));
            let kept = NearDuplicates::default().remove(texts, &mut Vec::new());
            kept.into_iter().map(|text| text.id).collect::<Vec<_>>()
        };
        let want = kept(texts.clone(), 0);
        assert_eq!(want, ["0000", "0001", "0002"]);
        let [one, two, five] = on_threads(|| kept(texts.clone(), 7));
        assert!(one == want && two == want && five == want);
    }

    #[test]
    fn runs_of_words_see_the_order() {
        let words: Vec<String> = (0..200).map(|i| format!("w{i}")).collect();
        let forwards = Text { text: words.join(" "), ..text(1, "", 0) };
        let mut turned = words.clone();
        turned.reverse();
        let backwards = Text { text: turned.join(" "), ..text(2, "", 0) };
        let left = |words| {
            let near = NearDuplicates { words, ..NearDuplicates::default() };
            near.remove(vec![forwards.clone(), backwards.clone()], &mut Vec::new()).len()
        };
        assert_eq!((left(1), left(2)), (1, 2), "single words have no order");
    }
}
