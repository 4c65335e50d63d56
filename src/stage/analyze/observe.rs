//! Watches one layer over all calibration batches and turns the sums into figures and moments. Knows no files of the user.

use candle_core::{Result, Tensor};
use faer::{Mat, MatRef};

use crate::{
    artifact::{
        analysis::{Head, KvHead, Layer, Pair, Routing, Spectra},
        moments::LayerMoments,
    },
    kernel::{
        host,
        rope::{RopeTable, rope},
    },
    math::{
        linalg::{LinalgError, congruence, effective_rank, eigh},
        moments::SecondMoment,
    },
    model::{Batch, Config, Probe, block::moe::Routing as Choice, config::LayerKind, probe::AttentionSeen},
    stage::weights::Projections,
};

use super::attention::{Activations, Shape, Sums};

/// Sums of one layer.
pub(super) struct Observer<'a> {
    config: &'a Config,
    layer: usize,
    shape: Shape,
    sums: Sums,
    projections: Option<&'a Projections>,
    plain: SecondMoment,
    attended: SecondMoment,
    geometry: Geometry,
    routing: RoutingSums,
    tokens: usize,
    batch: Batch,
}

/// Sums of squares of queries and keys, with YaRN's factor still in them.
#[derive(Default)]
struct Geometry {
    /// `[heads]`.
    query: Vec<f64>,
    /// [kv heads].
    key: Vec<f64>,
    /// Norms at positions 0 to 3 and at the others, each with its count [kv heads].
    first: Vec<[f64; 4]>,
    /// `[pairs]`, over all heads.
    query_pairs: Vec<f64>,
    /// `[pairs]`, over all key/value heads.
    key_pairs: Vec<f64>,
}

#[derive(Default)]
struct RoutingSums {
    chosen: Vec<u64>,
    entropy: f64,
    gap: f64,
}

impl<'a> Observer<'a> {
    /// Watches `layer`; `projections` are there when moments are wanted.
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
        let window = (config.layers[layer] == LayerKind::Sliding).then_some(config.sliding_window);
        let shape = Shape { heads, kv_heads, d, window, sinks, metric: projections.map(metric) };
        let width = if projections.is_some() { config.hidden_size } else { 0 };
        Self {
            config,
            layer,
            sums: Sums::new(&shape),
            shape,
            projections,
            plain: SecondMoment::new(width),
            attended: SecondMoment::new(width),
            geometry: Geometry {
                query: vec![0.0; heads],
                key: vec![0.0; kv_heads],
                first: vec![[0.0; 4]; kv_heads],
                query_pairs: vec![0.0; d / 2],
                key_pairs: vec![0.0; d / 2],
            },
            routing: RoutingSums {
                chosen: vec![0; config.experts.map_or(0, |of| of.num_local_experts)],
                ..RoutingSums::default()
            },
            tokens: 0,
            batch: Batch::new([]),
        }
    }

    /// Says which batch the next call of the layer is for.
    pub(super) fn expect(&mut self, batch: &Batch) {
        self.batch = batch.clone();
        self.tokens += batch.len();
    }

    /// The figures of the layer.
    pub(super) fn figures(&self) -> std::result::Result<Layer, LinalgError> {
        let spectra = self.projections.map(|p| self.spectra(p)).transpose()?;
        let attention = match &self.config.layers[self.layer] {
            LayerKind::Sliding => "sliding",
            LayerKind::Full => "full",
            LayerKind::Latent(_) => "latent",
        };
        Ok(Layer {
            layer: self.layer,
            attention: attention.to_owned(),
            heads: (0..self.shape.heads).map(|h| self.head(h)).collect(),
            kv_heads: (0..self.shape.kv_heads).map(|g| self.kv_head(g)).collect(),
            pairs: if attention == "latent" { Vec::new() } else { self.pairs()? },
            routing: self.routing.figures(self.tokens),
            spectra,
        })
    }

    /// The moments of the layer, when they were wanted.
    pub(super) fn moments(&self) -> Option<LayerMoments> {
        let weights = self.projections?.fingerprint.clone();
        let frequencies = self.config.rope.inv_freq(self.shape.d);
        let turn = |turn: fn(f64) -> f64| {
            let of = |gauss: &Vec<f64>, f: f64| {
                let total: f64 = gauss.iter().sum();
                let sum: f64 = gauss.iter().enumerate().map(|(i, g)| g * turn(f * i as f64)).sum();
                // A head that never sees an error: no distance counts, as if it looked at itself.
                if total > 0.0 { sum / total } else { turn(0.0) }
            };
            self.sums.gauss.iter().flat_map(|g| frequencies.iter().map(move |&f| of(g, f))).collect()
        };
        Some(LayerMoments {
            weights,
            plain: self.plain.sum.clone(),
            attended: self.attended.sum.clone(),
            overlap: self.sums.overlap.clone(),
            query: self.sums.query.clone(),
            turn_cos: turn(f64::cos),
            turn_sin: turn(f64::sin),
        })
    }

    fn head(&self, h: usize) -> Head {
        let n = self.tokens as f64;
        // The arrays are as wide as a block's keys, which is more than a window shows to one query.
        let mass = &self.sums.mass[h];
        let mass = &mass[..mass.len().min(self.shape.window.unwrap_or(usize::MAX))];
        let buckets = usize::BITS as usize - mass.len().saturating_sub(1).leading_zeros() as usize + 1;
        let mut distance = vec![0.0; buckets];
        for (i, x) in mass.iter().enumerate() {
            distance[(usize::BITS - i.leading_zeros()) as usize] += x / n;
        }
        Head {
            sink_logit: f64::from(self.shape.sinks[h]),
            sink_mass: self.sums.sink[h] / n,
            first_token_mass: self.sums.first[h] / n,
            distance,
            query_norm: (self.geometry.query[h] / n).sqrt() / self.config.rope.concentration,
        }
    }

    fn kv_head(&self, g: usize) -> KvHead {
        let [first, firsts, rest, rests] = self.geometry.first[g];
        let ratio = if rests > 0.0 { (first / firsts) / (rest / rests).max(f64::MIN_POSITIVE) } else { 1.0 };
        KvHead {
            key_norm: (self.geometry.key[g] / self.tokens as f64).sqrt() / self.config.rope.concentration,
            first_key_ratio: ratio,
        }
    }

    fn pairs(&self) -> std::result::Result<Vec<Pair>, LinalgError> {
        let (d, n) = (self.shape.d, self.tokens as f64 * self.config.rope.concentration.powi(2));
        let keys = self.projections.map(|p| congruence(p.k.as_ref(), self.moment()));
        let pair = |(j, frequency): (usize, f64)| {
            Ok(Pair {
                frequency,
                query_energy: self.geometry.query_pairs[j] / n,
                key_energy: self.geometry.key_pairs[j] / n,
                sharing: keys.as_ref().map(|keys| sharing(keys, j, d)).transpose()?,
            })
        };
        self.config.rope.inv_freq(d).into_iter().enumerate().map(pair).collect()
    }

    fn moment(&self) -> MatRef<'_, f64> {
        MatRef::from_row_major_slice(&self.plain.sum, self.plain.dim, self.plain.dim)
    }

    fn spectra(&self, p: &Projections) -> std::result::Result<Spectra, LinalgError> {
        let rows = p.k.nrows();
        let both =
            Mat::from_fn(
                2 * rows,
                p.k.ncols(),
                |i, j| {
                    if i < rows { p.k[(i, j)] } else { p.v[(i - rows, j)] }
                },
            );
        let energies = |w: &Mat<f64>| eigh(congruence(w.as_ref(), self.moment()).as_ref()).map(|e| e.values);
        let singular = |energies: &[f64]| {
            energies.iter().map(|e| (e.max(0.0) / self.tokens as f64).sqrt()).collect::<Vec<_>>()
        };
        let (values, joint) = (energies(&p.v)?, energies(&both)?);
        Ok(Spectra {
            values: singular(&values),
            joint: singular(&joint),
            values_effective_rank: effective_rank(&values),
            joint_effective_rank: effective_rank(&joint),
        })
    }
}

