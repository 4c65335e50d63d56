//! A whole checkpoint against its `config.json` before anything is computed with it: names, shapes and element types of every layer, then
//! the values. Knows no stage.

use std::collections::BTreeMap;

use rayon::prelude::*;
use safetensors::Dtype;

use crate::artifact::checkpoint::{Checkpoint, Raw};

use super::{
    Config, Layer, Params, Shell,
    params::{Role, nf4},
};

/// What a checkpoint holds, beside what its configuration asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// Every tensor that is missing or malformed, a line each.
    pub problems: Vec<String>,
    /// The tensors that no part of the model reads, sorted.
    pub unread: Vec<String>,
    read: BTreeMap<String, Role>,
}

impl Audit {
    /// Compares all names, shapes and element types. Reads no weights, so it takes no time to speak of.
    pub fn of(checkpoint: &Checkpoint, config: &Config) -> Self {
        let params = Params::survey(checkpoint);
        drop(Shell::read(&params, config));
        for index in 0..config.layers.len() {
            drop(Layer::read(&params, config, index));
        }
        let (problems, read) = params.surveyed();
        let unread = checkpoint.names().filter(|name| !read.contains_key(*name)).map(str::to_owned).collect();
        Self { problems, unread, read }
    }

    /// The tensors that the model reads, with the bytes of each.
    pub fn read<'a>(&'a self, checkpoint: &'a Checkpoint) -> impl Iterator<Item = (&'a str, u64)> {
        let bytes = |name: &str| checkpoint.raw(name).map(|raw| raw.bytes.len() as u64);
        self.read.keys().filter_map(move |name| Some((name.as_str(), bytes(name)?)))
    }

    /// Reads the values of one of these tensors and tells those that no model may have: NaN, infinities, the scale of MXFP4 that means NaN.
    pub fn check_values(&self, checkpoint: &Checkpoint, name: &str) -> Vec<String> {
        let (Some(role), Some(raw)) = (self.read.get(name), checkpoint.raw(name)) else { return Vec::new() };
        match role {
            Role::Codes => Vec::new(),
            Role::Nf4(shape) => nf4::check_scales(checkpoint, name, shape),
            Role::Scales => {
                let text = "is 255, which MXFP4 reserves for NaN";
                nan_scale(raw).map(|at| format!("`{name}`: the scale at {at:?} {text}")).into_iter().collect()
            }
            Role::Values => {
                let found = not_finite(raw);
                found.map(|(at, value)| format!("`{name}` is {value} at {at:?}")).into_iter().collect()
            }
        }
    }
}

/// Elements that one task looks through.
const CHUNK: usize = 1 << 18;

/// Where the first scale of 255 stands.
fn nan_scale(raw: Raw<'_>) -> Option<Vec<usize>> {
    raw.bytes.par_iter().position_first(|&scale| scale == 255).map(|at| place(at, raw.shape))
}

/// The first value that is not finite, and where it stands. NaN and the infinities have all bits of the exponent.
fn not_finite(raw: Raw<'_>) -> Option<(Vec<usize>, f32)> {
    let half = |mask: u16| first(raw.bytes, move |bytes| u16::from_le_bytes(bytes) & mask == mask);
    let at = match raw.dtype {
        Dtype::F32 => first(raw.bytes, |bytes| !f32::from_le_bytes(bytes).is_finite()),
        Dtype::BF16 => half(0x7f80),
        Dtype::F16 => half(0x7c00),
        _ => None,
    }?;
    let size = raw.dtype.bitsize() / 8;
    let one = Raw { shape: &[1], bytes: &raw.bytes[at * size..][..size], ..raw };
    Some((place(at, raw.shape), one.to_f32()?[0]))
}

/// The first element of `N` bytes that is `bad`.
fn first<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool + Sync) -> Option<usize> {
    let elements = bytes.as_chunks::<N>().0;
    elements.par_chunks(CHUNK).enumerate().find_map_first(|(chunk, elements)| {
        elements.iter().position(|&bytes| bad(bytes)).map(|at| chunk * CHUNK + at)
    })
}

/// The indices of element `at` of a tensor.
fn place(mut at: usize, shape: &[usize]) -> Vec<usize> {
    let mut place = vec![0; shape.len()];
    for (index, &n) in place.iter_mut().zip(shape).rev() {
        (*index, at) = (at % n, at / n);
    }
    place
}

#[cfg(test)]
mod tests;
