//! Palu's division of ranks: each key and each value projection gets channels in proportion to its gradients (arXiv 2407.21118, §3.3, and
//! its published code, without the rounding to multiples of 32). Knows no way to convert.

use super::{budget::Choice, error::SvdError, rotated::Rotated, source::Source};

/// The choice of each layer, where all layers together have as many channels as if each had `choice`.
///
/// # Errors
/// If the moments hold no gradients of a layer's projections.
pub(super) fn by_gradients(sources: &[Source], choice: Choice) -> Result<Vec<Choice>, SvdError> {
    let (mut scores, mut most) = (Vec::new(), Vec::new());
    for source in sources {
        scores.extend(source.gradients.ok_or(SvdError::NoRanks(source.layer))?);
        let (keys, values) = source.useful(&Rotated::Recomputed);
        most.extend([keys, values]);
    }
    let ranks = divided(choice.rank * sources.len(), &scores, &most);
    let choices = ranks.chunks_exact(2).map(|of| Choice { rank: of[0] + of[1], keys: Some(of[0]), ..choice });
    Ok(choices.collect())
}

/// Divides `total` by `scores`: whole numbers from 1 to `most` each. What rounding and the limits leave goes round, one by one, from the
/// one that was rounded down least.
fn divided(total: usize, scores: &[f64], most: &[usize]) -> Vec<usize> {
    let sum: f64 = scores.iter().sum();
    let wanted: Vec<f64> =
        scores.iter().map(|score| if sum > 0.0 { total as f64 * score / sum } else { 0.0 }).collect();
    let mut ranks: Vec<usize> =
        wanted.iter().zip(most).map(|(&wanted, &most)| (wanted as usize).clamp(1, most.max(1))).collect();
    let left = |ranks: &[usize], i: usize| wanted[i] - ranks[i] as f64;
    let mut order: Vec<usize> = (0..ranks.len()).collect();
    order.sort_by(|&a, &b| left(&ranks, a).total_cmp(&left(&ranks, b)));
    let mut given: usize = ranks.iter().sum();
    while given < total && ranks.iter().zip(most).any(|(rank, most)| rank < most) {
        for &i in &order {
            if given < total && ranks[i] < most[i] {
                ranks[i] += 1;
                given += 1;
            }
        }
    }
    // One channel each may be more than there are.
    while given > total && ranks.iter().any(|&rank| rank > 1) {
        *ranks.iter_mut().max().expect("one of them is above 1") -= 1;
        given -= 1;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_follow_scores_within_limits_and_keep_the_total() {
        for (total, scores, most, expected) in [
            (12, [1.0, 2.0, 3.0], [9, 9, 9], [2, 4, 6]),
            (12, [1.0, 1.0, 10.0], [9, 9, 5], [4, 3, 5]),
            (12, [1.0, 1.0, 1e9], [9, 9, 12], [1, 1, 10]),
            (13, [1.0, 2.0, 3.0], [9, 9, 9], [3, 4, 6]),
            (20, [1.0, 2.0, 3.0], [3, 3, 3], [3, 3, 3]),
            (7, [0.0, 0.0, 0.0], [9, 9, 9], [3, 2, 2]),
        ] {
            assert_eq!(divided(total, &scores, &most), expected, "{total} {scores:?} {most:?}");
        }
    }
}
