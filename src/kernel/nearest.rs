//! Nearest centroid by dot product on the integer grid: the definition, a fast CPU form and the CUDA launch.
//!
//! All three give the same integers: norms are below 2¹², so by Cauchy–Schwarz every partial sum is below 2²⁴ and exact in i32 and
//! in f32, in any order. Knows no document and no clustering.
#![expect(
    clippy::inline_always,
    reason = "it becomes part of the loops that are compiled for several instruction sets"
)]

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use crate::{
    device::Device,
    kernel::{arch::arch, whole::Packed},
};

/// Norms stay below this, so that products stay below 2²⁴.
const MAX_NORM: i64 = 1 << 12;

/// Points per block of the CPU form.
const BLOCK: usize = 96;

/// A row-major matrix of grid vectors whose products are exact.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    pub(super) dim: usize,
    pub(super) data: &'a [i16],
}

/// For one point: the centroid with the largest product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nearest {
    /// Its index; the smallest of those with that product.
    pub index: u32,
    /// The product.
    pub score: i32,
    /// The largest product of the other centroids; `i32::MIN` where there is none.
    pub second: i32,
}

/// Why products cannot be computed.
#[derive(Debug, thiserror::Error)]
pub enum NearestError {
    /// The matrix is not a whole number of rows.
    #[error("{len} values are not rows of {dim}")]
    Shape {
        /// Values in the matrix.
        len: usize,
        /// Values per row.
        dim: usize,
    },
    /// A row is too long for exact f32 sums.
    #[error(
        "row {row} has norm² {square}, outside the exact range; vectors must be on the grid of unit vectors"
    )]
    Norm {
        /// The row.
        row: usize,
        /// Its squared norm.
        square: i64,
    },
    /// Points and centroids differ in dimension, or there are no centroids.
    #[error("points have {points} coordinates, {count} centroids have {centroids}")]
    Mismatch {
        /// Coordinates per point.
        points: usize,
        /// Coordinates per centroid.
        centroids: usize,
        /// Number of centroids.
        count: usize,
    },
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] crate::device::DeviceError),
    /// The launch failed.
    #[error("kernel `nearest_i16`: {0}")]
    Launch(#[from] candle_core::Error),
}

impl<'a> Rows<'a> {
    /// Checks shape and norms.
    pub fn new(dim: usize, data: &'a [i16]) -> Result<Self, NearestError> {
        if dim == 0 || !data.len().is_multiple_of(dim) {
            return Err(NearestError::Shape { len: data.len(), dim });
        }
        for (row, values) in data.chunks_exact(dim).enumerate() {
            let square: i64 = values.iter().map(|&q| i64::from(q).pow(2)).sum();
            if square >= MAX_NORM * MAX_NORM {
                return Err(NearestError::Norm { row, square });
            }
        }
        Ok(Self { dim, data })
    }

    pub(super) fn len(self) -> usize {
        self.data.len() / self.dim
    }
}

/// The nearest centroid of each point, computed on the device.
pub fn nearest(device: Device, points: Rows<'_>, centroids: Rows<'_>) -> Result<Vec<Nearest>, NearestError> {
    if points.dim != centroids.dim || centroids.len() == 0 {
        let (points, count) = (points.dim, centroids.len());
        return Err(NearestError::Mismatch { points, centroids: centroids.dim, count });
    }
    match device {
        Device::Cpu => Ok(blocked(points, centroids)),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) if points.len() == 0 => Ok(Vec::new()),
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => cuda::launch(device, points, centroids),
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => Err(crate::device::DeviceError::NoCuda(device).into()),
    }
}

/// The definition: integers, one product at a time.
pub fn definition(points: Rows<'_>, centroids: Rows<'_>) -> Vec<Nearest> {
    let product =
        |a: &[i16], b: &[i16]| -> i64 { a.iter().zip(b).map(|(&a, &b)| i64::from(a) * i64::from(b)).sum() };
    let one = |point| best(centroids.data.chunks_exact(centroids.dim).map(|c| product(point, c) as i32));
    points.data.chunks_exact(points.dim).map(one).collect()
}

fn best(products: impl Iterator<Item = i32>) -> Nearest {
    let mut best = Nearest { index: u32::MAX, score: i32::MIN, second: i32::MIN };
    for (j, score) in products.enumerate() {
        if score > best.score || best.index == u32::MAX {
            best = Nearest { index: j as u32, score, second: best.score };
        } else {
            best.second = best.second.max(score);
        }
    }
    best
}

/// The CPU form: blocks of points in parallel. The centroids are packed once for all blocks.
fn blocked(points: Rows<'_>, centroids: Rows<'_>) -> Vec<Nearest> {
    let right = Packed::of(centroids);
    let block =
        |rows: &[i16]| arch().dispatch(BestOf { products: &right.products(rows), k: centroids.len() });
    points.data.par_chunks(BLOCK * points.dim).flat_map_iter(block).collect()
}

