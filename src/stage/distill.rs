//! `distill`: heals a converted model by layer-wise matching and KL distillation, or trains one by cross-entropy.
//!
//! Knows losses, steps and checkpoints; the forward pass is the model's, the gradients are the kernels'.

mod adamw;
pub mod curve;
mod data;
mod forecast;
mod foretold;
mod gradients;
mod held_out;
mod layerwise;
mod loss;
pub mod member;
mod metrics;
mod moments;
mod objective;
mod parameters;
mod phase;
mod save;
mod share;
mod state;
mod team;
mod tensorboard;
mod trainer;
mod weights;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    artifact::{
        Artifact, ArtifactError, checkpoint::Checkpoint, predictions::Predictions, splits::Split,
        texts::Texts,
    },
    engine::action::{Cx, Failure, Forecast, Made, OutputPort, Pool},
    model::{Model, ModelError},
    stage::{
        Finite, Input, InputPort, Invalid, Stage,
        code::{self, Code},
        encode, is_default,
    },
};

use foretold::Foretold;
use held_out::{Exam, HeldOut};
use layerwise::Fed;
use loss::Loss;
use moments::Precision;
use objective::Objective;
use parameters::{Choice, Group, Train};
use phase::Phase;
use share::SUMS;
use team::Team;
use trainer::{Run, TrainError};

/// Heals a converted model against the original one, phase by phase: `layerwise`, `self-fed`, then `kl`. With `cross-entropy` it trains a model
/// without a teacher. Resumes from its checkpoint with the same bytes as a straight run.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Distill {
    /// The model that trains.
    pub student: Input<Checkpoint>,
    /// The model to match; needed by `layerwise` and `self-fed`, and by `kl` where there are no `predictions`.
    #[serde(default)]
    pub teacher: Option<Input<Checkpoint>>,
    /// What a teacher predicts, kept by a stage `predict` on the same documents, in the teacher's place in the phase `kl`: its steps run the
    /// student alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predictions: Option<Input<Predictions>>,
    /// Calibration splits to train on.
    #[serde(default)]
    pub splits: Vec<Input<Split>>,
    /// A corpus to train on.
    #[serde(default)]
    pub texts: Option<Input<Texts>>,
    /// Documents that the model wrote itself (stage `sample`), to train on too: they show what the text does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<Input<Texts>>,
    /// Which parameters train: the attention of the converted layers, or everything.
    #[serde(default)]
    pub train: Train,
    /// Of those only parameters whose names match one of these patterns, such as `model.layers.3.*` or `*.kv_b_proj.*`. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
    /// Other rates for some parameters: `groups = [{ parameters = "*.sinks", lr = 0.1, weight-decay = 0.0 }]`. The first that matches counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// Documents are cut after this many tokens; how many were is told. Those of `calib_full_golden` have more than 4,096.
    #[serde(default = "max_length")]
    pub max_length: usize,
    /// First phase: each converted layer's attention output is matched on the teacher's inputs; loss is the relative squared error.
    #[serde(default)]
    pub layerwise: Option<Phase>,
    /// Second phase: the same on the student's own inputs, so that layers make up for what those below them lose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub self_fed: Option<Phase>,
    /// Third phase: the student's next-token distribution is brought to the teacher's, as `loss` says.
    #[serde(default)]
    pub kl: Option<Phase>,
    /// What a token costs in the phase `kl`: forward KL at temperature 1, unless something else is set.
    #[serde(default, skip_serializing_if = "is_default")]
    pub loss: Loss,
    /// Training without a teacher: next-token cross-entropy.
    #[serde(default)]
    pub cross_entropy: Option<Phase>,
    /// Weight of the load-balancing loss of the routers; only with `cross-entropy`.
    #[serde(default = "zero")]
    pub balance: Finite,
    /// Share of the steps after which experts that train are rounded to MXFP4 in the forward pass. They are stored in MXFP4.
    #[serde(default = "half")]
    pub round_experts_from: Finite,
    /// How tensors that trained are stored: in the element type that they had, or rounded to BF16.
    #[serde(default)]
    pub dtype: Stored,
    /// Text set aside, on which the best weights of a phase are told.
    #[serde(default, skip_serializing_if = "is_default")]
    pub held_out: HeldOut,
    /// How much of itself an exponential moving average of the weights keeps in a step, such as 0.999. It is measured beside the weights
    /// and comes out of a phase where it is better. Default: there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<Finite>,
    /// Weight decay of matrices.
    #[serde(default = "zero")]
    pub weight_decay: Finite,
    /// How AdamW keeps its moments: in `f32`, or in `8-bit` codes of blocks, a quarter of the memory.
    #[serde(default, skip_serializing_if = "is_default")]
    pub moments: Precision,
    /// Bound on the norm of the gradient.
    #[serde(default = "one")]
    pub clip: Finite,
    /// Most tokens that go through the model at one time, unless a document has more; a step of more is summed over parts.
    #[serde(default = "micro_batch_tokens")]
    pub micro_batch_tokens: usize,
    /// Whether layers are computed a second time for their gradients, so that only one layer's activations are in memory. The bits are
    /// the same; without it a step saves one forward pass of the student.
    #[serde(default = "yes")]
    pub recompute: bool,
    /// Processes that share the parts of a step, up to 8; each has the models in its memory. How many there are changes no bit.
    #[serde(default = "one_process", skip_serializing)]
    pub processes: usize,
    /// What starts the other processes, on other machines if need be: `["srun", "--overlap", "--nodes=1", "--ntasks=1"]`. The cache must be
    /// on a disk that all of them see. Default: they run here.
    #[serde(default, skip_serializing)]
    pub launch: Vec<String>,
    /// Steps between checkpoints.
    #[serde(default = "checkpoint_every")]
    pub checkpoint_every: u32,
}

