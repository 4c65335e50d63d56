//! One layer before conversion: its weights and moments, and what each choice of rotated pairs would cost. Knows no budget.
//!
//! All errors are summed over the calibration tokens, to second order: twice the divergence of the model's prediction, or squared errors of
//! the attention block's output, whatever the metric says.

use std::{collections::BTreeMap, sync::OnceLock};

use faer::{Mat, MatRef, c64};

use crate::{
    artifact::{checkpoint::Checkpoint, moments::LayerMoments},
    math::linalg::{LinalgError, Roots, congruence, product},
    model::Config,
    stage::weights::Projections,
};

use super::{
    content::Content,
    error::SvdError,
    metric,
    pieces::{LatentKind, Layout, Metric, Pieces, RotaryChoice, TokenWeights},
    rotated::Rotated,
    shared::{self, Component, Group, How},
};

/// Sizes that a conversion needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) d: usize,
    /// YaRN's factor on cosines and sines.
    pub(super) concentration: f64,
}

impl Sizes {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            hidden: config.hidden_size,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            d: config.head_dim,
            concentration: config.rope.concentration,
        }
    }

    /// Rotary pairs of a head.
    pub(super) fn pairs(&self) -> usize {
        self.d / 2
    }

    /// The dimensions of a head that belong to `pairs`: first halves, then second halves. A pair is (i, i + d/2), never
    /// neighbours.
    pub(super) fn dims(&self, pairs: &[usize]) -> Vec<usize> {
        pairs.iter().copied().chain(pairs.iter().map(|pair| pair + self.pairs())).collect()
    }

    /// The pairs that are not in `rotated`.
    pub(super) fn others(&self, rotated: &[usize]) -> Vec<usize> {
        (0..self.pairs()).filter(|pair| !rotated.contains(pair)).collect()
    }
}

/// One layer to convert. Its weights are read again when it is folded: those of all layers together may not fit into memory.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) layer: usize,
    pub(super) sizes: Sizes,
    pub(super) pieces: Pieces,
    pub(super) damping: f64,
    /// Mean `y yᵀ` under the token weights, with `y` = [m · all keys; all values].
    pub(super) sigma: Mat<f64>,
    /// Metric of the values [kv heads · d, kv heads · d].
    pub(super) values: Mat<f64>,
    /// `Σ G q qᵀ` per query head [d, d], after the static multipliers.
    pub(super) queries: Vec<Mat<f64>>,
    /// The roots of the metric of all keys and values, once somebody asked.
    pub(super) whole: OnceLock<Roots>,
    /// Cosine and sine of the static multiplier of each query head and pair, as folded into the queries `[heads][pairs]`.
    pub(super) multipliers: Vec<Vec<(f64, f64)>>,
    /// Predicted error of leaving each pair un-rotated.
    pub(super) turning: Vec<f64>,
    /// With layout `d`: what heads share at each group of frequencies, by the size of a group; 1 is always there.
    pub(super) shared: BTreeMap<usize, Vec<Vec<Component>>>,
    /// Where the choice goes by norms: the product of query and key norm of each key/value head and pair.
    pub(super) norms: Vec<Vec<f64>>,
    /// The mean root of the squared gradients of an element of the key and of the value projection; not where none were taken.
    pub(super) gradients: Option<[f64; 2]>,
    /// The error of dropping keys and values altogether: the unit of relative errors.
    pub(super) everything: f64,
}

/// The mean of what was summed with weights, `[dim, dim]`; their sum is the last number.
fn mean(sums: &[f64], dim: usize) -> Mat<f64> {
    let total = sums[dim * dim - 1].max(f64::MIN_POSITIVE);
    Mat::from_fn(dim, dim, |i, j| sums[i * dim + j] / total)
}

/// The mean roots of two matrices of squares, one behind the other.
fn gradients(squares: &[f64]) -> Option<[f64; 2]> {
    let mean = |of: &[f64]| of.iter().map(|x| x.sqrt()).sum::<f64>() / of.len() as f64;
    let (keys, values) = squares.split_at(squares.len() / 2);
    (!squares.is_empty()).then(|| [mean(keys), mean(values)])
}

/// The second moment of inputs [dim, dim] under the token weights.
fn inputs(moments: &LayerMoments, dim: usize, pieces: &Pieces) -> Mat<f64> {
    let (attended, plain) = (|| mean(&moments.attended, dim), || mean(&moments.plain, dim));
    let mut moment = match pieces.token_weights {
        TokenWeights::Attention => attended(),
        TokenWeights::None => plain(),
        TokenWeights::Both => 0.5 * (attended() + plain()),
        TokenWeights::Weights => Mat::identity(dim, dim),
    };
    damp(&mut moment, pieces.input_damping);
    moment
}

