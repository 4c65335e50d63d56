//! The figures of golden models against what a probe computes from the same activations in f64, one query and key at a time.

use super::*;
use crate::{
    artifact::{
        analysis::{Figures, Layer as Found},
        moments::{begin, bucket},
    },
    model::Layer,
};

/// What one layer's activations say.
#[derive(Default)]
struct Seen {
    /// Shares of the sink and of the first token [heads][token].
    sink: Vec<Vec<f64>>,
    first: Vec<Vec<f64>>,
    /// Whole norms of keys and values by token.
    key_norms: Vec<f64>,
    value_norms: Vec<f64>,
    /// `[k; v]` with keys before rotation, by token.
    keys_values: Vec<Vec<f64>>,
    /// The experts of each token, and its probabilities.
    chosen: Vec<[usize; 2]>,
    probability: Vec<Vec<f64>>,
}

struct Direct<'a> {
    config: &'a Config,
    batch: &'a Batch,
    sinks: Vec<Vec<f32>>,
    layers: Vec<Seen>,
}

fn norms(x: &[f32], width: usize) -> Vec<f64> {
    x.chunks_exact(width).map(|row| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()).collect()
}

impl Probe for Direct<'_> {
    fn attention(&mut self, seen: &AttentionSeen<'_>) -> candle_core::Result<()> {
        let (tokens, heads, d) = seen.q.dims3()?;
        let kv_heads = seen.k.dim(1)?;
        let (q, k, v, packed) = (host(seen.q)?, host(seen.k)?, host(seen.v)?, host(seen.packed)?);
        let sinks = &self.sinks[seen.layer];
        let sliding = self.config.layers[seen.layer] == crate::model::config::LayerKind::Sliding;
        let total = |t: usize, h: usize| {
            let log_sum = f64::from(packed[(t * heads + h) * (d + 1) + d]);
            f64::from(sinks[h]).exp() + log_sum.exp()
        };
        let first = |t: usize, h: usize| {
            let position = self.batch.positions[t] as usize;
            if sliding && position >= self.config.sliding_window {
                return 0.0;
            }
            let key = &k[((t - position) * kv_heads + h / (heads / kv_heads)) * d..][..d];
            let query = &q[(t * heads + h) * d..][..d];
            let score: f64 = query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            (score / (d as f64).sqrt()).exp() / total(t, h)
        };
        let by_head = |of: &dyn Fn(usize, usize) -> f64| -> Vec<Vec<f64>> {
            (0..heads).map(|h| (0..tokens).map(|t| of(t, h)).collect()).collect()
        };
        let turned_back = unrotated(self.config, &self.batch.positions, seen.k)?;
        let plain = host(&turned_back)?;
        let width = kv_heads * d;
        let both = |t: usize| {
            [&*plain, &*v].iter().flat_map(|x| &x[t * width..][..width]).map(|&x| f64::from(x)).collect()
        };
        self.layers.push(Seen {
            sink: by_head(&|t, h| f64::from(sinks[h]).exp() / total(t, h)),
            first: by_head(&first),
            key_norms: norms(&k, width),
            value_norms: norms(&v, width),
            keys_values: (0..tokens).map(both).collect(),
            ..Seen::default()
        });
        Ok(())
    }

    fn router(&mut self, layer: usize, logits: &candle_core::Tensor) -> candle_core::Result<()> {
        let experts = logits.dim(1)?;
        for row in host(logits)?.chunks_exact(experts) {
            let mut ranked: Vec<usize> = (0..experts).collect();
            ranked.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            let total: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            self.layers[layer].chosen.push([ranked[0], ranked[1]]);
            self.layers[layer].probability.push(row.iter().map(|&x| f64::from(x).exp() / total).collect());
        }
        Ok(())
    }
}

/// The figures of a golden model, and what its activations say.
fn both(name: &str) -> (Figures, Vec<Seen>, Batch) {
    let lengths = [70, 50, 1];
    // The smallest of the golden models know 64 tokens.
    let known = |mut texts: Texts| {
        texts.0.iter_mut().for_each(|text| {
            let words =
                text.text.split(' ').map(|word| format!("w{}", word[1..].parse::<u32>().unwrap() % 64));
            text.text = words.collect::<Vec<_>>().join(" ");
        });
        texts
    };
    let (_dir, checkpoint) = golden(name);
    let texts = known(texts(&lengths));
    let bench = Bench::new().input("model", &checkpoint).input("texts", &texts);
    bench.run(&stage("held-out-tokens = 0")).unwrap();
    let figures = bench.load::<Analysis>("analysis").figures;
    let ids = |text: &str| text.split(' ').map(|word| word[1..].parse().unwrap()).collect::<Vec<u32>>();
    let documents: Vec<Vec<u32>> = texts.0.iter().map(|text| ids(&text.text)).collect();
    let batch = Batch::new(documents.iter().map(Vec::as_slice));
    let model = Model::frozen(&checkpoint).unwrap();
    let sinks = |i| Layer::load(&checkpoint, &model.config, i).unwrap().sinks().unwrap();
    let sinks = (0..model.layers.len()).map(sinks).collect();
    let mut direct = Direct { config: &model.config, batch: &batch, sinks, layers: vec![] };
    model.logits(&batch, &mut direct).unwrap();
    let layers = direct.layers;
    assert_eq!(figures.layers.len(), layers.len());
    (figures, layers, batch)
}

fn close(got: f64, want: f64, what: &str) {
    assert!((got - want).abs() < 1e-5 * (1.0 + want.abs()), "{what}: {got} {want}");
}

