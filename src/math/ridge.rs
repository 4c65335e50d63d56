//! Linear regression from sums, pulled towards a map that is there already, as far as rows kept out of the sums agree. Knows rows of
//! numbers, no model.

use faer::{
    Accum, Mat, MatRef, Par, Spec,
    dyn_stack::{MemBuffer, MemStack},
    linalg::{
        cholesky::llt::{
            factor::{LltRegularization, cholesky_in_place, cholesky_in_place_scratch},
            solve::solve_in_place,
        },
        matmul::matmul,
    },
};
use rayon::prelude::*;

use super::{linalg::LinalgError, moments::add_products};

/// Rows or columns that one thread computes at a time; fixed, so that the number of threads does not matter.
const TILE: usize = 64;

/// What a regression `y ≈ W x̃` needs of its rows, with `x̃ = [x; 1]` where there is a bias and `x` where there is none.
#[derive(Debug, Clone, PartialEq)]
pub struct Regression {
    /// Width of `x̃`.
    inputs: usize,
    /// Width of `y`.
    outputs: usize,
    bias: bool,
    /// `Σ x̃ [x̃; y]ᵀ`, row-major [inputs, inputs + outputs].
    sum: Vec<f64>,
    /// `Σ ‖y‖²`.
    square: f64,
}

/// A regression's outcome.
#[derive(Debug, Clone)]
pub struct Fit {
    /// The map [outputs, inputs], a bias as its last column.
    pub map: Mat<f64>,
    /// The pull that was best, as a share of the inputs' mean square; `None` if the map that was there is.
    pub ridge: Option<f64>,
    /// `Σ ‖y − W x̃‖² / Σ ‖y‖²` of the map that was there, on the rows kept out.
    pub before: f64,
    /// The same of this map.
    pub after: f64,
}

impl Regression {
    /// No rows yet, of so many values each.
    pub fn new((inputs, outputs): (usize, usize), bias: bool) -> Self {
        let inputs = inputs + usize::from(bias);
        Self { inputs, outputs, bias, sum: vec![0.0; inputs * (inputs + outputs)], square: 0.0 }
    }

    /// Bytes of the sums.
    pub fn bytes((inputs, outputs): (usize, usize)) -> u64 {
        ((inputs + 1) * (inputs + 1 + outputs) * size_of::<f64>()) as u64
    }

    /// Adds the rows `x` [n, inputs] and `y` [n, outputs].
    pub fn add(&mut self, x: &[f32], y: &[f32]) {
        let (inputs, width) = (self.inputs, self.inputs + self.outputs);
        let own = inputs - usize::from(self.bias);
        let n = y.len() / self.outputs;
        let mut rows = vec![1f64; n * width];
        rows.par_chunks_exact_mut(width)
            .zip(x.par_chunks_exact(own).zip(y.par_chunks_exact(self.outputs)))
            .for_each(|(row, (x, y))| {
                row.iter_mut().zip(x).for_each(|(row, &x)| *row = f64::from(x));
                row[inputs..].iter_mut().zip(y).for_each(|(row, &y)| *row = f64::from(y));
            });
        let squares: Vec<f64> =
            rows.par_chunks_exact(width).map(|row| row[inputs..].iter().map(|y| y * y).sum()).collect();
        self.square += squares.iter().sum::<f64>();
        let rows = MatRef::from_row_major_slice(&rows, n, width);
        add_products(&mut self.sum, rows.subcols(0, inputs), rows);
    }

    /// Of the maps that each of `ridges` gives and of `prior` [outputs, inputs] itself the one with the least error on the rows of
    /// `kept_out`. A ridge λ adds `λ · mean square of an input · ‖W − prior‖²` to the sum of squares; a bias is not pulled.
    ///
    /// # Errors
    /// If the sums are not finite.
    pub fn fit(&self, prior: MatRef<'_, f64>, ridges: &[f64], kept_out: &Self) -> Result<Fit, LinalgError> {
        let before = kept_out.error(prior);
        let mut best = Fit { map: prior.to_owned(), ridge: None, before, after: before };
        let residual = self.residual(prior);
        for &ridge in ridges {
            let map = prior + self.solve(residual.as_ref(), ridge)?.transpose();
            let after = kept_out.error(map.as_ref());
            if after < best.after {
                best = Fit { map, ridge: Some(ridge), after, ..best };
            }
        }
        Ok(best)
    }

    /// `Σ ‖y − W x̃‖² / Σ ‖y‖²` of these rows.
    pub fn error(&self, map: MatRef<'_, f64>) -> f64 {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let parts: Vec<f64> = (0..outputs.div_ceil(TILE))
            .into_par_iter()
            .map(|tile| {
                let many = TILE.min(outputs - tile * TILE);
                let rows = map.subrows(tile * TILE, many);
                let mut left = Mat::<f64>::zeros(many, inputs);
                matmul(left.as_mut(), Accum::Replace, rows, self.squares(), 1.0, Par::Seq);
                let at = |i: usize, j: usize| {
                    rows[(i, j)] * (left[(i, j)] - 2.0 * self.products()[(j, tile * TILE + i)])
                };
                (0..inputs).map(|j| (0..many).map(|i| at(i, j)).sum::<f64>()).sum()
            })
            .collect();
        (self.square + parts.iter().sum::<f64>()) / self.square.max(f64::MIN_POSITIVE)
    }

    /// `Σ x̃ x̃ᵀ`.
    fn squares(&self) -> MatRef<'_, f64> {
        self.whole().subcols(0, self.inputs)
    }

    /// `Σ x̃ yᵀ`.
    fn products(&self) -> MatRef<'_, f64> {
        self.whole().subcols(self.inputs, self.outputs)
    }

    fn whole(&self) -> MatRef<'_, f64> {
        MatRef::from_row_major_slice(&self.sum, self.inputs, self.inputs + self.outputs)
    }

    /// `Σ x̃ (y − prior x̃)ᵀ` [inputs, outputs].
    fn residual(&self, prior: MatRef<'_, f64>) -> Mat<f64> {
        let mut residual = self.products().to_owned();
        residual.as_mut().par_col_chunks_mut(TILE).enumerate().for_each(|(tile, out)| {
            let rows = prior.subrows(tile * TILE, out.ncols());
            matmul(out, Accum::Add, self.squares(), rows.transpose(), -1.0, Par::Seq);
        });
        residual
    }

    /// What a ridge adds to the prior [inputs, outputs].
    fn solve(&self, residual: MatRef<'_, f64>, ridge: f64) -> Result<Mat<f64>, LinalgError> {
        let n = self.inputs;
        let pulled = n - usize::from(self.bias);
        let mut factor = self.squares().to_owned();
        let mean = (0..pulled).map(|i| factor[(i, i)]).sum::<f64>() / pulled as f64;
        (0..pulled).for_each(|i| factor[(i, i)] += ridge * mean);
        let mut memory = MemBuffer::new(cholesky_in_place_scratch::<f64>(n, Par::Seq, Spec::default()));
        let stack = MemStack::new(&mut memory);
        cholesky_in_place(factor.as_mut(), LltRegularization::default(), Par::Seq, stack, Spec::default())
            .map_err(|_| LinalgError::NotPositive(n))?;
        let mut map = residual.to_owned();
        map.as_mut().par_col_chunks_mut(TILE).for_each(|columns| {
            solve_in_place(factor.as_ref(), columns, Par::Seq, MemStack::new(&mut []));
        });
        Ok(map)
    }
}

#[cfg(test)]
mod tests;