/// [`best`] of each row of `k` products, which are whole numbers. Where there is none: negative infinity, the least i32.
struct BestOf<'a> {
    products: &'a [f32],
    k: usize,
}

impl WithSimd for BestOf<'_> {
    type Output = Vec<Nearest>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<Nearest> {
        let mut found = Vec::with_capacity(self.products.len() / self.k);
        for row in self.products.chunks_exact(self.k) {
            let (vectors, rest) = S::as_simd_f32s(row);
            let [mut best, mut second] = [simd.splat_f32s(f32::NEG_INFINITY); 2];
            let mut at = simd.splat_u32s(0);
            for (i, &x) in vectors.iter().enumerate() {
                at = simd.select_u32s(simd.greater_than_f32s(x, best), simd.splat_u32s(i as u32), at);
                second = simd.max_f32s(second, simd.min_f32s(x, best));
                best = simd.max_f32s(best, x);
            }
            let mut lanes = Lanes::default();
            S::as_mut_simd_f32s(&mut lanes.best).0[0] = best;
            S::as_mut_simd_f32s(&mut lanes.second).0[0] = second;
            S::as_mut_simd_u32s(&mut lanes.at).0[0] = at;
            found.push(lanes.merge(S::F32_LANES, rest, row.len() - rest.len()));
        }
        found
    }
}

/// The best and the second best of each lane of the widest vector, and which vector of the row the best is from.
#[derive(Default)]
struct Lanes {
    best: [f32; 16],
    second: [f32; 16],
    at: [u32; 16],
}

impl Lanes {
    /// Of the lanes in use, and the products from `from` on that fill no vector. Of equal products the one with the smallest index.
    #[inline(always)]
    fn merge(self, used: usize, rest: &[f32], from: usize) -> Nearest {
        let index = |lane: usize| self.at[lane] * used as u32 + lane as u32;
        // The products are integers below 2^24; a lane that saw none holds −∞, which becomes the smallest.
        let (mut score, mut second, mut at) = (i32::MIN, i32::MIN, 0);
        let lanes = (0..used).map(|lane| (self.best[lane] as i32, index(lane)));
        let rest = rest.iter().enumerate().map(|(j, &x)| (x as i32, (from + j) as u32));
        for (x, index) in lanes.chain(rest) {
            if x > score || (x == score && index < at) {
                (second, score, at) = (score, x, index);
            } else {
                second = second.max(x);
            }
        }
        let second = self.second[..used].iter().fold(second, |a, &b| a.max(b as i32));
        Nearest { index: at, score, second }
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    //! The launch of `kernels/nearest.cu`; no arithmetic.

    use candle_core::cuda_backend::{
        WrapErr,
        cudarc::driver::{LaunchConfig, PushKernelArg},
    };

    use super::{Nearest, NearestError, Rows};
    use crate::device::Device;

    const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/nearest.ptx"));
    const TILE: u32 = 64;
    const SIDE: u32 = 16;

    pub(super) fn launch(
        device: Device,
        points: Rows<'_>,
        centroids: Rows<'_>,
    ) -> Result<Vec<Nearest>, NearestError> {
        let device = device.candle()?;
        let cuda = device.as_cuda_device()?;
        let size =
            |n: usize| i32::try_from(n).map_err(|_| candle_core::Error::Msg(format!("{n} exceeds 2^31 - 1")));
        let (n, k, d) = (size(points.len())?, size(centroids.len())?, size(points.dim)?);

        let p = cuda.clone_htod(points.data)?;
        let c = cuda.clone_htod(centroids.data)?;
        let mut index = cuda.alloc_zeros::<u32>(points.len())?;
        let mut score = cuda.alloc_zeros::<i32>(points.len())?;
        let mut second = cuda.alloc_zeros::<i32>(points.len())?;
        let function = cuda.get_or_load_custom_func("nearest_i16", "nearest", PTX)?;
        let config = LaunchConfig {
            grid_dim: ((n as u32).div_ceil(TILE), 1, 1),
            block_dim: (SIDE, SIDE, 1),
            shared_mem_bytes: 0,
        };
        let mut builder = function.builder();
        builder.arg(&p).arg(&c).arg(&mut index).arg(&mut score).arg(&mut second).arg(&n).arg(&k).arg(&d);
        // SAFETY: `p` holds n × d and `c` k × d values ([`Rows`] checks), the three outputs hold n each and are distinct
        // allocations; the kernel guards every row and column against n, k and d.
        #[expect(unsafe_code, reason = "a kernel launch")]
        unsafe { builder.launch(config) }.w()?;

        let (index, score, second) =
            (cuda.clone_dtoh(&index)?, cuda.clone_dtoh(&score)?, cuda.clone_dtoh(&second)?);
        let row = |((index, score), second)| Nearest { index, score, second };
        Ok(index.into_iter().zip(score).zip(second).map(row).collect())
    }
}

#[cfg(test)]
mod tests;
