//! How far a student's next-token distribution is from its teacher's, one row of logits at a time, with the gradient. Knows no head.
//!
//! With `p`, `q` the softmaxes of teacher and student logits over the temperature `T`, `D` a divergence and `y` the token that follows,
//! a row costs `T² D(p, q) − c ln softmax(z)_y`. `T²` keeps the size of the gradient when `T` changes (Hinton et al., arXiv 1503.02531,
//! section 2.1). Gradients for the student's logits `z`:
//!
//! ```text
//! forward   D = KL(p ‖ q)                          T (q − p)
//! reverse   D = KL(q ‖ p)                          T q (ln q/p − D)
//! jsd       D = β KL(p ‖ m) + (1 − β) KL(q ‖ m)    T (1 − β) q (ln q/m − KL(q ‖ m)),   m = β p + (1 − β) q
//! token                                            c (softmax(z) − 1_y)
//! ```

use std::ops::{Add, AddAssign, Div, Mul, Sub, SubAssign};

use super::{
    cross_entropy::log_sum_exp,
    exp::{exp, exp_in_place},
};

/// Which way apart two distributions are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Divergence {
    /// `KL(teacher ‖ student)`.
    Forward,
    /// `KL(student ‖ teacher)`.
    Reverse,
    /// Generalised Jensen–Shannon divergence, with the teacher's share of the mixture, between 0 and 1 (Agarwal et al., arXiv 2306.13649).
    Jsd(f64),
}

/// What a token costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// How teacher and student are compared.
    pub divergence: Divergence,
    /// Divides both models' logits.
    pub temperature: f64,
    /// Weight of the cross-entropy of the token that follows.
    pub cross_entropy: f64,
}

/// Forward KL at temperature 1 and nothing else.
impl Default for Loss {
    fn default() -> Self {
        Self { divergence: Divergence::Forward, temperature: 1.0, cross_entropy: 0.0 }
    }
}

/// The arithmetic of a row: `f32` where models train, `f64` where the formulas are checked.
pub(crate) trait Real:
    Copy
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
    + SubAssign
{
    fn of(x: f64) -> Self;
    fn wide(self) -> f64;
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn log_sum_exp(row: &[Self]) -> Self;
    /// `e^(x − shift)` in the place of every `x`.
    fn exp_all(row: &mut [Self], shift: Self);
}

/// Elements of a row that are worked on at one time, so that they stay in the first cache.
const STRIP: usize = 512;

impl Real for f32 {
    fn of(x: f64) -> Self {
        x as Self
    }
    fn wide(self) -> f64 {
        f64::from(self)
    }
    fn exp(self) -> Self {
        exp(self)
    }
    fn ln(self) -> Self {
        self.ln()
    }
    fn log_sum_exp(row: &[Self]) -> Self {
        log_sum_exp(row)
    }
    fn exp_all(row: &mut [Self], shift: Self) {
        exp_in_place(row, shift);
    }
}

impl Loss {
    /// The cost of one row; `z` holds the student's logits and becomes the gradient, `u` the teacher's and is used up.
    ///
    /// # Panics
    /// If `target` is no index of the row, where the next token counts.
    pub(crate) fn row<R: Real>(&self, z: &mut [R], u: &mut [R], target: usize) -> f64 {
        let counts = self.cross_entropy > 0.0;
        let plain = if counts { R::log_sum_exp(z) } else { R::of(0.0) };
        let token = if counts { (plain - z[target]).wide() } else { 0.0 };
        let hot = R::of(self.temperature);
        if (self.temperature - 1.0).abs() > 0.0 {
            z.iter_mut().chain(u.iter_mut()).for_each(|x| *x = *x / hot);
        }
        let (student, teacher) = (R::log_sum_exp(z), R::log_sum_exp(u));
        let weight = R::of(self.cross_entropy);
        // What the next token adds to the gradient, from the student's logit over the temperature.
        let next = |z: R| if counts { weight * (z * hot - plain).exp() } else { R::of(0.0) };
        let value = match self.divergence {
            Divergence::Forward => {
                let (mut kl, mut p, mut own) = (0.0, [R::of(0.0); STRIP], [R::of(0.0); STRIP]);
                for (z, u) in z.chunks_mut(STRIP).zip(u.chunks(STRIP)) {
                    let (p, own) = (&mut p[..z.len()], &mut own[..z.len()]);
                    p.copy_from_slice(u);
                    R::exp_all(p, teacher);
                    kl += expected(p, |i| (u[i] - teacher) - (z[i] - student));
                    if counts {
                        own.iter_mut().zip(&*z).for_each(|(own, &z)| *own = z * hot);
                        R::exp_all(own, plain);
                    }
                    R::exp_all(z, student);
                    for ((z, &p), &own) in z.iter_mut().zip(&*p).zip(&*own) {
                        *z = hot * (*z - p) + weight * own;
                    }
                }
                kl
            }
            Divergence::Reverse => {
                let mut kl = 0.0;
                for (z, u) in z.iter().zip(u.iter_mut()) {
                    let log_q = *z - student;
                    *u = log_q - (*u - teacher);
                    kl += (log_q.exp() * *u).wide();
                }
                pull((z, u), (student, R::of(kl), hot), next);
                kl
            }
            Divergence::Jsd(beta) => {
                let shares = [R::of(beta.ln()), R::of((1.0 - beta).ln())];
                let (mut of_p, mut of_q) = (0.0, 0.0);
                for (z, u) in z.iter().zip(u.iter_mut()) {
                    let (log_p, log_q) = (*u - teacher, *z - student);
                    let log_m = log_add_exp(shares[0] + log_p, shares[1] + log_q);
                    of_p += (log_p.exp() * (log_p - log_m)).wide();
                    *u = log_q - log_m;
                    of_q += (log_q.exp() * *u).wide();
                }
                pull((z, u), (student, R::of(of_q), hot * R::of(1.0 - beta)), next);
                beta * of_p + (1.0 - beta) * of_q
            }
        };
        if counts {
            z[target] -= weight;
        }
        self.temperature.powi(2) * value.max(0.0) + self.cross_entropy * token
    }
}

/// `Σ p_i x_i`, in eight sums so that one addition does not wait for the other.
fn expected<R: Real>(p: &[R], x: impl Fn(usize) -> R) -> f64 {
    let mut sums = [0.0; 8];
    for (i, &p) in p.iter().enumerate() {
        sums[i % 8] += (p * x(i)).wide();
    }
    sums.iter().sum()
}

/// `factor · q (r − mean)` in the place of the logits `z`, whose log-sum-exp is `student`, with log-ratios `r`; and what `next` adds.
fn pull<R: Real>((z, ratios): (&mut [R], &[R]), (student, mean, factor): (R, R, R), next: impl Fn(R) -> R) {
    for (z, &ratio) in z.iter_mut().zip(ratios) {
        *z = factor * (*z - student).exp() * (ratio - mean) + next(*z);
    }
}

/// `ln (e^a + e^b)`.
fn log_add_exp<R: Real>(a: R, b: R) -> R {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    high + (R::of(1.0) + (low - high).exp()).ln()
}

#[cfg(test)]
mod tests;
