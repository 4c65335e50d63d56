//! Sums over a router's logits. Knows no layer.

use crate::{
    artifact::moments::{GAPS, LayerMoments},
    model::block::moe::Routing as Choice,
};

/// Adds the rows of `logits` [t, experts], of which a token chooses `k`.
pub(super) fn add(logits: &[f32], (experts, k): (usize, usize), sums: &mut LayerMoments) {
    let chosen = Choice::new(logits, experts, k).experts;
    for (row, chosen) in logits.chunks_exact(experts).zip(chosen.chunks_exact(k)) {
        for &a in chosen {
            sums.chosen[a as usize] += 1.0;
            for &b in chosen {
                sums.together[a as usize * experts + b as usize] += 1.0;
            }
        }
        let largest = f64::from(row[chosen[0] as usize]);
        add_softmax(row.iter().map(|&x| f64::from(x) - largest), &mut sums.probability);
        add_softmax(chosen.iter().map(|&e| f64::from(row[e as usize]) - largest), &mut sums.gates);
        sums.router_entropy[0] += entropy(row.iter().map(|&x| f64::from(x) - largest));
        if let Some(gap) = gap(row, chosen) {
            sums.router_gap[0] += gap;
            sums.router_gap[1] += gap * gap;
            sums.gaps[GAPS.partition_point(|&edge| edge <= gap)] += 1.0;
        }
    }
}

/// Adds the softmax of logits that are at most 0.
fn add_softmax(logits: impl Iterator<Item = f64> + Clone, sums: &mut [f64]) {
    let total: f64 = logits.clone().map(f64::exp).sum();
    logits.zip(sums).for_each(|(x, sum)| *sum += x.exp() / total);
}

/// The entropy in nats of the softmax of logits that are at most 0: `ln Σ e^x − Σ p x`.
fn entropy(logits: impl Iterator<Item = f64> + Clone) -> f64 {
    let total: f64 = logits.clone().map(f64::exp).sum();
    let mean: f64 = logits.filter(|x| x.is_finite()).map(|x| x * x.exp()).sum::<f64>() / total;
    total.ln() - mean
}

/// From the last chosen logit to the largest that was left out; `None` if all are chosen.
fn gap(row: &[f32], chosen: &[u32]) -> Option<f64> {
    let left = row.iter().enumerate().filter(|(e, _)| !chosen.contains(&(*e as u32)));
    let next = left.map(|(_, &x)| x).max_by(f32::total_cmp)?;
    Some(f64::from(row[*chosen.last()? as usize]) - f64::from(next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(experts: usize, k: usize) -> LayerMoments {
        LayerMoments {
            chosen: vec![0.0; experts],
            together: vec![0.0; experts * experts],
            probability: vec![0.0; experts],
            gates: vec![0.0; k],
            router_entropy: vec![0.0],
            router_gap: vec![0.0; 2],
            gaps: vec![0.0; GAPS.len() + 1],
            ..LayerMoments::default()
        }
    }

    fn close(got: &[f64], want: &[f64]) {
        let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-6;
        assert!(got.len() == want.len() && got.iter().zip(want).all(near), "{got:?} {want:?}");
    }

    #[test]
    fn two_tokens_by_hand() {
        let mut sums = sums(3, 2);
        let ln = |x: f32| x.ln();
        // Probabilities 1/8, 4/8, 3/8 and 1/4, 1/4, 1/2: of equal logits the first expert is taken.
        add(&[ln(1.0), ln(4.0), ln(3.0), ln(1.0), ln(1.0), ln(2.0)], (3, 2), &mut sums);
        close(&sums.chosen, &[1.0, 1.0, 2.0]);
        close(&sums.together, &[1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 2.0]);
        close(&sums.probability, &[0.375, 0.75, 0.875]);
        close(&sums.gates, &[4.0 / 7.0 + 2.0 / 3.0, 3.0 / 7.0 + 1.0 / 3.0]);
        let h = |p: &[f64]| p.iter().map(|p| -p * p.ln()).sum::<f64>();
        close(&sums.router_entropy, &[h(&[0.125, 0.5, 0.375]) + h(&[0.25, 0.25, 0.5])]);
        close(&sums.router_gap, &[3f64.ln(), 3f64.ln().powi(2)]);
        assert_eq!(sums.gaps, [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0], "0 and ln 3");
    }

    #[test]
    fn a_gap_at_an_edge_is_in_the_entry_above_it() {
        let mut sums = sums(2, 1);
        for gap in [0.0, 0.009, 1.0, 2.999, 3.0, 90.0] {
            add(&[gap, 0.0], (2, 1), &mut sums);
        }
        assert_eq!(sums.gaps, [2.0, 0.0, 0.0, 0.0, 0.0, 2.0, 2.0]);
    }

    #[test]
    fn who_takes_all_experts_leaves_none_out() {
        let mut sums = sums(2, 2);
        add(&[0.0, f32::NEG_INFINITY], (2, 2), &mut sums);
        assert_eq!((sums.router_gap, sums.gaps), (vec![0.0; 2], vec![0.0; 7]));
        assert_eq!((sums.router_entropy, sums.probability), (vec![0.0], vec![1.0, 0.0]), "no 0 · ∞");
        assert_eq!(sums.together, [1.0; 4]);
    }
}
