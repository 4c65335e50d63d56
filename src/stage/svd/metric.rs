//! What an error of keys and values costs: the metric in which the latent is cut. Knows no budget.

use faer::{Mat, MatRef};

use super::{
    pieces::{Metric, Multiplier},
    rotated::Rotated,
    shared,
    source::{Sizes, Source},
};
use crate::{
    artifact::moments::LayerMoments,
    math::linalg::{LinalgError, Roots, congruence, product, roots},
    stage::weights::Projections,
};

/// The roots of the metric: block diagonal, one block per key head, one for all values.
pub(super) fn roots_of(source: &Source, rotated: &Rotated) -> Result<Roots, LinalgError> {
    let pairs: &[usize] = match rotated {
        Rotated::Pairs(pairs) => pairs,
        Rotated::Shared { .. } | Rotated::Recomputed => &[],
    };
    let dims = source.sizes.dims(&source.sizes.others(pairs));
    let keys = source.sizes.kv_heads * dims.len();
    let width = keys + source.sizes.kv_heads * source.sizes.d;
    let diagonal = |key: f64| {
        let of = |key: f64| {
            Mat::from_fn(width, width, |i, j| match (i == j, i < keys) {
                (false, _) => 0.0,
                (true, true) => key,
                (true, false) => 1.0,
            })
        };
        Roots { root: of(key), inverse: of(1.0 / key) }
    };
    match source.pieces.metric {
        Metric::Plain => Ok(diagonal(1.0)),
        Metric::Balanced => Ok(diagonal(1.0 / balance(source, rotated))),
        Metric::Fisher | Metric::Output if pairs.is_empty() => {
            // The same for all splits in which no pair of a head is set apart.
            if let Some(roots) = source.whole.get() {
                return Ok(roots.clone());
            }
            let roots = output_roots(source, &dims)?;
            Ok(source.whole.get_or_init(|| roots).clone())
        }
        Metric::Fisher | Metric::Output => output_roots(source, &dims),
    }
}

/// The mean norm of un-rotated key channels over that of value channels (TransMLA's balance).
fn balance(source: &Source, rotated: &Rotated) -> f64 {
    let n = source.sizes.kv_heads * source.sizes.d;
    let norm = |at: usize| source.sigma[(at, at)].max(0.0).sqrt();
    let mean = |norms: Vec<f64>| norms.iter().sum::<f64>() / norms.len().max(1) as f64;
    let values = mean((n..2 * n).map(norm).collect());
    let keys = match rotated {
        Rotated::Pairs(pairs) => {
            let dims = source.sizes.dims(&source.sizes.others(pairs));
            let heads = 0..source.sizes.kv_heads;
            mean(heads.flat_map(|g| dims.iter().map(move |dim| norm(g * source.sizes.d + dim))).collect())
        }
        Rotated::Recomputed => mean((0..n).map(norm).collect()),
        Rotated::Shared { rest, .. } => {
            let sigma = source.sigma.submatrix(0, 0, n, n);
            let channels = |component| {
                let moment = congruence(shared::rows(component, source.sizes).as_ref(), sigma);
                [moment[(0, 0)], moment[(1, 1)]].map(|square| square.max(0.0).sqrt())
            };
            mean(rest.iter().flat_map(channels).collect())
        }
    };
    // Keys of which only rounding is left must not be blown up to the size of values.
    if values > 0.0 { (keys / values).max(1e-6) } else { 1.0 }
}

/// Those of what is summed for queries and values, for keys of the given dimensions of each head.
fn output_roots(source: &Source, dims: &[usize]) -> Result<Roots, LinalgError> {
    let Sizes { heads, kv_heads, d, concentration, .. } = source.sizes;
    let width = kv_heads * (dims.len() + d);
    let per = heads / kv_heads;
    let scale = concentration.powi(2) / d as f64;
    let mut blocks: Vec<Mat<f64>> = Vec::new();
    for g in (0..kv_heads).filter(|_| !dims.is_empty()) {
        let of = |i: usize, j: usize| {
            let sum: f64 = (g * per..(g + 1) * per).map(|h| source.queries[h][(dims[i], dims[j])]).sum();
            scale * sum
        };
        blocks.push(Mat::from_fn(dims.len(), dims.len(), of));
    }
    blocks.push(source.values.clone());
    let mut out = Roots { root: Mat::zeros(width, width), inverse: Mat::zeros(width, width) };
    let mut at = 0;
    // The floor under all blocks is one number, so that their balance stays what it is.
    let trace = |m: &Mat<f64>| (0..m.nrows()).map(|i| m[(i, i)]).sum::<f64>();
    let mean = blocks.iter().map(trace).sum::<f64>() / width as f64;
    for block in blocks {
        let n = block.nrows();
        let own = trace(&block) / n as f64;
        let damping = source.damping * own.max(1e-3 * mean).max(f64::MIN_POSITIVE);
        let roots = roots(block.as_ref(), damping)?;
        out.root.as_mut().submatrix_mut(at, at, n, n).copy_from(&roots.root);
        out.inverse.as_mut().submatrix_mut(at, at, n, n).copy_from(&roots.inverse);
        at += n;
    }
    Ok(out)
}

/// `Σ_h,h' overlap · W_O,hᵀ W_O,h'` over the query heads of each pair of key/value heads.
pub(super) fn value_metric(projections: &Projections, overlap: &[f64], sizes: Sizes) -> Mat<f64> {
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
pub(super) fn multipliers(
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
pub(super) fn queries(
    moments: &LayerMoments,
    sizes: Sizes,
    multipliers: &[Vec<(f64, f64)>],
) -> Vec<Mat<f64>> {
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
