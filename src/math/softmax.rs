//! The logarithm of a softmax's denominator, in f64: what likelihoods of a row of logits are made of.

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

    proptest! {
        #[test]
        fn it_is_the_definition_where_that_does_not_overflow(row in vec(-20.0f32..20.0, 1..40)) {
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            prop_assert!((log_sum_exp(&row).unwrap() - sum.ln()).abs() < 1e-12);
        }
    }
}
