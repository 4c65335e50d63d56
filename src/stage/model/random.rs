//! Random weights of a published shape: what a model costs in memory and time can be seen without its weights. Knows no training.

use std::{collections::BTreeMap, path::Path};

use half::bf16;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use safetensors::Dtype;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    artifact::{
        ArtifactError,
        checkpoint::{Owned, save_shard},
    },
    engine::action::{Cx, Failure},
    kernel::mxfp4,
};

/// A published model whose sizes are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Random {
    /// 24 layers of 32 experts, 13.8 GB.
    #[serde(rename = "gpt-oss-20b")]
    GptOss20b,
    /// 36 layers of 128 experts, 65.2 GB.
    #[serde(rename = "gpt-oss-120b")]
    GptOss120b,
}

/// Sizes of a GPT-OSS.
#[derive(Debug, Clone, Copy)]
struct Shape {
    layers: usize,
    experts: usize,
    hidden: usize,
    inner: usize,
    heads: usize,
    kv_heads: usize,
    d: usize,
    vocab: usize,
}

const GPT_OSS_20B: Shape = Shape {
    layers: 24,
    experts: 32,
    hidden: 2880,
    inner: 2880,
    heads: 64,
    kv_heads: 8,
    d: 64,
    vocab: 201_088,
};

impl Random {
    fn shape(self) -> Shape {
        match self {
            Self::GptOss20b => GPT_OSS_20B,
            Self::GptOss120b => Shape { layers: 36, experts: 128, ..GPT_OSS_20B },
        }
    }

    /// Writes `config.json` and one shard a layer, so that no more than that lies in memory.
    pub(super) fn write(self, dir: &Path, cx: &Cx<'_>) -> Result<(), Failure> {
        self.shape().write(dir, cx)
    }
}

/// The values of a tensor.
#[derive(Clone, Copy)]
enum Values {
    /// Uniform around a mean, with this standard deviation, in BF16.
    Spread(f32, f32),
    /// Any bytes: the codes of MXFP4.
    Codes,
    /// Bytes of which each is this or one of the two before it: scales of MXFP4.
    Scales(u8),
}

type Wanted = (String, Vec<usize>, Values);

impl Shape {
    fn write(&self, dir: &Path, cx: &Cx<'_>) -> Result<(), Failure> {
        let shards: Vec<Vec<Wanted>> =
            self.ends().into_iter().chain((0..self.layers).map(|layer| self.layer(layer))).collect();
        let count = shards.len();
        cx.progress.phase("making random weights", Some(count as u64), "shards");
        let (mut map, mut total) = (serde_json::Map::new(), 0);
        for (i, wanted) in shards.into_iter().enumerate() {
            cx.check_stop()?;
            let file = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
            let tensors: BTreeMap<String, Owned> = wanted
                .into_par_iter()
                .map(|(name, shape, values)| (name.clone(), made(cx.seed, &name, shape, values)))
                .collect();
            save_shard(&dir.join(&file), &tensors).map_err(Failure::stage)?;
            total += tensors.values().map(|t| t.bytes.len()).sum::<usize>();
            map.extend(tensors.into_keys().map(|name| (name, Value::from(file.clone()))));
            cx.progress.advance(1);
        }
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        for (name, json) in [("config.json", self.config()), ("model.safetensors.index.json", index)] {
            let path = dir.join(name);
            std::fs::write(&path, format!("{json:#}\n"))
                .map_err(|e| Failure::stage(ArtifactError::io(&path)(e)))?;
        }
        Ok(())
    }

    /// As published, but for the number of layers and experts.
    fn config(&self) -> Value {
        json!({
            "architectures": ["GptOssForCausalLM"],
            "attention_bias": true,
            "dtype": "bfloat16",
            "eos_token_id": 200_002,
            "experts_per_token": 4,
            "head_dim": self.d,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initial_context_length": 4096,
            "intermediate_size": self.inner,
            "max_position_embeddings": 131_072,
            "model_type": "gpt_oss",
            "num_attention_heads": self.heads,
            "num_experts_per_tok": 4,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "num_local_experts": self.experts,
            "pad_token_id": 199_999,
            "quantization_config": {
                "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"],
                "quant_method": "mxfp4",
            },
            "rms_norm_eps": 1e-5,
            "rope_scaling": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "rope_type": "yarn",
                "truncate": false,
            },
            "rope_theta": 150_000,
            "sliding_window": 128,
            "swiglu_limit": 7.0,
            "tie_word_embeddings": false,
            "vocab_size": self.vocab,
        })
    }

    /// What surrounds the layers, a shard each.
    fn ends(&self) -> [Vec<Wanted>; 2] {
        let of = |name: &str, std| (name.to_owned(), vec![self.vocab, self.hidden], Values::Spread(0.0, std));
        let norm = ("model.norm.weight".to_owned(), vec![self.hidden], Values::Spread(1.0, 0.1));
        [
            vec![of("model.embed_tokens.weight", 1.0)],
            vec![norm, of("lm_head.weight", 1.0 / (self.hidden as f32).sqrt())],
        ]
    }

    fn layer(&self, layer: usize) -> Vec<Wanted> {
        let &Self { hidden, inner, experts, heads, kv_heads, d, .. } = self;
        let mut all = Vec::new();
        let mut add = |part: &str, shape: &[usize], values: Values| {
            all.push((format!("model.layers.{layer}.{part}"), shape.to_vec(), values));
        };
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            add(&format!("{norm}.weight"), &[hidden], Values::Spread(1.0, 0.1));
        }
        for (map, out, from) in [
            ("self_attn.q_proj", heads * d, hidden),
            ("self_attn.k_proj", kv_heads * d, hidden),
            ("self_attn.v_proj", kv_heads * d, hidden),
            ("self_attn.o_proj", hidden, heads * d),
            ("mlp.router", experts, hidden),
        ] {
            add(&format!("{map}.weight"), &[out, from], Values::Spread(0.0, 1.0 / (from as f32).sqrt()));
            add(&format!("{map}.bias"), &[out], Values::Spread(0.0, 0.1));
        }
        add("self_attn.sinks", &[heads], Values::Spread(0.0, 1.0));
        for (map, out, from) in [("gate_up_proj", 2 * inner, hidden), ("down_proj", hidden, inner)] {
            let groups = from / mxfp4::BLOCK;
            // Codes have a root mean square of 2.9, so this one gives about 1 / √2880.
            add(&format!("mlp.experts.{map}_blocks"), &[experts, out, groups, 16], Values::Codes);
            add(&format!("mlp.experts.{map}_scales"), &[experts, out, groups], Values::Scales(120));
            add(&format!("mlp.experts.{map}_bias"), &[experts, out], Values::Spread(0.0, 0.1));
        }
        all
    }
}

