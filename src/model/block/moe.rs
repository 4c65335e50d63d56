//! Mixture of experts with clamped SwiGLU: tokens are grouped by expert, each expert sees its tokens in one product.

use std::{cmp::Ordering, sync::Arc};

use candle_core::{D, Device, Result, Tensor};

use crate::{
    kernel::{
        fake_quant::fake_quant,
        grouped_linear::grouped_linear,
        mxfp4_linear::mxfp4_linear,
        route::{Route, combine, gather},
        swiglu::swiglu,
    },
    model::{
        params::{ExpertWeights, Param},
        probe::Probe,
    },
};

use super::linear::Linear;

/// Router and experts of one layer.
#[derive(Clone)]
pub struct Moe {
    /// The layer's index, for probes.
    pub layer: usize,
    /// [experts, hidden].
    pub router: Linear,
    /// [experts, 2 · inner, hidden], gate and up rows interleaved.
    pub gate_up: ExpertWeights,
    /// [experts, 2 · inner].
    pub gate_up_bias: Param,
    /// [experts, hidden, inner].
    pub down: ExpertWeights,
    /// [experts, hidden].
    pub down_bias: Param,
    /// Experts that a token uses.
    pub per_token: usize,
    /// Slope of SwiGLU's sigmoid.
    pub alpha: f32,
    /// Bound of SwiGLU's inputs.
    pub limit: f32,
    /// Round the experts to MXFP4 in the forward pass while they train; gradients go straight through.
    pub round_experts: bool,
}

/// Which experts each token uses, and the order that groups tokens by expert.
pub struct Routing {
    /// Chosen experts [t, per_token], best first.
    pub experts: Vec<u32>,
    /// For each row of the grouped order, its index into `experts`.
    pub order: Vec<u32>,
    /// Rows of expert `e`: `offsets[e]..offsets[e + 1]`.
    pub offsets: Arc<[usize]>,
}

impl Routing {
    /// The `per_token` largest logits of each row of `logits` [t, experts]; equal logits prefer the lower index.
    pub fn new(logits: &[f32], experts: usize, per_token: usize) -> Self {
        let mut chosen = Vec::with_capacity(logits.len() / experts * per_token);
        let mut ranked: Vec<u32> = Vec::with_capacity(experts);
        for row in logits.chunks_exact(experts) {
            ranked.clear();
            ranked.extend(0..experts as u32);
            let descending = |a: &u32, b: &u32| {
                row[*b as usize].partial_cmp(&row[*a as usize]).unwrap_or(Ordering::Equal).then(a.cmp(b))
            };
            ranked.sort_by(descending);
            chosen.extend_from_slice(&ranked[..per_token]);
        }
        let mut order: Vec<u32> = (0..chosen.len() as u32).collect();
        order.sort_by_key(|&at| chosen[at as usize]);
        let before = |e: u32| order.partition_point(|&at| chosen[at as usize] < e);
        let offsets = (0..=experts as u32).map(before).collect();
        Self { experts: chosen, order, offsets }
    }
}

impl Moe {
    /// Normalised input `x` [t, hidden] → [t, hidden].
    pub fn forward(&self, x: &Tensor, probe: &mut dyn Probe) -> Result<Tensor> {
        let t = x.dim(0)?;
        let logits = self.router.forward(x)?;
        probe.router(self.layer, &logits)?;
        let experts = logits.dim(1)?;
        let routing = Routing::new(&crate::kernel::host(&logits)?, experts, self.per_token);
        let chosen = Tensor::from_slice(&routing.experts, (t, self.per_token), &Device::Cpu)?;
        let gates = candle_nn::ops::softmax(&logits.gather(&chosen, D::Minus1)?, D::Minus1)?;
        let route = Route::new(&routing.order, self.per_token);

        let grouped = gather(x, &route)?;
        let inner = self.experts(&grouped, &self.gate_up, &self.gate_up_bias, &routing.offsets)?;
        let inner = swiglu(&inner, self.alpha, self.limit)?;
        let outer = self.experts(&inner, &self.down, &self.down_bias, &routing.offsets)?;
        combine(&outer, &gates, &route)
    }

