//! One layer before conversion: its weights and moments, and what each choice of rotated pairs would cost. Knows no budget.
//!
//! All errors are squared errors of the attention block's output, summed over the calibration tokens, to second order.

use faer::{Mat, MatRef, c64};

use crate::{
    artifact::{checkpoint::Checkpoint, moments::LayerMoments},
    math::{
        linalg::{LinalgError, Roots, congruence, product, roots},
        low_rank::Components,
    },
    model::Config,
    stage::weights::Projections,
};

use super::{
    Layout, Metric, Multiplier, SvdError, TokenWeights,
    rotated::Rotated,
    shared::{Component, Frequency, Shared},
};

/// What the user chose about errors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Options {
    pub(super) layout: Layout,
    pub(super) metric: Metric,
    pub(super) tokens: TokenWeights,
    pub(super) multiplier: Multiplier,
    pub(super) damping: f64,
}

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
pub(super) struct Source {
    pub(super) layer: usize,
    pub(super) sizes: Sizes,
    options: Options,
    /// Mean `y yᵀ` under the token weights, with `y` = [m · all keys; all values].
    sigma: Mat<f64>,
    /// Metric of the values [kv heads · d, kv heads · d].
    values: Mat<f64>,
    /// `Σ G q qᵀ` per query head [d, d], after the static multipliers.
    queries: Vec<Mat<f64>>,
    /// Cosine and sine of the static multiplier of each query head and pair, as folded into the queries `[heads][pairs]`.
    pub(super) multipliers: Vec<Vec<(f64, f64)>>,
    /// Predicted error of leaving each pair un-rotated.
    pub(super) turning: Vec<f64>,
    /// With layout `d`: what heads share at each frequency.
    pub(super) shared: Option<Shared>,
    /// The squared output error of dropping keys and values altogether: the unit of relative errors.
    pub(super) everything: f64,
}

impl Source {
    /// Reads layer `layer` of the original.
    pub(super) fn read(
        checkpoint: &Checkpoint,
        config: &Config,
        (layer, moments): (usize, &LayerMoments),
        options: Options,
    ) -> Result<Self, SvdError> {
        let sizes = Sizes::of(config);
        let dim = sizes.hidden + 1;
        let expected = [dim * dim, dim * dim, sizes.heads * sizes.heads, sizes.heads * sizes.d * sizes.d];
        let found = [&moments.plain, &moments.attended, &moments.overlap, &moments.query].map(Vec::len);
        if expected != found || moments.gauss.len() % sizes.heads != 0 {
            return Err(SvdError::OtherModel { layer });
        }
        let projections = Projections::read(checkpoint, config, layer)?;
        if moments.weights != projections.fingerprint {
            return Err(SvdError::OtherModel { layer });
        }
        let mean = |sums: &[f64]| {
            let total = sums[dim * dim - 1].max(f64::MIN_POSITIVE);
            Mat::from_fn(dim, dim, |i, j| sums[i * dim + j] / total)
        };
        let moment = match options.tokens {
            TokenWeights::Attention => mean(&moments.attended),
            TokenWeights::None => mean(&moments.plain),
            TokenWeights::Both => 0.5 * (mean(&moments.attended) + mean(&moments.plain)),
        };
        let turns = moments.turns(&config.rope.inv_freq(sizes.d));
        let multipliers = multipliers(&turns, sizes, options.multiplier);
        let mut source = Self {
            layer,
            sizes,
            options,
            values: value_metric(&projections, &moments.overlap, sizes),
            queries: queries(moments, sizes, &multipliers),
            sigma: Mat::zeros(0, 0),
            multipliers,
            turning: Vec::new(),
            shared: None,
            everything: 0.0,
        };
        let nothing = Rotated::Pairs(Vec::new());
        source.sigma = congruence(source.content(&projections, &nothing).as_ref(), moment.as_ref());
        source.turning = source.turning_errors(moments, &turns);
        if options.layout == Layout::D {
            source.shared = Some(Shared::new(&source.frequencies(moments, &turns))?);
        }
        source.everything = source.components(&nothing)?.error(0);
        Ok(source)
    }

