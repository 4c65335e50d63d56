//! Parity with transformers: logits, hidden states, sinks and routing of tiny GPT-OSS models in float32.
//!
//! The second half spoils one thing at a time and asserts that parity is lost by far: a fixture that cannot see a dropped bias
//! proves nothing about biases.

use candle_core::{Result, Tensor};
use mla_run::{
    artifact::{Artifact, checkpoint::Checkpoint},
    model::{
        Batch, Model,
        probe::{AttentionSeen, NoProbe, Probe},
    },
};
use serde_json::json;

use crate::harness::{
    golden::Golden,
    parity::{Hidden, assert_close, largest_difference, rows},
};

const DENSE: &str = "gptoss-dense";
const MXFP4: &str = "gptoss-mxfp4";

/// Largest allowed difference of logits, float32 against float32; 1.5e-5 was seen.
const TOLERANCE: f32 = 1e-4;

/// What every spoiled model's logits must differ by; 0.31 (a YaRN factor of 10 for 8) is the smallest seen.
const FAR: f32 = 1000.0 * TOLERANCE;

#[test]
fn logits_hidden_states_sinks_and_routing_equal_transformers() {
    for case in [DENSE, MXFP4] {
        let golden = Golden::load(case);
        let (logits, seen) = run(&golden);
        let want = &golden.expected;
        assert_close(&format!("{case}: logits"), &logits, &want.logits, TOLERANCE);
        seen.hidden.assert_close(case, want);
        for layer in 0..want.hidden.len() {
            let mass = format!("{case}: sinks of layer {layer}");
            assert_close(&mass, &seen.sink_mass[layer], &want.sink_mass[layer], 1e-5);
            assert_eq!(seen.experts[layer], want.experts[layer], "{case}: experts of layer {layer}");
        }
    }
}

#[test]
fn an_exact_latent_layer_equals_transformers() {
    let mut golden = Golden::load(DENSE);
    let all: Vec<usize> = (0..8).collect();
    for layer in [1, 3] {
        golden.make_latent(layer, &all);
    }
    assert_close("latent", &run(&golden).0, &golden.expected.logits, TOLERANCE);
    // The seven slower pairs turn more than once in the prompt, so taking one for content must show.
    let mut content = Golden::load(DENSE);
    content.make_latent(1, &all[..7]);
    let difference = largest_difference(&run(&content).0, &content.expected.logits);
    assert!(difference > TOLERANCE, "{difference}");
}

#[test]
fn sequences_packed_into_one_batch_do_not_see_each_other() {
    let golden = Golden::load(DENSE);
    let dir = tempfile::tempdir().unwrap();
    let model = Model::frozen(&Checkpoint::load(&golden.write(dir.path())).unwrap()).unwrap();
    let (short, long) = (&golden.tokens[3..40], &golden.tokens[..]);
    let batch = Batch::new([short, long]);
    let packed = rows(&model.logits(&batch, &mut NoProbe).unwrap());
    let at = |&p: &usize| packed[short.len() + p].clone();
    let logits: Vec<_> = golden.expected.positions.iter().map(at).collect();
    assert_close("packed", &logits, &golden.expected.logits, TOLERANCE);
}

#[test]
fn dropping_the_sinks_is_seen() {
    spoil("sinks", |g| g.edit("self_attn.sinks", |_| -1e4));
}

#[test]
fn scaled_sinks_are_seen() {
    // The softmax takes them raw: neither the 1 / √d of the products nor YaRN's factor belongs to them.
    for factor in [0.25, 1.8] {
        spoil("sinks", |g| g.edit("self_attn.sinks", |x| x * factor));
    }
}

#[test]
fn rotary_pairs_of_neighbours_in_place_of_halves_are_seen() {
    // What a reader sees that takes rows 2i and 2i + 1 of a head for a pair.
    let interleaved = |i: usize, _: usize| {
        let (head, row) = (i / 16 * 16, i % 16);
        head + if row < 8 { 2 * row } else { 2 * (row - 8) + 1 }
    };
    for map in ["q_proj", "k_proj"] {
        spoil(map, |g| {
            g.permute(&format!("{map}.weight"), 0, interleaved);
            g.permute(&format!("{map}.bias"), 0, interleaved);
        });
    }
    spoil("both", |g| {
        for tensor in ["q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"] {
            g.permute(tensor, 0, interleaved);
        }
    });
}

#[test]
fn transposed_experts_are_seen() {
    // [4, 32, 32], so no shape tells.
    spoil_one(DENSE, "transposed", |g| {
        let name = "model.layers.1.mlp.experts.gate_up_proj";
        let values = g.bf16s(name);
        let turned: Vec<f32> =
            (0..values.len()).map(|n| values[n / 1024 * 1024 + n % 32 * 32 + n / 32 % 32]).collect();
        g.put_f32(name, &[4, 32, 32], &turned);
    });
}

#[test]
fn a_window_off_by_one_is_seen() {
    for by in [-1, 1] {
        spoil("window", |g| {
            let window = g.config["sliding_window"].as_i64().unwrap() + by;
            g.config["sliding_window"] = json!(window);
        });
    }
}

#[test]
fn wrong_layer_types_are_seen() {
    spoil("layer types", |g| {
        let n = g.expected.hidden.len();
        let swapped = |i: usize| if i.is_multiple_of(2) { "full_attention" } else { "sliding_attention" };
        g.config["layer_types"] = json!((0..n).map(swapped).collect::<Vec<_>>());
    });
}

