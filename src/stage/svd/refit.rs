//! Fits the output projection of each converted layer anew: from what its heads give behind converted layers to what the original's block
//! gives. Knows no split.
//!
//! Ridge regression towards the projection that is there, layer by layer with two streams side by side; how strong the pull is, and whether
//! the layer stays as it was, is decided by the error on held-out text.

mod file;

use candle_core::Tensor;
use faer::Mat;

use super::{
    budget::Split,
    error::SvdError,
    job::{Job, first, whole_sequences},
    measure::{self, Variant},
    source::Source,
};
use crate::{
    artifact::{
        conversion::{Refit, Refitted},
        moments::Moments,
    },
    engine::action::Failure,
    kernel::host,
    math::ridge::Regression,
    model::{
        Batch, Layer, Params,
        probe::{AttentionSeen, NoProbe, Probe},
    },
    stage::streamed::{self, budget::Needs, hidden::Hidden},
};

/// Shares of the mean square of a head's output that are tried as pulls.
const RIDGES: [f64; 5] = [0.003, 0.01, 0.03, 0.1, 0.3];
/// Tokens that go through a layer at once, unless one sequence is longer.
const BATCH: usize = 4096;
/// Of each layer: the pull, the error before, the error after.
const FIGURES: usize = 3;

/// Refits every converted layer of `split`, if the user wants it and there is held-out text that can agree.
pub(super) fn refit<'a>(
    job: &'a Job<'a>,
    split: &'a Split,
    moments: &Moments,
) -> Result<Option<Refit>, Failure> {
    if !job.pieces.refit {
        return Ok(None);
    }
    let Some(held_out) = whole_sequences(&moments.held_out, job.svd.measure_tokens) else {
        job.cx.progress.say("nothing is refitted: no text is held out that could agree");
        return Ok(None);
    };
    let mut batches = Batch::packed(first(&moments.calibration, job.svd.refit_tokens), BATCH);
    let tokens = batches.iter().map(Batch::len).sum();
    batches.push(held_out.clone());
    let variant = || job.variant(split);
    let pass = Pass { job, variant: &variant, batches: &batches };
    let figures = job.passes.measure(job.cx, || pass.run())?;
    let layers = figures.chunks_exact(FIGURES).zip(job.sources).map(|(of, source)| Refitted {
        layer: source.layer,
        ridge: (of[0] > 0.0).then_some(of[0]),
        error_before: of[1],
        error_after: of[2],
    });
    let mut refit = Refit { tokens, layers: layers.collect(), ..Refit::default() };
    let label = format!("measuring the refit on {} held-out tokens", held_out.len());
    let mut variants = vec![refitted(job, variant())];
    if split.candidate.kl.is_none() {
        variants.push(variant());
    }
    let measured = measure::kl(job, &variants, (&held_out, 1), &label)?;
    let before = split.candidate.kl.unwrap_or_else(|| measured[1]);
    (refit.kl_before, refit.kl_after) = (before, measured[0]);
    refit.taken = measured[0] < before;
    Ok(Some(refit))
}

/// `variant` with the projections that were fitted.
pub(super) fn refitted<'a>(job: &'a Job<'a>, variant: Variant<'a>) -> Variant<'a> {
    let Variant { config, attention, only } = variant;
    let attention = move |source: &Source| {
        let mut tensors = attention(source)?;
        tensors.extend(file::read(job, source.layer)?);
        Ok(tensors)
    };
    Variant { config, attention: Box::new(attention), only }
}

/// The pass that fits.
struct Pass<'a, 'v> {
    job: &'a Job<'a>,
    variant: &'v dyn Fn() -> Variant<'a>,
    /// Those of calibration, and one of held-out text.
    batches: &'v [Batch],
}

impl Pass<'_, '_> {
    /// The figures of each converted layer; a pull of 0 says that its projection stayed.
    fn run(&self) -> Result<Vec<f64>, Failure> {
        let Job { cx, checkpoint, config, sources, .. } = *self.job;
        let many = self.batches.len();
        let streams = self.batches.iter().chain(self.batches);
        let widths = (config.num_attention_heads * config.head_dim, config.hidden_size);
        let tokens: usize = self.batches.iter().map(Batch::len).sum();
        let plain = Needs::of(checkpoint, config, streams.clone(), 1);
        let needs = Needs {
            // Two sums, and what one is solved with.
            stage: self.job.folding().max(4 * Regression::bytes(widths)),
            hidden: plain.hidden + (tokens * widths.0 * size_of::<f32>()) as u64,
            ..plain
        };
        let mut hidden = streamed::room(cx, &needs, streams, (config, "refit.f32"))?;
        let rows = self.batches.iter().map(Batch::len).collect();
        let heads = hidden.beside(rows, widths.0, cx.scratch.join("heads.f32"));
        let mut heads = heads.map_err(Failure::stage)?;
        let (mut resume, first) = self.job.passes.begin(cx, &mut hidden)?;
        if first == 0 {
            streamed::embed_once(&mut hidden, (checkpoint, config), self.batches.iter())?;
        }
        let (begins, last) = (sources[0].layer, sources[sources.len() - 1].layer);
        let label = format!("refitting to {tokens} tokens");
        cx.progress.phase(&label, Some((tokens * (last + 1)) as u64), "tokens");
        cx.progress.advance((tokens * first) as u64);
        for index in first..=last {
            let layer = Layer::load(checkpoint, config, index).map_err(Failure::stage)?;
            if index == begins {
                for i in 0..many {
                    let x = hidden.take(i).map_err(Failure::stage)?;
                    hidden.put(many + i, x.clone()).map_err(Failure::stage)?;
                    hidden.put(i, x).map_err(Failure::stage)?;
                }
            }
            if let Some(source) = self.job.source(index) {
                self.layer(layer, source, (&mut hidden, &mut heads), index < last)?;
            } else {
                self.forward(&layer, &mut hidden, 0)?;
                if index > begins {
                    self.forward(&layer, &mut hidden, many)?;
                }
            }
            Layer::release(checkpoint, index);
            if index < last {
                self.job.passes.keep(&mut resume, index + 1, &mut hidden)?;
            }
        }
        let figures = sources.iter().map(|source| file::figures(self.job, source.layer));
        Ok(figures.collect::<Result<Vec<_>, _>>().map_err(Failure::stage)?.concat())
    }