/// Bytes of a tensor that one random stream makes.
const CHUNK: usize = 1 << 20;

/// A tensor that depends on the seed and its name only.
fn made(seed: u64, name: &str, shape: Vec<usize>, values: Values) -> Owned {
    let n: usize = shape.iter().product();
    let (dtype, size) = if matches!(values, Values::Spread(..)) { (Dtype::BF16, 2) } else { (Dtype::U8, 1) };
    let mut bytes = vec![0u8; n * size];
    let own = crate::math::hash::hash(seed, [name.as_bytes()]);
    bytes.par_chunks_mut(CHUNK).enumerate().for_each(|(i, chunk)| {
        let mut rng = ChaCha8Rng::seed_from_u64(own);
        rng.set_stream(i as u64);
        rng.fill_bytes(chunk);
        match values {
            Values::Codes => {}
            Values::Scales(top) => chunk.iter_mut().for_each(|byte| *byte = top - *byte % 3),
            Values::Spread(mean, std) => {
                for pair in chunk.as_chunks_mut::<2>().0 {
                    // Uniform in ±√3 standard deviations.
                    let unit = f32::from(u16::from_le_bytes(*pair)) / 32_768.0 - 1.0;
                    *pair = bf16::from_f32(mean + unit * std * 3f32.sqrt()).to_le_bytes();
                }
            }
        }
    });
    Owned { dtype, shape, bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        artifact::{
            Artifact,
            checkpoint::{Checkpoint, files_in},
        },
        model::{Batch, Model, probe::NoProbe},
        stage::testing::Bench,
    };

    const SMALL: Shape =
        Shape { layers: 2, experts: 4, hidden: 64, inner: 32, heads: 4, kv_heads: 2, d: 8, vocab: 50 };

    fn checkpoint(shape: Shape, seed: u64) -> (tempfile::TempDir, Checkpoint) {
        let dir = tempfile::tempdir().unwrap();
        Bench::new().seed(seed).run_in(&[], |cx| shape.write(dir.path(), cx)).unwrap();
        let checkpoint = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
        (dir, checkpoint)
    }

    #[test]
    fn a_random_model_runs_and_is_that_of_its_seed() {
        let logits = |seed| {
            let (_dir, checkpoint) = checkpoint(SMALL, seed);
            let model = Model::frozen(&checkpoint).unwrap();
            let ids: Vec<u32> = (0..40).collect();
            let logits = model.logits(&Batch::new([&ids[..]]), &mut NoProbe).unwrap();
            crate::kernel::testing::flat(&logits)
        };
        let found = logits(1);
        let size = found.iter().map(|x| x * x).sum::<f32>() / found.len() as f32;
        assert!(size > 0.1 && size < 10.0, "neither vanishing nor exploding: {size}");
        assert_eq!(found, logits(1));
        assert_ne!(found, logits(2));
    }

    #[test]
    fn the_published_sizes_have_the_published_bytes() {
        for (which, bytes) in
            [(Random::GptOss20b, 13_761_264_768_usize), (Random::GptOss120b, 65_248_815_744)]
        {
            let shape = which.shape();
            let all = shape.ends().into_iter().chain((0..shape.layers).map(|layer| shape.layer(layer)));
            let size = |(_, shape, values): &Wanted| {
                shape.iter().product::<usize>() * if matches!(values, Values::Spread(..)) { 2 } else { 1 }
            };
            assert_eq!(all.map(|shard| shard.iter().map(size).sum::<usize>()).sum::<usize>(), bytes);
        }
    }

    #[test]
    fn values_have_the_spread_that_is_asked_for_beyond_a_chunk_too() {
        let n = CHUNK + 77;
        let tensor = made(3, "x", vec![n], Values::Spread(0.5, 2.0));
        let values: Vec<f32> =
            tensor.bytes.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
        let mean = values.iter().sum::<f32>() / n as f32;
        let std = (values.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n as f32).sqrt();
        assert!((mean - 0.5).abs() < 0.02 && (std - 2.0).abs() < 0.02, "{mean} {std}");
        assert_ne!(tensor.bytes[..100], tensor.bytes[CHUNK..CHUNK + 100]);
        let scales = made(3, "y", vec![1000], Values::Scales(120)).bytes;
        assert!(
            (118..=120).all(|scale| scales.contains(&scale))
                && scales.iter().all(|s| (118..=120).contains(s))
        );
    }
}
