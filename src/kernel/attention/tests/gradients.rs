//! Gradients of attention and sinks against central differences of their definition in f64, and what must break that comparison.

use super::*;
use crate::kernel::{arch::testing::on_all, sink::sink};

/// What an f32 gradient may be off, as a share of its own size and the typical size of its fellows together.
const TOLERANCE: f64 = 3e-6;

/// Sizes, sequences and inputs of one loss, `Σ wide · packed + Σ narrow · sink(packed)`: everything that has a gradient matters.
struct Case {
    dims: Dims,
    pattern: Pattern,
    /// Queries, keys, values, sinks.
    inputs: [Vec<f32>; 4],
    wide: Vec<f32>,
    narrow: Vec<f32>,
}

impl Case {
    fn new(offsets: &[usize], window: Option<usize>, [hq, hk, dk, dv]: [usize; 4]) -> Self {
        let t = offsets[offsets.len() - 1];
        Self {
            dims: Dims { hq, hk, dk, dv },
            pattern: pattern(offsets, window),
            inputs: [(t * hq * dk, 2.0), (t * hk * dk, 2.0), (t * hk * dv, 1.0), (hq, 1.5)]
                .map(|(n, scale)| noise(n as u64, n, scale)),
            wide: noise(8, t * hq * (dv + 1), 1.0),
            narrow: noise(9, t * hq * dv, 1.0),
        }
    }

    fn tensors(&self) -> [candle_core::Var; 4] {
        let (Dims { hq, hk, dk, dv }, [q, k, v, s]) = (self.dims, self.inputs.clone());
        let t = q.len() / (hq * dk);
        [tensor(q, (t, hq, dk)), tensor(k, (t, hk, dk)), tensor(v, (t, hk, dv)), tensor(s, hq)]
            .map(|x| candle_core::Var::from_tensor(&x.unwrap()).unwrap())
    }

    /// The loss by its definition, in f64.
    fn loss(&self, [q, k, v, sinks]: [&[f64]; 4]) -> f64 {
        let (packed, dv) = (reference([q, k, v], self.dims, &self.pattern), self.dims.dv);
        let mut loss: f64 = packed.iter().zip(&self.wide).map(|(x, w)| x * f64::from(*w)).sum();
        for (i, (row, narrow)) in packed.chunks(dv + 1).zip(self.narrow.chunks(dv)).enumerate() {
            // One more column of the softmax, without a value.
            let total = row[dv].exp() + sinks[i % self.dims.hq].exp();
            let out = row[..dv].iter().zip(narrow).map(|(x, w)| x * f64::from(*w)).sum::<f64>();
            loss += out * row[dv].exp() / total;
        }
        loss
    }

    /// The central difference of the loss along a direction in one of the inputs.
    fn difference(&self, which: usize, direction: impl Fn(usize) -> f64) -> f64 {
        let step = 1e-5;
        let at = |step: f64| {
            let mut inputs = self.inputs.each_ref().map(|x| wide(x));
            inputs[which].iter_mut().enumerate().for_each(|(i, x)| *x += step * direction(i));
            self.loss(inputs.each_ref().map(Vec::as_slice))
        };
        (at(step) - at(-step)) / (2.0 * step)
    }

    /// The gradients that training would get.
    fn gradients(&self) -> [Vec<f32>; 4] {
        let [q, k, v, sinks] = self.tensors();
        let packed = attention(&q, &k, &v, &self.pattern).unwrap();
        let narrow = sink(&packed, &sinks, true).unwrap();
        let weigh =
            |x: &Tensor, w: &[f32]| (x * tensor(w.to_vec(), x.shape()).unwrap()).unwrap().sum_all().unwrap();
        let loss = (weigh(&packed, &self.wide) + weigh(&narrow, &self.narrow)).unwrap();
        let grads = loss.backward().unwrap();
        [q, k, v, sinks].map(|x| flat(grads.get(x.as_tensor()).expect("a gradient")))
    }

    /// The largest error in units of the tolerance: single entries of tokens at the borders of sequences, tiles and windows, and a
    /// direction that has all entries in it.
    fn worst(&self, gradients: &[Vec<f32>]) -> f64 {
        let (t, ends) = (self.wide.len() / (self.dims.hq * (self.dims.dv + 1)), self.pattern.offsets.iter());
        let borders = ends.flat_map(|&at| [at, at + backward::TILE, at + self.pattern.window.unwrap_or(7)]);
        let tokens: std::collections::BTreeSet<usize> =
            borders.flat_map(|at| [at.saturating_sub(1), at]).filter(|&token| token < t).collect();
        let mut worst = 0f64;
        for (which, gradient) in gradients.iter().enumerate() {
            let n = gradient.len();
            let typical = (wide(gradient).iter().map(|x| x * x).sum::<f64>() / n as f64).sqrt();
            let mut compare = |got: f64, want: f64, typical: f64| {
                worst = worst.max((got - want).abs() / (typical + want.abs()) / TOLERANCE);
            };
            let sinks = (which == 3).then_some(n / 2);
            let entries = tokens.iter().map(|token| token * (n / t) + token * 7 % (n / t).max(1));
            for i in entries.filter(|_| which < 3).chain(sinks) {
                compare(gradient[i].into(), self.difference(which, |j| f64::from(u8::from(i == j))), typical);
            }
            let direction = wide(&noise(5, n, 1.0));
            let got = gradient.iter().zip(&direction).map(|(x, d)| f64::from(*x) * d).sum();
            compare(got, self.difference(which, |j| direction[j]), typical * (n as f64).sqrt());
        }
        worst
    }
}

/// Two tiles of keys and a bit.
const LONG: usize = 2 * backward::TILE + 9;

