//! Folds a choice of rotated pairs and a low-rank map into the tensors of a latent attention layer. Knows no error.
//!
//! Query and key heads become `[un-rotated; rotated]`; where heads share a rotated key, the un-rotated part is as wide as a head was.
//! Un-rotated queries and keys no longer pass through the rotary table, so each carries YaRN's factor itself. `kv_b_proj` holds, per
//! key/value head, the key rows and then the value rows.

mod basis;
mod shared;

use std::collections::BTreeMap;

use faer::Mat;

use crate::{
    artifact::checkpoint::Owned,
    math::{linalg::product, low_rank::LowRank},
    stage::weights::Projections,
};

use super::{
    pieces::{Dtype, LatentBasis},
    rotated::Rotated,
    source::{Sizes, Source},
};

/// The attention tensors of a converted layer by their name after `self_attn.`; what is not here stays as it was.
pub(super) fn fold(
    (source, projections): (&Source, &Projections),
    rotated: &Rotated,
    map: &LowRank,
    dtype: Dtype,
) -> BTreeMap<String, Owned> {
    let mut tensors = BTreeMap::new();
    let mut put = |name: &str, with_bias: &Mat<f64>| {
        let hidden = with_bias.ncols() - 1;
        let weight = Mat::from_fn(with_bias.nrows(), hidden, |i, j| with_bias[(i, j)]);
        tensors.insert(format!("{name}.weight"), owned(&weight, dtype));
        tensors.insert(format!("{name}.bias"), vector(with_bias, hidden, dtype));
    };
    if matches!(rotated, Rotated::Recomputed) {
        let [k, v] = recomputed(source, projections, map);
        put("k_proj", &k);
        put("v_proj", &v);
        if !projections.qkv_bias {
            tensors.retain(|_, tensor| tensor.shape.len() > 1);
        }
        return tensors;
    }
    let (q, k_rope) = match rotated {
        Rotated::Pairs(pairs) => {
            (queries(source, projections, pairs), rotated_keys(source, projections, pairs))
        }
        Rotated::Shared { kept, .. } => {
            (shared::queries(source, projections, kept), shared::keys(source, projections, kept))
        }
        Rotated::Recomputed => unreachable!("folded above"),
    };
    put("q_proj", &q);
    if k_rope.nrows() > 0 {
        put("k_rope_proj", &k_rope);
    }
    let (down, up) = latent((source, projections), rotated, map);
    put("kv_a_proj", &down);
    tensors.insert("kv_b_proj.weight".to_owned(), owned(&up, dtype));
    tensors
}

/// Projections of low rank in place of those of keys and values.
fn recomputed(source: &Source, projections: &Projections, map: &LowRank) -> [Mat<f64>; 2] {
    let Sizes { kv_heads, d, concentration, .. } = source.sizes;
    let n = kv_heads * d;
    let content = source.content(projections, &Rotated::Recomputed);
    let kept = product(map.up.as_ref(), product(map.down.as_ref(), content.as_ref()).as_ref());
    // The rotary table brings YaRN's factor, which the content has too.
    let part = |from: usize, factor: f64| Mat::from_fn(n, kept.ncols(), |i, j| kept[(from + i, j)] / factor);
    [part(0, concentration), part(n, 1.0)]
}

/// Whether a converted layer no longer has this tensor.
pub(super) fn is_dense_key_value(name: &str) -> bool {
    name.contains(".self_attn.k_proj.") || name.contains(".self_attn.v_proj.")
}

/// Query rows per head: un-rotated with multiplier and YaRN's factor, then rotated as they are.
pub(super) fn queries(source: &Source, projections: &Projections, rotated: &[usize]) -> Mat<f64> {
    let Sizes { heads, d, concentration, .. } = source.sizes;
    let q = &projections.q;
    let half = d / 2;
    let still = source.sizes.others(rotated);
    let turned = source.sizes.dims(rotated);
    Mat::from_fn(heads * d, q.ncols(), |i, j| {
        let (h, at) = (i / d, i % d);
        if at >= 2 * still.len() {
            return q[(h * d + turned[at - 2 * still.len()], j)];
        }
        let pair = still[at % still.len()];
        let (a, b) = (q[(h * d + pair, j)], q[(h * d + pair + half, j)]);
        let (c, s) = source.multipliers[h][pair];
        concentration * if at < still.len() { c * a - s * b } else { s * a + c * b }
    })
}

/// Rotated key rows per key/value head.
fn rotated_keys(source: &Source, projections: &Projections, rotated: &[usize]) -> Mat<f64> {
    let Sizes { kv_heads, d, .. } = source.sizes;
    let dims = source.sizes.dims(rotated);
    let k = &projections.k;
    Mat::from_fn(kv_heads * dims.len(), k.ncols(), |i, j| k[(i / dims.len() * d + dims[i % dims.len()], j)])
}

/// `kv_a_proj` with its bias as last column, and `kv_b_proj` with its rows in the order of the heads.
fn latent(
    (source, projections): (&Source, &Projections),
    rotated: &Rotated,
    map: &LowRank,
) -> (Mat<f64>, Mat<f64>) {
    let Sizes { kv_heads, d, .. } = source.sizes;
    let mut down = product(map.down.as_ref(), source.content(projections, rotated).as_ref());
    let latent = rotated.latent(map.down.nrows()).expect("keys that are made again have no such layer");
    let nope = latent.qk_nope_head_dim(d);
    let (keys, width) = (kv_heads * nope, nope + d);
    let mut up = Mat::from_fn(kv_heads * width, map.up.ncols(), |i, j| {
        let (g, at) = (i / width, i % width);
        map.up[(if at < nope { g * nope + at } else { keys + g * d + at - nope }, j)]
    });
    basis::balance(&mut down, &mut up);
    match source.pieces.latent_basis {
        LatentBasis::Components => (down, up),
        LatentBasis::Mixed => basis::mix(&down, &up),
    }
}

fn owned(matrix: &Mat<f64>, dtype: Dtype) -> Owned {
    let (rows, cols) = (matrix.nrows(), matrix.ncols());
    let values: Vec<f32> = (0..rows * cols).map(|at| matrix[(at / cols, at % cols)] as f32).collect();
    dtype.store(&[rows, cols], &values)
}

fn vector(matrix: &Mat<f64>, column: usize, dtype: Dtype) -> Owned {
    let values: Vec<f32> = (0..matrix.nrows()).map(|i| matrix[(i, column)] as f32).collect();
    dtype.store(&[values.len()], &values)
}