    /// `y = [m · un-rotated keys; values]` as a map of `x̃`: the un-rotated rows of every key head, then all value rows.
    pub(super) fn content(&self, projections: &Projections, rotated: &Rotated) -> Mat<f64> {
        match rotated {
            Rotated::Pairs(pairs) => self.rows(projections, &self.sizes.others(pairs)),
            Rotated::Shared(components) => {
                let all: Vec<usize> = (0..self.sizes.pairs()).collect();
                product(self.rest(components).as_ref(), self.rows(projections, &all).as_ref())
            }
        }
    }

    /// What heads share.
    ///
    /// # Panics
    /// With a layout in which they share nothing.
    pub(super) fn across_heads(&self) -> &Shared {
        self.shared.as_ref().expect("there with layout d")
    }

    /// What is left of keys and values [2 · kv heads · d, 2 · kv heads · d] without some shared components.
    fn rest(&self, rotated: &[Component]) -> Mat<f64> {
        let keys = self.across_heads().rest(rotated, self.sizes);
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

    /// The components of un-rotated keys and values together, when what is `rotated` stays outside.
    pub(super) fn components(&self, rotated: &Rotated) -> Result<Components, LinalgError> {
        let Sizes { kv_heads, d, .. } = self.sizes;
        let pairs = match rotated {
            Rotated::Pairs(pairs) => pairs,
            Rotated::Shared(components) => {
                let sigma = congruence(self.rest(components).as_ref(), self.sigma.as_ref());
                return Components::new(sigma.as_ref(), self.roots(&[])?);
            }
        };
        let dims = self.sizes.dims(&self.sizes.others(pairs));
        let keys = (0..kv_heads).flat_map(|g| dims.iter().map(move |dim| (g, *dim)));
        // Rows of the full content: its keys are in the order of `dims(all)`, which is 0 to d − 1.
        let rows: Vec<usize> =
            keys.map(|(g, dim)| g * d + dim).chain(kv_heads * d..2 * kv_heads * d).collect();
        let sigma = Mat::from_fn(rows.len(), rows.len(), |i, j| self.sigma[(rows[i], rows[j])]);
        Components::new(sigma.as_ref(), self.roots(pairs)?)
    }

    /// The most latent channels that can carry anything: the rows of the content, or the inputs and the bias.
    pub(super) fn useful_rank(&self, rotated: &Rotated) -> usize {
        let Sizes { kv_heads, d, hidden, .. } = self.sizes;
        (2 * kv_heads * d - rotated.elements(self.sizes)).min(hidden + 1)
    }

    /// Predicted error of all that is not rotated.
    pub(super) fn rope_error(&self, rotated: &Rotated) -> f64 {
        match rotated {
            Rotated::Pairs(pairs) => self.sizes.others(pairs).iter().map(|&pair| self.turning[pair]).sum(),
            Rotated::Shared(kept) => {
                let shared = self.across_heads();
                let gone = shared.all().into_iter().filter(|at| !kept.contains(at));
                gone.map(|at| shared.cost(at)).sum()
            }
        }
    }

    /// The roots of the metric: block diagonal, one block per key head, one for all values.
    fn roots(&self, rotated: &[usize]) -> Result<Roots, LinalgError> {
        let Sizes { heads, kv_heads, d, concentration, .. } = self.sizes;
        let dims = self.sizes.dims(&self.sizes.others(rotated));
        let width = kv_heads * (dims.len() + d);
        if self.options.metric == Metric::Plain {
            return Ok(Roots { root: Mat::identity(width, width), inverse: Mat::identity(width, width) });
        }
        let per = heads / kv_heads;
        let scale = concentration.powi(2) / d as f64;
        let mut blocks: Vec<Mat<f64>> = Vec::new();
        for g in (0..kv_heads).filter(|_| !dims.is_empty()) {
            let of = |i: usize, j: usize| {
                let sum: f64 = (g * per..(g + 1) * per).map(|h| self.queries[h][(dims[i], dims[j])]).sum();
                scale * sum
            };
            blocks.push(Mat::from_fn(dims.len(), dims.len(), of));
        }
        blocks.push(self.values.clone());
        let mut out = Roots { root: Mat::zeros(width, width), inverse: Mat::zeros(width, width) };
        let mut at = 0;
        // The floor under all blocks is one number, so that their balance stays what it is.
        let trace = |m: &Mat<f64>| (0..m.nrows()).map(|i| m[(i, i)]).sum::<f64>();
        let mean = blocks.iter().map(trace).sum::<f64>() / width as f64;
        for block in blocks {
            let n = block.nrows();
            let own = trace(&block) / n as f64;
            let damping = self.options.damping * own.max(1e-3 * mean).max(f64::MIN_POSITIVE);
            let roots = roots(block.as_ref(), damping)?;
            out.root.as_mut().submatrix_mut(at, at, n, n).copy_from(&roots.root);
            out.inverse.as_mut().submatrix_mut(at, at, n, n).copy_from(&roots.inverse);
            at += n;
        }
        Ok(out)
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
        if self.options.metric == Metric::Plain {
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

    /// What matters at each frequency to components across heads.
    fn frequencies(&self, moments: &LayerMoments, turns: &(Vec<f64>, Vec<f64>)) -> Vec<Frequency> {
        let Sizes { heads, kv_heads, d, .. } = self.sizes;
        let half = d / 2;
        let of = |j: usize| Frequency {
            keys: Mat::from_fn(kv_heads, kv_heads, |g, o| {
                let (a, b) = (g * d + j, o * d + j);
                let at = |i: usize, k: usize| self.sigma[(a + i * half, b + k * half)];
                c64::new(at(0, 0) + at(1, 1), at(1, 0) - at(0, 1))
            }),
            weights: (0..heads).map(|h| self.weight(moments, h, j)).collect(),
            misses: (0..heads).map(|h| self.miss(turns, h, j)).collect(),
        };
        (0..half).map(of).collect()
    }
}

/// `Σ_h,h' overlap · W_O,hᵀ W_O,h'` over the query heads of each pair of key/value heads.
fn value_metric(projections: &Projections, overlap: &[f64], sizes: Sizes) -> Mat<f64> {
    let Sizes { heads, kv_heads, d, .. } = sizes;
    let per = heads / kv_heads;
    let gram = product(projections.o.transpose(), projections.o.as_ref());
    Mat::from_fn(kv_heads * d, kv_heads * d, |i, j| {
        let (g, o) = (i / d, j / d);
        let pairs = (g * per..(g + 1) * per).flat_map(|h| (o * per..(o + 1) * per).map(move |k| (h, k)));
        pairs.map(|(h, k)| overlap[h * heads + k] * gram[(h * d + i % d, k * d + j % d)]).sum()
    })
}

/// The constant that stands in for the rotation of each head and pair: mean cosine and sine of the angle, weighted by how much a
/// logit's error matters.
fn multipliers(
    (turn_cos, turn_sin): &(Vec<f64>, Vec<f64>),
    sizes: Sizes,
    kind: Multiplier,
) -> Vec<Vec<(f64, f64)>> {
    let half = sizes.pairs();
    let one = |h: usize, j: usize| match kind {
        Multiplier::One => (1.0, 0.0),
        Multiplier::Real => (turn_cos[h * half + j], 0.0),
        Multiplier::Complex => (turn_cos[h * half + j], turn_sin[h * half + j]),
    };
    (0..sizes.heads).map(|h| (0..half).map(|j| one(h, j)).collect()).collect()
}

/// Query moments after the multipliers: pair (a, b) becomes (c a − s b, s a + c b).
fn queries(moments: &LayerMoments, sizes: Sizes, multipliers: &[Vec<(f64, f64)>]) -> Vec<Mat<f64>> {
    let (d, half) = (sizes.d, sizes.pairs());
    let head = |h: usize| {
        let turn = Mat::from_fn(d, d, |i, j| {
            let (c, s) = multipliers[h][i % half];
            match (i / half, j / half) {
                _ if i % half != j % half => 0.0,
                (0, 0) | (1, 1) => c,
                (0, _) => -s,
                _ => s,
            }
        });
        let moment = MatRef::from_row_major_slice(&moments.query[h * d * d..(h + 1) * d * d], d, d);
        congruence(turn.as_ref(), moment)
    };
    (0..sizes.heads).map(head).collect()
}