/// How tensors that trained are stored. Experts are always stored in MXFP4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stored {
    /// In the element type of the student's checkpoint.
    #[default]
    AsBefore,
    /// In BF16.
    Bf16,
}

fn max_length() -> usize {
    8192
}
fn zero() -> Finite {
    Finite(0.0)
}
fn half() -> Finite {
    Finite(0.5)
}
fn one() -> Finite {
    Finite(1.0)
}
fn checkpoint_every() -> u32 {
    50
}
fn micro_batch_tokens() -> usize {
    8192
}
fn one_process() -> usize {
    1
}
fn yes() -> bool {
    true
}
impl Distill {
    fn phases(&self) -> Vec<(Objective, Phase)> {
        let all = [
            (Objective::Layerwise(Fed::Teacher), &self.layerwise),
            (Objective::Layerwise(Fed::Student), &self.self_fed),
            (Objective::Kl(self.loss.clone()), &self.kl),
            (Objective::CrossEntropy { balance: self.balance.0 as f32 }, &self.cross_entropy),
        ];
        all.into_iter().filter_map(|(objective, phase)| Some((objective, phase.clone()?))).collect()
    }

    /// All documents as token ids, cut to `max-length`, in the order of their inputs.
    fn documents(&self, cx: &Cx<'_>, student: &Checkpoint) -> Result<Vec<Vec<u32>>, Failure> {
        let texts = encode::gather(cx, &self.splits, [self.texts.as_ref(), self.samples.as_ref()])?;
        let mut documents = encode::encode(cx, student, &texts)?;
        encode::cut(cx, &mut documents, self.max_length);
        if documents.is_empty() { Err(Failure::stage(TrainError::NoText)) } else { Ok(documents) }
    }

    /// Both models, the documents to train on, and those that are set aside.
    fn open<'a>(&'a self, cx: &'a Cx<'a>, student: &Checkpoint) -> Result<Opened<'a>, Failure> {
        let taught = self.teacher.as_ref().map(|teacher| teacher.load(cx, "teacher")).transpose()?;
        let mut documents = self.documents(cx, student)?;
        let choice = Choice::new(self).map_err(Failure::stage)?;
        // Packed experts train under the name that they have unpacked.
        let names = student.names().map(|name| name.strip_suffix("_blocks").unwrap_or(name));
        choice.check(&student.config, names).map_err(Failure::stage)?;
        let mut model =
            Model::load(student, &|name| choice.trains(&student.config, name)).map_err(Failure::stage)?;
        let rates = choice.rates(&model.vars);
        let teacher = taught.as_ref().map(Model::frozen).transpose().map_err(Failure::stage)?;
        if let (Some(teacher), Some(taught)) = (&teacher, &taught) {
            let (of_student, of_teacher) = (model.config.vocab_size, teacher.config.vocab_size);
            if of_student != of_teacher {
                return Err(Failure::stage(TrainError::Vocabulary {
                    student: of_student,
                    teacher: of_teacher,
                }));
            }
            for prefix in model.share(teacher, |prefix| student.is_same_below(prefix, taught)) {
                // The pages that were compared; those of the teacher are read again.
                student.release(&prefix);
                taught.release(&prefix);
            }
        }
        let foretold = match &self.predictions {
            None => None,
            Some(predictions) => {
                let lengths: Vec<usize> = self.kl.iter().flat_map(|phase| phase.lengths.clone()).collect();
                let kept = predictions.load(cx, "predictions")?;
                Some(Foretold::new(kept, (&documents, &lengths), model.config.vocab_size)?)
            }
        };
        let aside = self.held_out.set_aside(&mut documents, cx.seed);
        let run =
            Run { settings: self, cx, student: model, rates, teacher, foretold, exam: None, team: None };
        Ok((run, documents, aside))
    }

    /// What is measured on, if there is enough text.
    fn exam(
        &self,
        cx: &Cx<'_>,
        aside: &[Vec<u32>],
        teaching: (Option<&Model>, Option<&Foretold>),
    ) -> Result<Option<Exam>, Failure> {
        if aside.is_empty() {
            if self.held_out.tokens > 0 {
                cx.progress
                    .say("too little text to set any aside: nothing is measured, the last weights are kept");
            }
            return Ok(None);
        }
        let exam = Exam::new(aside, teaching, self.micro_batch_tokens, &self.held_out.buckets)?;
        cx.progress.say(&format!("{} documents of {} tokens are held out", aside.len(), exam.tokens()));
        Ok(Some(exam))
    }
}

