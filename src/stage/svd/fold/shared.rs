//! Queries and the rotated key where heads share one. Knows no latent.
//!
//! Elements are first the real parts of all components, then the imaginary ones, as the rotary table has it.

use faer::{Mat, c64};

use crate::{
    stage::svd::{
        shared::Component,
        source::{Sizes, Source},
    },
    stage::weights::Projections,
};

/// Query rows per head: all pairs un-rotated, with multiplier and YaRN's factor, then what the head sees of each component.
pub(super) fn queries(source: &Source, projections: &Projections, components: &[Component]) -> Mat<f64> {
    let Sizes { heads, kv_heads, d, .. } = source.sizes;
    let still = super::queries(source, projections, &[]);
    let shared = source.across_heads();
    let q = &projections.q;
    let (half, rope) = (d / 2, 2 * components.len());
    Mat::from_fn(heads * (d + rope), q.ncols(), |i, j| {
        let (h, at) = (i / (d + rope), i % (d + rope));
        if at < d {
            return still[(h * d + at, j)];
        }
        let (component, part) = (components[(at - d) % components.len()], (at - d) / components.len());
        let pair = h * d + component.pair;
        let seen =
            shared.up(component, h / (heads / kv_heads)).conj() * c64::new(q[(pair, j)], q[(pair + half, j)]);
        if part == 0 { seen.re } else { seen.im }
    })
}

/// Rows of the rotated key.
pub(super) fn keys(source: &Source, projections: &Projections, components: &[Component]) -> Mat<f64> {
    let d = source.sizes.d;
    let shared = source.across_heads();
    let k = &projections.k;
    let down: Vec<Vec<c64>> = components.iter().map(|&at| shared.down(at)).collect();
    Mat::from_fn(2 * components.len(), k.ncols(), |i, j| {
        let (which, part) = (i % components.len(), i / components.len());
        let pair = components[which].pair;
        let key = |g: usize| c64::new(k[(g * d + pair, j)], k[(g * d + pair + d / 2, j)]);
        let made: c64 = down[which].iter().enumerate().map(|(g, down)| down * key(g)).sum();
        if part == 0 { made.re } else { made.im }
    })
}
