//! Seeded data, finite differences and stopwatches for kernel tests.

use candle_core::{Device, Result, Tensor, Var};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::math::grid;

/// Reproducible values, roughly uniform in `[-scale, scale]`.
pub(crate) fn noise(seed: u64, n: usize, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * scale
    };
    (0..n).map(step).collect()
}

/// `n` grid vectors of random directions; before they are brought onto the grid, a coordinate has one of `values` values around 0.
pub(crate) fn grid_vectors(n: usize, dim: usize, values: u32, seed: u64) -> Vec<i16> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut out = vec![0; n * dim];
    for row in out.chunks_exact_mut(dim) {
        let x: Vec<i64> =
            (0..dim).map(|_| i64::from(rng.next_u32() % values) - i64::from(values / 2)).collect();
        grid::quantise(&x, row);
    }
    out
}

/// Seconds of the fastest of `n` runs.
pub(crate) fn fastest<T>(n: usize, mut run: impl FnMut() -> T) -> f64 {
    let once = |_| {
        let start = std::time::Instant::now();
        std::hint::black_box(run());
        start.elapsed().as_secs_f64()
    };
    (0..n).map(once).fold(f64::INFINITY, f64::min)
}

/// A tracked tensor of noise.
pub(crate) fn var(seed: u64, shape: &[usize], scale: f32) -> Var {
    let n = shape.iter().product();
    Var::from_tensor(&Tensor::from_vec(noise(seed, n, scale), shape, &Device::Cpu).unwrap()).unwrap()
}

/// Compares the gradient of `sum(f(vars) * weight)` with central differences, for up to 24 entries of each variable.
pub(crate) fn check_gradients(vars: &[&Var], tolerance: f32, f: impl Fn() -> Result<Tensor>) {
    let out = f().unwrap();
    let weight = Tensor::from_vec(noise(77, out.elem_count(), 1.0), out.shape(), &Device::Cpu).unwrap();
    let loss =
        || (f().unwrap() * &weight).unwrap().to_dtype(candle_core::DType::F64).unwrap().sum_all().unwrap();
    let value = || loss().to_scalar::<f64>().unwrap();
    let grads = (out * &weight).unwrap().sum_all().unwrap().backward().unwrap();
    for (which, var) in vars.iter().enumerate() {
        let grad =
            grads.get(var.as_tensor()).expect("gradient").flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let start = var.as_tensor().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for i in (0..start.len()).step_by(start.len().div_ceil(24)) {
            let eps = 1e-2f32;
            let at = |delta: f32| {
                let mut x = start.clone();
                x[i] += delta;
                var.set(&Tensor::from_vec(x, var.shape(), &Device::Cpu).unwrap()).unwrap();
                value()
            };
            let numeric = ((at(eps) - at(-eps)) / (2.0 * f64::from(eps))) as f32;
            var.set(&Tensor::from_vec(start.clone(), var.shape(), &Device::Cpu).unwrap()).unwrap();
            let error = (numeric - grad[i]).abs() / (1.0 + numeric.abs());
            assert!(error < tolerance, "variable {which} entry {i}: numeric {numeric}, analytic {}", grad[i]);
        }
    }
}

/// All elements in order.
pub(crate) fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// All elements as bits, for claims about every one of them.
pub(crate) fn bits(x: &Tensor) -> Vec<u32> {
    flat(x).into_iter().map(f32::to_bits).collect()
}

/// Fails where a value is further than `tolerance · (1 + |want|)` from what it should be.
pub(crate) fn close(got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(error <= tolerance * (1.0 + want.abs()), "entry {i}: {got}, should be {want}");
    }
}

/// The gradient of `sum(out)` with respect to `var`.
pub(crate) fn gradient(out: &Tensor, var: &Var) -> Vec<f32> {
    let grads = out.sum_all().unwrap().backward().unwrap();
    flat(grads.get(var.as_tensor()).expect("a gradient"))
}

/// What `f` gives on a pool of each of these numbers of threads.
pub(crate) fn on_threads<T: Send>(f: impl Fn() -> T + Sync) -> [T; 3] {
    [1, 2, 8].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(&f))
}
