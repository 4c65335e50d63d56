//! The logarithm of a softmax's denominator, in f64: what likelihoods of a row of logits are made of, and how far apart two rows are.

/// `ln Σ exp x` over a row of logits, without overflow and in their order; `None` where the row is empty or a logit is not finite.
/// `−ln softmax(row)[i]` is this less `row[i]`.
pub fn log_sum_exp(row: &[f32]) -> Option<f64> {
    if row.is_empty() || row.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let max = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = row.iter().map(|&x| (f64::from(x) - max).exp()).sum();
    Some(max + sum.ln())
}

/// `Σ p ln(p / q)`, p and q being the softmaxes of two rows of logits, in nats; `None` where [`log_sum_exp`] is.
pub fn kl(p: &[f32], q: &[f32]) -> Option<f64> {
    Some(divergence((p, log_sum_exp(p)?), (q, log_sum_exp(q)?)))
}

/// [`kl`] of two rows whose [`log_sum_exp`] is known.
pub fn divergence((p, lse_p): (&[f32], f64), (q, lse_q): (&[f32], f64)) -> f64 {
    let term = |(&p, &q): (&f32, &f32)| {
        let (log_p, log_q) = (f64::from(p) - lse_p, f64::from(q) - lse_q);
        log_p.exp() * (log_p - log_q)
    };
    let sum: f64 = p.iter().zip(q).map(term).sum();
    sum.max(0.0) // rounding of nearly equal rows may give a tiny negative number
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prop_assert, proptest};

    use super::*;

    #[test]
    fn cases_worked_out_by_hand() {
        let close = |row: &[f32], want: f64| assert!((log_sum_exp(row).unwrap() - want).abs() < 1e-12);
        close(&[0.0, 0.0], 2f64.ln());
        close(&[1024.0, 1024.0, 1024.0, 1024.0], 1024.0 + 4f64.ln());
        close(&[-3e38], f64::from(-3e38f32));
        for bad in [&[][..], &[1.0, f32::NAN], &[f32::INFINITY, 0.0], &[0.0, f32::NEG_INFINITY]] {
            assert!(log_sum_exp(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn divergence_by_hand_and_against_shifts() {
        // p = (3/4, 1/4), q = (1/2, 1/2).
        let p = [3f32.ln(), 0.0];
        let want = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        assert!((kl(&p, &[2.0, 2.0]).unwrap() - want).abs() < 1e-7);
        assert!(kl(&p, &[p[0] - 5.0, -5.0]).unwrap() < 1e-6);
        assert!(kl(&p, &[f32::NAN, 0.0]).is_none() && kl(&[f32::INFINITY, 0.0], &p).is_none());
    }

    proptest! {
        #[test]
        fn it_is_the_definition_where_that_does_not_overflow(row in vec(-20.0f32..20.0, 1..40)) {
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            prop_assert!((log_sum_exp(&row).unwrap() - sum.ln()).abs() < 1e-12);
        }
    }
}
