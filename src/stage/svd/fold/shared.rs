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
    let q = &projections.q;
    let rope = 2 * components.len();
    let mut out = Mat::zeros(heads * (d + rope), q.ncols());
    for h in 0..heads {
        let first = h * (d + rope);
        out.as_mut().subrows_mut(first, d).copy_from(still.subrows(h * d, d));
        for (c, component) in components.iter().enumerate() {
            for term in component.terms.iter().filter(|term| term.head == h / (heads / kv_heads)) {
                let (real, imaginary) = (first + d + c, first + d + components.len() + c);
                let row = h * d + term.pair;
                for j in 0..q.ncols() {
                    let seen = term.up.conj() * c64::new(q[(row, j)], q[(row + d / 2, j)]);
                    out[(real, j)] += seen.re;
                    out[(imaginary, j)] += seen.im;
                }
            }
        }
    }
    out
}

/// Rows of the rotated key.
pub(super) fn keys(source: &Source, projections: &Projections, components: &[Component]) -> Mat<f64> {
    let d = source.sizes.d;
    let k = &projections.k;
    let mut out = Mat::zeros(2 * components.len(), k.ncols());
    for (c, component) in components.iter().enumerate() {
        for term in component.terms.iter() {
            let row = term.head * d + term.pair;
            for j in 0..k.ncols() {
                let made = term.down * c64::new(k[(row, j)], k[(row + d / 2, j)]);
                out[(c, j)] += made.re;
                out[(c + components.len(), j)] += made.im;
            }
        }
    }
    out
}
