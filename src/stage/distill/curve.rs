//! The loss curve: one row per step, as JSON lines and as a picture. Knows no training.

use std::path::Path;

use plotters::prelude::*;
use serde::{Deserialize, Serialize};

use crate::artifact::{Artifact, ArtifactError, Files, texts};

pub use super::held_out::Bucket;

/// One optimiser step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// `layerwise`, `kl` or `cross-entropy`.
    pub phase: String,
    /// Step within the phase, from 1.
    pub step: u32,
    /// Mean loss of the step's tokens: nats per token, or the mean relative squared error of the layers.
    pub loss: f32,
    /// Norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Learning rate.
    pub lr: f32,
    /// Tokens in the step.
    pub tokens: usize,
}

/// One measurement on the text that was set aside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// As in [`Point`].
    pub phase: String,
    /// Steps of the phase that were done.
    pub step: u32,
    /// Which weights.
    pub candidate: Candidate,
    /// Divergence from the teacher in nats per token, or cross-entropy where there is none. In f32, for JSON gives that back as it was.
    pub loss: f32,
    /// The same by position.
    pub buckets: Vec<Bucket>,
}

/// Which weights were measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Candidate {
    /// Those of the step.
    Last,
    /// Their exponential moving average.
    Ema,
    /// The mean of the best weights that are kept.
    Mean,
}

/// All steps of a training run, and what was measured on the way.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Curve {
    /// The steps.
    pub points: Vec<Point>,
    /// The measurements.
    pub measured: Vec<Measured>,
}

/// A line for each step.
pub(super) const FILE: &str = "loss.jsonl";
/// A line for each measurement.
pub(super) const MEASURED: &str = "held-out.jsonl";
const PICTURE: &str = "loss.svg";

impl Artifact for Curve {
    const KIND: &'static str = "curve";

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        texts::write_jsonl(&dir.join(FILE), &self.points)?;
        texts::write_jsonl(&dir.join(MEASURED), &self.measured)?;
        let path = dir.join(PICTURE);
        self.draw(&path).map_err(|e| ArtifactError::Io { path, source: std::io::Error::other(e.to_string()) })
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        Ok(Self {
            points: texts::read_jsonl(Self::KIND, files, FILE)?,
            measured: texts::read_jsonl(Self::KIND, files, MEASURED)?,
        })
    }
}

impl Curve {
    /// The best measurement of all phases, the first of equals.
    pub(crate) fn best(&self) -> Option<&Measured> {
        self.ranked().next()
    }

    /// All measurements, the best first; equals as they were made.
    pub(crate) fn ranked(&self) -> impl Iterator<Item = &Measured> {
        let mut ranked: Vec<&Measured> = self.measured.iter().collect();
        ranked.sort_by(|a, b| a.loss.total_cmp(&b.loss));
        ranked.into_iter()
    }

    /// Times that `phase` was measured since the best measurement, which was no better.
    pub(crate) fn worse(&self, phase: &str) -> usize {
        let Some(best) = self.best() else { return 0 };
        let after = self.measured.iter().rev().take_while(|m| m.phase == phase && *m != best);
        let mut steps: Vec<u32> =
            after.map(|m| m.step).filter(|&s| phase != best.phase || s > best.step).collect();
        steps.dedup();
        steps.len()
    }

    /// Tokens of `phase` since it was last measured.
    pub(crate) fn unmeasured(&self, phase: &str) -> usize {
        let last = self.measured.last().filter(|m| m.phase == phase).map_or(0, |m| m.step);
        self.points.iter().rev().take_while(|p| p.phase == phase && p.step > last).map(|p| p.tokens).sum()
    }

    /// First and last loss of a phase, each a mean over a tenth of its steps; and the best measurement, if one was made, before and after.
    pub(crate) fn summary(&self, phase: &str, before: Option<f32>) -> String {
        let losses: Vec<f32> = self.points.iter().filter(|p| p.phase == phase).map(|p| p.loss).collect();
        let n = (losses.len() / 10).max(1).min(losses.len());
        let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len().max(1) as f32;
        let (first, last) = (mean(&losses[..n]), mean(&losses[losses.len() - n..]));
        let best = before.zip(self.best());
        let held_out =
            best.map(|(before, best)| format!("; best on held-out text {before:.4} -> {:.4}", best.loss));
        let steps = losses.len();
        format!("{phase}: loss {first:.4} -> {last:.4} in {steps} steps{}", held_out.unwrap_or_default())
    }

