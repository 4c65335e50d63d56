//! The loss curve: one row per step, as JSON lines and as a picture. Knows no training.

use std::path::Path;

use plotters::prelude::*;
use serde::{Deserialize, Serialize};

use crate::artifact::{Artifact, ArtifactError, Files, texts};

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

/// All steps of a training run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Curve(pub Vec<Point>);

const FILE: &str = "loss.jsonl";
const PICTURE: &str = "loss.svg";

impl Artifact for Curve {
    const KIND: &'static str = "curve";

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        texts::write_jsonl(&dir.join(FILE), &self.0)?;
        let path = dir.join(PICTURE);
        draw(&self.0, &path)
            .map_err(|e| ArtifactError::Io { path, source: std::io::Error::other(e.to_string()) })
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        texts::read_jsonl(Self::KIND, files, FILE).map(Self)
    }
}

/// One panel per phase, loss over steps.
fn draw(points: &[Point], path: &Path) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let phases: Vec<&[Point]> = points.chunk_by(|a, b| a.phase == b.phase).collect();
    let root = SVGBackend::new(path, (480 * phases.len().max(1) as u32, 320)).into_drawing_area();
    root.fill(&WHITE)?;
    for (area, points) in root.split_evenly((1, phases.len().max(1))).iter().zip(phases) {
        let high = points.iter().map(|p| p.loss).fold(f32::MIN_POSITIVE, f32::max);
        let mut chart = ChartBuilder::on(area)
            .caption(&points[0].phase, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(28)
            .y_label_area_size(52)
            .build_cartesian_2d(1u32..points.len().max(2) as u32, 0f32..high * 1.05)?;
        chart.configure_mesh().light_line_style(WHITE).x_desc("step").y_desc("loss").draw()?;
        chart.draw_series(LineSeries::new(points.iter().map(|p| (p.step, p.loss)), &BLUE))?;
    }
    root.present()
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
        let curve = Curve(vec![point("layerwise", 1), point("layerwise", 2), point("kl", 1)]);
        let dir = tempfile::tempdir().unwrap();
        curve.save(dir.path()).unwrap();
        assert_eq!(Curve::load(&files_in(dir.path()).unwrap()).unwrap(), curve);
        let svg = std::fs::read_to_string(dir.path().join(PICTURE)).unwrap();
        assert!(svg.contains("layerwise") && svg.contains("kl"));
        Curve::default().save(dir.path()).unwrap();
    }

    #[test]
    fn a_damaged_row_is_named_and_odd_curves_can_be_drawn() {
        let point = |loss| Point { phase: "kl".into(), step: 1, loss, grad_norm: 0.0, lr: 0.0, tokens: 1 };
        for losses in [&[0.0][..], &[0.0, 0.0], &[1e-30], &[1e30, 1e-30]] {
            comes_back(&Curve(losses.iter().map(|&loss| point(loss)).collect()));
        }
        let error = edited(&Curve(vec![point(1.0), point(2.0)]), FILE, "\"step\":1", "\"step\":-1");
        assert!(error.starts_with("artifact `curve`, file `loss.jsonl`, line 1: "), "{error}");
        each_file_is_needed(&Curve(vec![point(1.0)]), &[FILE]);
    }
}
