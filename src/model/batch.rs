//! Packed sequences: token ids one sequence after the other, positions restarting at 0 in each. Knows no text.

use std::sync::Arc;

/// Several sequences in one row, without padding.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Token ids, `offsets.last()` of them.
    pub ids: Vec<u32>,
    /// Position of each token in its own sequence.
    pub positions: Vec<u32>,
    /// Sequence `i` is rows `offsets[i]..offsets[i + 1]`.
    pub offsets: Arc<[usize]>,
}

impl Batch {
    /// Packs sequences in the given order.
    pub fn new<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let (mut ids, mut positions, mut offsets) = (Vec::new(), Vec::new(), vec![0]);
        for sequence in sequences {
            ids.extend_from_slice(sequence);
            positions.extend(0..sequence.len() as u32);
            offsets.push(ids.len());
        }
        Self { ids, positions, offsets: offsets.into() }
    }

    /// One token of each of several sequences, at its position in its own.
    pub fn of_next(tokens: impl IntoIterator<Item = (u32, usize)>) -> Self {
        let (ids, positions): (Vec<u32>, Vec<u32>) =
            tokens.into_iter().map(|(id, position)| (id, position as u32)).unzip();
        Self { offsets: (0..=ids.len()).collect::<Vec<_>>().into(), ids, positions }
    }

    /// Whole sequences in batches of about `tokens` tokens, in order: a batch holds more only if one sequence does.
    pub fn packed<'a>(sequences: impl IntoIterator<Item = &'a [u32]>, tokens: usize) -> Vec<Self> {
        let (mut packed, mut held): (Vec<Vec<&[u32]>>, usize) = (Vec::new(), 0);
        for sequence in sequences {
            if packed.is_empty() || (held > 0 && held + sequence.len() > tokens) {
                packed.push(Vec::new());
                held = 0;
            }
            held += sequence.len();
            packed.last_mut().expect("the first sequence opens a batch").push(sequence);
        }
        packed.into_iter().map(Self::new).collect()
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The id that follows each token in its sequence, and 1.0 where there is one, else 0.0 (a sequence's last token).
    pub fn next_tokens(&self) -> (Vec<u32>, Vec<f32>) {
        let mut targets: Vec<u32> = self.ids.iter().skip(1).copied().collect();
        targets.resize(self.ids.len(), 0);
        let mut weights = vec![1.0; self.ids.len()];
        for end in self.offsets.iter().skip(1).filter(|&&end| end > 0) {
            weights[end - 1] = 0.0;
            targets[end - 1] = 0;
        }
        (targets, weights)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prop_assert_eq, proptest};

    use super::Batch;

    #[test]
    fn packing_and_targets() {
        let batch = Batch::new([&[5, 6, 7][..], &[8][..], &[9, 1][..]]);
        assert_eq!(batch.offsets.as_ref(), [0, 3, 4, 6]);
        assert_eq!(batch.positions, [0, 1, 2, 0, 0, 1]);
        assert_eq!(batch.next_tokens(), (vec![6, 7, 0, 0, 1, 0], vec![1.0, 1.0, 0.0, 0.0, 1.0, 0.0]));
    }

    #[test]
    fn documents_without_tokens_take_no_row() {
        for (sequences, weights) in [
            (vec![vec![], vec![5, 6]], vec![1.0, 0.0]),
            (vec![vec![5, 6], vec![]], vec![1.0, 0.0]),
            (vec![vec![5], vec![], vec![6]], vec![0.0, 0.0]),
            (vec![vec![], vec![]], vec![]),
            (vec![], vec![]),
        ] {
            let batch = Batch::new(sequences.iter().map(Vec::as_slice));
            assert_eq!(batch.offsets.len(), sequences.len() + 1);
            assert_eq!(batch.next_tokens().1, weights, "{sequences:?}");
            assert_eq!((batch.len(), batch.is_empty()), (weights.len(), weights.is_empty()));
        }
    }

    #[test]
    fn a_batch_is_as_full_as_whole_sequences_allow() {
        let (small, large, none) = (vec![1u32; 3000], vec![2u32; 9000], Vec::new());
        let lengths = |sequences: &[&[u32]]| {
            let packed = Batch::packed(sequences.iter().copied(), 8192);
            packed.iter().map(|batch| batch.offsets.to_vec()).collect::<Vec<_>>()
        };
        let small = &small[..];
        assert_eq!(
            lengths(&[small, small, small, &large, small]),
            [vec![0, 3000, 6000], vec![0, 3000], vec![0, 9000], vec![0, 3000]]
        );
        assert_eq!(lengths(&[&none, &large, &none]), [vec![0, 0, 9000], vec![0, 0]]);
        assert!(lengths(&[]).is_empty());
        let sequences = [3000, 1096, 1, 9000, 10].map(|n| vec![1u32; n]);
        let packed = Batch::packed(sequences.iter().map(Vec::as_slice), 4096);
        assert_eq!(packed.iter().map(Batch::len).collect::<Vec<_>>(), [4096, 1, 9000, 10]);
    }

    proptest! {
        #[test]
        fn every_token_but_the_last_predicts_the_next(sequences in vec(vec(1u32..99, 0..6), 0..6)) {
            let batch = Batch::new(sequences.iter().map(Vec::as_slice));
            let (targets, weights) = batch.next_tokens();
            let rows = sequences.iter().flat_map(|s| (0..s.len()).map(move |i| (s, i)));
            for (row, (sequence, i)) in rows.enumerate() {
                prop_assert_eq!(batch.ids[row], sequence[i]);
                prop_assert_eq!(batch.positions[row], i as u32);
                let want = sequence.get(i + 1).map_or((0, 0.0), |&next| (next, 1.0));
                prop_assert_eq!((targets[row], weights[row]), want);
            }
        }
    }
}
