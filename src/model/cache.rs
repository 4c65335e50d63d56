//! What a decoder keeps of the tokens it has seen: for each layer and sequence, keys and values or the latent. Knows no projection.
//!
//! A layer of sliding attention keeps only the tokens that its window still reaches: the row of the token at position `p` is `p mod window`.

use std::ops::Range;

use half::{bf16, slice::HalfFloatSliceExt};

use super::{
    batch::Batch,
    config::{Config, LayerKind},
    storage::Stored,
};
use crate::kernel::cached::{Rows, Widths};

/// The cache of several sequences.
#[derive(Debug, Clone)]
pub struct KvCache {
    pub(super) layers: Vec<LayerCache>,
}

/// That of one layer.
#[derive(Debug, Clone)]
pub struct LayerCache {
    pub(super) widths: Widths,
    pub(super) sequences: Vec<Sequence>,
}

/// The rows of one sequence in one layer.
#[derive(Debug, Clone)]
pub struct Sequence {
    keys: Cells,
    values: Cells,
    window: Option<usize>,
    /// Tokens that were seen, whether they are still kept or not.
    seen: usize,
}

/// Rows of equal width.
#[derive(Debug, Clone)]
struct Cells {
    width: usize,
    store: Store,
}

#[derive(Debug, Clone)]
enum Store {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl KvCache {
    /// An empty cache for a model; BF16 if its configuration stores the cache so, else f32.
    pub fn new(config: &Config, sequences: usize) -> Self {
        let narrow = config.storage.cache == Stored::Bf16;
        let layer = |kind: &LayerKind| {
            let widths = widths(config, kind);
            let window = kind.slides().then_some(config.sliding_window);
            let cells = |width| Cells {
                width,
                store: if narrow { Store::Bf16(Vec::new()) } else { Store::F32(Vec::new()) },
            };
            let empty = Sequence {
                keys: cells(widths.key_row()),
                values: cells(widths.value_row()),
                window,
                seen: 0,
            };
            LayerCache { widths, sequences: vec![empty; sequences] }
        };
        Self { layers: config.layers.iter().map(layer).collect() }
    }

    /// How many sequences it is for.
    pub fn sequences(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.sequences.len())
    }

    /// Tokens of a sequence that were seen.
    pub fn seen(&self, sequence: usize) -> usize {
        self.layers.first().map_or(0, |layer| layer.sequences[sequence].seen)
    }

    /// Drops the sequences for which there is `false`.
    pub fn retain(&mut self, kept: &[bool]) {
        for layer in &mut self.layers {
            let mut kept = kept.iter();
            layer.sequences.retain(|_| *kept.next().expect("one for each sequence"));
        }
    }

    /// Whether a batch is what comes next.
    pub(super) fn check(&self, batch: &Batch) {
        assert_eq!(batch.offsets.len(), self.sequences() + 1, "a batch has the sequences of its cache");
        let fits = |(i, range): (usize, &[usize])| {
            let (seen, tokens) = (self.seen(i), range[1] - range[0]);
            let first = batch.positions.get(range[0]).map(|&at| at as usize);
            tokens > 0 && first == Some(seen) && (seen == 0 || tokens == 1)
        };
        assert!(batch.offsets.windows(2).enumerate().all(fits), "one token a sequence, where it stands");
    }

    /// Bytes of everything that is kept.
    pub fn bytes(&self) -> usize {
        let sequences = self.layers.iter().flat_map(|layer| &layer.sequences);
        sequences.map(|sequence| sequence.keys.bytes() + sequence.values.bytes()).sum()
    }

    /// Bytes that a sequence of `tokens` tokens takes, from shapes alone.
    pub fn predicted_bytes(config: &Config, tokens: usize) -> usize {
        let element = if config.storage.cache == Stored::Bf16 { 2 } else { 4 };
        let layer = |(i, kind): (usize, &LayerKind)| {
            let kept = if kind.slides() { tokens.min(config.sliding_window) } else { tokens };
            kept * config.kv_elements(i) * element
        };
        config.layers.iter().enumerate().map(layer).sum()
    }
}

/// What a layer caches of a token.
fn widths(config: &Config, kind: &LayerKind) -> Widths {
    let (heads, slots, d) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    match kind {
        LayerKind::Full | LayerKind::Sliding => Widths { heads, slots, shared: 0, own: d, value: Some(d) },
        LayerKind::Latent(latent) => Widths {
            heads,
            slots: latent.rope_heads(slots),
            shared: latent.kv_lora_rank,
            own: latent.qk_rope_head_dim(),
            value: None,
        },
    }
}

impl LayerCache {
    /// Whether no token was seen.
    pub(super) fn is_empty(&self) -> bool {
        self.sequences.iter().all(|sequence| sequence.seen == 0)
    }

    /// Adds rows of keys and values, those of sequence `i` at `offsets[i]..offsets[i + 1]`.
    pub(super) fn append(&mut self, keys: &[f32], values: &[f32], offsets: &[usize]) {
        for (sequence, range) in self.sequences.iter_mut().zip(offsets.windows(2)) {
            sequence.append(keys, values, range[0]..range[1]);
        }
    }
}

