//! Watches one layer over all calibration batches and sums what it sees. Knows no files of the user, and no judgement.

mod norms;
mod router;

use candle_core::{Result, Tensor};
use faer::{Mat, MatRef};

use crate::{
    artifact::moments::{BUCKETS, GAPS, LayerMoments, bucket},
    kernel::{
        host,
        rope::{RopeTable, rope},
    },
    math::{linalg::congruence, moments::SecondMoment},
    model::{Batch, Config, Probe, config::LayerKind, probe::AttentionSeen},
    stage::weights::Projections,
};

use super::attention::{Activations, Shape, Sums};

/// Sums of one layer.
pub(super) struct Observer<'a> {
    config: &'a Config,
    shape: Shape,
    sums: Sums,
    projections: Option<&'a Projections>,
    plain: SecondMoment,
    attended: SecondMoment,
    /// Of keys before rotation and values, where they are no linear map of inputs whose moment is there.
    keys_values: SecondMoment,
    /// What is summed here directly.
    moments: LayerMoments,
    batch: Batch,
}

impl<'a> Observer<'a> {
    /// Watches `layer`; `projections` are there when what a conversion needs is wanted.
    pub(super) fn new(
        config: &'a Config,
        layer: usize,
        sinks: Vec<f32>,
        projections: Option<&'a Projections>,
    ) -> Self {
        let (heads, kv_heads, d) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
        let metric = |p: &Projections| {
            let of = |h: usize| {
                let metric = p.output_metric(h, h, d);
                (0..d * d).map(|at| metric[(at / d, at % d)] as f32).collect()
            };
            (0..heads).map(of).collect()
        };
        let attention = match &config.layers[layer] {
            LayerKind::Sliding => "sliding",
            LayerKind::Full => "full",
            LayerKind::Latent(_) => "latent",
        };
        let sink_logits = sinks.iter().copied().map(f64::from).collect();
        let shape = Shape { metric: projections.map(metric), ..shape(config, layer, sinks) };
        let width = if projections.is_some() { config.hidden_size } else { 0 };
        let latent = attention == "latent";
        let pairs = if latent { 0 } else { d / 2 };
        let linear = projections.is_some() && !config.parts.qk_norm;
        let both = if latent || linear { 0 } else { 2 * kv_heads * d };
        let (experts, chosen) =
            config.experts.map_or((0, 0), |of| (of.num_local_experts, of.num_experts_per_tok));
        Self {
            config,
            sums: Sums::new(&shape),
            shape,
            projections,
            plain: SecondMoment::new(width),
            attended: SecondMoment::new(width),
            keys_values: SecondMoment::new(both),
            moments: LayerMoments {
                attention: attention.to_owned(),
                weights: projections.map(|p| p.fingerprint.clone()).unwrap_or_default(),
                sink_logits,
                query_energy: vec![0.0; heads],
                key_energy: vec![0.0; kv_heads],
                positions: vec![0.0; BUCKETS],
                first_keys: vec![0.0; norms::PLACES * (kv_heads + 1)],
                first_values: vec![0.0; norms::PLACES * (kv_heads + 1)],
                query_pairs: vec![0.0; pairs],
                key_pairs: vec![0.0; pairs],
                chosen: vec![0.0; experts],
                together: vec![0.0; experts * experts],
                probability: vec![0.0; experts],
                gates: vec![0.0; chosen],
                router_entropy: vec![0.0],
                router_gap: vec![0.0; 2],
                gaps: vec![0.0; GAPS.len() + 1],
                ..LayerMoments::default()
            },
            batch: Batch::new([]),
        }
    }

    /// Says which batch the next call of the layer is for.
    pub(super) fn expect(&mut self, batch: &Batch) {
        self.batch = batch.clone();
        self.moments.tokens += batch.len();
        for &position in &batch.positions {
            self.moments.positions[bucket(position as usize)] += 1.0;
        }
    }

    /// All sums.
    pub(super) fn finish(self) -> LayerMoments {
        let mut moments = self.moments;
        let Sums { sink, first, mass, overlap, query, gauss } = self.sums;
        // Rows are as wide as a block's keys, which is more than a window shows to one query.
        let most = self.shape.window.unwrap_or(usize::MAX);
        moments.distance = rows(&mass, most);
        (moments.sink, moments.first_token) = (sink, first);
        if let Some(p) = self.projections {
            moments.gauss = rows(&gauss, most);
            (moments.overlap, moments.query) = (overlap, query);
            moments.keys_values = keys_values(p, &self.plain);
            (moments.plain, moments.attended) = (self.plain.sum, self.attended.sum);
        }
        if self.keys_values.dim > 1 {
            moments.keys_values = square(&self.keys_values);
        }
        moments
    }
}

/// Sizes and constants of `layer` for sums that need no metric.
pub(super) fn shape(config: &Config, layer: usize, sinks: Vec<f32>) -> Shape {
    Shape {
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        d: config.head_dim,
        window: config.layers[layer].slides().then_some(config.sliding_window),
        sinks,
        metric: None,
    }
}

