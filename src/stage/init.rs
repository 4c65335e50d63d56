//! `init`: a GPT-OSS with random weights, for training from nothing. Knows the shape of a checkpoint, no training.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    artifact::{
        Artifact, ArtifactError,
        checkpoint::{Checkpoint, Draft, Owned},
        tokenizer::Tokenizer,
    },
    engine::action::{Cx, Failure, OutputPort},
    kernel::mxfp4,
    stage::{
        Finite, Input, InputPort, Invalid, Stage,
        code::{self, Code},
    },
};

/// Makes an untrained GPT-OSS: alternating sliding-window and full attention with sinks and biases, YaRN positions, and a mixture of
/// experts with clamped SwiGLU. Dense BF16-sized shapes in f32; training stores the experts in MXFP4.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Init {
    /// Decides the vocabulary; copied into the checkpoint.
    pub tokenizer: Input<Tokenizer>,
    /// Width of the residual stream; a multiple of 32.
    pub hidden_size: usize,
    /// Inner width of an expert; a multiple of 32.
    pub intermediate_size: usize,
    /// Layers; even ones see a sliding window, odd ones everything before.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Experts per layer.
    pub num_local_experts: usize,
    /// Experts that a token uses.
    pub num_experts_per_tok: usize,
    /// Tokens that a sliding layer sees, itself included.
    #[serde(default = "sliding_window")]
    pub sliding_window: usize,
    /// Base of the rotary frequencies.
    #[serde(default = "rope_theta")]
    pub rope_theta: Finite,
    /// YaRN's context extension factor.
    #[serde(default = "yarn_factor")]
    pub yarn_factor: Finite,
    /// Context before the extension.
    #[serde(default = "original_context")]
    pub original_max_position_embeddings: usize,
}

fn sliding_window() -> usize {
    128
}
fn rope_theta() -> Finite {
    Finite(150_000.0)
}
fn yarn_factor() -> Finite {
    Finite(8.0)
}
fn original_context() -> usize {
    1024
}

impl Stage for Init {
    const KIND: &'static str = "init";
    const CODE: Code = code::of("init");
    const OUTPUTS: &'static [OutputPort] = &[OutputPort { name: "checkpoint", kind: Checkpoint::KIND }];

    fn inputs(&self) -> Vec<InputPort> {
        vec![self.tokenizer.port("tokenizer")]
    }

