//! Experts: loads, probabilities, and who is chosen together. Knows no attention.

use super::Of;
use crate::artifact::analysis::{Routing, Together};

/// Pairs of experts that are told.
const PAIRS: usize = 16;
/// A pair that chance alone would bring together fewer times says nothing.
const EXPECTED: f64 = 10.0;
/// With more experts the whole matrix is left out.
const MATRIX: usize = 32;

impl Of<'_> {
    pub(super) fn routing(&self) -> Routing {
        let (sums, n) = (self.sums, self.tokens);
        let experts = sums.chosen.len();
        let (e, k) = (experts as f64, self.about.model.num_experts_per_tok as f64);
        let all: f64 = sums.chosen.iter().sum();
        let mean = |sums: &[f64]| sums.iter().map(|x| x / n).collect::<Vec<_>>();
        let load: Vec<f64> = sums.chosen.iter().map(|c| c / all.max(1.0)).collect();
        let probability = mean(&sums.probability);
        let entropy = sums.router_entropy[0] / n;
        let (gap, square) = (sums.router_gap[0] / n, sums.router_gap[1] / n);
        let rows = || sums.together.chunks_exact(experts).map(mean).collect();
        Routing {
            entropy,
            entropy_share: if experts > 1 { entropy / e.ln() } else { 1.0 },
            balance: e * load.iter().zip(&probability).map(|(f, p)| f * p).sum::<f64>(),
            effective_experts: entropy_of(&load).exp(),
            dead: (0..experts).filter(|&e| sums.chosen[e] <= 0.0).collect(),
            gates: mean(&sums.gates),
            top_k_gap: gap,
            top_k_gap_deviation: (square - gap * gap).max(0.0).sqrt(),
            gaps: mean(&sums.gaps),
            together: self.together(experts),
            lift_by_chance: if experts > 1 { (k - 1.0) * e / (k * (e - 1.0)) } else { 1.0 },
            matrix: (experts <= MATRIX).then(rows),
            load,
            probability,
        }
    }

    /// The pairs with the largest lift.
    fn together(&self, experts: usize) -> Vec<Together> {
        let (chosen, n) = (&self.sums.chosen, self.tokens);
        let pairs = (0..experts).flat_map(|a| (a + 1..experts).map(move |b| [a, b]));
        let of = |pair: [usize; 2]| {
            let [a, b] = pair;
            let (both, expected) = (self.sums.together[a * experts + b], chosen[a] * chosen[b] / n);
            let told = Together { experts: pair, share: both / n, lift: both / expected };
            (expected >= EXPECTED).then_some(told)
        };
        let mut found: Vec<Together> = pairs.filter_map(of).collect();
        found.sort_by(|a, b| b.lift.total_cmp(&a.lift));
        found.truncate(PAIRS);
        found
    }
}

fn entropy_of(shares: &[f64]) -> f64 {
    shares.iter().filter(|&&p| p > 0.0).map(|&p| -p * p.ln()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::moments::{About, LayerMoments, Model};

    fn near(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-12, "{got} {want}");
    }

    fn routing(sums: &LayerMoments, k: usize) -> Routing {
        let model = Model { num_experts_per_tok: k, ..Model::default() };
        let about = About { model, ..About::default() };
        Of { about: &about, sums, tokens: sums.tokens as f64 }.routing()
    }

    fn sums() -> LayerMoments {
        LayerMoments {
            tokens: 100,
            chosen: vec![100.0, 60.0, 40.0, 0.0],
            together: [[100.0, 60.0, 40.0, 0.0], [60.0, 60.0, 0.0, 0.0], [40.0, 0.0, 40.0, 0.0], [0.0; 4]]
                .concat(),
            probability: vec![50.0, 25.0, 20.0, 5.0],
            gates: vec![75.0, 25.0],
            router_entropy: vec![100.0 * 0.5 * 4f64.ln()],
            router_gap: vec![200.0, 500.0],
            gaps: vec![10.0, 0.0, 0.0, 20.0, 0.0, 30.0, 40.0],
            ..LayerMoments::default()
        }
    }

    #[test]
    fn every_figure_by_hand() {
        let routing = routing(&sums(), 2);
        assert_eq!((&routing.load, &routing.dead), (&vec![0.5, 0.3, 0.2, 0.0], &vec![3]));
        assert_eq!((&routing.probability, &routing.gates), (&vec![0.5, 0.25, 0.2, 0.05], &vec![0.75, 0.25]));
        near(routing.entropy_share, 0.5);
        near(routing.balance, 4.0 * (0.25 + 0.075 + 0.04));
        near(routing.effective_experts, (-0.5 * 0.5f64.ln() - 0.3 * 0.3f64.ln() - 0.2 * 0.2f64.ln()).exp());
        assert_eq!((routing.top_k_gap, routing.top_k_gap_deviation), (2.0, 1.0));
        assert_eq!(routing.gaps, [0.1, 0.0, 0.0, 0.2, 0.0, 0.3, 0.4]);
        near(routing.lift_by_chance, 4.0 / (2.0 * 3.0));
        let told: Vec<_> = routing.together.iter().map(|t| (t.experts, t.share, t.lift)).collect();
        assert_eq!(
            told,
            [([0, 1], 0.6, 1.0), ([0, 2], 0.4, 1.0), ([1, 2], 0.0, 0.0)],
            "the dead one has no lift"
        );
        assert_eq!(routing.matrix.unwrap()[1], [0.6, 0.6, 0.0, 0.0]);
    }

    #[test]
    fn pairs_that_chance_brings_together_too_seldom_are_left_out_and_the_others_are_sorted() {
        let mut sums = sums();
        sums.chosen = vec![50.0, 20.0, 20.0, 19.0];
        sums.together = vec![0.0; 16];
        (sums.together[1], sums.together[2]) = (9.0, 10.0);
        let told: Vec<_> = routing(&sums, 1).together.iter().map(|t| (t.experts, t.lift)).collect();
        assert_eq!(told, [([0, 2], 1.0), ([0, 1], 0.9)], "50 · 19 / 100 is below 10");
    }

    #[test]
    fn many_experts_have_pairs_but_no_matrix_and_even_loads_are_balanced() {
        let of = |experts: usize| LayerMoments {
            tokens: 1000,
            chosen: vec![500.0; experts],
            together: vec![250.0; experts * experts],
            probability: vec![1000.0 / experts as f64; experts],
            ..sums()
        };
        let many = routing(&of(33), 4);
        assert_eq!((many.matrix, many.together.len()), (None, 16));
        near(many.balance, 1.0);
        near(many.effective_experts, 33.0);
        let few = routing(&of(32), 4);
        assert_eq!(few.matrix.map(|rows| (rows.len(), rows[0].len())), Some((32, 32)));
        let one = routing(&of(1), 1);
        assert_eq!((one.entropy_share, one.lift_by_chance, one.together.len()), (1.0, 1.0, 0));
    }
}