/// A second moment without what belongs to the 1 behind its rows.
pub(super) fn square(moment: &SecondMoment) -> Vec<f64> {
    let width = moment.dim - 1;
    moment.sum.chunks_exact(moment.dim).take(width).flat_map(|row| &row[..width]).copied().collect()
}

/// One row after the other, all of the same width of at most `most`.
pub(super) fn rows(by_head: &[Vec<f64>], most: usize) -> Vec<f64> {
    let width = by_head.iter().map(Vec::len).max().unwrap_or(0).min(most);
    by_head.iter().flat_map(|row| (0..width).map(|i| row.get(i).copied().unwrap_or(0.0))).collect()
}

/// `[W_K; W_V] C [W_K; W_V]ᵀ` of the inputs' second moment `C`.
fn keys_values(p: &Projections, plain: &SecondMoment) -> Vec<f64> {
    let moment = MatRef::from_row_major_slice(&plain.sum, plain.dim, plain.dim);
    let n = p.k.nrows();
    let both =
        Mat::from_fn(n + p.v.nrows(), p.k.ncols(), |i, j| if i < n { p.k[(i, j)] } else { p.v[(i - n, j)] });
    let sum = congruence(both.as_ref(), moment);
    let width = sum.nrows();
    (0..width * width).map(|at| sum[(at / width, at % width)]).collect()
}

/// Rotated queries or keys [t, heads, d] turned back, and YaRN's factor taken out.
pub(super) fn unrotated(config: &Config, positions: &[u32], rotated: &Tensor) -> Result<Tensor> {
    turned_back(config, positions, rotated, 1.0 / config.rope.concentration)
}

/// Vectors of heads [t, heads, d] turned back by their positions, times `factor`.
pub(super) fn turned_back(
    config: &Config,
    positions: &[u32],
    rotated: &Tensor,
    factor: f64,
) -> Result<Tensor> {
    let back: Vec<f64> = config.rope.inv_freq(config.head_dim).iter().map(|f| -f).collect();
    rope(rotated, &RopeTable::new(positions, &back, factor))
}

impl Probe for Observer<'_> {
    fn attention(&mut self, seen: &AttentionSeen<'_>) -> Result<()> {
        let wanted = self.projections.is_some();
        let plain =
            if wanted { unrotated(self.config, &self.batch.positions, seen.q)? } else { seen.q.clone() };
        let (q, q_plain, k) = (host(seen.q)?, host(&plain)?, host(seen.k)?);
        let (v, packed, input) = (host(seen.v)?, host(seen.packed)?, host(seen.input)?);
        let (d, sums) = (self.shape.d, &mut self.moments);
        let (positions, kv_heads) = (&self.batch.positions, self.shape.kv_heads);
        norms::add_energies(&q, d, &mut sums.query_energy, &mut sums.query_pairs);
        norms::add_energies(&k, d, &mut sums.key_energy, &mut sums.key_pairs);
        norms::add_by_place(&k, kv_heads, positions, &mut sums.first_keys);
        norms::add_by_place(&v, kv_heads, positions, &mut sums.first_values);
        let activations = Activations {
            q: &q,
            q_plain: &q_plain,
            k: &k,
            v: &v,
            packed: &packed,
            offsets: &self.batch.offsets,
        };
        let weights = self.sums.add(&self.shape, &activations);
        if wanted {
            self.plain.add(&input, None);
            self.attended.add(&input, Some(&weights));
        }
        if self.keys_values.dim > 1 {
            let k = unrotated(self.config, &self.batch.positions, seen.k)?;
            let both = Tensor::cat(&[&k.flatten_from(1)?, &seen.v.flatten_from(1)?], 1)?;
            self.keys_values.add(&host(&both)?, None);
        }
        Ok(())
    }

    fn router(&mut self, _layer: usize, logits: &Tensor) -> Result<()> {
        let k = self.config.experts.map_or(0, |of| of.num_experts_per_tok);
        router::add(&host(logits)?, (logits.dim(1)?, k), &mut self.moments);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_get_one_width() {
        assert_eq!(rows(&[vec![1.0], vec![2.0, 3.0, 4.0]], 2), [1.0, 0.0, 2.0, 3.0]);
        assert!(rows(&[], 2).is_empty());
    }

    #[test]
    fn keys_and_values_are_maps_of_the_inputs() {
        let w = |seed: usize| Mat::from_fn(2, 3, |i, j| ((seed + 3 * i + j) as f64).sin());
        let p =
            Projections { q: w(0), k: w(1), v: w(2), o: w(3), qkv_bias: true, fingerprint: String::new() };
        let mut plain = SecondMoment::new(2);
        plain.add(&[1.0, 2.0, -3.0, 0.5], None);
        let sum = keys_values(&p, &plain);
        let y = |x: [f64; 3], i: usize| {
            let row = if i < 2 { &p.k } else { &p.v };
            (0..3).map(|j| row[(i % 2, j)] * x[j]).sum::<f64>()
        };
        for (i, j) in [(0, 0), (0, 3), (2, 1)] {
            let want: f64 = [[1.0, 2.0, 1.0], [-3.0, 0.5, 1.0]].map(|x| y(x, i) * y(x, j)).iter().sum();
            assert!((sum[i * 4 + j] - want).abs() < 1e-12);
        }
    }
}
