//! What a training run must remember to go on with the same bits: moments, weights, averages, the best so far, and where it stands.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    artifact::{
        Artifact, Files,
        checkpoint::{Checkpoint, Draft, Owned},
        texts,
    },
    engine::action::{Cx, Failure},
    model::Model,
};

use super::{
    adamw::{AdamW, read},
    curve::{Curve, Measured, Point},
    data::Cursor,
    trainer::TrainError,
    weights::Weights,
};

/// A run's state, beside the student's variables.
pub(crate) struct State {
    pub(crate) adam: AdamW,
    pub(crate) place: Place,
    pub(crate) curve: Curve,
    /// The moving average of the weights.
    pub(crate) ema: Option<Weights>,
    /// The weights of the best measurements of the curve, in their order.
    pub(crate) best: Vec<Weights>,
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) phase: usize,
    pub(crate) step: u32,
    pub(crate) cursor: Cursor,
}

const PLACE: &str = "place.json";
const POINTS: &str = "points.jsonl";
const MEASURED: &str = "measured.jsonl";

impl State {
    /// Keeps `weights`, whose measurement the curve does not have yet, if they are among the `keep` best; of equals the first is better.
    pub(crate) fn rank(&mut self, loss: f32, weights: &Weights, keep: usize) {
        let at = self.curve.ranked().take_while(|better| better.loss <= loss).count();
        if at < keep {
            self.best.insert(at, weights.clone());
            self.best.truncate(keep);
        }
    }

    /// Keeps everything, and the variables of `student`, for a later run.
    pub(crate) fn publish(&self, student: &Model, cx: &Cx<'_>) -> Result<(), Failure> {
        let dir: PathBuf = cx.scratch.join("checkpoint");
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(Failure::stage)?;
        }
        fs::create_dir_all(&dir).map_err(Failure::stage)?;
        let mut draft = Draft::default();
        self.adam.save(&student.vars, &mut draft);
        let now = Weights::of(&student.vars).map_err(Failure::stage)?;
        let ema = self.ema.iter().map(|weights| ("ema".to_owned(), weights));
        let best = self.best.iter().enumerate().map(|(i, weights)| (best(i), weights));
        for (prefix, weights) in [("w".to_owned(), &now)].into_iter().chain(ema).chain(best) {
            for (name, values) in &weights.0 {
                let tensor = Owned::f32(student.vars[name].dims(), values);
                draft.tensors.insert(format!("{prefix}.{name}"), tensor);
            }
        }
        draft.save(&dir)?;
        let text = serde_json::to_vec(&self.place).map_err(Failure::stage)?;
        fs::write(dir.join(PLACE), text).map_err(Failure::stage)?;
        texts::write_jsonl(&dir.join(POINTS), &self.curve.points)?;
        texts::write_jsonl(&dir.join(MEASURED), &self.curve.measured)?;
        cx.checkpoints.publish(&dir).map_err(Failure::stage)
    }

    /// Takes up what [`Self::publish`] kept, the variables too.
    pub(crate) fn restore(&mut self, files: &Files, student: &Model, keep: usize) -> Result<(), Failure> {
        const KIND: &str = "training checkpoint";
        self.place = read_place(crate::artifact::file(KIND, files, PLACE)?)?;
        self.curve = Curve {
            points: texts::read_jsonl::<Point>(KIND, files, POINTS)?,
            measured: texts::read_jsonl::<Measured>(KIND, files, MEASURED)?,
        };
        let saved = Checkpoint::load(files)?;
        let weights = |prefix: &str| read(&saved, prefix, &student.vars).map(Weights).map_err(Failure::stage);
        weights("w")?.put(&student.vars).map_err(Failure::stage)?;
        self.adam.restore(&student.vars, &saved).map_err(Failure::stage)?;
        self.ema = self.ema.is_some().then(|| weights("ema")).transpose()?;
        let kept = 0..self.curve.measured.len().min(keep);
        self.best = kept.map(|i| weights(&best(i))).collect::<Result<_, _>>()?;
        Ok(())
    }
}

/// Where the best weights but `i` are kept.
fn best(i: usize) -> String {
    format!("best{i}")
}

fn read_place(path: &Path) -> Result<Place, Failure> {
    let text = fs::read(path).map_err(Failure::stage)?;
    let damaged =
        |e: serde_json::Error| Failure::stage(TrainError::Damaged { file: PLACE, why: e.to_string() });
    serde_json::from_slice(&text).map_err(damaged)
}