/// Raises the eigenvalues of a second moment of inputs by a share of their mean; the constant behind the inputs is none of them.
fn damp(moment: &mut Mat<f64>, share: f64) {
    let inputs = moment.nrows() - 1;
    let mean = (0..inputs).map(|i| moment[(i, i)]).sum::<f64>() / inputs as f64;
    for i in 0..inputs {
        moment[(i, i)] += share * mean;
    }
}

impl Source {
    /// Reads layer `layer` of the original.
    pub(super) fn read(
        checkpoint: &Checkpoint,
        config: &Config,
        (layer, moments): (usize, LayerMoments),
        (pieces, damping): (&Pieces, f64),
    ) -> Result<Self, SvdError> {
        let sizes = Sizes::of(config);
        let dim = sizes.hidden + 1;
        if moments.plain.is_empty() {
            return Err(SvdError::NoSums(layer));
        }
        let weighs = pieces.metric == Metric::Fisher;
        let moments = &if weighs { moments.by_fisher() } else { moments };
        let fisher = weighs.then_some(&moments.fisher_values);
        let width = sizes.kv_heads * sizes.d;
        if fisher.is_some_and(|values| values.len() != width * width) {
            return Err(SvdError::NoGradients(layer));
        }
        let expected = [dim * dim, dim * dim, sizes.heads * sizes.heads, sizes.heads * sizes.d * sizes.d];
        let found = [&moments.plain, &moments.attended, &moments.overlap, &moments.query].map(Vec::len);
        if expected != found || moments.gauss.len() % sizes.heads != 0 {
            return Err(SvdError::OtherModel { layer });
        }
        let projections = Projections::read(checkpoint, config, layer)?;
        if moments.weights != projections.fingerprint {
            return Err(SvdError::OtherModel { layer });
        }
        let sums = [&moments.plain, &moments.attended, &moments.overlap, &moments.query, &moments.gauss];
        if sums
            .into_iter()
            .chain(fisher)
            .chain([&moments.fisher_projections])
            .any(|sum| sum.iter().any(|x| !x.is_finite()))
        {
            return Err(SvdError::NotFinite { layer });
        }
        let mean = |sums: &[f64]| mean(sums, dim);
        let moment = inputs(moments, dim, pieces);
        let inv_freq = config.rope.inv_freq(sizes.d);
        let turns = moments.turns(&inv_freq);
        let multipliers = metric::multipliers(&turns, sizes, pieces.multiplier);
        let mut source = Self {
            layer,
            sizes,
            pieces: pieces.clone(),
            damping,
            values: match fisher {
                Some(values) => MatRef::from_row_major_slice(values, width, width).to_owned(),
                None => metric::value_metric(&projections, &moments.overlap, sizes),
            },
            queries: metric::queries(moments, sizes, &multipliers),
            whole: OnceLock::new(),
            sigma: Mat::zeros(0, 0),
            multipliers,
            turning: Vec::new(),
            shared: BTreeMap::new(),
            norms: Vec::new(),
            gradients: gradients(&moments.fisher_projections),
            everything: 0.0,
        };
        let nothing = Rotated::Pairs(Vec::new());
        source.sigma = congruence(source.content(&projections, &nothing).as_ref(), moment.as_ref());
        source.turning = source.turning_errors(moments, &turns);
        if pieces.layout == Layout::D {
            for &fold in pieces.freqfold.iter().chain(&[1]) {
                source.shared.insert(fold, source.groups(moments, (&turns, &inv_freq), fold)?);
            }
        }
        if pieces.rotary_choice == RotaryChoice::Norm {
            source.norms = norms(&projections, mean(&moments.plain).as_ref(), sizes);
        }
        source.everything = source.components(&nothing)?.error(0, None);
        Ok(source)
    }

    /// This layer when it is given other inputs, with `sums` `[hidden + 1, hidden + 1]` as their second moment: only its content is of them.
    pub(super) fn given(&self, projections: &Projections, sums: &[f64]) -> Self {
        let mut moment = mean(sums, self.sizes.hidden + 1);
        damp(&mut moment, self.pieces.input_damping);
        let content = self.content(projections, &Rotated::Pairs(Vec::new()));
        Self { sigma: congruence(content.as_ref(), moment.as_ref()), ..self.clone() }
    }

