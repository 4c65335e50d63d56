//! Exact duplicates: one document per id, whatever the order of the input. Knows no text beyond its id.

use super::spool::Entry;
use crate::artifact::drops::Drop;

/// Keeps, of the documents with one id, the one with the smallest source, then licence; `entries` is sorted by [`Entry::key`].
/// The texts of such documents are equal, so the rule only decides whose name stays.
pub(super) fn exact(entries: Vec<Entry>, drops: &mut Vec<Drop>) -> Vec<Entry> {
    let mut kept: Vec<Entry> = Vec::with_capacity(entries.len());
    for entry in entries {
        match kept.last() {
            Some(last) if last.id == entry.id => {
                drops.push(Drop::instead("duplicate", &entry.source, entry.name()));
            }
            _ => kept.push(entry),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u8, source: &str, licence: &str) -> Entry {
        Entry::new([id; 32], source.into(), licence.into(), Box::default())
    }

    #[test]
    fn the_survivor_does_not_depend_on_the_order() {
        let rows = [entry(2, "b", "MIT"), entry(1, "c", ""), entry(2, "a", "X"), entry(2, "a", "MIT")];
        let expected = [entry(1, "c", ""), entry(2, "a", "MIT")];
        for turn in 0..rows.len() {
            let mut rows = rows.to_vec();
            rows.rotate_left(turn);
            rows.sort_by(|a, b| a.key().cmp(&b.key()));
            let mut drops = Vec::new();
            assert_eq!(exact(rows, &mut drops), expected);
            let dropped: Vec<_> = drops.iter().map(|d| (d.source.as_str(), d.kept.clone())).collect();
            assert_eq!(dropped, [("a", "02".repeat(32)), ("b", "02".repeat(32))]);
        }
    }
}
