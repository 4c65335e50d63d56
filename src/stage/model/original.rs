//! OpenAI's own layout of GPT-OSS, the `original/` folder of its repositories, as a checkpoint in Hugging Face layout. Knows names, shapes
//! and spellings; the bytes stay as they are.
//!
//! Queries, keys and values lie in one matrix there, one after the other. Experts are in MXFP4 in both, with the same blocks, and with the
//! rows of gate and up in turn (openai/gpt-oss, `gpt_oss/torch/{model,weights}.py`).

use std::{collections::BTreeSet, ops::Range, path::Path};

use safetensors::Dtype;
use serde::Deserialize;
use serde_json::{Value, json};

use super::write_config;
use crate::{
    artifact::checkpoint::{
        Checkpoint,
        shards::{self, Spec},
    },
    engine::action::{Cx, Failure},
    kernel::mxfp4,
    model::ModelError,
};

/// `config.json` as OpenAI writes it. Only what its loader has a default for may be missing.
#[derive(Debug, Deserialize)]
struct Config {
    num_hidden_layers: usize,
    num_experts: usize,
    experts_per_token: usize,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    #[serde(default = "limit")]
    swiglu_limit: f64,
    head_dim: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    sliding_window: usize,
    initial_context_length: usize,
    rope_theta: f64,
    rope_scaling_factor: f64,
    rope_ntk_alpha: f64,
    rope_ntk_beta: f64,
}

fn limit() -> f64 {
    7.0
}

/// A `config.json` that is not OpenAI's.
#[derive(Debug, thiserror::Error)]
#[error(
    "the tensors have OpenAI's names (`block.0.attn.qkv.weight`), but config.json is not OpenAI's: {0}; keep `original/` with the \
     config.json that lies in it"
)]
struct NotOpenAi(serde_json::Error);

/// A tensor that is to be written: some rows of one that is there.
struct Target {
    spec: Spec,
    source: String,
    rows: Range<usize>,
}

/// Takes a tensor's name and shape, and the names of its parts with the rows of each.
type Add<'a> = dyn FnMut(&str, &[usize], &[(String, usize)]) + 'a;

/// Whether the tensors have OpenAI's names.
pub(super) fn recognised(checkpoint: &Checkpoint) -> bool {
    checkpoint.raw("block.0.attn.qkv.weight").is_some()
}

/// Writes `config.json` and the weights into `dir`, a tensor at a time. Everything is checked before the first byte is written.
pub(super) fn write(checkpoint: &Checkpoint, dir: &Path, cx: &Cx<'_>) -> Result<(), Failure> {
    let config: Config = serde_json::from_value(checkpoint.config.clone())
        .map_err(|error| Failure::stage(NotOpenAi(error)))?;
    let mut problems = Vec::new();
    let targets = config.targets(checkpoint, &mut problems);
    if !problems.is_empty() {
        return Err(Failure::stage(ModelError::Tensors(problems)));
    }
    let read: BTreeSet<&str> = targets.iter().map(|target| &*target.source).collect();
    super::say_unread(checkpoint.names().filter(|name| !read.contains(name)), cx);
    let specs: Vec<Spec> = targets.iter().map(|target| target.spec.clone()).collect();
    let total = specs.iter().map(Spec::bytes).sum();
    cx.progress.phase("renaming OpenAI's tensors", Some(total), "bytes");
    let of = |name: &str| targets.iter().find(|target| target.spec.name == name).expect("one of them");
    shards::write(dir, specs, shards::LIMIT, &mut |spec, sink| {
        cx.check_stop()?;
        let Target { source, rows, .. } = of(&spec.name);
        let raw = checkpoint.raw(source).expect("looked for before");
        let size = raw.bytes.len() / raw.shape[0].max(1);
        sink.put(&raw.bytes[rows.start * size..rows.end * size]).map_err(Failure::stage)?;
        checkpoint.release(source);
        cx.progress.advance(spec.bytes());
        Ok::<(), Failure>(())
    })?;
    write_config(dir, &config.json())
}

impl Config {
    fn json(&self) -> Value {
        let factor = self.rope_scaling_factor;
        let mut json = json!({
            "architectures": ["GptOssForCausalLM"],
            "attention_bias": true,
            "dtype": "bfloat16",
            "experts_per_token": self.experts_per_token,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initial_context_length": self.initial_context_length,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": (self.initial_context_length as f64 * factor.max(1.0)) as usize,
            "model_type": "gpt_oss",
            "num_attention_heads": self.num_attention_heads,
            "num_experts_per_tok": self.experts_per_token,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "num_local_experts": self.num_experts,
            "quantization_config": {
                "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
                "quant_method": "mxfp4",
            },
            // A constant in OpenAI's code.
            "rms_norm_eps": 1e-5,
            "rope_theta": self.rope_theta,
            "sliding_window": self.sliding_window,
            "swiglu_limit": self.swiglu_limit,
            "tie_word_embeddings": false,
            "vocab_size": self.vocab_size,
        });
        // OpenAI's code scales from a factor above 1 on, and rounds no end of the ramp.
        if factor > 1.0 {
            json["rope_scaling"] = json!({
                "beta_fast": self.rope_ntk_beta,
                "beta_slow": self.rope_ntk_alpha,
                "factor": factor,
                "original_max_position_embeddings": self.initial_context_length,
                "rope_type": "yarn",
                "truncate": false,
            });
        }
        // What the published vocabulary ends an answer and fills a batch with.
        if self.vocab_size > 200_002 {
            json["eos_token_id"] = 200_002.into();
            json["pad_token_id"] = 199_999.into();
        }
        json
    }