/// Rotated queries or keys [t, heads, d] turned back, and YaRN's factor taken out.
pub(super) fn unrotated(config: &Config, positions: &[u32], rotated: &Tensor) -> Result<Tensor> {
    let back: Vec<f64> = config.rope.inv_freq(config.head_dim).iter().map(|f| -f).collect();
    rope(rotated, &RopeTable::new(positions, &back, 1.0 / config.rope.concentration))
}

/// The share of pair `j`'s key energy that the best complex combination of all heads holds: the first eigenvalue of the Hermitian
/// moment across heads, over its trace.
fn sharing(keys: &Mat<f64>, j: usize, d: usize) -> std::result::Result<f64, LinalgError> {
    let heads = keys.nrows() / d;
    let (re, im) = (|g: usize| g * d + j, |g: usize| g * d + j + d / 2);
    // k_g conj(k_g') = (re re' + im im') + i (im re' − re im'), as a real matrix of twice the size with every eigenvalue doubled.
    let matrix = Mat::from_fn(2 * heads, 2 * heads, |a, b| {
        let (g, o) = (a % heads, b % heads);
        let real = keys[(re(g), re(o))] + keys[(im(g), im(o))];
        let imaginary = keys[(im(g), re(o))] - keys[(re(g), im(o))];
        match (a < heads, b < heads) {
            (true, true) | (false, false) => real,
            (true, false) => -imaginary,
            (false, true) => imaginary,
        }
    });
    let eigen = eigh(matrix.as_ref())?;
    let total: f64 = eigen.values.iter().sum::<f64>() / 2.0;
    Ok(if total > 0.0 { eigen.values[0] / total } else { 1.0 })
}

