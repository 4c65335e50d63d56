//! Dense linear algebra in f64 over `faer`, always on the caller's thread: the same bits for any number of threads.
//!
//! Knows matrices, no model.

use faer::{
    Accum, Mat, MatRef, Par, Spec,
    diag::Diag,
    dyn_stack::{MemBuffer, MemStack},
    linalg::{
        evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch},
        matmul::matmul,
        svd::{ComputeSvdVectors, svd, svd_scratch},
    },
    traits::{
        ComplexField,
        math_utils::{is_finite, real},
    },
};

/// Why a matrix could not be decomposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinalgError {
    /// Values that are not finite, or no convergence.
    #[error("a {0} of size {1} did not converge; does the model give finite activations?")]
    Convergence(&'static str, usize),
    /// A matrix that should be positive definite is not.
    #[error(
        "a matrix of size {0} is not positive definite; raise the damping or give more calibration tokens"
    )]
    NotPositive(usize),
}

/// Eigenvalues, largest first, and the orthonormal eigenvectors as columns in the same order.
#[derive(Debug, Clone)]
pub struct Eigen<T = f64> {
    /// Largest first.
    pub values: Vec<f64>,
    /// Column `i` belongs to `values[i]`.
    pub vectors: Mat<T>,
}

/// The eigendecomposition of a symmetric or Hermitian matrix; only its lower triangle is read.
pub fn eigh<T: ComplexField<Real = f64>>(a: MatRef<'_, T>) -> Result<Eigen<T>, LinalgError> {
    let n = a.nrows();
    let mut vectors = Mat::<T>::zeros(n, n);
    let values = self_adjoint(a, Some(&mut vectors))?;
    Ok(Eigen { values, vectors: Mat::from_fn(n, n, |i, j| vectors[(i, n - 1 - j)].clone()) })
}

/// The eigenvalues of a symmetric matrix, largest first, at a fraction of the cost; only its lower triangle is read.
pub fn eigvalsh(a: MatRef<'_, f64>) -> Result<Vec<f64>, LinalgError> {
    self_adjoint(a, None)
}

/// The eigenvalues, largest first; the eigenvectors come in the opposite order.
fn self_adjoint<T: ComplexField<Real = f64>>(
    a: MatRef<'_, T>,
    vectors: Option<&mut Mat<T>>,
) -> Result<Vec<f64>, LinalgError> {
    let n = a.nrows();
    let what = if T::IS_REAL { "symmetric eigenproblem" } else { "Hermitian eigenproblem" };
    let failed = LinalgError::Convergence(what, n);
    // The library gives values that are not numbers back as such.
    if (0..n).any(|j| (j..n).any(|i| !is_finite(&a[(i, j)]))) {
        return Err(failed);
    }
    let mut values = Diag::<T>::zeros(n);
    let wanted = if vectors.is_some() { ComputeEigenvectors::Yes } else { ComputeEigenvectors::No };
    let mut memory = MemBuffer::new(self_adjoint_evd_scratch::<T>(n, wanted, Par::Seq, Spec::default()));
    let vectors = vectors.map(Mat::as_mut);
    self_adjoint_evd(a, values.as_mut(), vectors, Par::Seq, MemStack::new(&mut memory), Spec::default())
        .map_err(|_| failed)?;
    let ascending: Vec<f64> = values.column_vector().iter().map(real).collect();
    Ok(ascending.into_iter().rev().collect())
}

/// The thin singular value decomposition `a = left · diag(values) · rightᵀ`, largest value first.
#[derive(Debug, Clone)]
pub struct Svd {
    /// [rows, min(rows, cols)], orthonormal columns.
    pub left: Mat<f64>,
    /// Largest first.
    pub values: Vec<f64>,
    /// [cols, min(rows, cols)], orthonormal columns.
    pub right: Mat<f64>,
}