    fn check(&self) -> Result<(), Invalid> {
        for (param, value) in
            [("hidden-size", self.hidden_size), ("intermediate-size", self.intermediate_size)]
        {
            if value == 0 || !value.is_multiple_of(mxfp4::BLOCK) {
                return Err(Invalid::new(param, "must be a positive multiple of 32, the block of MXFP4"));
            }
        }
        for (param, value) in
            [("num-hidden-layers", self.num_hidden_layers), ("sliding-window", self.sliding_window)]
        {
            if value == 0 {
                return Err(Invalid::new(param, "must be positive"));
            }
        }
        if self.num_key_value_heads == 0 || !self.num_attention_heads.is_multiple_of(self.num_key_value_heads)
        {
            return Err(Invalid::new("num-attention-heads", "must be a multiple of num-key-value-heads"));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return Err(Invalid::new("head-dim", "must be even"));
        }
        if self.num_experts_per_tok == 0 || self.num_experts_per_tok > self.num_local_experts {
            return Err(Invalid::new("num-experts-per-tok", "must be between 1 and num-local-experts"));
        }
        Ok(())
    }

    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        let tokenizer = self.tokenizer.load(cx, "tokenizer")?;
        let vocab = tokenizer.vocab_size().next_multiple_of(64);
        let (bos, eos, pad) = (tokenizer.start(), tokenizer.end(), tokenizer.pad());
        let config = self.config(vocab, [bos, eos, pad]);
        let mut weights = Weights { rng: ChaCha8Rng::seed_from_u64(cx.seed), tensors: BTreeMap::new() };
        self.fill(&mut weights, vocab);
        let mut side_files = BTreeMap::new();
        for (name, path) in cx.input("tokenizer")? {
            side_files.insert(
                name.clone(),
                std::fs::read(path).map_err(ArtifactError::io(path)).map_err(Failure::stage)?,
            );
        }
        let generation =
            json!({"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad, "do_sample": false});
        side_files.insert("generation_config.json".to_owned(), format!("{generation:#}\n").into_bytes());
        Draft { config, tensors: weights.tensors, side_files }
            .save(&cx.output("checkpoint"))
            .map_err(Failure::stage)
    }
}

impl Init {
    fn config(&self, vocab: usize, [bos, eos, pad]: [u32; 3]) -> Value {
        let layer_type = |i: usize| if i.is_multiple_of(2) { "sliding_attention" } else { "full_attention" };
        let original = self.original_max_position_embeddings;
        json!({
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "attention_bias": true,
            "attention_dropout": 0.0,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initial_context_length": original,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "layer_types": (0..self.num_hidden_layers).map(layer_type).collect::<Vec<_>>(),
            "max_position_embeddings": (original as f64 * self.yarn_factor.0) as u64,
            "num_attention_heads": self.num_attention_heads,
            "experts_per_token": self.num_experts_per_tok,
            "num_experts_per_tok": self.num_experts_per_tok,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "num_local_experts": self.num_local_experts,
            "output_router_logits": false,
            "rms_norm_eps": 1e-5,
            "rope_theta": self.rope_theta.0,
            "rope_scaling": {"rope_type": "yarn", "factor": self.yarn_factor.0, "beta_fast": 32.0, "beta_slow": 1.0,
                "original_max_position_embeddings": original, "truncate": false},
            "router_aux_loss_coef": 0.9,
            "sliding_window": self.sliding_window,
            "swiglu_limit": 7.0,
            "tie_word_embeddings": false,
            "torch_dtype": "bfloat16",
            "use_cache": true,
            "vocab_size": vocab,
        })
    }

    /// Projections have standard deviation `1/√in`; those that write to the residual stream are smaller by `√(2 · layers)`.
    fn fill(&self, weights: &mut Weights, vocab: usize) {
        let (hidden, inner, experts) = (self.hidden_size, self.intermediate_size, self.num_local_experts);
        let (q, kv) = (self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim);
        let fan_in = |n: usize| 1.0 / (n as f32).sqrt();
        let residual = 1.0 / (2.0 * self.num_hidden_layers as f32).sqrt();
        weights.normal("model.embed_tokens.weight", &[vocab, hidden], 0.1);
        weights.normal("lm_head.weight", &[vocab, hidden], 0.02);
        weights.constant("model.norm.weight", &[hidden], 1.0);
        for layer in 0..self.num_hidden_layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            weights.constant(&name("input_layernorm.weight"), &[hidden], 1.0);
            weights.constant(&name("post_attention_layernorm.weight"), &[hidden], 1.0);
            for (part, out, from, std) in [
                ("self_attn.q_proj", q, hidden, fan_in(hidden)),
                ("self_attn.k_proj", kv, hidden, fan_in(hidden)),
                ("self_attn.v_proj", kv, hidden, fan_in(hidden)),
                ("self_attn.o_proj", hidden, q, fan_in(q) * residual),
                ("mlp.router", experts, hidden, 0.02),
            ] {
                weights.normal(&name(&format!("{part}.weight")), &[out, from], std);
                weights.constant(&name(&format!("{part}.bias")), &[out], 0.0);
            }
            weights.constant(&name("self_attn.sinks"), &[self.num_attention_heads], 0.0);
            weights.normal(&name("mlp.experts.gate_up_proj"), &[experts, hidden, 2 * inner], fan_in(hidden));
            weights.constant(&name("mlp.experts.gate_up_proj_bias"), &[experts, 2 * inner], 0.0);
            weights.normal(
                &name("mlp.experts.down_proj"),
                &[experts, inner, hidden],
                fan_in(inner) * residual,
            );
            weights.constant(&name("mlp.experts.down_proj_bias"), &[experts, hidden], 0.0);
        }
    }
}

