//! Spectra of keys and values: how many directions carry them. Knows no heads.

use faer::MatRef;

use super::Of;
use crate::{
    artifact::analysis::{Spectra, Spectrum},
    math::linalg::{LinalgError, effective_rank, eigvalsh},
};

impl Of<'_> {
    /// Of the second moment of keys and values [2 g d, 2 g d].
    pub(super) fn spectra(&self, both: MatRef<'_, f64>) -> Result<Spectra, LinalgError> {
        let half = both.nrows() / 2;
        Ok(Spectra {
            keys: self.spectrum(both.submatrix(0, 0, half, half))?,
            values: self.spectrum(both.submatrix(half, half, half, half))?,
            joint: self.spectrum(both)?,
        })
    }

    fn spectrum(&self, moment: MatRef<'_, f64>) -> Result<Spectrum, LinalgError> {
        let energies = eigvalsh(moment)?;
        Ok(Spectrum {
            singular_values: energies.iter().map(|e| (e.max(0.0) / self.tokens).sqrt()).collect(),
            effective_rank: effective_rank(&energies),
            rank_90: rank(&energies, 0.90),
            rank_95: rank(&energies, 0.95),
            rank_99: rank(&energies, 0.99),
        })
    }
}

/// The fewest of the descending `energies` that hold `share` of all.
fn rank(energies: &[f64], share: f64) -> usize {
    let total: f64 = energies.iter().map(|e| e.max(0.0)).sum();
    let mut held = 0.0;
    let fewer = energies.iter().take_while(|&&e| {
        let more = held < share * total;
        held += e;
        more
    });
    fewer.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_that_hold_enough() {
        let energies = [64.0, 16.0, 16.0, 3.0, 1.0, -1e-15];
        assert_eq!(
            [0.5, 0.64, 0.65, 0.80, 0.9, 0.97, 1.0].map(|share| rank(&energies, share)),
            [1, 1, 2, 2, 3, 4, 5]
        );
        assert_eq!((rank(&[], 0.9), rank(&[0.0, 0.0], 0.9)), (0, 0));
    }
}
