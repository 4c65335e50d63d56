//! Sums of gradients by variable name, over the parts of a step. Knows no loss and no optimiser.

use std::collections::BTreeMap;

use candle_core::{Result, Var, backprop::GradStore};
use rayon::prelude::*;

use crate::kernel::host;

/// Values that one task adds up.
const PIECE: usize = 1 << 16;

/// The gradient of a step, as far as it has been summed. What is added is added in the order of the calls, so the bits do not depend on
/// threads.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Gradients(BTreeMap<String, Vec<f32>>);

impl Gradients {
    /// Adds what a backward pass found for each of `vars`.
    pub(crate) fn add(&mut self, vars: &BTreeMap<String, Var>, found: &GradStore) -> Result<()> {
        for (name, var) in vars {
            let Some(gradient) = found.get(var.as_tensor()) else { continue };
            let gradient = gradient.contiguous()?;
            let gradient = host(&gradient)?;
            match self.0.get_mut(name) {
                Some(sum) => add(sum, &gradient),
                None => drop(self.0.insert(name.clone(), gradient.to_vec())),
            }
        }
        Ok(())
    }

    /// Adds another sum.
    pub(crate) fn merge(&mut self, other: Self) {
        for (name, gradient) in other.0 {
            match self.0.get_mut(&name) {
                Some(sum) => add(sum, &gradient),
                None => drop(self.0.insert(name, gradient)),
            }
        }
    }

    /// All gradients by name.
    pub(crate) fn named(&self) -> &BTreeMap<String, Vec<f32>> {
        &self.0
    }

    /// The same again from its gradients.
    pub(crate) fn from_named(named: BTreeMap<String, Vec<f32>>) -> Self {
        Self(named)
    }

    /// The gradient of one variable, if a part had one for it.
    pub(crate) fn of(&self, name: &str) -> Option<&[f32]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// The Euclidean norm over all variables.
    pub(crate) fn norm(&self) -> f32 {
        let square = |part: &[f32]| part.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
        let each = |gradient: &Vec<f32>| gradient.par_chunks(PIECE).map(square).collect::<Vec<_>>();
        self.0.values().flat_map(each).sum::<f64>().sqrt() as f32
    }
}

fn add(sum: &mut [f32], gradient: &[f32]) {
    sum.par_chunks_mut(PIECE)
        .zip(gradient.par_chunks(PIECE))
        .for_each(|(sum, part)| sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{close, on_threads, var};

    fn vars() -> BTreeMap<String, Var> {
        let named = [("a", &[3, 70_000][..]), ("b", &[5]), ("c", &[2])];
        named.into_iter().map(|(name, shape)| (name.to_owned(), var(7, shape, 1.0))).collect()
    }

    /// Of `factor · ‖var‖² / 2` for the first `n` variables: each is `factor` times the variable.
    fn gradient(vars: &BTreeMap<String, Var>, n: usize, factor: f64) -> GradStore {
        let loss = |v: &Var| (v.as_tensor().sqr().unwrap().sum_all().unwrap() * (0.5 * factor)).unwrap();
        vars.values().take(n).map(loss).reduce(|a, b| (a + b).unwrap()).unwrap().backward().unwrap()
    }

    #[test]
    fn parts_add_up_and_a_variable_without_a_gradient_is_not_there() {
        let vars = vars();
        let mut sum = Gradients::default();
        for (n, factor) in [(1, 1.0), (2, 0.5), (1, 2.0)] {
            sum.add(&vars, &gradient(&vars, n, factor)).unwrap();
        }
        let want = |name: &str, factor: f32| {
            let values: Vec<f32> = vars[name].flatten_all().unwrap().to_vec1().unwrap();
            values.iter().map(|x| f64::from(x * factor)).collect::<Vec<_>>()
        };
        close(sum.of("a").unwrap(), &want("a", 3.5), 1e-6);
        close(sum.of("b").unwrap(), &want("b", 0.5), 1e-6);
        assert_eq!(sum.of("c"), None);
        let square: f64 = [want("a", 3.5), want("b", 0.5)].concat().iter().map(|g| g * g).sum();
        assert!((f64::from(sum.norm()) - square.sqrt()).abs() < 1e-5 * square.sqrt());
        let mut whole = Gradients::from_named(sum.named().clone());
        whole.merge(sum);
        close(whole.of("a").unwrap(), &want("a", 7.0), 1e-6);
        let mut empty = Gradients::default();
        empty.merge(Gradients::from_named(whole.named().clone()));
        assert_eq!(empty, whole);
        assert!(Gradients::default().norm().abs() < f32::MIN_POSITIVE);
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        let runs = on_threads(|| {
            let vars = vars();
            let mut sum = Gradients::default();
            for factor in [1.0, 0.3, 0.7] {
                sum.add(&vars, &gradient(&vars, 3, factor)).unwrap();
            }
            (sum.norm().to_bits(), sum.of("a").unwrap().iter().map(|g| g.to_bits()).collect::<Vec<_>>())
        });
        assert!(runs.iter().all(|run| *run == runs[0]));
    }
}
