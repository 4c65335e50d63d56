//! What healing is going to take, from shapes alone: memory by what it is for, and arithmetic. Knows no device.
//!
//! Of the weights that train there are five copies in f32 and more: the weights, their gradient, both moments, and what is kept of them.

use safetensors::Dtype;

use super::{Distill, moments::Precision, objective::Objective, parameters::Choice};
use crate::{
    artifact::checkpoint::Checkpoint,
    engine::action::Forecast,
    kernel::linear_divergence::CHUNK,
    model::{Config, config::LayerKind},
    stage::streamed::budget::per_token,
};

const F32: u64 = size_of::<f32>() as u64;
/// Program, tokenizer, texts and allocator.
const PROCESS: u64 = 200 << 20;
/// Copies of what a layer makes of a token that its backward pass adds: gradients, and what the graph keeps between its parts.
const GRAPH: u64 = 3;

/// The forecast for `student`, or for a student of the teacher's shape as long as there is none. `None` for a checkpoint that is no model.
pub(super) fn forecast(
    settings: &Distill,
    student: Option<&Checkpoint>,
    teacher: Option<&Checkpoint>,
) -> Option<Forecast> {
    let checkpoint = student.or(teacher)?;
    let config = Config::parse(&checkpoint.config).ok()?;
    let choice = Choice::new(settings).ok()?;
    let trains = |name: &&str| match student {
        Some(_) => choice.trains(&checkpoint.config, name),
        None => is_full_attention(&config, name),
    };
    let trained: u64 = checkpoint.names().filter(trains).map(|name| elements(checkpoint, name)).sum();
    let phases = settings.phases();
    let tokens = phases.iter().map(|(_, phase)| phase.batch_tokens).max()?;
    let tokens = settings.micro_batch_tokens.min(tokens + tokens / 4) as u64;
    let hidden = config.hidden_size as u64;
    let layers = config.layers.len() as u64;
    let moments = match settings.moments {
        Precision::F32 => 2 * F32,
        Precision::Eight => 2,
    };
    // Of every weight that trains a copy: those that are measured, the best, and the average.
    let copies = if settings.held_out.tokens > 0 { 1 + settings.held_out.keep as u64 } else { 0 };
    let copies = copies + u64::from(settings.ema.is_some());
    let graph = GRAPH * tokens * per_token(&config) * F32;
    let mut memory = vec![
        ("program and texts", PROCESS),
        ("student", weights(checkpoint, teacher)),
        ("teacher", teacher.map_or(0, |teacher| weights(teacher, None))),
        ("gradients and moments", trained * (F32 + moments)),
        ("weights that are kept", trained * F32 * copies),
        // Everything once more while it is written.
        ("checkpoint", trained * (F32 * (1 + copies) + moments)),
        ("residual streams", (layers + 2) * tokens * hidden * F32),
        ("activations", if settings.recompute { graph } else { graph * layers }),
        ("logits", 3 * (CHUNK * config.vocab_size) as u64 * F32),
        ("held-out text", settings.held_out.tokens as u64 * hidden * F32),
    ];
    memory.retain(|(_, bytes)| *bytes > 0);
    let flop = phases.iter().map(|(objective, phase)| {
        let tokens = f64::from(phase.steps) * phase.batch_tokens as f64;
        tokens * per_step_token(objective, &config, checkpoint, settings) as f64
    });
    let assumed =
        student.is_none().then_some("the student is not there yet; taken for as large as its teacher");
    Some(Forecast { memory, flop: flop.sum(), assumed })
}

/// Attention of a layer that `svd` would convert.
fn is_full_attention(config: &Config, name: &str) -> bool {
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once(".self_attn."));
    let index = layer.and_then(|(index, _)| index.parse::<usize>().ok());
    index.and_then(|index| config.layers.get(index)).is_some_and(|kind| kind.is_grouped(false))
}

fn elements(checkpoint: &Checkpoint, name: &str) -> u64 {
    checkpoint.raw(name).map_or(0, |raw| raw.shape.iter().product::<usize>()) as u64
}

/// Bytes of a model's weights: packed experts, embedding and head as they are, others in f32 beside their pages of the file. What lies in
/// memory for the model `beside` already is not counted again.
fn weights(checkpoint: &Checkpoint, beside: Option<&Checkpoint>) -> u64 {
    let is_table = |name: &str| name.contains("embed_tokens") || name.starts_with("lm_head");
    let bytes = |name: &str| {
        let raw = checkpoint.raw(name).expect("listed by the checkpoint itself");
        let same = |other: &Checkpoint| {
            other.raw(name).is_some_and(|other| (other.dtype, other.shape) == (raw.dtype, raw.shape))
        };
        if (is_table(name) || name.contains(".mlp.")) && beside.is_some_and(same) {
            return 0;
        }
        let file = raw.bytes.len() as u64;
        match raw.dtype {
            Dtype::U8 | Dtype::F32 => file,
            _ if is_table(name) => file,
            _ => file + elements(checkpoint, name) * F32,
        }
    };
    checkpoint.names().map(bytes).sum()
}