    /// All batches through one layer, in the streams from number `from` on.
    fn forward(&self, layer: &Layer, hidden: &mut Hidden, from: usize) -> Result<(), Failure> {
        for (i, batch) in self.batches.iter().enumerate() {
            self.job.cx.check_stop()?;
            let x = hidden.take(from + i).map_err(Failure::stage)?;
            let x = layer.forward(&x, batch, &mut NoProbe).map_err(Failure::stage)?;
            hidden.put(from + i, x).map_err(Failure::stage)?;
            if from == 0 {
                self.job.cx.progress.advance(batch.len() as u64);
            }
        }
        Ok(())
    }

    /// Fits a converted layer, writes its file, and moves both streams behind it if they are needed there.
    fn layer(
        &self,
        original: Layer,
        source: &Source,
        (hidden, kept): (&mut Hidden, &mut Hidden),
        moves: bool,
    ) -> Result<(), Failure> {
        let job = self.job;
        let mut converted = measure::converted(job, &(self.variant)(), source)?;
        let prior = projection(job, source.layer).map_err(Failure::stage)?;
        let widths = (job.config.num_attention_heads * job.config.head_dim, job.config.hidden_size);
        let new = || Regression::new(widths, job.config.parts.o_bias);
        let (mut sums, mut kept_out) = (new(), new());
        let many = self.batches.len();
        for (i, batch) in self.batches.iter().enumerate() {
            job.cx.check_stop()?;
            let x = hidden.take(i).map_err(Failure::stage)?;
            let target = original.attend(&x, batch, &mut NoProbe).map_err(Failure::stage)?;
            let behind = moves.then(|| original.finish(&x, &target, &mut NoProbe)).transpose();
            hidden.put(i, behind.map_err(Failure::stage)?.unwrap_or(x)).map_err(Failure::stage)?;
            let x = hidden.take(many + i).map_err(Failure::stage)?;
            let mut heads = Heads(None);
            converted.attend(&x, batch, &mut heads).map_err(Failure::stage)?;
            hidden.put(many + i, x).map_err(Failure::stage)?;
            let heads = heads.0.expect("the layer attends").flatten_from(1).map_err(Failure::stage)?;
            let sums = if i + 1 < many { &mut sums } else { &mut kept_out };
            let target = host(&target).map_err(Failure::stage)?;
            sums.add(&host(&heads).map_err(Failure::stage)?, &target);
            if moves {
                kept.put(i, heads).map_err(Failure::stage)?;
            }
            job.cx.progress.advance(batch.len() as u64);
        }
        drop(original);
        let fit = sums.fit(prior.as_ref(), &RIDGES, &kept_out).map_err(Failure::stage)?;
        drop((sums, kept_out));
        file::write(job, source.layer, &fit).map_err(Failure::stage)?;
        if !moves {
            return Ok(());
        }
        if fit.ridge.is_some() {
            converted = measure::converted(job, &refitted(job, (self.variant)()), source)?;
        }
        // Their heads give what they gave before: only what is made of it is new.
        for i in 0..many {
            job.cx.check_stop()?;
            let (x, heads) = (hidden.take(many + i), kept.take(i));
            let (x, heads) = (x.map_err(Failure::stage)?, heads.map_err(Failure::stage)?);
            let attended = converted.project(&heads).map_err(Failure::stage)?;
            let x = converted.finish(&x, &attended, &mut NoProbe).map_err(Failure::stage)?;
            hidden.put(many + i, x).map_err(Failure::stage)?;
        }
        Ok(())
    }
}

/// Keeps what an attention block's heads give.
struct Heads(Option<Tensor>);

impl Probe for Heads {
    fn attention(&mut self, seen: &AttentionSeen<'_>) -> candle_core::Result<()> {
        self.0 = Some(seen.heads.clone());
        Ok(())
    }
}

/// The original's output projection [hidden, heads · d], and its bias as a last column where it has one.
fn projection(job: &Job<'_>, layer: usize) -> Result<Mat<f64>, SvdError> {
    let config = job.config;
    let params = Params::new(job.checkpoint, &|_| false);
    let (rows, width) = (config.hidden_size, config.num_attention_heads * config.head_dim);
    let values = |part: &str, shape: &[usize]| {
        let name = format!("model.layers.{layer}.self_attn.o_proj.{part}");
        params.get(&name, shape).tensor.flatten_all()?.to_vec1::<f32>()
    };
    let weight = values("weight", &[rows, width])?;
    let bias = if config.parts.o_bias { values("bias", &[rows])? } else { Vec::new() };
    params.finish()?;
    let at = |i: usize, j: usize| if j < width { weight[i * width + j] } else { bias[i] };
    Ok(Mat::from_fn(rows, width + usize::from(config.parts.o_bias), |i, j| f64::from(at(i, j))))
}
