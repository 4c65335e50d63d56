//! The training loop: phases of steps, checkpoints, exact resume. Knows no loss.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use crate::{
    artifact::{Artifact, checkpoint::Checkpoint, texts},
    engine::action::{Cx, Failure},
    model::{Batch, Mlp, Model, tape::Keep},
};

use super::{
    Distill, Phase,
    adamw::AdamW,
    curve::{Curve, Point},
    data::{Cursor, Feed},
    gradients::Gradients,
    objective::{Models, Objective, Whole},
};

/// Why training could not start or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrainError {
    #[error("no document has two tokens or more; give `splits` or `texts` with text in them")]
    NoText,
    #[error(
        "no parameter trains: the student has no converted layer; convert it with `svd`, or set `train = \"all\"`"
    )]
    NothingTrains,
    #[error("{phase} step {step}: the loss is {loss}; lower `lr` or check the student")]
    Diverged { phase: &'static str, step: u32, loss: f32 },
    #[error("the training checkpoint's `{file}` is damaged: {why}")]
    Damaged { file: &'static str, why: String },
}

/// A training run in progress.
pub(crate) struct Run<'a> {
    pub(crate) settings: &'a Distill,
    pub(crate) cx: &'a Cx<'a>,
    pub(crate) student: Model,
    pub(crate) teacher: Option<Model>,
}

/// Where a run stands, beside weights and moments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    phase: usize,
    step: u32,
    cursor: Cursor,
}

const PLACE: &str = "place.json";
const POINTS: &str = "points.jsonl";

impl Run<'_> {
    /// Runs all phases, from the newest checkpoint when there is one.
    pub(crate) fn train(&mut self, documents: &[Vec<u32>]) -> Result<Curve, Failure> {
        let settings = self.settings;
        let mut adam = self.optimiser();
        let (mut place, mut points) = self.resume(&mut adam)?.unwrap_or_default();
        for (index, (objective, phase)) in settings.phases().into_iter().enumerate().skip(place.phase) {
            if index > place.phase {
                place = Place { phase: index, ..Place::default() };
                adam = self.optimiser();
            }
            let seed = self.cx.seed.wrapping_add(index as u64);
            let mut feed = Feed::new(documents, phase.batch_tokens, seed, place.cursor);
            self.cx.progress.phase(objective.name(), Some(u64::from(phase.steps)), "steps");
            self.cx.progress.advance(u64::from(place.step));
            while place.step < phase.steps {
                if self.cx.stop.is_raised() {
                    self.publish(&adam, place, &points)?;
                    return Err(Failure::Stopped);
                }
                points.push(self.step(&mut adam, &mut feed, (&objective, &phase), place.step)?);
                place = Place { step: place.step + 1, cursor: feed.cursor(), ..place };
                if place.step.is_multiple_of(settings.checkpoint_every) {
                    self.publish(&adam, place, &points)?;
                }
            }
            self.cx.progress.say(&summary(&objective, &points));
        }
        Ok(Curve(points))
    }

    fn models(&self) -> Models<'_> {
        let keep = if self.settings.recompute { Keep::Inputs } else { Keep::Graphs };
        Models { student: &self.student, teacher: self.teacher.as_ref(), keep }
    }

    fn optimiser(&self) -> AdamW {
        AdamW::new(&self.student.vars, self.settings.weight_decay.0 as f32, self.settings.clip.0 as f32)
    }

    fn step(
        &mut self,
        adam: &mut AdamW,
        feed: &mut Feed<'_>,
        (objective, phase): (&Objective, &Phase),
        step: u32,
    ) -> Result<Point, Failure> {
        let rounding = f64::from(step) >= self.settings.round_experts_from.0 * f64::from(phase.steps);
        for layer in &mut self.student.layers {
            if let Mlp::Experts(moe) = &mut layer.mlp {
                moe.round_experts = rounding;
            }
        }
        let documents = feed.next();
        let whole = Whole::of(documents.iter().copied());
        let (mut loss, mut gradients) = (0.0, Gradients::default());
        for part in Batch::packed(documents, self.settings.micro_batch_tokens) {
            loss += objective.add(self.models(), (&part, whole), &mut gradients)?;
        }
        let loss = loss as f32;
        if !loss.is_finite() {
            return Err(Failure::stage(TrainError::Diverged {
                phase: objective.name(),
                step: step + 1,
                loss,
            }));
        }
        let lr = phase.lr(step);
        let grad_norm = adam.step(&self.student.vars, &gradients, lr).map_err(Failure::stage)?;
        self.cx.progress.advance(1);
        self.cx.progress.note(&format!("loss {loss:.4}"));
        Ok(Point {
            phase: objective.name().to_owned(),
            step: step + 1,
            loss,
            grad_norm,
            lr,
            tokens: whole.tokens,
        })
    }

    fn publish(&self, adam: &AdamW, place: Place, points: &[Point]) -> Result<(), Failure> {
        let dir = self.cx.scratch.join("checkpoint");
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(Failure::stage)?;
        }
        fs::create_dir_all(&dir).map_err(Failure::stage)?;
        adam.save(&self.student.vars, &dir).map_err(Failure::stage)?;
        let text = serde_json::to_vec(&place).map_err(Failure::stage)?;
        fs::write(dir.join(PLACE), text).map_err(Failure::stage)?;
        texts::write_jsonl(&dir.join(POINTS), points)?;
        self.cx.checkpoints.publish(&dir).map_err(Failure::stage)
    }

    fn resume(&self, adam: &mut AdamW) -> Result<Option<(Place, Vec<Point>)>, Failure> {
        let Some(files) = self.cx.checkpoints.latest().map_err(Failure::stage)? else { return Ok(None) };
        let place = crate::artifact::file("training checkpoint", &files, PLACE)?;
        let place = read_place(place)?;
        let points = texts::read_jsonl("training checkpoint", &files, POINTS)?;
        adam.restore(&self.student.vars, &Checkpoint::load(&files)?).map_err(Failure::stage)?;
        Ok(Some((place, points)))
    }
}

fn read_place(path: &Path) -> Result<Place, Failure> {
    let text = fs::read(path).map_err(Failure::stage)?;
    let damaged =
        |e: serde_json::Error| Failure::stage(TrainError::Damaged { file: PLACE, why: e.to_string() });
    serde_json::from_slice(&text).map_err(damaged)
}

/// First and last loss of a phase, each a mean over a tenth of its steps.
fn summary(objective: &Objective, points: &[Point]) -> String {
    let losses: Vec<f32> = points.iter().filter(|p| p.phase == objective.name()).map(|p| p.loss).collect();
    let n = (losses.len() / 10).max(1).min(losses.len());
    let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len().max(1) as f32;
    let (first, last) = (mean(&losses[..n]), mean(&losses[losses.len() - n..]));
    format!("{}: loss {first:.4} -> {last:.4} in {} steps", objective.name(), losses.len())
}
