//! Near duplicates by MinHash. Knows no source; the result does not depend on the order of the documents.

use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::spool::Entry;
use crate::{
    artifact::drops::Drop,
    kernel::minhash,
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

    /// Keeps, of every set of documents that are linked by near duplicates, the one with the smallest id. `entries` is sorted by
    /// id, each with the [`Self::signature`] of its text.
    pub(super) fn remove(&self, entries: Vec<Entry>, drops: &mut Vec<Drop>) -> Vec<Entry> {
        let mut sets = Sets((0..entries.len()).collect());
        for band in 0..self.bands {
            let mut keys: Vec<(u64, usize)> =
                entries.iter().enumerate().map(|(i, entry)| (entry.signature[band], i)).collect();
            keys.par_sort_unstable();
            for equal in keys.chunk_by(|a, b| a.0 == b.0) {
                for pair in equal.windows(2) {
                    sets.join(pair[0].1, pair[1].1);
                }
            }
        }
        let names: Vec<Option<String>> = (0..entries.len())
            .map(|i| Some(sets.first(i)).filter(|&first| first != i).map(|first| entries[first].name()))
            .collect();
        let mut kept = Vec::with_capacity(entries.len());
        for (entry, instead) in entries.into_iter().zip(names) {
            match instead {
                None => kept.push(entry),
                Some(other) => drops.push(Drop::instead("near-duplicate", &entry.source, other)),
            }
        }
        kept
    }

    /// One key per band: a hash of the smallest hashes of the text's runs of words.
    pub(super) fn signature(&self, text: &str) -> Box<[u64]> {
        let words: Vec<&[u8]> = text.split_whitespace().map(str::as_bytes).collect();
        let run = self.words.min(words.len()).max(1);
        let shingles: Vec<u64> = words.windows(run).map(|window| hash(0, window.iter().copied())).collect();
        let smallest = minhash::smallest(&shingles, self.bands * self.rows);
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

    /// A document whose id is a number.
    #[derive(Clone)]
    struct Doc(u32, String);

    /// 200 words; `edits` of them, far apart, replaced.
    fn text(id: u32, topic: &str, edits: usize) -> Doc {
        let word = |i: usize| {
            let edited = edits > 0 && i % (200 / edits) == 3;
            if edited { format!("edit{id}x{i}") } else { format!("{topic}{i}") }
        };
        Doc(id, (0..200).map(word).collect::<Vec<_>>().join(" "))
    }

    fn id(number: u32) -> [u8; 32] {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&number.to_be_bytes());
        id
    }

    /// The numbers of those that stay, and of those that go with what stays instead.
    fn split(near: &NearDuplicates, docs: &[Doc]) -> (Vec<u32>, Vec<(u32, u32)>) {
        let number = |id: &[u8]| u32::from_be_bytes(id[..4].try_into().unwrap());
        let entry =
            |Doc(n, text): &Doc| Entry::new(id(*n), n.to_string().into(), "".into(), near.signature(text));
        let mut drops = Vec::new();
        let kept = near.remove(docs.iter().map(entry).collect(), &mut drops);
        assert_eq!(kept.len() + drops.len(), docs.len());
        let instead = |hex: &str| number(blake3::Hash::from_hex(hex).unwrap().as_bytes());
        let gone = drops.iter().map(|d| (d.source.parse().unwrap(), instead(&d.kept))).collect();
        (kept.iter().map(|entry| number(&entry.id)).collect(), gone)
    }

    fn removed(docs: &[Doc]) -> Vec<(u32, u32)> {
        split(&NearDuplicates::default(), docs).1
    }

    #[test]
    fn a_small_edit_is_found_and_other_texts_stay() {
        let texts = [text(1, "a", 0), text(2, "b", 0), text(3, "a", 1), text(4, "a", 2), text(5, "c", 0)];
        assert_eq!(removed(&texts), [(3, 1), (4, 1)]);
        // Half of the runs differ in this one.
        assert_eq!(removed(&[text(1, "a", 0), text(2, "a", 20)]), []);
    }

    #[test]
    fn short_and_empty_texts_are_compared_whole() {
        let texts = [(1, "one two"), (2, "one  two\n"), (3, "one three"), (4, "one")];
        assert_eq!(removed(&texts.map(|(id, words)| Doc(id, words.to_owned()))), [(2, 1)]);
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
            split(&near, &[text(1, "a", 0), text(2, "a", edits)]).0.len() == 1
        };
        // Many bands of one row take nearly anything in common; one band of many rows wants nearly everything.
        assert!(found(64, 1, 8) && found(64, 1, 1));
        assert!(!found(1, 64, 8));
        assert!(found(1, 64, 0), "equal texts are near whatever the figures");
    }

    #[test]
    fn neither_the_order_nor_the_threads_decide_who_stays() {
        let texts: Vec<Doc> =
            (0..24).map(|i| text(i, ["a", "b", "c"][i as usize % 3], i as usize / 12)).collect();
        let kept = || split(&NearDuplicates::default(), &texts).0;
        assert_eq!(kept(), [0, 1, 2]);
        assert_eq!(on_threads(kept), [[0, 1, 2]; 3]);
    }

    #[test]
    fn runs_of_words_see_the_order() {
        let mut words: Vec<String> = (0..200).map(|i| format!("w{i}")).collect();
        let forwards = Doc(1, words.join(" "));
        words.reverse();
        let texts = [forwards, Doc(2, words.join(" "))];
        let left = |words| split(&NearDuplicates { words, ..NearDuplicates::default() }, &texts).0.len();
        assert_eq!((left(1), left(2)), (1, 2), "single words have no order");
    }
}