    /// `y = [m · un-rotated keys; values]` as a map of `x̃`: the un-rotated rows of every key head, then all value rows.
    pub(super) fn content(&self, projections: &Projections, rotated: &Rotated) -> Mat<f64> {
        let all: Vec<usize> = (0..self.sizes.pairs()).collect();
        match rotated {
            Rotated::Pairs(pairs) => self.rows(projections, &self.sizes.others(pairs)),
            Rotated::Recomputed => self.rows(projections, &all),
            Rotated::Shared { kept, .. } => {
                product(self.rest(kept).as_ref(), self.rows(projections, &all).as_ref())
            }
        }
    }

    /// What is left of keys and values [2 · kv heads · d, 2 · kv heads · d] without some shared components.
    fn rest(&self, rotated: &[Component]) -> Mat<f64> {
        let keys = shared::rest(rotated, self.sizes);
        let n = keys.nrows();
        let mut rest = Mat::identity(2 * n, 2 * n);
        rest.as_mut().submatrix_mut(0, 0, n, n).copy_from(&keys);
        rest
    }

    /// The rows of the pairs `still` of every key head, with YaRN's factor, then all value rows.
    fn rows(&self, projections: &Projections, still: &[usize]) -> Mat<f64> {
        let Sizes { kv_heads, d, concentration, .. } = self.sizes;
        let dims = self.sizes.dims(still);
        let keys = kv_heads * dims.len();
        let (k, v) = (&projections.k, &projections.v);
        Mat::from_fn(keys + kv_heads * d, k.ncols(), |i, j| {
            if i < keys {
                concentration * k[(i / dims.len() * d + dims[i % dims.len()], j)]
            } else {
                v[(i - keys, j)]
            }
        })
    }

    /// The components of un-rotated keys and values, when what is `rotated` stays outside.
    pub(super) fn components(&self, rotated: &Rotated) -> Result<Content, LinalgError> {
        let Sizes { kv_heads, d, .. } = self.sizes;
        let n = kv_heads * d;
        let kind = self.pieces.latent;
        let roots = metric::roots_of(self, rotated)?;
        let useful = self.useful(rotated);
        match rotated {
            Rotated::Recomputed => Content::new(kind, self.sigma.as_ref(), roots, (n, useful)),
            Rotated::Shared { kept, .. } => {
                let sigma = congruence(self.rest(kept).as_ref(), self.sigma.as_ref());
                Content::new(kind, sigma.as_ref(), roots, (n, useful))
            }
            Rotated::Pairs(pairs) => {
                let dims = self.sizes.dims(&self.sizes.others(pairs));
                let keys = (0..kv_heads).flat_map(|g| dims.iter().map(move |dim| (g, *dim)));
                // Rows of the full content: its keys are in the order of `dims(all)`, which is 0 to d − 1.
                let rows: Vec<usize> = keys.map(|(g, dim)| g * d + dim).chain(n..2 * n).collect();
                let sigma = Mat::from_fn(rows.len(), rows.len(), |i, j| self.sigma[(rows[i], rows[j])]);
                let keys = kv_heads * dims.len();
                Content::new(kind, sigma.as_ref(), roots, (keys, useful))
            }
        }
    }

    /// The most latent channels that can carry anything: the rows of the content, or the inputs and the bias.
    pub(super) fn useful_rank(&self, rotated: &Rotated) -> usize {
        let Sizes { kv_heads, d, hidden, .. } = self.sizes;
        match self.pieces.latent {
            LatentKind::Joint => (2 * kv_heads * d - rotated.elements(self.sizes)).min(hidden + 1),
            LatentKind::Separate => {
                let (keys, values) = self.useful(rotated);
                keys + values
            }
        }
    }

    /// The same of keys and of values alone.
    pub(super) fn useful(&self, rotated: &Rotated) -> (usize, usize) {
        let Sizes { kv_heads, d, hidden, .. } = self.sizes;
        let keys = (kv_heads * d - rotated.elements(self.sizes)).min(hidden + 1);
        (keys, (kv_heads * d).min(hidden + 1))
    }

    /// Of each pair: what it costs to replace its rotation by the static multiplier, if phases of queries and keys are spread.
    fn turning_errors(&self, moments: &LayerMoments, turns: &(Vec<f64>, Vec<f64>)) -> Vec<f64> {
        let Sizes { heads, kv_heads, d, .. } = self.sizes;
        let half = d / 2;
        let energy = |at: usize| self.sigma[(at, at)] + self.sigma[(at + half, at + half)];
        let pair = |j: usize| {
            let head = |h: usize| {
                let key = energy(h / (heads / kv_heads) * d + j);
                self.weight(moments, h, j) * key * self.miss(turns, h, j)
            };
            (0..heads).map(head).sum()
        };
        (0..half).map(pair).collect()
    }

