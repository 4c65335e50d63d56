//! The training loop: phases of steps, measurements, checkpoints, exact resume. Knows no loss.

use std::collections::BTreeMap;

use crate::{
    engine::action::{Cx, Failure},
    model::{Mlp, Model, ModelError, tape::Keep},
};

use super::{
    Distill,
    adamw::AdamW,
    curve::{Candidate, Curve, Measured, Point},
    data::Feed,
    foretold::Foretold,
    held_out::{Exam, Measure},
    metrics::Metrics,
    objective::{Models, Objective},
    parameters::Rates,
    phase::Phase,
    share::{Step, Sum},
    state::{Place, State},
    team::Team,
    weights::Weights,
};

/// Why training could not start or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrainError {
    #[error(
        "{0}: no document is as long as `long.from` says; give longer ones, raise `max-length` or lower `from`"
    )]
    NothingLong(&'static str),
    #[error("no document has two tokens or more; give `splits` or `texts` with text in them")]
    NoText,
    #[error(
        "no parameter trains: the student has no converted layer; convert it with `svd`, or set `train = \"all\"`"
    )]
    NothingTrains,
    #[error(
        "no parameter that trains has a name like `{pattern}`; one of them is `{example}`, and `*` stands for any part of a name"
    )]
    NoParameter { pattern: String, example: String },
    #[error(
        "the student has a vocabulary of {student} tokens, the teacher one of {teacher}; their distributions cannot be compared"
    )]
    Vocabulary { student: usize, teacher: usize },
    #[error(
        "{phase} step {step}: the {what} is {value} on the batch that begins with {begins:?}; lower `lr` or check the student. \
         The checkpoint of the step before stays"
    )]
    Diverged { phase: &'static str, step: u32, what: &'static str, value: f32, begins: Vec<u32> },
    #[error("{phase} step {step}: the student predicts no numbers on the held-out text; lower `lr`")]
    Unmeasurable { phase: &'static str, step: u32 },
    #[error(
        "there are no predictions for the document of {tokens} tokens that begins with {begins:?}; `predict` needs the same text, tokenizer \
         and `max-length` as this stage"
    )]
    NotForetold { begins: Vec<u32>, tokens: usize },
    #[error("the training checkpoint's `{file}` is damaged: {why}")]
    Damaged { file: &'static str, why: String },
}

/// A training run in progress.
pub(crate) struct Run<'a> {
    pub(crate) settings: &'a Distill,
    pub(crate) cx: &'a Cx<'a>,
    pub(crate) student: Model,
    /// Of each of its variables.
    pub(crate) rates: BTreeMap<String, Rates>,
    pub(crate) teacher: Option<Model>,
    /// What a teacher predicted for all documents.
    pub(crate) foretold: Option<Foretold>,
    /// What is measured on, if anything.
    pub(crate) exam: Option<Exam>,
    /// The processes that help, if there are any.
    pub(crate) team: Option<Team>,
}