/// The mean of what is at tokens that `keep` keeps.
fn mean(values: &[f64], keep: impl Fn(usize) -> bool) -> f64 {
    let kept: Vec<f64> = values.iter().enumerate().filter(|(t, _)| keep(*t)).map(|(_, x)| *x).collect();
    kept.iter().sum::<f64>() / kept.len() as f64
}

fn attention(found: &Found, seen: &Seen, batch: &Batch) {
    let at = |t: usize| bucket(batch.positions[t] as usize);
    assert_eq!(found.positions, [3.0, 2.0, 4.0, 8.0, 16.0, 32.0, 50.0, 6.0]);
    for (h, head) in found.heads.iter().enumerate() {
        close(head.sink_mass, mean(&seen.sink[h], |_| true), "sink");
        close(head.first_token_mass, mean(&seen.first[h], |_| true), "first token");
        for i in 0..found.positions.len() {
            let of = |values: &[f64]| mean(values, |t| at(t) == i);
            close(head.first_token_by_position[i], of(&seen.first[h]), "first token by position");
            if let Some(&sink) = head.sink_by_position.get(i) {
                close(sink, of(&seen.sink[h]), "sink by position");
            }
        }
        assert!(begin(head.distance.len() - 1) <= head.reach.max(69));
    }
    let place = |t: usize| batch.positions[t];
    let ratio = |norms: &[f64], n: u32| mean(norms, |t| place(t) < n) / mean(norms, |t| place(t) >= n);
    let all = &found.geometry;
    close(all.first_key_ratio, ratio(&seen.key_norms, 1), "first key");
    close(all.first_four_keys_ratio, ratio(&seen.key_norms, 4), "first four keys");
    close(all.first_value_ratio, ratio(&seen.value_norms, 1), "first value");
}

/// Squares of singular values sum to the mean square of what they are of; the first is the largest there is in any direction.
fn spectra(found: &Found, seen: &Seen) {
    let spectra = found.spectra.as_ref().unwrap();
    let n = seen.keys_values.len() as f64;
    let half = seen.keys_values[0].len() / 2;
    for (spectrum, range) in
        [(&spectra.keys, 0..half), (&spectra.values, half..2 * half), (&spectra.joint, 0..2 * half)]
    {
        let energy: f64 = seen.keys_values.iter().flat_map(|row| &row[range.clone()]).map(|x| x * x).sum();
        let squares: Vec<f64> = spectrum.singular_values.iter().map(|s| s * s).collect();
        close(squares.iter().sum::<f64>(), energy / n, "energy");
        // Powers of the moment turn any direction into the strongest.
        let mut direction = vec![1.0; range.len()];
        for _ in 0..200 {
            let mut next = vec![0.0; range.len()];
            for row in &seen.keys_values {
                let dot: f64 = row[range.clone()].iter().zip(&direction).map(|(a, b)| a * b).sum();
                next.iter_mut().zip(&row[range.clone()]).for_each(|(next, x)| *next += dot * x);
            }
            let length = next.iter().map(|x| x * x).sum::<f64>().sqrt();
            direction = next.iter().map(|x| x / length).collect();
        }
        let along = |row: &Vec<f64>| {
            row[range.clone()].iter().zip(&direction).map(|(a, b)| a * b).sum::<f64>().powi(2)
        };
        let most: f64 = seen.keys_values.iter().map(along).sum::<f64>() / n;
        assert!((0.99..=1.0 + 1e-5).contains(&(most / squares[0])), "{most} {}", squares[0]);
    }
}

#[test]
fn sinks_experts_and_spectra_of_gpt_oss_equal_a_direct_computation() {
    let (figures, layers, batch) = both("gptoss-dense");
    for (found, seen) in figures.layers.iter().zip(&layers) {
        attention(found, seen, &batch);
        assert!(found.heads.iter().all(|head| head.sink_by_position.len() == found.positions.len()));
        spectra(found, seen);
        let routing = found.routing.as_ref().unwrap();
        let n = seen.chosen.len() as f64;
        let share =
            |keep: &dyn Fn(&[usize; 2]) -> bool| seen.chosen.iter().filter(|c| keep(c)).count() as f64 / n;
        let matrix = routing.matrix.as_ref().unwrap();
        for a in 0..4 {
            close(2.0 * routing.load[a], share(&|c| c.contains(&a)), "load");
            close(
                routing.probability[a],
                seen.probability.iter().map(|p| p[a]).sum::<f64>() / n,
                "probability",
            );
            for (b, got) in matrix[a].iter().enumerate() {
                close(*got, share(&|c| c.contains(&a) && c.contains(&b)), "together");
            }
        }
        for pair in &routing.together {
            let [a, b] = pair.experts;
            close(pair.lift, matrix[a][b] / (matrix[a][a] * matrix[b][b]), "lift");
        }
    }
}

/// Its keys are normalised, so they are no linear map of the inputs and their moment is summed by itself.
#[test]
fn a_model_without_sinks_and_experts_with_normalised_keys_equals_a_direct_computation() {
    for name in ["qwen3", "llama"] {
        let (figures, layers, batch) = both(name);
        for (found, seen) in figures.layers.iter().zip(&layers) {
            attention(found, seen, &batch);
            spectra(found, seen);
            assert!(found.routing.is_none());
            assert!(
                found.heads.iter().all(|head| head.sink_logit.is_none() && head.sink_by_position.is_empty())
            );
        }
    }
}