/// Decomposes `a`.
pub fn thin_svd(a: MatRef<'_, f64>) -> Result<Svd, LinalgError> {
    let ((m, n), size) = ((a.nrows(), a.ncols()), a.nrows().min(a.ncols()));
    let failed = LinalgError::Convergence("singular value decomposition", m.max(n));
    if (0..n).any(|j| (0..m).any(|i| !a[(i, j)].is_finite())) {
        return Err(failed);
    }
    let (mut left, mut right) = (Mat::<f64>::zeros(m, size), Mat::<f64>::zeros(n, size));
    let mut values = Diag::<f64>::zeros(size);
    let thin = ComputeSvdVectors::Thin;
    let mut memory = MemBuffer::new(svd_scratch::<f64>(m, n, thin, thin, Par::Seq, Spec::default()));
    svd(
        a,
        values.as_mut(),
        Some(left.as_mut()),
        Some(right.as_mut()),
        Par::Seq,
        MemStack::new(&mut memory),
        Spec::default(),
    )
    .map_err(|_| failed)?;
    Ok(Svd { left, values: values.column_vector().iter().copied().collect(), right })
}

/// The lower triangular `l` with `l · lᵀ = a`.
pub fn cholesky(a: MatRef<'_, f64>) -> Result<Mat<f64>, LinalgError> {
    let n = a.nrows();
    let mut l = Mat::<f64>::zeros(n, n);
    for j in 0..n {
        let below: f64 = (0..j).map(|k| l[(j, k)] * l[(j, k)]).sum();
        let square = a[(j, j)] - below;
        if square.is_nan() || square <= 0.0 {
            return Err(LinalgError::NotPositive(n));
        }
        l[(j, j)] = square.sqrt();
        for i in j + 1..n {
            let dot: f64 = (0..j).map(|k| l[(i, k)] * l[(j, k)]).sum();
            l[(i, j)] = (a[(i, j)] - dot) / l[(j, j)];
        }
    }
    Ok(l)
}

/// `a · b`.
pub fn product(a: MatRef<'_, f64>, b: MatRef<'_, f64>) -> Mat<f64> {
    let mut out = Mat::<f64>::zeros(a.nrows(), b.ncols());
    matmul(out.as_mut(), Accum::Replace, a, b, 1.0, Par::Seq);
    out
}

/// `w · s · wᵀ`, made exactly symmetric.
pub fn congruence(w: MatRef<'_, f64>, s: MatRef<'_, f64>) -> Mat<f64> {
    let full = product(product(w, s).as_ref(), w.transpose());
    Mat::from_fn(full.nrows(), full.ncols(), |i, j| 0.5 * (full[(i, j)] + full[(j, i)]))
}

/// A symmetric positive definite matrix's square root and its inverse.
#[derive(Debug, Clone)]
pub struct Roots {
    /// `m^½`.
    pub root: Mat<f64>,
    /// `m^−½`.
    pub inverse: Mat<f64>,
}

/// The roots of `m` with every eigenvalue raised by `damping` (absolute; negative eigenvalues of rounding count as 0).
pub fn roots(m: MatRef<'_, f64>, damping: f64) -> Result<Roots, LinalgError> {
    let eigen = eigh(m)?;
    let n = m.nrows();
    let values: Vec<f64> = eigen.values.iter().map(|&x| x.max(0.0) + damping).collect();
    if values.last().is_some_and(|&x| x.is_nan() || x <= 0.0) {
        return Err(LinalgError::NotPositive(n));
    }
    let power = |exponent: f64| {
        let scaled = Mat::from_fn(n, n, |i, j| eigen.vectors[(i, j)] * values[j].powf(exponent));
        product(scaled.as_ref(), eigen.vectors.transpose())
    };
    Ok(Roots { root: power(0.5), inverse: power(-0.5) })
}

/// `exp` of the entropy of the non-negative `values` taken as a distribution: how many directions carry the energy.
pub fn effective_rank(values: &[f64]) -> f64 {
    let total: f64 = values.iter().map(|x| x.max(0.0)).sum();
    if total <= 0.0 {
        return 0.0;
    }
    let terms = values.iter().map(|x| x / total).filter(|&p| p > 0.0);
    terms.map(|p| -p * p.ln()).sum::<f64>().exp()
}

#[cfg(test)]
mod tests;