impl Geometry {
    fn add(&mut self, q: &[f32], k: &[f32], positions: &[u32]) {
        let (heads, kv_heads, d) = (self.query.len(), self.key.len(), 2 * self.query_pairs.len());
        add_energies(q, d, &mut self.query, &mut self.query_pairs);
        add_energies(k, d, &mut self.key, &mut self.key_pairs);
        debug_assert_eq!(q.len() / heads, k.len() / kv_heads);
        for (row, &position) in k.chunks_exact(kv_heads * d).zip(positions) {
            for (sums, key) in self.first.iter_mut().zip(row.chunks_exact(d)) {
                let norm = key.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
                let at = if position < 4 { 0 } else { 2 };
                sums[at] += norm;
                sums[at + 1] += 1.0;
            }
        }
    }
}

fn add_energies(x: &[f32], d: usize, heads: &mut [f64], pairs: &mut [f64]) {
    let half = d / 2;
    for (i, head) in x.chunks_exact(d).enumerate() {
        for (pair, energy) in pairs.iter_mut().enumerate() {
            let (a, b) = (f64::from(head[pair]), f64::from(head[pair + half]));
            let square = a * a + b * b;
            *energy += square;
            heads[i % heads.len()] += square;
        }
    }
}

impl RoutingSums {
    fn figures(&self, tokens: usize) -> Routing {
        let all: u64 = self.chosen.iter().sum();
        Routing {
            load: self.chosen.iter().map(|&c| c as f64 / all.max(1) as f64).collect(),
            entropy: self.entropy / tokens.max(1) as f64,
            top_k_gap: self.gap / tokens.max(1) as f64,
            dead: (0..self.chosen.len()).filter(|&e| self.chosen[e] == 0).collect(),
        }
    }
}

impl Probe for Observer<'_> {
    fn attention(&mut self, seen: &AttentionSeen<'_>) -> Result<()> {
        let wanted = self.projections.is_some();
        let plain =
            if wanted { unrotated(self.config, &self.batch.positions, seen.q)? } else { seen.q.clone() };
        let (q, q_plain, k) = (host(seen.q)?, host(&plain)?, host(seen.k)?);
        let (v, packed, input) = (host(seen.v)?, host(seen.packed)?, host(seen.input)?);
        self.geometry.add(&q, &k, &self.batch.positions);
        let activations = Activations {
            q: &q,
            q_plain: &q_plain,
            k: &k,
            v: &v,
            packed: &packed,
            offsets: &self.batch.offsets,
        };
        let weights = self.sums.add(&self.shape, &activations);
        if self.projections.is_some() {
            self.plain.add(&input, None);
            self.attended.add(&input, Some(&weights));
        }
        Ok(())
    }

    fn router(&mut self, _layer: usize, logits: &Tensor) -> Result<()> {
        let (logits, experts) = (host(logits)?, logits.dim(1)?);
        let k = self.config.experts.map_or(0, |of| of.num_experts_per_tok);
        for expert in Choice::new(&logits, experts, k).experts {
            self.routing.chosen[expert as usize] += 1;
        }
        for row in logits.chunks_exact(experts) {
            let mut sorted: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let total: f64 = sorted.iter().map(|x| (x - sorted[0]).exp()).sum();
            let p = sorted.iter().map(|x| (x - sorted[0]).exp() / total).filter(|&p| p > 0.0);
            self.routing.entropy += p.map(|p| -p * p.ln()).sum::<f64>();
            self.routing.gap += if k < experts { sorted[k - 1] - sorted[k] } else { 0.0 };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_turned_by_a_phase_in_every_head_is_fully_shared() {
        // Two heads of width 2 (one pair): the second head's key is the first one's, turned by a quarter.
        let w = Mat::from_fn(4, 2, |i, j| [[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0]][i][j]);
        let keys = congruence(w.as_ref(), Mat::<f64>::identity(2, 2).as_ref());
        assert!((sharing(&keys, 0, 2).unwrap() - 1.0).abs() < 1e-12);
        // Independent heads of equal energy share half.
        assert!((sharing(&Mat::identity(4, 4), 0, 2).unwrap() - 0.5).abs() < 1e-12);
    }

    #[test]
    fn routing_counts_entropy_and_dead_experts() {
        let sums = RoutingSums { chosen: vec![3, 0, 1], entropy: 2.0, gap: 1.0 };
        let figures = sums.figures(2);
        assert_eq!((figures.load, figures.dead), (vec![0.75, 0.0, 0.25], vec![1]));
        assert_eq!((figures.entropy, figures.top_k_gap), (1.0, 0.5));
    }

    #[test]
    fn energies_by_head_and_pair() {
        let mut geometry = Geometry {
            query: vec![0.0; 2],
            key: vec![0.0; 1],
            first: vec![[0.0; 4]; 1],
            query_pairs: vec![0.0; 1],
            key_pairs: vec![0.0; 1],
        };
        geometry.add(&[3.0, 4.0, 1.0, 0.0, 0.0, 0.0, 0.0, 2.0], &[6.0, 8.0, 0.0, 1.0], &[3, 4]);
        assert_eq!((geometry.query, geometry.query_pairs), (vec![25.0, 5.0], vec![30.0]));
        assert_eq!(geometry.first, [[10.0, 1.0, 1.0, 1.0]]);
    }
}