    /// How much a squared error of the key of pair `j` counts to query head `h`; one YaRN factor of the logit's two squared is in `sigma`.
    fn weight(&self, moments: &LayerMoments, h: usize, j: usize) -> f64 {
        let Sizes { heads, kv_heads, d, concentration, .. } = self.sizes;
        if !self.pieces.query_weights {
            return kv_heads as f64 / heads as f64;
        }
        let of = |at: usize| moments.query[(h * d + at) * d + at];
        0.5 * concentration.powi(2) / d as f64 * (of(j) + of(j + d / 2))
    }

    /// `E |e^(−iθΔ) − (c − i s)|²` of query head `h` and pair `j`.
    fn miss(&self, (turn_cos, turn_sin): &(Vec<f64>, Vec<f64>), h: usize, j: usize) -> f64 {
        let at = h * self.sizes.pairs() + j;
        let (c, s) = self.multipliers[h][j];
        (1.0 + c * c + s * s - 2.0 * (c * turn_cos[at] + s * turn_sin[at])).max(0.0)
    }

    /// The components of every group of `fold` adjacent frequencies.
    fn groups(
        &self,
        moments: &LayerMoments,
        (turns, inv_freq): (&(Vec<f64>, Vec<f64>), &[f64]),
        fold: usize,
    ) -> Result<Vec<Vec<Component>>, LinalgError> {
        let Sizes { heads, kv_heads, d, .. } = self.sizes;
        let half = self.sizes.pairs();
        let Pieces { rotary_basis: basis, query_weights, .. } = self.pieces;
        let how = How { basis, query_weights, kv_heads };
        let group = |first: usize| {
            let pairs = first..(first + fold).min(half);
            let row = |at: usize| (at % kv_heads) * d + first + at / kv_heads;
            let n = pairs.len() * kv_heads;
            let group = Group {
                keys: Mat::from_fn(n, n, |i, j| {
                    let at = |k: usize, o: usize| self.sigma[(row(i) + k * half, row(j) + o * half)];
                    c64::new(at(0, 0) + at(1, 1), at(1, 0) - at(0, 1))
                }),
                weights: pairs
                    .clone()
                    .map(|j| (0..heads).map(|h| self.weight(moments, h, j)).collect())
                    .collect(),
                misses: pairs.clone().map(|j| (0..heads).map(|h| self.miss(turns, h, j)).collect()).collect(),
                drifts: drifts(moments, &inv_freq[pairs.clone()], heads),
                pairs,
            };
            group.components(how)
        };
        (0..half).step_by(fold).map(group).collect()
    }
}

/// `E |e^(−iθ_i Δ) − e^(−iθ_j Δ)|²` of each two frequencies and each query head; nothing for one frequency.
fn drifts(moments: &LayerMoments, inv_freq: &[f64], heads: usize) -> Vec<Vec<Vec<f64>>> {
    if inv_freq.len() == 1 {
        return Vec::new();
    }
    let of = |a: f64| {
        let apart: Vec<f64> = inv_freq.iter().map(|b| a - b).collect();
        let (cos, _) = moments.turns(&apart);
        let head = |j: usize, h: usize| (2.0 - 2.0 * cos[h * apart.len() + j]).max(0.0);
        (0..apart.len()).map(|j| (0..heads).map(|h| head(j, h)).collect()).collect()
    };
    inv_freq.iter().map(|&a| of(a)).collect()
}

/// The product of the root mean squares of queries and keys of each key/value head and pair.
fn norms(projections: &Projections, moment: MatRef<'_, f64>, sizes: Sizes) -> Vec<Vec<f64>> {
    let Sizes { heads, kv_heads, d, .. } = sizes;
    let squares = |w: &Mat<f64>| -> Vec<f64> {
        let seen = product(w.as_ref(), moment);
        (0..w.nrows()).map(|i| (0..w.ncols()).map(|j| seen[(i, j)] * w[(i, j)]).sum()).collect()
    };
    let (q, k) = (squares(&projections.q), squares(&projections.k));
    let pair = |x: &[f64], head: usize, j: usize| x[head * d + j] + x[head * d + j + d / 2];
    let per = heads / kv_heads;
    let norm = |g: usize, j: usize| {
        let queries: f64 = (g * per..(g + 1) * per).map(|h| pair(&q, h, j)).sum();
        (queries * pair(&k, g, j)).max(0.0).sqrt()
    };
    (0..kv_heads).map(|g| (0..d / 2).map(|j| norm(g, j)).collect()).collect()
}