    /// All tensors; those that are missing or malformed are told in `problems`.
    fn targets(&self, checkpoint: &Checkpoint, problems: &mut Vec<String>) -> Vec<Target> {
        let mut all = Vec::new();
        let mut add = |source: &str, shape: &[usize], parts: &[(String, usize)]| {
            let scaled = source.ends_with(".blocks") || source.ends_with(".scales");
            let Some(dtype) = dtype(checkpoint, source, (shape, scaled), problems) else { return };
            let mut at = 0;
            for (name, rows) in parts {
                let shape = [&[*rows], &shape[1..]].concat();
                let spec = Spec { name: name.clone(), dtype, shape };
                all.push(Target { spec, source: source.to_owned(), rows: at..at + rows });
                at += rows;
            }
        };
        let (vocab, hidden) = (self.vocab_size, self.hidden_size);
        let mut whole = |source: &str, name: &str, shape: &[usize]| {
            add(source, shape, &[(name.to_owned(), shape[0])]);
        };
        whole("embedding.weight", "model.embed_tokens.weight", &[vocab, hidden]);
        whole("norm.scale", "model.norm.weight", &[hidden]);
        whole("unembedding.weight", "lm_head.weight", &[vocab, hidden]);
        for layer in 0..self.num_hidden_layers {
            self.layer(layer, &mut add);
        }
        all
    }

    fn layer(&self, layer: usize, add: &mut Add<'_>) {
        let (hidden, inner, experts) = (self.hidden_size, self.intermediate_size, self.num_experts);
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let from = |part: &str| format!("block.{layer}.{part}");
        let to = |part: &str| format!("model.layers.{layer}.{part}");
        for (part, width) in [("weight", Some(hidden)), ("bias", None)] {
            let shape: Vec<usize> = [q + 2 * kv].into_iter().chain(width).collect();
            let parts = [("q", q), ("k", kv), ("v", kv)];
            let parts = parts.map(|(map, rows)| (to(&format!("self_attn.{map}_proj.{part}")), rows));
            add(&from(&format!("attn.qkv.{part}")), &shape, &parts);
        }
        let mut whole = |source: &str, target: &str, shape: &[usize]| {
            add(&from(source), shape, &[(to(target), shape[0])]);
        };
        whole("attn.norm.scale", "input_layernorm.weight", &[hidden]);
        whole("attn.sinks", "self_attn.sinks", &[self.num_attention_heads]);
        whole("attn.out.weight", "self_attn.o_proj.weight", &[hidden, q]);
        whole("attn.out.bias", "self_attn.o_proj.bias", &[hidden]);
        whole("mlp.norm.scale", "post_attention_layernorm.weight", &[hidden]);
        whole("mlp.gate.weight", "mlp.router.weight", &[experts, hidden]);
        whole("mlp.gate.bias", "mlp.router.bias", &[experts]);
        for (source, target, out, width) in
            [("mlp1", "gate_up_proj", 2 * inner, hidden), ("mlp2", "down_proj", hidden, inner)]
        {
            let groups = width / mxfp4::BLOCK;
            let source = |part: &str| format!("mlp.{source}_{part}");
            let target = |part: &str| format!("mlp.experts.{target}_{part}");
            let block = mxfp4::BLOCK / 2;
            whole(&source("weight.blocks"), &target("blocks"), &[experts, out, groups, block]);
            whole(&source("weight.scales"), &target("scales"), &[experts, out, groups]);
            whole(&source("bias"), &target("bias"), &[experts, out]);
        }
    }
}

/// The element type of a tensor that has this shape and is MXFP4's (`packed`) or is not.
fn dtype(
    checkpoint: &Checkpoint,
    name: &str,
    (shape, packed): (&[usize], bool),
    problems: &mut Vec<String>,
) -> Option<Dtype> {
    let Some(raw) = checkpoint.raw(name) else {
        problems.push(format!("`{name}` is missing"));
        return None;
    };
    let wanted = if packed { "U8" } else { "BF16, F16 or F32" };
    let fits = if packed {
        raw.dtype == Dtype::U8
    } else {
        matches!(raw.dtype, Dtype::BF16 | Dtype::F16 | Dtype::F32)
    };
    if raw.shape != shape {
        problems.push(format!("`{name}` has shape {:?}, expected {shape:?}", raw.shape));
    }
    if !fits {
        problems.push(format!("`{name}` has element type {:?}, expected {wanted}", raw.dtype));
    }
    (raw.shape == shape && fits).then_some(raw.dtype)
}

#[cfg(test)]
mod tests;
