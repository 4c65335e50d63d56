//! The mixed choice: a share of every source and length, drawn by hash. Knows no cluster and no other split.

use std::{cmp::Reverse, collections::BTreeMap};

/// A document as the choice sees it: the cell it belongs to, and its id.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item<'a> {
    pub(super) index: usize,
    pub(super) cell: (&'a str, &'a str),
    pub(super) id: &'a str,
}

/// How many of `n` documents are drawn: `size`, and at most half of them, rounded up.
pub(super) fn drawn(n: usize, size: usize) -> usize {
    size.min(n.div_ceil(2))
}

/// Draws `size` items with quotas by cell; gives their indices in the order of the draw.
pub(super) fn choose(items: &[Item<'_>], size: usize, seed: u64) -> Vec<usize> {
    let mut cells: BTreeMap<(&str, &str), Vec<&Item<'_>>> = BTreeMap::new();
    for item in items {
        cells.entry(item.cell).or_default().push(item);
    }
    let counts: Vec<usize> = cells.values().map(Vec::len).collect();
    let mut drawn = Vec::new();
    for (members, quota) in cells.values().zip(quotas(&counts, size)) {
        let mut keyed: Vec<_> = members.iter().map(|item| (ticket(seed, item.id), item.index)).collect();
        keyed.sort_unstable();
        drawn.extend_from_slice(&keyed[..quota]);
    }
    drawn.sort_unstable();
    drawn.into_iter().map(|(_, index)| index).collect()
}

/// Where a document stands in the draw: a hash, so that other documents cannot change it.
fn ticket(seed: u64, id: &str) -> [u8; 32] {
    let mut hash = blake3::Hasher::new_derive_key("mla-run draw of the mixed split");
    hash.update(&seed.to_le_bytes()).update(id.as_bytes());
    *hash.finalize().as_bytes()
}

/// Shares of `size` in proportion to the counts: rounded down, then one more for the largest remainders, then for the first cells.
fn quotas(counts: &[usize], size: usize) -> Vec<usize> {
    let n: usize = counts.iter().sum();
    if n == 0 {
        return vec![0; counts.len()];
    }
    let size = size.min(n);
    let mut quotas: Vec<usize> = counts.iter().map(|c| size * c / n).collect();
    let mut order: Vec<usize> = (0..counts.len()).collect();
    order.sort_by_key(|&i| (Reverse(size * counts[i] % n), i));
    let left = size - quotas.iter().sum::<usize>();
    for &i in &order[..left] {
        quotas[i] += 1;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quotas_use_the_largest_remainder() {
        // 10 of 30: exact shares 3.33, 3.33, 3.33: the first cell gets the one that is left.
        assert_eq!(quotas(&[10, 10, 10], 10), [4, 3, 3]);
        // Exact shares 0.5, 1.5, 8: halves tie, the first cell wins.
        assert_eq!(quotas(&[1, 3, 16], 10), [1, 1, 8]);
        assert_eq!(quotas(&[0, 5], 9), [0, 5]);
        assert_eq!(quotas(&[], 9), Vec::<usize>::new());
    }

    proptest! {
        #[test]
        fn quotas_add_up_and_fit(counts in prop::collection::vec(0_usize..50, 0..8), size in 0_usize..200) {
            let quotas = quotas(&counts, size);
            prop_assert_eq!(quotas.iter().sum::<usize>(), size.min(counts.iter().sum()));
            prop_assert!(quotas.iter().zip(&counts).all(|(q, c)| q <= c));
        }
    }

    #[test]
    fn a_small_corpus_is_never_taken_whole() {
        assert_eq!([0, 1, 2, 3, 10, 1000].map(|n| drawn(n, 256)), [0, 1, 1, 2, 5, 256]);
    }

    #[test]
    fn every_cell_is_drawn_from_whatever_the_order() {
        let ids: Vec<String> = (0..200).map(|i| blake3::hash(&[i]).to_hex().to_string()).collect();
        let cell = |i: usize| {
            if i < 150 {
                ("a", "swa")
            } else if i < 190 {
                ("a", "full")
            } else {
                ("b", "gap")
            }
        };
        let items: Vec<_> =
            ids.iter().enumerate().map(|(index, id)| Item { index, cell: cell(index), id }).collect();
        let expected = choose(&items, 20, 7);
        let of = |wanted| expected.iter().filter(|&&i| cell(i) == wanted).count();
        assert_eq!([("a", "swa"), ("a", "full"), ("b", "gap")].map(of), [15, 4, 1]);

        let mut turned = items.clone();
        turned.reverse();
        assert_eq!(choose(&turned, 20, 7), expected);
        assert_ne!(choose(&items, 20, 8), expected, "the seed decides the draw");
    }
}