/// Tensors being filled from one random stream.
struct Weights {
    rng: ChaCha8Rng,
    tensors: BTreeMap<String, Owned>,
}

impl Weights {
    fn constant(&mut self, name: &str, shape: &[usize], value: f32) {
        let n = shape.iter().product();
        self.tensors.insert(name.to_owned(), Owned::f32(shape, &vec![value; n]));
    }

    /// About normal: the sum of twelve uniform numbers less six, which needs no library function of the platform.
    fn normal(&mut self, name: &str, shape: &[usize], std: f32) {
        let n = shape.iter().product();
        let mut uniform = || (self.rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32;
        let values: Vec<f32> =
            (0..n).map(|_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * std).collect();
        self.tensors.insert(name.to_owned(), Owned::f32(shape, &values));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        artifact::texts::Texts,
        model::{Batch, Model, probe::NoProbe},
        stage::{
            corpus::synthetic::{Synthetic, generate},
            testing::Bench,
            tokenizer::TrainTokenizer,
        },
    };

    pub(crate) fn init() -> Init {
        Init {
            tokenizer: Input::new("tokenizer"),
            hidden_size: 32,
            intermediate_size: 32,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 8,
            num_local_experts: 4,
            num_experts_per_tok: 2,
            sliding_window: 16,
            rope_theta: Finite(10_000.0),
            yarn_factor: Finite(4.0),
            original_max_position_embeddings: 32,
        }
    }

    #[test]
    fn the_model_loads_and_starts_near_uniform() {
        let texts = Texts(generate(
            &Synthetic { prose: 4, programs: 4, maths: 4, min_tokens: 64, max_tokens: 200 },
            1,
        ));
        let trained = Bench::new().input("texts", &texts);
        trained.run(&TrainTokenizer { texts: Input::new("corpus"), vocab_size: 320 }).unwrap();
        let tokenizer: Tokenizer = trained.load("tokenizer");
        let bench = Bench::new().input("tokenizer", &tokenizer).seed(3);
        bench.run(&init()).unwrap();
        let checkpoint: Checkpoint = bench.load("checkpoint");
        let model = Model::frozen(&checkpoint).unwrap();
        let ids = tokenizer.encode(&texts.0[0].text).unwrap();
        let logits = model.logits(&Batch::new([&ids[..]]), &mut NoProbe).unwrap();
        assert_eq!(logits.dims(), [ids.len(), 320]);
        let largest = logits.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(largest < 1.0, "{largest}");
        let first = bench.bytes();
        bench.run(&init()).unwrap();
        assert!(first == bench.bytes());
    }

    #[test]
    fn sizes_that_make_no_model_are_refused() {
        for (wrong, param) in [
            (Init { hidden_size: 40, ..init() }, "hidden-size"),
            (Init { hidden_size: 0, ..init() }, "hidden-size"),
            (Init { intermediate_size: 33, ..init() }, "intermediate-size"),
            (Init { num_hidden_layers: 0, ..init() }, "num-hidden-layers"),
            (Init { sliding_window: 0, ..init() }, "sliding-window"),
            (Init { num_key_value_heads: 3, ..init() }, "num-attention-heads"),
            (Init { num_key_value_heads: 0, ..init() }, "num-attention-heads"),
            (Init { head_dim: 7, ..init() }, "head-dim"),
            (Init { head_dim: 0, ..init() }, "head-dim"),
            (Init { num_experts_per_tok: 5, ..init() }, "num-experts-per-tok"),
            (Init { num_experts_per_tok: 0, ..init() }, "num-experts-per-tok"),
        ] {
            assert_eq!(wrong.check().unwrap_err().param, param);
        }
        assert!(init().check().is_ok());
    }
}
