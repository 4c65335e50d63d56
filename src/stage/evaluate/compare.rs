//! What one model predicts for one token, against the original: pure functions of rows of logits, in f64. Knows no model.

use crate::math::softmax::{divergence, log_sum_exp};

/// What a model makes of one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Predicted {
    /// KL(original ‖ model) of the two next-token distributions, in nats.
    pub(super) kl: f64,
    /// −ln of the probability of the token that follows.
    pub(super) nll: f64,
    /// Whether the likeliest token is the original's.
    pub(super) agrees: bool,
    /// Whether the likeliest token is the one that follows.
    pub(super) right: bool,
}

/// A row of logits with what every figure needs of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Distribution<'a> {
    logits: &'a [f32],
    log_sum_exp: f64,
    top: usize,
}

impl<'a> Distribution<'a> {
    /// Takes a row of logits; `None` where a logit is not finite.
    pub(super) fn new(logits: &'a [f32]) -> Option<Self> {
        let log_sum_exp = log_sum_exp(logits)?;
        let mut top = 0;
        for (i, &x) in logits.iter().enumerate() {
            if x > logits[top] {
                top = i; // of equal logits, the first
            }
        }
        Some(Self { logits, log_sum_exp, top })
    }

    /// The original's own prediction of `target`: no divergence from itself.
    pub(super) fn itself(&self, target: usize) -> Predicted {
        Predicted { kl: 0.0, nll: self.nll(target), agrees: true, right: self.top == target }
    }

    /// A model's prediction `other` of `target`, with `self` as the original's.
    pub(super) fn against(&self, other: &Self, target: usize) -> Predicted {
        Predicted {
            kl: self.kl(other),
            nll: other.nll(target),
            agrees: self.top == other.top,
            right: other.top == target,
        }
    }

    fn nll(&self, target: usize) -> f64 {
        self.log_sum_exp - f64::from(self.logits[target])
    }

    fn kl(&self, other: &Self) -> f64 {
        divergence((self.logits, self.log_sum_exp), (other.logits, other.log_sum_exp))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    /// ln p as f32 would lose digits: the expected values are those of the rounded logits.
    #[test]
    fn a_case_worked_out_by_hand() {
        let (u, z) = ([0.0, 0.0], [2.0, 0.0]);
        let (p, q) = (Distribution::new(&u).unwrap(), Distribution::new(&z).unwrap());
        let seen = p.against(&q, 1);
        // p = (1/2, 1/2), q = (e², 1) / (e² + 1): KL = ln(e² + 1) − ln 2 − 1, −ln q₁ = ln(e² + 1)
        let log = (1.0 + 2f64.exp()).ln();
        close(seen.kl, log - 2f64.ln() - 1.0);
        close(seen.nll, log);
        assert!(seen.agrees && !seen.right);
        close(q.against(&p, 0).kl, {
            let q0 = 2f64.exp() / (2f64.exp() + 1.0);
            q0 * q0.ln() + (1.0 - q0) * (1.0 - q0).ln() + 2f64.ln()
        });
    }

    #[test]
    fn a_model_against_itself_diverges_by_exactly_zero() {
        let row: Vec<f32> = (0..2048).map(|i| ((i * 7919) % 1013) as f32 / 61.0 - 8.0).collect();
        let p = Distribution::new(&row).unwrap();
        let again = row.clone();
        let q = Distribution::new(&again).unwrap();
        let (own, seen) = (p.itself(5), p.against(&q, 5));
        assert_eq!(seen, own);
        assert!(seen.kl.to_bits() == 0 && seen.agrees);
    }

    #[test]
    fn a_shift_of_all_logits_changes_nothing_and_large_ones_do_not_overflow() {
        let (u, z) = ([1.0, 3.0, -2.0], [0.5, 2.0, 4.0]);
        let (far_u, far_z) = (u.map(|x| x + 1024.0), z.map(|x| x - 4096.0));
        let kl =
            |u: &[f32], z: &[f32]| Distribution::new(u).unwrap().against(&Distribution::new(z).unwrap(), 2);
        let (near, far) = (kl(&u, &z), kl(&far_u, &far_z));
        close(near.kl, far.kl);
        close(near.nll, far.nll);
        assert!(near.kl > 1.0 && !near.agrees && near.right);
    }

    #[test]
    fn of_equal_logits_the_first_is_the_top() {
        let row = [1.0, 4.0, 4.0];
        let p = Distribution::new(&row).unwrap();
        assert!(p.itself(1).right && !p.itself(2).right);
    }

    #[test]
    fn a_row_with_a_hole_is_refused() {
        for bad in [&[][..], &[1.0, f32::NAN], &[f32::INFINITY, 0.0], &[0.0, f32::NEG_INFINITY]] {
            assert!(Distribution::new(bad).is_none(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn divergence_and_likelihood_are_those_of_the_probabilities(
            rows in vec((-20.0f32..20.0, -20.0f32..20.0), 1..40),
            pick in 0usize..40,
        ) {
            let (u, z): (Vec<f32>, Vec<f32>) = rows.into_iter().unzip();
            let target = pick % u.len();
            let probabilities = |z: &[f32]| -> Vec<f64> {
                let sum: f64 = z.iter().map(|&z| f64::from(z).exp()).sum();
                z.iter().map(|&z| f64::from(z).exp() / sum).collect()
            };
            let (p, q) = (probabilities(&u), probabilities(&z));
            let seen = Distribution::new(&u).unwrap().against(&Distribution::new(&z).unwrap(), target);
            let kl: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
            prop_assert!((seen.kl - kl).abs() < 1e-9 && seen.kl >= 0.0, "{} {}", seen.kl, kl);
            prop_assert!((seen.nll + q[target].ln()).abs() < 1e-9);
            let top = |z: &[f32]| (0..z.len()).fold(0, |best, i| if z[i] > z[best] { i } else { best });
            prop_assert_eq!((seen.agrees, seen.right), (top(&u) == top(&z), top(&z) == target));
        }
    }
}
