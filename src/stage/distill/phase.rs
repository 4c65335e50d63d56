//! One phase of training as the manifest has it, and its learning rate. Knows no loss.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::stage::{Finite, is_default};

/// One phase of training.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Phase {
    /// Optimiser steps.
    pub steps: u32,
    /// Peak learning rate, after a linear warm-up.
    pub lr: Finite,
    /// Tokens per step, about: whole documents are taken.
    #[serde(default = "batch_tokens")]
    pub batch_tokens: usize,
    /// Steps of warm-up.
    #[serde(default = "warmup")]
    pub warmup: u32,
    /// How the rate falls after the warm-up, to a tenth.
    #[serde(default, skip_serializing_if = "is_default")]
    pub schedule: Schedule,
}

/// How the learning rate falls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Along half a cosine.
    #[default]
    Cosine,
    /// Not at all, but in a line over the last fifth of the steps (warm-up, stable, decay: arXiv 2404.06395).
    Wsd,
}

fn batch_tokens() -> usize {
    4096
}
fn warmup() -> u32 {
    10
}

impl Phase {
    /// The learning rate of `step`, counted from 0.
    pub(super) fn lr(&self, step: u32) -> f32 {
        let peak = self.lr.0;
        if step < self.warmup {
            return (peak * f64::from(step + 1) / f64::from(self.warmup)) as f32;
        }
        let done = f64::from(step - self.warmup) / f64::from((self.steps - self.warmup).max(1));
        let left = match self.schedule {
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            Schedule::Wsd => (5.0 * (1.0 - done)).min(1.0),
        };
        (peak * (0.1 + 0.9 * left)) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase() -> Phase {
        Phase { steps: 110, lr: Finite(0.5), batch_tokens: 1, warmup: 10, schedule: Schedule::Cosine }
    }

    fn check(phase: &Phase, rates: &[(u32, f64)]) {
        for &(step, want) in rates {
            let lr = f64::from(phase.lr(step));
            assert!((lr - want).abs() < 1e-6, "step {step}: {lr} {want}");
        }
    }

    #[test]
    fn the_rate_warms_up_in_a_line_and_falls_along_a_cosine_to_a_tenth() {
        let phase = phase();
        check(&phase, &[(0, 0.05), (4, 0.25), (9, 0.5), (10, 0.5), (60, 0.275)]);
        check(&phase, &[(35, 0.5 * (0.55 + 0.45 * 0.5f64.sqrt()))]);
        assert!((10..109).all(|step| phase.lr(step + 1) < phase.lr(step)));
        assert!(phase.lr(109) > 0.05 && phase.lr(109) < 0.0503, "{}", phase.lr(109));
        // A phase shorter than its warm-up only climbs.
        let short = Phase { steps: 3, lr: Finite(1.0), ..phase };
        check(&short, &[(0, 0.1), (1, 0.2), (2, 0.3)]);
        check(&Phase { warmup: 0, ..short }, &[(0, 1.0)]);
    }

    #[test]
    fn a_stable_rate_falls_in_a_line_over_the_last_fifth() {
        let phase = Phase { schedule: Schedule::Wsd, ..phase() };
        check(&phase, &[(4, 0.25), (10, 0.5), (50, 0.5), (90, 0.5), (100, 0.275), (109, 0.05 + 0.45 * 0.05)]);
    }

    #[test]
    fn what_is_left_out_is_as_before_there_was_a_choice() {
        let plain: Phase = toml::from_str("steps = 3\nlr = 0.1").unwrap();
        assert_eq!((plain.batch_tokens, plain.warmup, plain.schedule), (4096, 10, Schedule::Cosine));
        assert!(!toml::to_string(&plain).unwrap().contains("schedule"));
        let wsd: Phase = toml::from_str("steps = 3\nlr = 0.1\nschedule = 'wsd'").unwrap();
        assert_eq!(wsd.schedule, Schedule::Wsd);
    }
}