/// Operations for a token of a step: two for each weight that it meets on the way forward, as many for its gradient on the way back, and
/// those of attention itself.
fn per_step_token(
    objective: &Objective,
    config: &Config,
    checkpoint: &Checkpoint,
    settings: &Distill,
) -> u64 {
    let names = checkpoint.names().filter(|name| name.contains(".self_attn."));
    let weights = 2 * names.map(|name| elements(checkpoint, name)).sum::<u64>();
    let length = settings.max_length as u64 / 2;
    let seen =
        |kind: &LayerKind| if kind.slides() { length.min(config.sliding_window as u64) } else { length };
    let width = 4 * (config.num_attention_heads * config.head_dim) as u64;
    let attention = weights + config.layers.iter().map(|kind| width * seen(kind)).sum::<u64>();
    let inner = 6 * (config.hidden_size * config.intermediate_size) as u64;
    let mlp = config.layers.len() as u64 * inner * config.experts.map_or(1, |e| e.num_experts_per_tok as u64);
    let head = 2 * (config.hidden_size * config.vocab_size) as u64;
    let forward = attention + mlp;
    let again = if settings.recompute { forward } else { 0 };
    match objective {
        Objective::Layerwise(super::layerwise::Fed::Teacher) => forward + 3 * attention,
        Objective::Layerwise(super::layerwise::Fed::Student) => 2 * forward + 2 * attention,
        // The teacher's pass was made by `predict`.
        Objective::Kl(_) if settings.predictions.is_some() => 2 * forward + attention + again + 2 * head,
        Objective::Kl(_) => 3 * forward + attention + again + 3 * head,
        Objective::CrossEntropy { .. } => 3 * forward + again + 3 * head,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        artifact::{Artifact, checkpoint::files_in},
        model::testing::draft,
        stage::distill::{HeldOut, tests::healing},
    };

    fn checkpoint(dir: &std::path::Path) -> Checkpoint {
        draft(&["sliding_attention", "full_attention"]).save(dir).unwrap();
        Checkpoint::load(&files_in(dir).unwrap()).unwrap()
    }

    fn bytes(forecast: &Forecast, what: &str) -> u64 {
        forecast.memory.iter().find(|(name, _)| *name == what).map_or(0, |(_, bytes)| *bytes)
    }

    #[test]
    fn figures_follow_from_the_shapes() {
        let dir = tempfile::tempdir().unwrap();
        let model = checkpoint(dir.path());
        let config = Config::parse(&model.config).unwrap();
        let of = |settings: &Distill| forecast(settings, None, Some(&model)).unwrap();
        let plain = of(&healing());
        let trained: u64 = model
            .names()
            .filter(|name| name.starts_with("model.layers.1.self_attn."))
            .map(|name| model.raw(name).unwrap().shape.iter().product::<usize>() as u64)
            .sum();
        assert!(plain.assumed.is_some() && trained > 0);
        assert_eq!(bytes(&plain, "gradients and moments"), 12 * trained);
        assert_eq!(bytes(&plain, "weights that are kept"), 2 * 4 * trained, "those measured, and the best");
        assert_eq!(bytes(&plain, "residual streams"), 4 * 64 * config.hidden_size as u64 * 4);
        let all: u64 = model.names().map(|name| model.raw(name).unwrap().bytes.len() as u64).sum();
        assert_eq!(bytes(&plain, "teacher"), all, "all of it is f32");
        assert!(bytes(&plain, "student") < all / 2, "experts, embedding and head are the teacher's");
        assert_eq!(plain.bytes(), plain.memory.iter().map(|(_, bytes)| bytes).sum::<u64>());

        let small = of(&Distill { moments: Precision::Eight, ..healing() });
        assert_eq!(bytes(&small, "gradients and moments"), 6 * trained);
        let more = of(&Distill { held_out: HeldOut { keep: 3, ..HeldOut::default() }, ..healing() });
        assert_eq!(bytes(&more, "weights that are kept"), 4 * 4 * trained);
        let whole = of(&Distill { recompute: false, ..healing() });
        assert_eq!(bytes(&whole, "activations"), 2 * bytes(&plain, "activations"));
        assert!(whole.flop < plain.flop, "nothing is computed twice");
        let one = of(&Distill { layerwise: None, self_fed: None, ..healing() });
        assert!(one.flop < plain.flop && one.flop > 0.0);
        let foretold = of(&Distill {
            predictions: Some(crate::stage::Input::new("predict")),
            layerwise: None,
            self_fed: None,
            ..healing()
        });
        assert!(foretold.flop < 0.8 * one.flop && foretold.flop > 0.5 * one.flop);
    }

    #[test]
    fn without_any_model_nothing_is_known() {
        assert!(forecast(&healing(), None, None).is_none());
    }
}