impl Run<'_> {
    /// Runs all phases, from the newest checkpoint when there is one.
    pub(crate) fn train(&mut self, documents: &[Vec<u32>]) -> Result<Curve, Failure> {
        let mut state = self.begin(Place::default(), Curve::default())?;
        if let Some(files) = self.cx.checkpoints.latest().map_err(Failure::stage)? {
            state.restore(&files, &self.student, self.settings.held_out.keep)?;
        }
        let folder = Metrics::folder(&self.cx.log);
        let mut metrics = Metrics::begin(&folder, &state.curve).map_err(Failure::stage)?;
        self.cx.progress.say(&format!("every step is told in {}, for TensorBoard too", folder.display()));
        for (index, (objective, phase)) in self.settings.phases().iter().enumerate().skip(state.place.phase) {
            if index > state.place.phase {
                let place = Place { phase: index, ..Place::default() };
                state = State { best: std::mem::take(&mut state.best), ..self.begin(place, state.curve)? };
            }
            self.phase((&mut state, &mut metrics), (objective, phase), documents)?;
        }
        Ok(state.curve)
    }

    /// The state before the first step of a phase.
    fn begin(&self, place: Place, curve: Curve) -> Result<State, Failure> {
        let settings = self.settings;
        let vars = &self.student.vars;
        let adam = AdamW::new(vars, self.rates.clone(), (settings.moments, settings.clip.0 as f32));
        let ema = settings.ema.is_some().then(|| Weights::of(vars)).transpose().map_err(Failure::stage)?;
        Ok(State { adam, place, curve, ema, best: Vec::new() })
    }

    /// One phase, to its end or until it has stopped getting better. The student then has the best weights that were measured.
    fn phase(
        &mut self,
        (state, metrics): (&mut State, &mut Metrics),
        (objective, phase): (&Objective, &Phase),
        documents: &[Vec<u32>],
    ) -> Result<(), Failure> {
        let (settings, cx) = (self.settings, self.cx);
        let mut feed = self.feed((objective, phase), documents, state.place)?;
        cx.progress.phase(objective.name(), Some(u64::from(phase.steps)), "steps");
        cx.progress.advance(u64::from(state.place.step));
        if state.place.step == 0 && state.best.is_empty() {
            self.measure((state, metrics), objective)?;
        }
        let (name, patience) = (objective.name(), settings.held_out.patience as usize);
        let before = state.curve.best().map(|best| best.loss);
        let weary = |curve: &Curve| patience > 0 && curve.worse(name) >= patience;
        while state.place.step < phase.steps && !weary(&state.curve) {
            if cx.stop.is_raised() {
                state.publish(&self.student, cx)?;
                return Err(Failure::Stopped);
            }
            let point = self.step(state, &mut feed, (objective, phase))?;
            state.place.step += 1;
            state.place.cursor = feed.cursor();
            metrics.step(&point).map_err(Failure::stage)?;
            cx.progress.note(&note(&point, metrics.speed(), state.curve.best()));
            state.curve.points.push(point);
            if state.curve.unmeasured(name) >= settings.held_out.every || state.place.step == phase.steps {
                self.measure((state, metrics), objective)?;
            }
            if state.place.step.is_multiple_of(settings.checkpoint_every) {
                state.publish(&self.student, cx)?;
            }
        }
        if let (Some(exam), true) = (&self.exam, state.best.len() > 1) {
            let mean = Weights::mean(&state.best);
            self.candidate((state, metrics), exam, objective, (Candidate::Mean, &mean))?;
        }
        if let Some(best) = state.best.first() {
            best.put(&self.student.vars).map_err(Failure::stage)?;
        }
        cx.progress.say(&state.curve.summary(name, before));
        Ok(())
    }

    /// The documents of a phase, from where it stands on.
    pub(crate) fn feed<'d>(
        &self,
        (objective, phase): (&Objective, &Phase),
        documents: &'d [Vec<u32>],
        place: Place,
    ) -> Result<Feed<'d>, Failure> {
        let seed = self.cx.seed.wrapping_add(place.phase as u64);
        Feed::new(documents, (phase.batch_tokens, phase.long.as_ref()), seed, place.cursor)
            .ok_or_else(|| Failure::stage(TrainError::NothingLong(objective.name())))
    }

    pub(crate) fn models(&self) -> Models<'_> {
        let keep = if self.settings.recompute { Keep::Inputs } else { Keep::Graphs };
        let (teacher, foretold) = (self.teacher.as_ref(), self.foretold.as_ref());
        Models { student: &self.student, teacher, foretold, keep }
    }

    fn step(
        &mut self,
        state: &mut State,
        feed: &mut Feed<'_>,
        (objective, phase): (&Objective, &Phase),
    ) -> Result<Point, Failure> {
        let step = state.place.step;
        if let Some(team) = &mut self.team {
            team.ask(state.place, &self.student.vars)?;
        }
        self.set_rounding(step, phase);
        let documents = feed.next(phase.length(step));
        let shared = Step::new(&documents, self.settings.micro_batch_tokens);
        let Sum { loss, gradients } = self.sum(&shared, objective)?;
        let (loss, norm) = (loss as f32, gradients.norm());
        for (what, value) in [("loss", loss), ("norm of the gradient", norm)] {
            if !value.is_finite() {
                let begins = documents[0].iter().take(8).copied().collect();
                let (phase, step) = (objective.name(), step + 1);
                return Err(Failure::stage(TrainError::Diverged { phase, step, what, value, begins }));
            }
        }
        let lr = phase.lr(step);
        state.adam.step(&self.student.vars, &gradients, (norm, lr)).map_err(Failure::stage)?;
        if let (Some(ema), Some(decay)) = (&mut state.ema, &self.settings.ema) {
            ema.follow(&self.student.vars, decay.0 as f32).map_err(Failure::stage)?;
        }
        self.cx.progress.advance(1);
        let phase = objective.name().to_owned();
        Ok(Point { phase, step: step + 1, loss, grad_norm: norm, lr, tokens: shared.whole.tokens })
    }

    /// From some step on, experts that train are rounded in the forward pass.
    pub(crate) fn set_rounding(&mut self, step: u32, phase: &Phase) {
        let rounding = f64::from(step) >= self.settings.round_experts_from.0 * f64::from(phase.steps);
        for layer in &mut self.student.layers {
            if let Mlp::Experts(moe) = &mut layer.mlp {
                moe.round_experts = rounding;
            }
        }
    }

    /// All sums of a step, in their order, whoever computed them.
    fn sum(&mut self, step: &Step, objective: &Objective) -> Result<Sum, Failure> {
        let processes = self.team.as_ref().map_or(1, Team::processes);
        let own = step.share((0, processes)).map(|i| Ok((i, step.sum(i, self.models(), objective)?)));
        let mut sums = own.collect::<Result<BTreeMap<_, _>, ModelError>>()?;
        if let Some(team) = &mut self.team {
            sums.append(&mut team.collect(&self.student.vars)?);
        }
        let mut total = Sum::default();
        for sum in sums.into_values() {
            total.add(sum);
        }
        Ok(total)
    }

    /// Measures the weights, and their average where there is one, on the held-out text, and keeps whichever is best so far.
    fn measure(
        &self,
        (state, metrics): (&mut State, &mut Metrics),
        objective: &Objective,
    ) -> Result<(), Failure> {
        let Some(exam) = &self.exam else { return Ok(()) };
        let vars = &self.student.vars;
        let now = Weights::of(vars).map_err(Failure::stage)?;
        self.candidate((state, metrics), exam, objective, (Candidate::Last, &now))?;
        // Before the first step it is the weights themselves.
        if state.place.step > 0
            && let Some(mean) = state.ema.take()
        {
            self.candidate((state, metrics), exam, objective, (Candidate::Ema, &mean))?;
            state.ema = Some(mean);
        }
        now.put(vars).map_err(Failure::stage)
    }

    /// Measures one candidate, which the student then is, and keeps it if it is among the best.
    fn candidate(
        &self,
        (state, metrics): (&mut State, &mut Metrics),
        exam: &Exam,
        objective: &Objective,
        (candidate, weights): (Candidate, &Weights),
    ) -> Result<(), Failure> {
        let (phase, step) = (objective.name(), state.place.step);
        weights.put(&self.student.vars).map_err(Failure::stage)?;
        let Measure { loss, buckets } = exam
            .measure(&self.student)?
            .ok_or_else(|| Failure::stage(TrainError::Unmeasurable { phase, step }))?;
        state.rank(loss, weights, self.settings.held_out.keep);
        let measured = Measured { phase: phase.to_owned(), step, candidate, loss, buckets };
        metrics.measured(&measured).map_err(Failure::stage)?;
        state.curve.measured.push(measured);
        Ok(())
    }
}

fn note(point: &Point, speed: f32, best: Option<&Measured>) -> String {
    let held_out = best.map(|best| format!(", held-out {:.4}", best.loss)).unwrap_or_default();
    format!("loss {:.4}{held_out}, {speed:.0} tokens/s", point.loss)
}
