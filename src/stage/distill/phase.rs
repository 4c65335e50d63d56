//! One phase of training as the manifest has it, and its learning rate. Knows no loss.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::data::Long;
use crate::stage::{Finite, Invalid, is_default};

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
    /// Documents are cut after so many tokens: `[512, 2048, 8192]` gives each length a third of the steps. Default: as the stage cuts them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lengths: Vec<usize>,
    /// A share of the tokens from long documents: `{ share = 0.3, from = 4096 }`. Default: as the text has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub long: Option<Long>,
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
    /// Values that mean something; `at` is the phase's name.
    pub(super) fn check(&self, at: &str) -> Result<(), Invalid> {
        if self.lr.0 <= 0.0 || self.steps == 0 || self.batch_tokens == 0 {
            return Err(Invalid::new(at, "steps, lr and batch-tokens must be positive"));
        }
        if self.lengths.iter().any(|&length| length < 2) || self.lengths.len() > self.steps as usize {
            return Err(Invalid::new(at, "`lengths` must be 2 or more, and not more of them than steps"));
        }
        if self.long.as_ref().is_some_and(|long| long.share.0 <= 0.0 || long.share.0 > 1.0) {
            return Err(Invalid::new(at, "the share of `long` documents must lie between 0 and 1"));
        }
        Ok(())
    }

    /// After how many tokens documents are cut at `step`, counted from 0.
    pub(super) fn length(&self, step: u32) -> usize {
        let at = u64::from(step) * self.lengths.len() as u64 / u64::from(self.steps.max(1));
        self.lengths.get(at as usize).copied().unwrap_or(usize::MAX)
    }

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
        Phase {
            steps: 110,
            lr: Finite(0.5),
            batch_tokens: 1,
            warmup: 10,
            schedule: Schedule::Cosine,
            lengths: vec![],
            long: None,
        }
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
    fn each_length_has_its_share_of_the_steps() {
        assert_eq!(phase().length(7), usize::MAX);
        let phase = Phase { steps: 7, lengths: vec![512, 2048, 8192], ..phase() };
        let lengths: Vec<usize> = (0..7).map(|step| phase.length(step)).collect();
        assert_eq!(lengths, [512, 512, 512, 2048, 2048, 8192, 8192]);
    }

    #[test]
    fn values_that_mean_nothing_are_refused() {
        assert!(phase().check("kl").is_ok());
        let long = |share| Some(Long { share: Finite(share), from: 9 });
        for wrong in [
            Phase { steps: 0, ..phase() },
            Phase { lr: Finite(0.0), ..phase() },
            Phase { batch_tokens: 0, ..phase() },
            Phase { lengths: vec![512, 1], ..phase() },
            Phase { steps: 1, lengths: vec![512, 1024], ..phase() },
            Phase { long: long(0.0), ..phase() },
            Phase { long: long(1.1), ..phase() },
        ] {
            assert_eq!(wrong.check("kl").unwrap_err().param, "kl");
        }
        assert!(Phase { long: long(1.0), lengths: vec![2], ..phase() }.check("kl").is_ok());
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