#[test]
fn gradients_are_the_differences_of_the_definition() {
    for (offsets, window, sizes) in [
        (&[0, 1][..], None, [2, 1, 3, 2]),
        (&[0, 0, 1, 2, 2, 9, 9], Some(3), [4, 2, 4, 3]),
        (&[0, 0, 1, 2, 2, 9, 9], None, [3, 3, 1, 4]),
        // More query heads over one key/value head than a block has rows.
        (&[0, 21], Some(4), [backward::ROWS + 2, 1, 2, 2]),
        // Around a block of rows, with blocks of 128, 64, 42 and 32 tokens.
        (&[0, 129], None, [1, 1, 3, 3]),
        (&[0, 65, 128], Some(64), [2, 1, 3, 3]),
        (&[0, 43], Some(42), [3, 1, 2, 2]),
        (&[0, 3, 35, 100], Some(31), [8, 2, 2, 3]),
        // Around a tile of keys and beyond it, with windows shorter and longer than a tile.
        (&[0, backward::TILE], None, [2, 1, 2, 2]),
        (&[0, 5, 6 + backward::TILE], None, [2, 1, 2, 2]),
        (&[0, LONG], Some(1), [2, 2, 2, 2]),
        (&[0, LONG], Some(100), [4, 2, 3, 2]),
        (&[0, 17, 17 + LONG], Some(backward::TILE + 1), [2, 1, 2, 2]),
        (&[0, LONG], None, [2, 1, 2, 3]),
    ] {
        let case = Case::new(offsets, window, sizes);
        let worst = case.worst(&case.gradients());
        assert!(worst <= 1.0, "{offsets:?} {window:?} {sizes:?}: {worst:.2} times the tolerance");
    }
}

#[test]
fn a_formula_with_a_fault_is_found_out() {
    let case = Case { narrow: vec![0.0; 300 * 4 * 3], ..Case::new(&[0, 20, 300], Some(40), [4, 2, 4, 3]) };
    let (dims, [q, k, v, _]) = (case.dims, &case.inputs);
    let out = forward::forward(&case.pattern, dims, (q, k, v));
    let saved = backward::Saved { q, k, v, out: &out, grad: &case.wide };
    let worst =
        |pattern: &Pattern, saved: backward::Saved<'_>| case.worst(&backward::backward(pattern, dims, saved));
    assert!(worst(&case.pattern, saved) <= 1.0);
    let edit = |data: &[f32], f: &dyn Fn(usize, &mut [f32])| {
        let mut data = data.to_vec();
        data.chunks_mut(4).enumerate().for_each(|(i, row)| f(i, row));
        data
    };
    let no_lse_gradient = edit(&case.wide, &|_, row| row[3] = 0.0);
    let no_through_out = edit(&out, &|_, row| row[..3].fill(0.0));
    let other_lse = edit(&out, &|i, row| row[3] += if i == 600 { 0.05 } else { 0.0 });
    for (what, saved) in [
        ("no gradient of the log-sum-exp", backward::Saved { grad: &no_lse_gradient, ..saved }),
        ("no dO · O", backward::Saved { out: &no_through_out, ..saved }),
        ("one row's log-sum-exp off by a twentieth", backward::Saved { out: &other_lse, ..saved }),
    ] {
        let worst = worst(&case.pattern, saved);
        assert!(worst > 10.0, "{what}: {worst:.2} times the tolerance");
    }
    for (what, other) in [
        ("a window of one more", pattern(&[0, 20, 300], Some(41))),
        ("a window of one less", pattern(&[0, 20, 300], Some(39))),
        ("sequences that see each other", pattern(&[0, 300], Some(40))),
        ("another scale", Pattern { scale: 0.41, ..case.pattern.clone() }),
    ] {
        let worst = worst(&other, saved);
        assert!(worst > 10.0, "{what}: {worst:.2} times the tolerance");
    }
}

#[test]
fn neither_threads_nor_instruction_sets_change_a_bit_of_a_gradient() {
    let case = Case::new(&[0, 70, 70 + LONG], Some(300), [6, 2, 8, 5]);
    let all = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let threads = on_threads(|| case.gradients().map(all));
    assert!(threads[0] == threads[1] && threads[0] == threads[2]);
    // `exp` of the standard library is in the sink, so the same bits on every machine are claimed for attention alone.
    let (dims, [q, k, v, _]) = (case.dims, &case.inputs);
    let made = on_all(|| {
        let out = forward::forward(&case.pattern, dims, (q, k, v));
        let saved = backward::Saved { q, k, v, out: &out, grad: &case.wide };
        backward::backward(&case.pattern, dims, saved).map(all)
    });
    assert!(made.iter().all(|other| *other == made[0]));
}

#[test]
fn a_sequence_has_the_same_gradients_whatever_is_packed_with_it() {
    let (q, k, v) = (var(1, &[300, 2, 4], 1.0), var(2, &[300, 1, 4], 1.0), var(3, &[300, 1, 3], 1.0));
    let grads = |range: Range<usize>, offsets: &[usize]| {
        let vars = [&q, &k, &v].map(|x| candle_core::Var::from_tensor(&rows(x, range.clone())).unwrap());
        let out = attention(&vars[0], &vars[1], &vars[2], &pattern(offsets, Some(90))).unwrap();
        let grads = out.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        vars.map(|x| grads.get(x.as_tensor()).unwrap().clone())
    };
    let packed = grads(0..300, &[0, 13, 290, 300]);
    for (from, to) in [(0, 13), (13, 290), (290, 300)] {
        let alone = grads(from..to, &[0, to - from]);
        for (alone, packed) in alone.iter().zip(&packed) {
            assert_eq!(bits(alone), bits(&rows(packed, from..to)), "{from}");
        }
    }
}