    /// One panel per phase: loss over steps, and what was measured.
    fn draw(&self, path: &Path) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        let phases: Vec<&[Point]> = self.points.chunk_by(|a, b| a.phase == b.phase).collect();
        let root = SVGBackend::new(path, (480 * phases.len().max(1) as u32, 320)).into_drawing_area();
        root.fill(&WHITE)?;
        for (area, points) in root.split_evenly((1, phases.len().max(1))).iter().zip(phases) {
            let phase = &points[0].phase;
            let of = |candidate| {
                let here = move |m: &&Measured| &m.phase == phase && m.candidate == candidate;
                self.measured.iter().filter(here).map(|m| (m.step, m.loss))
            };
            let all = [(Candidate::Last, &RED), (Candidate::Ema, &GREEN), (Candidate::Mean, &MAGENTA)];
            let measured = all.iter().flat_map(|(candidate, _)| of(*candidate)).map(|(_, loss)| loss);
            let high = points.iter().map(|p| p.loss).chain(measured).fold(f32::MIN_POSITIVE, f32::max);
            let mut chart = ChartBuilder::on(area)
                .caption(phase, ("sans-serif", 18))
                .margin(12)
                .x_label_area_size(28)
                .y_label_area_size(52)
                .build_cartesian_2d(0u32..points.len().max(2) as u32, 0f32..high * 1.05)?;
            chart.configure_mesh().light_line_style(WHITE).x_desc("step").y_desc("loss").draw()?;
            chart.draw_series(LineSeries::new(points.iter().map(|p| (p.step, p.loss)), &BLUE))?;
            for (candidate, colour) in all {
                let series = LineSeries::new(of(candidate), colour.stroke_width(2)).point_size(3);
                chart.draw_series(series)?;
            }
        }
        root.present()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::{
        checkpoint::files_in,
        testing::{comes_back, each_file_is_needed, edited},
    };

    #[test]
    fn rows_survive_and_the_picture_has_a_panel_per_phase() {
        let point = |phase: &str, step: u32| Point {
            phase: phase.to_owned(),
            step,
            loss: 1.5 / step as f32,
            grad_norm: 0.1,
            lr: 1e-3,
            tokens: 64,
        };
        let measured = |step, candidate| Measured {
            phase: "kl".to_owned(),
            step,
            candidate,
            loss: 0.25,
            buckets: vec![Bucket { from: 0, tokens: 5, loss: 0.25 }],
        };
        let curve = Curve {
            points: vec![point("layerwise", 1), point("layerwise", 2), point("kl", 1)],
            measured: vec![measured(0, Candidate::Last), measured(1, Candidate::Ema)],
        };
        let dir = tempfile::tempdir().unwrap();
        curve.save(dir.path()).unwrap();
        assert_eq!(Curve::load(&files_in(dir.path()).unwrap()).unwrap(), curve);
        let svg = std::fs::read_to_string(dir.path().join(PICTURE)).unwrap();
        assert!(svg.contains("layerwise") && svg.contains("kl"));
        Curve::default().save(dir.path()).unwrap();
    }

    #[test]
    fn what_was_measured_says_what_is_best_and_what_came_after() {
        let point = |phase: &str, step: u32| Point {
            phase: phase.into(),
            step,
            loss: 1.0,
            grad_norm: 0.0,
            lr: 0.0,
            tokens: 10,
        };
        let measured = |phase: &str, step, candidate, loss| Measured {
            phase: phase.into(),
            step,
            candidate,
            loss,
            buckets: vec![],
        };
        let mut curve = Curve::default();
        assert_eq!((curve.best(), curve.worse("a"), curve.unmeasured("a")), (None, 0, 0));
        let rows = [
            // Phase, steps before the measurement, the losses of both candidates, and how many were no better since the best.
            ("a", 0, [5.0, 5.5], 0),
            ("a", 2, [4.0, 4.5], 0),
            ("a", 3, [4.5, 4.2], 1),
            ("a", 5, [4.0, 4.1], 2),
            ("a", 6, [4.1, 3.9], 0),
            ("b", 1, [4.1, 4.0], 1),
            ("b", 4, [4.2, 4.0], 2),
            ("b", 5, [3.0, 3.1], 0),
        ];
        for (phase, step, losses, worse) in rows {
            let from = curve.points.last().filter(|p| p.phase == phase).map_or(0, |p| p.step);
            curve.points.extend((from..step).map(|i| point(phase, i + 1)));
            assert_eq!(curve.unmeasured(phase), 10 * (step - from) as usize, "{phase} {step}");
            for (candidate, loss) in [Candidate::Last, Candidate::Ema].into_iter().zip(losses) {
                curve.measured.push(measured(phase, step, candidate, loss));
            }
            assert_eq!((curve.worse(phase), curve.unmeasured(phase)), (worse, 0), "{phase} {step}");
        }
        assert_eq!(curve.best().map(|best| (best.step, best.loss)), Some((5, 3.0)));
        let ranked: Vec<f32> = curve.ranked().map(|measured| measured.loss).take(4).collect();
        assert_eq!(ranked, [3.0, 3.1, 3.9, 4.0]);
        let fourth = curve.ranked().nth(3).unwrap();
        assert_eq!((fourth.phase.as_str(), fourth.step), ("a", 2), "the first of equals");
    }

    #[test]
    fn a_damaged_row_is_named_and_odd_curves_can_be_drawn() {
        let point = |loss| Point { phase: "kl".into(), step: 1, loss, grad_norm: 0.0, lr: 0.0, tokens: 1 };
        let of = |points| Curve { points, measured: vec![] };
        for losses in [&[0.0][..], &[0.0, 0.0], &[1e-30], &[1e30, 1e-30]] {
            comes_back(&of(losses.iter().map(|&loss| point(loss)).collect()));
        }
        let error = edited(&of(vec![point(1.0), point(2.0)]), FILE, "\"step\":1", "\"step\":-1");
        assert!(error.starts_with("artifact `curve`, file `loss.jsonl`, line 1: "), "{error}");
        each_file_is_needed(&of(vec![point(1.0)]), &[FILE, MEASURED]);
    }
}
