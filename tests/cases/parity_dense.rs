//! Parity of the dense architectures with transformers: logits and the hidden states of every layer, in float32. Then each thing that
//! converters get wrong is spoilt, and parity must be lost by far.

use mla_run::{
    artifact::{Artifact, checkpoint::Checkpoint},
    model::{Batch, Model},
};
use serde_json::json;

use crate::harness::{
    golden::Golden,
    parity::{Hidden, assert_close, largest_difference, rows},
};

const ALL: [&str; 5] = ["llama", "llama-tied", "mistral", "qwen2", "qwen3"];

/// Largest allowed difference of logits, float32 against float32.
const TOLERANCE: f32 = 1e-4;

/// What every spoiled model's logits must differ by.
const FAR: f32 = 1000.0 * TOLERANCE;

fn run(golden: &Golden) -> (Vec<Vec<f32>>, Hidden) {
    let dir = tempfile::tempdir().unwrap();
    let model = Model::frozen(&Checkpoint::load(&golden.write(dir.path())).unwrap()).unwrap();
    let mut seen = Hidden::new(&golden.expected);
    let logits = model.logits(&Batch::new([golden.tokens.as_slice()]), &mut seen).unwrap();
    (seen.pick(&rows(&logits)), seen)
}

#[test]
fn logits_and_hidden_states_equal_transformers() {
    for case in ALL {
        let golden = Golden::load(case);
        let (logits, hidden) = run(&golden);
        assert_close(&format!("{case}: logits"), &logits, &golden.expected.logits, TOLERANCE);
        hidden.assert_close(case, &golden.expected);
    }
}

fn spoil(case: &str, what: &str, change: impl Fn(&mut Golden)) {
    let mut golden = Golden::load(case);
    change(&mut golden);
    let difference = largest_difference(&run(&golden).0, &golden.expected.logits);
    assert!(difference > FAR, "{case}: spoiling `{what}` changes logits by {difference} only");
}

#[test]
fn every_figure_of_the_frequencies_is_seen() {
    for (key, value) in [
        ("factor", json!(4.0)),
        ("high_freq_factor", json!(8.0)),
        ("low_freq_factor", json!(2.0)),
        ("original_max_position_embeddings", json!(64)),
        ("rope_type", json!("default")),
        ("rope_type", json!("linear")),
    ] {
        spoil("llama", key, |g| g.rope()[key] = value.clone());
    }
    spoil("llama", "rope_theta", |g| g.config["rope_theta"] = json!(10_000.0));
    spoil("llama-tied", "the usual rope_theta", |g| g.config["rope_theta"] = json!(1000.0));
    spoil("qwen3", "truncate", |g| g.rope()["truncate"] = json!(false));
    spoil("qwen3", "attention_factor", |g| g.rope()["attention_factor"] = json!(1.0));
}

#[test]
fn interleaved_pairs_in_place_of_halves_are_seen() {
    for (case, d) in [("llama", 8), ("mistral", 16), ("qwen3", 16)] {
        // What a reader sees that takes neighbours for a pair.
        let interleaved = |i: usize, _: usize| i / d * d + i % d % 2 * (d / 2) + i % d / 2;
        spoil(case, "pairs", |g| {
            for map in ["q_proj.weight", "k_proj.weight"] {
                g.permute(map, 0, interleaved);
            }
            if case == "qwen3" {
                for norm in ["q_norm.weight", "k_norm.weight"] {
                    g.permute(norm, 0, interleaved);
                }
            }
        });
    }
}

#[test]
fn windows_and_where_they_begin_are_seen() {
    for case in ["mistral", "qwen2"] {
        for window in [json!(7), json!(9)] {
            spoil(case, "window", |g| g.config["sliding_window"] = window.clone());
        }
    }
    spoil("mistral", "no window", |g| g.config["sliding_window"] = json!(null));
    spoil("qwen2", "no window", |g| g.config["use_sliding_window"] = json!(false));
    for from in [0, 2] {
        spoil("qwen2", "max_window_layers", |g| g.config["max_window_layers"] = json!(from));
    }
    spoil("qwen3", "a window", |g| {
        g.config["layer_types"] = json!(["full_attention", "sliding_attention", "full_attention"]);
        g.config["sliding_window"] = json!(8);
        g.config["use_sliding_window"] = json!(true);
    });
}

#[test]
fn each_dropped_bias_and_norm_is_seen() {
    for map in ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"]
    {
        spoil("llama-tied", map, |g| g.edit(&format!("layers.1.{map}_proj.bias"), |_| 0.0));
    }
    for map in ["q", "k", "v"] {
        spoil("qwen2", map, |g| g.edit(&format!("layers.1.self_attn.{map}_proj.bias"), |_| 0.0));
    }
    for norm in ["q_norm", "k_norm"] {
        spoil("qwen3", norm, |g| g.edit(&format!("layers.1.self_attn.{norm}.weight"), |_| 1.0));
    }
    for case in ALL {
        spoil(case, "norm", |g| g.edit("layers.1.input_layernorm.weight", |_| 1.0));
        spoil(case, "epsilon", |g| g.config["rms_norm_eps"] = json!(0.1));
    }
}

#[test]
fn a_swapped_gate_and_wrong_heads_are_seen() {
    for case in ALL {
        spoil(case, "gate", |g| {
            let halves = |from: &str| format!("layers.1.mlp.{from}_proj.weight");
            g.swap(&halves("gate"), &halves("up"));
        });
    }
    // Grouped heads are repeated one by one (0 0 1 1), not as a whole (0 1 0 1).
    spoil("llama", "heads", |g| {
        let d = 8;
        let from = |i: usize, _: usize| [0, 2, 1, 3][i / d] * d + i % d;
        g.permute("q_proj.weight", 0, from);
        g.permute("o_proj.weight", 1, from);
    });
}