    fn experts(
        &self,
        x: &Tensor,
        weights: &ExpertWeights,
        bias: &Param,
        offsets: &Arc<[usize]>,
    ) -> Result<Tensor> {
        let weights = match weights {
            ExpertWeights::Packed(packed) => return mxfp4_linear(x, packed, &bias.tensor, offsets),
            ExpertWeights::Dense(weights) => weights,
        };
        let rounded = self.round_experts && weights.train;
        let values = if rounded { fake_quant(&weights.tensor)? } else { weights.tensor.clone() };
        grouped_linear(x, &values, &bias.tensor, offsets, weights.train)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;
    use crate::{
        kernel::testing::{check_gradients, flat, var},
        model::probe::NoProbe,
    };

    fn param(seed: u64, shape: &[usize], train: bool) -> (candle_core::Var, Param) {
        let v = var(seed, shape, 1.0);
        let tensor = v.as_tensor().clone();
        (v, Param { tensor, train })
    }

    #[test]
    fn routing_prefers_larger_then_lower() {
        let routing = Routing::new(&[0.0, 2.0, 2.0, 1.0, /* next token */ 5.0, 5.0, 5.0, 5.0], 4, 2);
        assert_eq!(routing.experts, [1, 2, 0, 1]);
        assert_eq!(routing.order, [2, 0, 3, 1]);
        assert_eq!(routing.offsets.as_ref(), [0, 1, 3, 4, 4]);
    }

    fn dense(weights: &ExpertWeights) -> &Tensor {
        let ExpertWeights::Dense(weights) = weights else { panic!("packed") };
        &weights.tensor
    }

    fn moe(train: bool) -> (Vec<candle_core::Var>, Moe) {
        let (r, router) = param(1, &[4, 6], train);
        let (a, gate_up) = param(2, &[4, 10, 6], train);
        let (b, gate_up_bias) = param(3, &[4, 10], train);
        let (c, down) = param(4, &[4, 6, 5], train);
        let (d, down_bias) = param(5, &[4, 6], train);
        let router = Linear { weight: router, bias: None };
        let (per_token, alpha, limit) = (2, 1.702, 7.0);
        let moe = Moe {
            layer: 0,
            router,
            gate_up: ExpertWeights::Dense(gate_up),
            gate_up_bias,
            down: ExpertWeights::Dense(down),
            down_bias,
            per_token,
            alpha,
            limit,
            round_experts: false,
        };
        (vec![r, a, b, c, d], moe)
    }

    /// One token at a time, straight from the formula.
    fn reference(moe: &Moe, x: &[f32]) -> Vec<f64> {
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let router = flat(&moe.router.weight.tensor);
        let (up, up_b) = (flat(dense(&moe.gate_up)), flat(&moe.gate_up_bias.tensor));
        let (down, down_b) = (flat(dense(&moe.down)), flat(&moe.down_bias.tensor));
        let dot = |w: &[f32], x: &[f64]| w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
        let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let mut ranked: Vec<(f64, usize)> = (0..4).map(|e| (dot(&router[e * 6..][..6], &x), e)).collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        let total: f64 = ranked[..2].iter().map(|(r, _)| r.exp()).sum();
        let mut y = vec![0f64; 6];
        for &(r, e) in &ranked[..2] {
            let u = |o: usize| dot(&up[(e * 10 + o) * 6..][..6], &x) + f64::from(up_b[e * 10 + o]);
            let act = |i: usize| {
                let (g, l) = (u(2 * i).min(7.0), u(2 * i + 1).clamp(-7.0, 7.0));
                (l + 1.0) * g / (1.0 + (-1.702 * g).exp())
            };
            let inner: Vec<f64> = (0..5).map(act).collect();
            for (o, y) in y.iter_mut().enumerate() {
                let out = dot(&down[(e * 6 + o) * 5..][..5], &inner) + f64::from(down_b[e * 6 + o]);
                *y += r.exp() / total * out;
            }
        }
        y
    }

    #[test]
    fn matches_one_token_at_a_time() {
        let (_vars, moe) = moe(false);
        let x = var(9, &[17, 6], 1.0);
        let got = moe.forward(&x, &mut NoProbe).unwrap().to_vec2::<f32>().unwrap();
        for (x, got) in x.to_vec2::<f32>().unwrap().iter().zip(got) {
            for (want, got) in reference(&moe, x).iter().zip(got) {
                assert!((want - f64::from(got)).abs() < 1e-4, "{want} {got}");
            }
        }
    }

    #[test]
    fn gradients_of_input_router_and_experts() {
        let (vars, moe) = moe(true);
        let x = var(9, &[7, 6], 1.0);
        let mut all = vec![&x];
        all.extend(vars.iter());
        check_gradients(&all, 1e-2, || moe.forward(&x, &mut NoProbe));
    }

    proptest! {
        /// Few distinct logits make ties.
        #[test]
        fn routing_is_a_permutation_grouped_by_expert(
            logits in proptest::collection::vec(-2i8..3, 5..60),
            per_token in 1usize..=5,
        ) {
            let logits: Vec<f32> = logits[..logits.len() / 5 * 5].iter().map(|&x| f32::from(x)).collect();
            let routing = Routing::new(&logits, 5, per_token);
            for (row, chosen) in logits.chunks(5).zip(routing.experts.chunks(per_token)) {
                let mut ranked: Vec<u32> = (0..5).collect();
                ranked.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
                prop_assert_eq!(chosen, &ranked[..per_token], "a stable sort keeps the lower index first");
            }
            let mut slots = routing.order.clone();
            slots.sort_unstable();
            prop_assert!(slots.into_iter().eq(0..routing.experts.len() as u32));
            prop_assert_eq!(routing.offsets.len(), 6);
            for e in 0..5 {
                let rows = &routing.order[routing.offsets[e]..routing.offsets[e + 1]];
                prop_assert!(rows.iter().all(|&slot| routing.experts[slot as usize] == e as u32));
                prop_assert!(rows.is_sorted(), "tokens of an expert stay in order");
            }
        }
    }

    #[test]
    fn experts_are_rounded_while_they_train_and_only_then() {
        let wide = |train: bool, round_experts: bool| {
            let param = |seed: u64, shape: &[usize]| Param { train, ..param(seed, shape, train).1 };
            let moe = Moe {
                layer: 0,
                router: Linear { weight: param(1, &[2, 32]), bias: None },
                gate_up: ExpertWeights::Dense(param(2, &[2, 64, 32])),
                gate_up_bias: param(3, &[2, 64]),
                down: ExpertWeights::Dense(param(4, &[2, 32, 32])),
                down_bias: param(5, &[2, 32]),
                per_token: 1,
                alpha: 1.702,
                limit: 7.0,
                round_experts,
            };
            flat(&moe.forward(&var(9, &[3, 32], 1.0), &mut NoProbe).unwrap())
        };
        let exact = wide(false, false);
        assert_eq!(wide(true, false), exact);
        assert_eq!(wide(false, true), exact, "frozen experts are what the checkpoint says");
        let rounded = wide(true, true);
        let difference = exact.iter().zip(&rounded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let largest = exact.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(difference > 1e-3 * largest && difference < 0.5 * largest, "{difference} of {largest}");
    }
}
