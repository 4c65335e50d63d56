//! Content as layers see it once rotations are given up: a second pass through the calibration text (TransMLA, arXiv 2502.07864). Knows no
//! budget.

use std::fs;

use super::{
    budget::{self, Choice, Part, Split},
    error::SvdError,
    job::{Job, first},
    measure::{self, Variant},
    source::Source,
};
use crate::{
    artifact::moments::Moments,
    engine::action::Failure,
    kernel::host,
    math::moments::SecondMoment,
    model::{
        Batch, Layer,
        probe::{AttentionSeen, Probe},
    },
    stage::{
        streamed::{self, budget::Needs},
        weights::Projections,
    },
};

/// Tokens that go through a layer at once.
const BATCH: usize = 4096;

/// The layers of `job` with the content that comes when what `split` does not rotate stays un-rotated everywhere, and no channel is cut.
///
/// # Errors
/// If a layer cannot be read or its sums cannot be kept, or when the run is stopped.
pub(super) fn recalibrated(job: &Job<'_>, split: &Split, moments: &Moments) -> Result<Vec<Source>, Failure> {
    let whole =
        |(source, part): (&Source, &Part)| Part { rank: source.useful_rank(&part.rotated), ..part.clone() };
    let parts = job.sources.iter().zip(&split.parts).map(whole).collect();
    let whole = Split { parts, candidate: split.candidate.clone() };
    let batches = Batch::packed(first(&moments.calibration, job.svd.refit_tokens), BATCH);
    let pass = Pass { job, variant: &job.variant(&whole), batches: &batches };
    job.passes.measure(job.cx, || pass.run())?;
    let again = |source: &Source| {
        let projections = Projections::read(job.checkpoint, job.config, source.layer)?;
        Ok(source.given(&projections, &read(job, source.layer)?))
    };
    job.sources.iter().map(again).collect::<Result<_, SvdError>>().map_err(Failure::stage)
}

/// `split` with the same choices for the content that the layers of `job` see now; its divergence is measured anew.
pub(super) fn again(job: &Job<'_>, split: &Split, held_out: &[Vec<u32>]) -> Result<Split, Failure> {
    let choices: Vec<Choice> = split.parts.iter().map(|part| part.choice).collect();
    let rankings = job.rankings(split.candidate.freqfold);
    let mut again = [budget::split(job.sources, &rankings, &choices).map_err(Failure::stage)?];
    if split.candidate.kl.is_some() {
        job.measure(&mut again, held_out)?;
    }
    let [mut again] = again;
    again.candidate.chosen = true;
    Ok(again)
}

/// The pass that sums inputs.
struct Pass<'a, 'v> {
    job: &'a Job<'a>,
    variant: &'v Variant<'a>,
    batches: &'v [Batch],
}

impl Pass<'_, '_> {
    /// Writes the file of each converted layer; there is nothing else to keep.
    fn run(&self) -> Result<Vec<f64>, Failure> {
        let Job { cx, checkpoint, config, sources, .. } = *self.job;
        let width = config.hidden_size;
        let streams = self.batches.iter();
        let plain = Needs::of(checkpoint, config, streams.clone(), 1);
        // The sums are there twice while they are written; rows are added as numbers of f64, on both sides of the product.
        let dim = width as u64 + 1;
        let sums = 2 * dim * (dim + plain.batch_tokens) * size_of::<f64>() as u64;
        let needs = Needs { stage: self.job.folding() + sums, ..plain };
        let mut hidden = streamed::room(cx, &needs, streams.clone(), (config, "recalibrate.f32"))?;
        let (mut resume, first) = self.job.passes.begin(cx, &mut hidden)?;
        if first == 0 {
            streamed::embed_once(&mut hidden, (checkpoint, config), streams)?;
        }
        let last = sources[sources.len() - 1].layer;
        let tokens: usize = self.batches.iter().map(Batch::len).sum();
        let label = format!("calibrating again on {tokens} tokens, rotations given up");
        cx.progress.phase(&label, Some((tokens * (last + 1)) as u64), "tokens");
        cx.progress.advance((tokens * first) as u64);
        for index in first..=last {
            let source = self.job.source(index);
            let layer = match source {
                Some(source) => measure::converted(self.job, self.variant, source)?,
                None => Layer::load(checkpoint, config, index).map_err(Failure::stage)?,
            };
            let mut inputs = Inputs(SecondMoment::new(width));
            for (i, batch) in self.batches.iter().enumerate() {
                cx.check_stop()?;
                let x = hidden.take(i).map_err(Failure::stage)?;
                let x = layer.forward(&x, batch, &mut inputs).map_err(Failure::stage)?;
                hidden.put(i, x).map_err(Failure::stage)?;
                cx.progress.advance(batch.len() as u64);
            }
            Layer::release(checkpoint, index);
            if source.is_some() {
                write(self.job, index, &inputs.0.sum).map_err(Failure::stage)?;
            }
            if index < last {
                self.job.passes.keep(&mut resume, index + 1, &mut hidden)?;
            }
        }
        Ok(Vec::new())
    }
}

/// Sums what goes into an attention block.
struct Inputs(SecondMoment);

impl Probe for Inputs {
    fn attention(&mut self, seen: &AttentionSeen<'_>) -> candle_core::Result<()> {
        self.0.add(&host(seen.input)?, None);
        Ok(())
    }
}

/// Keeps the sums of a layer's inputs, numbers of f64 one behind the other.
fn write(job: &Job<'_>, layer: usize, sum: &[f64]) -> Result<(), SvdError> {
    let bytes: Vec<u8> = sum.iter().flat_map(|x| x.to_le_bytes()).collect();
    fs::write(job.passes.file(&file(layer)), bytes).map_err(|e| failed(layer, &e.to_string()))
}

fn read(job: &Job<'_>, layer: usize) -> Result<Vec<f64>, SvdError> {
    let bytes = fs::read(job.passes.file(&file(layer))).map_err(|e| failed(layer, &e.to_string()))?;
    let (numbers, rest) = bytes.as_chunks();
    let dim = job.config.hidden_size + 1;
    if numbers.len() != dim * dim || !rest.is_empty() {
        return Err(failed(layer, &format!("{} bytes are not {dim} x {dim} numbers", bytes.len())));
    }
    Ok(numbers.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect())
}

fn file(layer: usize) -> String {
    format!("inputs-{layer:03}.f64")
}

fn failed(layer: usize, why: &str) -> SvdError {
    SvdError::Recalibrated { layer, why: why.to_owned() }
}