/// A run, the documents that it trains on, and those that are set aside.
type Opened<'a> = (Run<'a>, Vec<Vec<u32>>, Vec<Vec<u32>>);

impl Stage for Distill {
    const KIND: &'static str = "distill";
    const CODE: Code = code::of("distill");
    const POOL: Pool = Pool::Device;
    const OUTPUTS: &'static [OutputPort] = &[
        OutputPort { name: "checkpoint", kind: Checkpoint::KIND },
        OutputPort { name: "curve", kind: curve::Curve::KIND },
    ];

    fn inputs(&self) -> Vec<InputPort> {
        let splits = self.splits.iter().enumerate().map(|(i, split)| split.port(format!("splits.{i}")));
        let one = [
            Some(self.student.port("student")),
            self.teacher.as_ref().map(|teacher| teacher.port("teacher")),
            self.predictions.as_ref().map(|predictions| predictions.port("predictions")),
        ];
        let texts = [("texts", &self.texts), ("samples", &self.samples)];
        let texts = texts.into_iter().filter_map(|(name, input)| Some(input.as_ref()?.port(name)));
        one.into_iter().flatten().chain(splits).chain(texts).collect()
    }

    fn check(&self) -> Result<(), Invalid> {
        let taught = [&self.layerwise, &self.self_fed, &self.kl].iter().any(|phase| phase.is_some());
        let needs_teacher = self.layerwise.is_some() || self.self_fed.is_some() || self.predictions.is_none();
        if taught && needs_teacher && self.teacher.is_none() {
            return Err(Invalid::new("teacher", "`layerwise`, `self-fed` and `kl` need a teacher")
                .hint("add `teacher = \"model\"`; for `kl` alone `predictions` will do"));
        }
        if self.predictions.is_some() && (self.kl.is_none() || self.loss != Loss::default()) {
            return Err(Invalid::new("predictions", "serve the phase `kl` with its usual loss only")
                .hint("what is kept of a distribution gives forward divergence at temperature 1"));
        }
        if self.phases().is_empty() {
            return Err(Invalid::new("kl", "no phase to run").hint("add `kl = { steps = 100, lr = 1e-3 }`"));
        }
        if taught && self.cross_entropy.is_some() {
            return Err(Invalid::new("cross-entropy", "does not go with `layerwise`, `self-fed` or `kl`"));
        }
        if self.splits.is_empty() && self.texts.is_none() && self.samples.is_none() {
            return Err(
                Invalid::new("splits", "nothing to train on").hint("name splits, `texts` or `samples`")
            );
        }
        for (objective, phase) in self.phases() {
            phase.check(objective.name())?;
        }
        if !(1..=SUMS).contains(&self.processes) {
            return Err(Invalid::new("processes", format!("`processes` is outside 1 to {SUMS}")));
        }
        if self.micro_batch_tokens == 0 {
            return Err(Invalid::new("micro-batch-tokens", "must be positive"));
        }
        Choice::new(self)?;
        self.held_out.check()?;
        if let Some(ema) = &self.ema {
            if ema.0 <= 0.0 || ema.0 >= 1.0 {
                return Err(Invalid::new("ema", "must lie between 0 and 1"));
            }
            if self.held_out.tokens == 0 {
                return Err(Invalid::new("ema", "is chosen by `held-out` text, and there is none"));
            }
        }
        self.loss.check()?;
        if self.loss != Loss::default() && self.kl.is_none() {
            return Err(
                Invalid::new("loss", "`loss` goes with the phase `kl`").hint("the others have one loss each")
            );
        }
        if self.max_length < 2 {
            return Err(Invalid::new("max-length", "must be at least 2"));
        }
        Ok(())
    }

    fn forecast(&self, inputs: Made<'_>) -> Option<Forecast> {
        let load = |port: &str| inputs(port).and_then(|files| Checkpoint::load(&files).ok());
        forecast::forecast(self, load("student").as_ref(), load("teacher").as_ref())
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        let student = self.student.load(cx, "student")?;
        let (mut run, documents, aside) = self.open(cx, &student)?;
        run.exam = self.exam(cx, &aside, (run.teacher.as_ref(), run.foretold.as_ref()))?;
        run.team = Team::start(self, cx)?;
        let curve = run.train(&documents)?;
        save::save(&student, &run.student, self.dtype, &cx.output("checkpoint")).map_err(Failure::stage)?;
        curve.save(&cx.output("curve")).map_err(Failure::stage)
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        Self::stage(error)
    }
}

impl From<ArtifactError> for Failure {
    fn from(error: ArtifactError) -> Self {
        Self::stage(error)
    }
}

#[cfg(test)]
mod tests;
