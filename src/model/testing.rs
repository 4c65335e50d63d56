//! Tiny random models with any mix of layers, for tests of what every model promises.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    artifact::{
        Artifact,
        checkpoint::{Checkpoint, Draft, Owned, Raw, files_in},
    },
    kernel::testing::{flat, noise},
};

use super::{Batch, Model, probe::NoProbe};

pub(crate) const SLIDING: &str = "sliding_attention";
pub(crate) const FULL: &str = "full_attention";
pub(crate) const LATENT: &str = "latent_attention";

pub(crate) const VOCAB: usize = 31;
pub(crate) const WINDOW: usize = 4;
const HIDDEN: usize = 16;
const INNER: usize = 8;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const D: usize = 8;
const EXPERTS: usize = 4;
const RANK: usize = 10;

/// A draft of a model with these layers; latent ones keep the pairs 0 and 2 rotated.
pub(crate) fn draft(layers: &[&str]) -> Draft {
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: &[usize], scale: f32| {
        let seed = name.bytes().fold(7, |a: u64, b| a.wrapping_mul(31).wrapping_add(u64::from(b)));
        tensors.insert(name, Owned::f32(shape, &noise(seed, shape.iter().product(), scale)));
    };
    add("model.embed_tokens.weight".into(), &[VOCAB, HIDDEN], 1.0);
    add("lm_head.weight".into(), &[VOCAB, HIDDEN], 0.5);
    add("model.norm.weight".into(), &[HIDDEN], 1.0);
    for (layer, kind) in layers.iter().enumerate() {
        let mut map = |name: &str, out: usize, inner: usize| {
            add(format!("model.layers.{layer}.{name}.weight"), &[out, inner], 0.4);
            add(format!("model.layers.{layer}.{name}.bias"), &[out], 0.2);
        };
        map("self_attn.q_proj", HEADS * D, HIDDEN);
        map("self_attn.o_proj", HIDDEN, HEADS * D);
        map("mlp.router", EXPERTS, HIDDEN);
        if *kind == LATENT {
            map("self_attn.k_rope_proj", KV_HEADS * 4, HIDDEN);
            map("self_attn.kv_a_proj", RANK, HIDDEN);
            add(
                format!("model.layers.{layer}.self_attn.kv_b_proj.weight"),
                &[KV_HEADS * (D - 4 + D), RANK],
                0.4,
            );
        } else {
            map("self_attn.k_proj", KV_HEADS * D, HIDDEN);
            map("self_attn.v_proj", KV_HEADS * D, HIDDEN);
        }
        for (part, shape) in [
            ("input_layernorm.weight", &[HIDDEN][..]),
            ("post_attention_layernorm.weight", &[HIDDEN]),
            ("self_attn.sinks", &[HEADS]),
            ("mlp.experts.gate_up_proj", &[EXPERTS, HIDDEN, 2 * INNER]),
            ("mlp.experts.gate_up_proj_bias", &[EXPERTS, 2 * INNER]),
            ("mlp.experts.down_proj", &[EXPERTS, INNER, HIDDEN]),
            ("mlp.experts.down_proj_bias", &[EXPERTS, HIDDEN]),
        ] {
            add(format!("model.layers.{layer}.{part}"), shape, 0.5);
        }
    }
    Draft { config: config(layers), tensors, ..Draft::default() }
}

fn config(layers: &[&str]) -> Value {
    let latent = |kind: &&str| (*kind == LATENT).then(|| json!({"kv_lora_rank": RANK, "rope_pairs": [0, 2]}));
    json!({"model_type": "gpt_oss_mla", "hidden_size": HIDDEN, "vocab_size": VOCAB, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "head_dim": D, "intermediate_size": INNER, "num_hidden_layers": layers.len(),
        "num_local_experts": EXPERTS, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "sliding_window": WINDOW,
        "rope_theta": 100.0, "layer_types": layers, "mla": layers.iter().map(latent).collect::<Vec<_>>()})
}

/// The draft as a checkpoint on disk.
pub(crate) fn checkpoint(draft: &Draft) -> (TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    draft.save(dir.path()).unwrap();
    let checkpoint = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
    (dir, checkpoint)
}

/// Multiplies the values of a tensor.
pub(crate) fn scale(draft: &mut Draft, name: &str, by: f32) {
    let values: Vec<f32> = floats(draft, name).iter().map(|x| x * by).collect();
    let scaled = Owned::f32(&draft.tensors[name].shape.clone(), &values);
    draft.tensors.insert(name.to_owned(), scaled);
}