impl Sequence {
    fn append(&mut self, keys: &[f32], values: &[f32], rows: Range<usize>) {
        let window = self.window.unwrap_or(usize::MAX);
        // Rows that others of this call would overwrite.
        let skipped = rows.len().saturating_sub(window);
        for (i, row) in rows.clone().enumerate().skip(skipped) {
            let at = (self.seen + i) % window;
            self.keys.put(at, keys, row);
            self.values.put(at, values, row);
        }
        self.seen += rows.len();
    }
}

impl Rows for Sequence {
    fn len(&self) -> usize {
        self.seen.min(self.window.unwrap_or(usize::MAX))
    }

    fn read<'a>(&'a self, rows: Range<usize>, [keys, values]: &'a mut [Vec<f32>; 2]) -> [&'a [f32]; 2] {
        [self.keys.read(rows.clone(), keys), self.values.read(rows, values)]
    }
}

impl Cells {
    /// Row `from` of `rows` becomes row `at`, which is there already or comes next.
    fn put(&mut self, at: usize, rows: &[f32], from: usize) {
        let (at, row) = (at * self.width, &rows[from * self.width..][..self.width]);
        match &mut self.store {
            Store::F32(cells) => {
                cells.resize(cells.len().max(at + row.len()), 0.0);
                cells[at..at + row.len()].copy_from_slice(row);
            }
            Store::Bf16(cells) => {
                cells.resize(cells.len().max(at + row.len()), bf16::ZERO);
                cells[at..at + row.len()].convert_from_f32_slice(row);
            }
        }
    }

    fn read<'a>(&'a self, rows: Range<usize>, room: &'a mut Vec<f32>) -> &'a [f32] {
        let range = rows.start * self.width..rows.end * self.width;
        match &self.store {
            Store::F32(cells) => &cells[range],
            Store::Bf16(cells) => {
                room.resize(range.len(), 0.0);
                cells[range].convert_to_f32_slice(room);
                room
            }
        }
    }

    fn bytes(&self) -> usize {
        match &self.store {
            Store::F32(cells) => size_of_val(cells.as_slice()),
            Store::Bf16(cells) => size_of_val(cells.as_slice()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence(window: Option<usize>, store: Store) -> Sequence {
        let keys = Cells { width: 2, store: store.clone() };
        Sequence { keys, values: Cells { width: 1, store }, window, seen: 0 }
    }

    /// Rows of keys `[i, i]` and of values `[−i]`.
    fn rows(of: Range<usize>) -> (Vec<f32>, Vec<f32>) {
        (of.clone().flat_map(|i| [i as f32; 2]).collect(), of.map(|i| -(i as f32)).collect())
    }

    fn add(sequence: &mut Sequence, of: Range<usize>) {
        let (keys, values) = rows(of.clone());
        sequence.append(&keys, &values, 0..of.len());
    }

    fn values(sequence: &Sequence) -> Vec<f32> {
        let mut room = [Vec::new(), Vec::new()];
        let [keys, values] = sequence.read(0..sequence.len(), &mut room);
        assert!(keys.chunks(2).zip(values).all(|(key, value)| key == [-value; 2]));
        values.to_vec()
    }

    #[test]
    fn everything_is_kept_where_there_is_no_window() {
        for store in [Store::F32(vec![]), Store::Bf16(vec![])] {
            let mut sequence = sequence(None, store);
            for range in [0..3, 3..4, 4..7] {
                add(&mut sequence, range);
            }
            assert_eq!(values(&sequence), [0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0]);
        }
    }

    #[test]
    fn a_window_keeps_the_last_tokens_however_they_came() {
        for cuts in [vec![0, 9], vec![0, 2, 9], vec![0, 1, 2, 3, 4, 5, 6, 7, 8, 9], vec![0, 4, 8, 9]] {
            let mut sequence = sequence(Some(4), Store::F32(vec![]));
            for pair in cuts.windows(2) {
                add(&mut sequence, pair[0]..pair[1]);
            }
            let mut kept = values(&sequence);
            assert_eq!(kept, [-8.0, -5.0, -6.0, -7.0], "the token at position p is in row p mod window");
            kept.sort_by(f32::total_cmp);
            assert_eq!((kept.len(), sequence.len(), sequence.seen), (4, 4, 9));
            assert_eq!(sequence.keys.bytes() + sequence.values.bytes(), 4 * 3 * 4);
        }
    }

    #[test]
    fn rows_are_rounded_to_bf16_and_take_two_bytes() {
        let mut sequence = sequence(None, Store::Bf16(vec![]));
        sequence.append(&[1.000_1, -3.0], &[0.1], 0..1);
        let mut room = [Vec::new(), Vec::new()];
        let [keys, values] = sequence.read(0..1, &mut room);
        assert_eq!((keys, values), (&[1.0, -3.0][..], &[bf16::from_f32(0.1).to_f32()][..]));
        assert_eq!(sequence.keys.bytes(), 4);
    }
}
