//! The values of all variables at some step: kept aside, averaged, put back. Knows no loss.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor, Var};
use rayon::prelude::*;

use crate::kernel::host;

/// Values by variable name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Weights(pub(crate) BTreeMap<String, Vec<f32>>);

impl Weights {
    /// As the variables stand.
    pub(crate) fn of(vars: &BTreeMap<String, Var>) -> Result<Self> {
        let values = |(name, var): (&String, &Var)| Ok((name.clone(), host(var.as_tensor())?.to_vec()));
        Ok(Self(vars.iter().map(values).collect::<Result<_>>()?))
    }

    /// Gives the variables these values.
    pub(crate) fn put(&self, vars: &BTreeMap<String, Var>) -> Result<()> {
        vars.iter().try_for_each(|(name, var)| {
            var.set(&Tensor::from_vec(self.0[name].clone(), var.shape(), var.device())?)
        })
    }

    /// The mean of several, which must be of the same variables.
    pub(crate) fn mean(all: &[Self]) -> Self {
        let share = 1.0 / all.len() as f32;
        let mut mean = Self(BTreeMap::new());
        for (name, values) in all.iter().flat_map(|weights| &weights.0) {
            let sum = mean.0.entry(name.clone()).or_insert_with(|| vec![0.0; values.len()]);
            sum.par_iter_mut()
                .zip(values.par_iter())
                .with_min_len(8192)
                .for_each(|(sum, value)| *sum += share * value);
        }
        mean
    }

    /// Moves towards the variables, an exponential moving average: of the old values `decay` is kept.
    pub(crate) fn follow(&mut self, vars: &BTreeMap<String, Var>, decay: f32) -> Result<()> {
        vars.iter().try_for_each(|(name, var)| {
            let now = host(var.as_tensor())?;
            let mean = self.0.get_mut(name).expect("made of the same variables");
            mean.par_iter_mut()
                .zip(now.par_iter())
                .with_min_len(8192)
                .for_each(|(mean, now)| *mean = decay * *mean + (1.0 - decay) * now);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{close, var};

    #[test]
    fn an_average_follows_and_what_was_kept_comes_back() {
        let vars =
            BTreeMap::from([("a".to_owned(), var(1, &[3, 4], 1.0)), ("b".to_owned(), var(2, &[5], 1.0))]);
        let first = Weights::of(&vars).unwrap();
        let mut mean = first.clone();
        for var in vars.values() {
            var.set(&(var.as_tensor() + 1.0).unwrap()).unwrap();
        }
        mean.follow(&vars, 0.75).unwrap();
        mean.follow(&vars, 0.75).unwrap();
        for (name, values) in &first.0 {
            let want: Vec<f64> = values.iter().map(|x| f64::from(*x) + 1.0 - 0.75 * 0.75).collect();
            close(&mean.0[name], &want, 1e-6);
        }
        let mid = Weights::mean(&[first.clone(), mean.clone(), mean.clone()]);
        let between: Vec<f64> =
            first.0["b"].iter().zip(&mean.0["b"]).map(|(a, b)| f64::from(a + 2.0 * b) / 3.0).collect();
        close(&mid.0["b"], &between, 1e-6);
        first.put(&vars).unwrap();
        assert_eq!(Weights::of(&vars).unwrap(), first);
        assert_eq!(vars["a"].dims(), [3, 4]);
    }
}