/// `ln softmax` of every row of logits, in f64.
pub(crate) fn log_probabilities(model: &Model, batch: &Batch) -> Vec<Vec<f64>> {
    let logits = flat(&model.logits(batch, &mut NoProbe).unwrap());
    let row = |z: &[f32]| {
        let sum = z.iter().map(|&z| f64::from(z).exp()).sum::<f64>().ln();
        z.iter().map(|&z| f64::from(z) - sum).collect()
    };
    logits.chunks(VOCAB).map(row).collect()
}

/// The elements of a tensor.
pub(crate) fn floats(draft: &Draft, name: &str) -> Vec<f32> {
    let tensor = &draft.tensors[name];
    Raw { dtype: tensor.dtype, shape: &tensor.shape, bytes: &tensor.bytes }.to_f32().unwrap()
}

/// The model with its layers of full attention made latent without loss: every pair stays rotated, the values are the content, and
/// the latent's channels are scaled by factors that the second map takes back.
pub(crate) fn lossless(draft: &Draft, layer: usize) -> Draft {
    let read = |name: &str| floats(draft, &format!("model.layers.{layer}.self_attn.{name}"));
    let (k, k_bias, v, v_bias) =
        (read("k_proj.weight"), read("k_proj.bias"), read("v_proj.weight"), read("v_proj.bias"));
    let mut out = Draft { config: draft.config.clone(), tensors: draft.tensors.clone(), ..Draft::default() };
    let n = v_bias.len();
    let factor = |i: usize| 0.5 + i as f32 / 8.0;
    let width = v.len() / n;
    let scaled = |values: &[f32], width: usize| -> Vec<f32> {
        values.iter().enumerate().map(|(i, x)| x * factor(i / width)).collect()
    };
    let back: Vec<f32> = (0..n * n).map(|i| if i / n == i % n { 1.0 / factor(i / n) } else { 0.0 }).collect();
    for (name, shape, values) in [
        ("k_rope_proj.weight", &[n, width][..], k),
        ("k_rope_proj.bias", &[n], k_bias),
        ("kv_a_proj.weight", &[n, width], scaled(&v, width)),
        ("kv_a_proj.bias", &[n], scaled(&v_bias, 1)),
        ("kv_b_proj.weight", &[n, n], back),
    ] {
        let name = format!("model.layers.{layer}.self_attn.{name}");
        out.tensors.insert(name, Owned::f32(shape, &values));
    }
    out.config["layer_types"][layer] = LATENT.into();
    out.config["mla"][layer] = serde_json::json!({"kv_lora_rank": n, "rope_pairs": [0, 1, 2, 3]});
    out
}

/// The same with one rotated key that all heads share: it has the pairs of every key/value head as components, by frequency, and a query
/// is zero in those of other heads.
pub(crate) fn lossless_shared(draft: &Draft, layer: usize) -> Draft {
    let mut out = lossless(draft, layer);
    // Of each element of the rotated key: its key/value head and its place in that head.
    let places = (0..KV_HEADS * D).map(|at| (at % KV_HEADS, at / KV_HEADS));
    let nothing = || std::iter::repeat_n(None, D);
    let key: Vec<Option<usize>> = places.clone().map(|(g, at)| Some(g * D + at)).collect();
    let seen =
        |h: usize| places.clone().map(move |(g, at)| (h * KV_HEADS / HEADS == g).then_some(h * D + at));
    let queries = (0..HEADS).flat_map(|h| nothing().chain(seen(h))).collect();
    let content =
        (0..KV_HEADS).flat_map(|g| nothing().chain((0..D).map(move |at| Some(g * D + at)))).collect();
    let maps = [
        ("k_rope_proj", &["weight", "bias"][..], key),
        ("q_proj", &["weight", "bias"][..], queries),
        ("kv_b_proj", &["weight"][..], content),
    ];
    for (map, parts, rows) in maps {
        for part in parts {
            pick_rows(&mut out, &format!("model.layers.{layer}.self_attn.{map}.{part}"), &rows);
        }
    }
    let pairs: Vec<usize> = (0..D / 2).flat_map(|pair| std::iter::repeat_n(pair, KV_HEADS)).collect();
    out.config["mla"][layer] =
        json!({"kv_lora_rank": KV_HEADS * D, "rope_pairs": pairs, "shared_rope": true});
    out
}

/// Makes a tensor of some of its rows, and of zeros where none is named.
fn pick_rows(draft: &mut Draft, name: &str, rows: &[Option<usize>]) {
    let (old, mut shape) = (floats(draft, name), draft.tensors[name].shape.clone());
    let width = old.len() / shape[0];
    let row = |row: &Option<usize>| row.map_or(vec![0.0; width], |row| old[row * width..][..width].to_vec());
    let new: Vec<f32> = rows.iter().flat_map(row).collect();
    shape[0] = rows.len();
    draft.tensors.insert(name.to_owned(), Owned::f32(&shape, &new));
}
