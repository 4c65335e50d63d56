//! Cached attention against its definition in f64: every kind of row, every tail.

use std::ops::Range;

use super::*;
use crate::kernel::testing::{close, noise, on_threads};

/// Rows in memory.
struct Plain {
    keys: Vec<f32>,
    values: Vec<f32>,
    widths: Widths,
}

impl Plain {
    fn noise(seed: u64, n: usize, widths: Widths) -> Self {
        let keys = noise(seed, n * widths.key_row(), 1.0);
        Self { keys, values: noise(seed + 1, n * widths.value_row(), 1.0), widths }
    }

    fn part(of: &[f32], rows: &Range<usize>, width: usize) -> Range<usize> {
        assert!(rows.end * width <= of.len());
        rows.start * width..rows.end * width
    }
}

impl Rows for Plain {
    fn len(&self) -> usize {
        self.keys.len() / self.widths.key_row()
    }
    fn read<'a>(&'a self, rows: Range<usize>, _: &'a mut [Vec<f32>; 2]) -> [&'a [f32]; 2] {
        let (k, v) = (self.widths.key_row(), self.widths.value_row());
        [&self.keys[Self::part(&self.keys, &rows, k)], &self.values[Self::part(&self.values, &rows, v)]]
    }
}

/// The definition in f64.
fn reference(q: &[f32], widths: Widths, scale: f32, rows: &Plain) -> Vec<f64> {
    let per = widths.heads / widths.slots;
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
    let (q, keys, values) = (wide(q), wide(&rows.keys), wide(&rows.values));
    let mut packed = Vec::new();
    for h in 0..widths.heads {
        let (slot, q) = (h / per, &q[h * widths.query()..][..widths.query()]);
        let logit = |row: &[f64]| {
            let own = &row[widths.shared + slot * widths.own..][..widths.own];
            let met = row[..widths.shared].iter().chain(own);
            f64::from(scale) * q.iter().zip(met).map(|(q, k)| q * k).sum::<f64>()
        };
        let logits: Vec<f64> = keys.chunks(widths.key_row()).map(logit).collect();
        let sum: f64 = logits.iter().map(|x| x.exp()).sum();
        let value = |token: usize, e: usize| match widths.value {
            Some(width) => values[token * widths.value_row() + slot * width + e],
            None => keys[token * widths.key_row() + e],
        };
        for e in 0..widths.output() {
            packed.push(logits.iter().enumerate().map(|(i, x)| x.exp() / sum * value(i, e)).sum());
        }
        packed.push(sum.ln());
    }
    packed
}

const GROUPED: Widths = Widths { heads: 6, slots: 2, shared: 0, own: 5, value: Some(7) };
const LATENT: Widths = Widths { heads: 6, slots: 1, shared: 9, own: 4, value: None };
const SLOTS: Widths = Widths { heads: 6, slots: 3, shared: 9, own: 2, value: None };
const NOTHING_ROTATED: Widths = Widths { heads: 2, slots: 1, shared: 3, own: 0, value: None };

#[test]
fn matches_f64_for_every_kind_of_row_and_at_every_tail() {
    for widths in [GROUPED, LATENT, SLOTS, NOTHING_ROTATED] {
        for lengths in [&[1][..], &[5, 1], &[CHUNK, CHUNK + 1, 3 * CHUNK - 1]] {
            let rows: Vec<Plain> =
                lengths.iter().enumerate().map(|(i, &n)| Plain::noise(i as u64 * 9 + 1, n, widths)).collect();
            let q = noise(3, lengths.len() * widths.heads * widths.query(), 1.0);
            let got = cached_attention(&q, widths, 0.7, &rows);
            let each = widths.heads * widths.query();
            let want: Vec<f64> = rows
                .iter()
                .enumerate()
                .flat_map(|(i, rows)| reference(&q[i * each..][..each], widths, 0.7, rows))
                .collect();
            close(&got, &want, 3e-6);
        }
    }
}

#[test]
fn neither_threads_nor_other_sequences_change_a_bit() {
    let rows: Vec<Plain> = [300, 2, 129].iter().map(|&n| Plain::noise(n as u64, n, SLOTS)).collect();
    let each = SLOTS.heads * SLOTS.query();
    let q = noise(8, 3 * each, 1.0);
    let [one, two, eight] = on_threads(|| cached_attention(&q, SLOTS, 1.0, &rows));
    assert!(one == two && one == eight);
    let out = SLOTS.heads * (SLOTS.output() + 1);
    for i in 0..3 {
        let alone = cached_attention(&q[i * each..][..each], SLOTS, 1.0, &rows[i..=i]);
        assert_eq!(alone, one[i * out..][..out]);
    }
}

#[test]
fn large_logits_do_not_overflow() {
    let mut rows = Plain::noise(1, 200, GROUPED);
    rows.keys.iter_mut().for_each(|x| *x *= 300.0);
    let q = noise(2, GROUPED.heads * GROUPED.query(), 300.0);
    assert!(cached_attention(&q, GROUPED, 1.0, &[rows]).iter().all(|x| x.is_finite()));
}