#[test]
fn a_wrong_yarn_factor_is_seen() {
    spoil("factor", |g| g.rope()["factor"] = json!(g.rope()["factor"].as_f64().unwrap() * 1.25));
    spoil("original context", |g| g.rope()["original_max_position_embeddings"] = json!(48));
}

#[test]
fn a_truncated_yarn_ramp_is_seen() {
    spoil("truncate", |g| g.rope()["truncate"] = json!(true));
    spoil("default of truncate", |g| {
        g.rope().as_object_mut().unwrap().remove("truncate");
    });
}

#[test]
fn a_dropped_attention_scaling_is_seen() {
    // Scaling all queries by 1 / m² equals leaving the factor m out of cosines and sines on both sides.
    spoil("attention scaling", |g| {
        let m = 0.1 * g.rope()["factor"].as_f64().unwrap().ln() + 1.0;
        for tensor in ["q_proj.weight", "q_proj.bias"] {
            g.edit(tensor, |x| x / (m * m) as f32);
        }
    });
}

#[test]
fn each_dropped_bias_is_seen() {
    for bias in ["q_proj", "k_proj", "v_proj", "o_proj", "router"] {
        spoil(bias, |g| g.edit(&format!("layers.1.{}.bias", owner(bias)), |_| 0.0));
    }
    for bias in ["gate_up_proj_bias", "down_proj_bias"] {
        spoil(bias, |g| g.edit(&format!("layers.1.mlp.experts.{bias}"), |_| 0.0));
    }
}

#[test]
fn wrong_interleaving_of_gate_and_up_is_seen() {
    let swapped = |i: usize, _: usize| i ^ 1;
    // What a reader sees that takes the first half of the rows for the gate.
    let halves = |i: usize, n: usize| if i.is_multiple_of(2) { i / 2 } else { n / 2 + i / 2 };
    for from in [&swapped as &dyn Fn(usize, usize) -> usize, &halves] {
        spoil_one(DENSE, "rows", |g| {
            g.permute("experts.gate_up_proj", 2, from);
            g.permute("experts.gate_up_proj_bias", 1, from);
        });
        spoil_one(MXFP4, "rows", |g| {
            for part in ["blocks", "scales", "bias"] {
                g.permute(&format!("experts.gate_up_proj_{part}"), 1, from);
            }
        });
        spoil("bias alone", |g| g.permute("experts.gate_up_proj_bias", 1, from));
    }
}

#[test]
fn swapped_nibbles_and_an_idle_clamp_are_seen() {
    spoil_one(MXFP4, "nibbles", |g| g.edit_bytes("gate_up_proj_blocks", |b| b.rotate_left(4)));
    spoil("clamp", |g| g.config["swiglu_limit"] = json!(1e6));
}

/// The name of the block that owns a map of layer 1.
fn owner(map: &str) -> String {
    if map == "router" { format!("mlp.{map}") } else { format!("self_attn.{map}") }
}

/// Spoils both models and asserts that each one's logits are far from what transformers computed.
fn spoil(what: &str, change: impl Fn(&mut Golden)) {
    for case in [DENSE, MXFP4] {
        spoil_one(case, what, &change);
    }
}

fn spoil_one(case: &str, what: &str, change: impl Fn(&mut Golden)) {
    let mut golden = Golden::load(case);
    change(&mut golden);
    let difference = largest_difference(&run(&golden).0, &golden.expected.logits);
    assert!(difference > FAR, "{case}: spoiling `{what}` changes logits by {difference} only");
}

/// Logits and observations at the expected positions.
fn run(golden: &Golden) -> (Vec<Vec<f32>>, Seen) {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::load(&golden.write(dir.path())).unwrap();
    let model = Model::frozen(&checkpoint).unwrap();
    let layers = golden.expected.hidden.len();
    let sinks = (0..layers).map(|i| golden.bf16s(&format!("model.layers.{i}.self_attn.sinks"))).collect();
    let mut seen = Seen { hidden: Hidden::new(&golden.expected), sinks, ..Seen::default() };
    let logits = model.logits(&Batch::new([golden.tokens.as_slice()]), &mut seen).unwrap();
    (seen.hidden.pick(&rows(&logits)), seen)
}

/// What passed by, at some positions; one entry per layer.
#[derive(Default)]
struct Seen {
    hidden: Hidden,
    sinks: Vec<Vec<f32>>,
    sink_mass: Vec<Vec<Vec<f32>>>,
    experts: Vec<Vec<Vec<u32>>>,
}

impl Probe for Seen {
    fn attention(&mut self, seen: &AttentionSeen<'_>) -> Result<()> {
        let lse = seen.packed.narrow(2, seen.packed.dim(2)? - 1, 1)?.squeeze(2)?.t()?.contiguous()?;
        let mass =
            |(lse, sink): (&Vec<f32>, &f32)| lse.iter().map(|l| 1.0 / (1.0 + (l - sink).exp())).collect();
        let heads: Vec<Vec<f32>> = rows(&lse).iter().zip(&self.sinks[seen.layer]).map(mass).collect();
        self.sink_mass.push(heads.iter().map(|head| self.hidden.pick(head)).collect());
        Ok(())
    }

    fn router(&mut self, _: usize, logits: &Tensor) -> Result<()> {
        let top2 = |row: &Vec<f32>| {
            let mut order: Vec<u32> = (0..row.len() as u32).collect();
            order.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
            order.truncate(2);
            order
        };
        self.experts.push(self.hidden.pick(&rows(logits)).iter().map(top2).collect());
        Ok(())
    }

    fn layer(&mut self, index: usize, hidden: &Tensor) -> Result<()> {
        self.hidden.layer(index, hidden)
    }
}
