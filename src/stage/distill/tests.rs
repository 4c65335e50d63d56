//! The stage on a tiny model: each phase learns, frozen tensors stay, and a resumed run ends with the same bytes.

mod foretold;
mod held_out;
mod resume;

use std::{collections::BTreeMap, path::Path};

use serde_json::json;

use super::{
    curve::Curve,
    gradients::Gradients,
    objective::{Models, Whole},
    phase::Schedule,
    *,
};
use crate::{
    artifact::{
        checkpoint::{Draft, Owned, files_in},
        texts::Text,
    },
    kernel::testing::noise,
    model::{Batch, tape::Keep},
    stage::testing::{self, Bench},
};

/// A random model of the given kind over the 96 bytes of printable ASCII.
fn checkpoint(dir: &Path, latent: bool, seed: u64) -> Checkpoint {
    let (hidden, inner, heads, kv, d, experts) = (32, 32, 4, 2, 8, 4);
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: &[usize], scale: f32| {
        let bytes = name.bytes().fold(seed, |a, b| a.wrapping_mul(31).wrapping_add(u64::from(b)));
        tensors.insert(name, Owned::f32(shape, &noise(bytes, shape.iter().product(), scale)));
    };
    add("model.embed_tokens.weight".into(), &[128, hidden], 1.0);
    add("lm_head.weight".into(), &[128, hidden], 0.4);
    add("model.norm.weight".into(), &[hidden], 1.0);
    for layer in 0..2 {
        let mut part = |name: &str, shape: &[usize]| {
            add(format!("model.layers.{layer}.{name}.weight"), shape, 0.3);
            add(format!("model.layers.{layer}.{name}.bias"), &shape[..1], 0.1);
        };
        part("self_attn.q_proj", &[heads * d, hidden]);
        part("self_attn.o_proj", &[hidden, heads * d]);
        part("mlp.router", &[experts, hidden]);
        if latent && layer == 1 {
            part("self_attn.k_rope_proj", &[kv * 4, hidden]);
            part("self_attn.kv_a_proj", &[10, hidden]);
            add("model.layers.1.self_attn.kv_b_proj.weight".into(), &[kv * (4 + d), 10], 0.3);
        } else {
            part("self_attn.k_proj", &[kv * d, hidden]);
            part("self_attn.v_proj", &[kv * d, hidden]);
        }
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        for (part, shape) in [
            ("input_layernorm.weight", &[hidden][..]),
            ("post_attention_layernorm.weight", &[hidden]),
            ("self_attn.sinks", &[heads]),
            ("mlp.experts.gate_up_proj", &[experts, hidden, 2 * inner]),
            ("mlp.experts.gate_up_proj_bias", &[experts, 2 * inner]),
            ("mlp.experts.down_proj", &[experts, inner, hidden]),
            ("mlp.experts.down_proj_bias", &[experts, hidden]),
        ] {
            add(name(part), shape, 0.5);
        }
    }
    let side_files = BTreeMap::from([("tokenizer.json".to_owned(), byte_tokenizer())]);
    let mut config = json!({"model_type": "gpt_oss", "hidden_size": hidden, "vocab_size": 128, "num_attention_heads": heads,
        "num_key_value_heads": kv, "head_dim": d, "intermediate_size": inner, "num_hidden_layers": 2,
        "num_local_experts": experts, "num_experts_per_tok": 2, "rms_norm_eps": 1e-5, "sliding_window": 8, "rope_theta": 1e4});
    if latent {
        config["model_type"] = "gpt_oss_mla".into();
        config["layer_types"] = json!(["sliding_attention", "latent_attention"]);
        config["mla"] = json!([null, {"kv_lora_rank": 10, "rope_pairs": [0, 1]}]);
    }
    Draft { config, tensors, side_files }.save(dir).unwrap();
    Checkpoint::load(&files_in(dir).unwrap()).unwrap()
}

/// One token a printable character.
fn byte_tokenizer() -> Vec<u8> {
    let vocab: BTreeMap<String, u32> =
        (32u8..127).map(|b| (char::from(b).to_string(), u32::from(b))).collect();
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": []}})
    .to_string()
    .into_bytes()
}

fn texts() -> Texts {
    let text = |i: usize| format!("{i} plus {i} is {} and so on. ", 2 * i).repeat(2 + i % 3);
    testing::texts(&(0..12).map(text).collect::<Vec<String>>())
}

#[expect(clippy::unnecessary_wraps, reason = "as the field that it fills")]
fn phase(steps: u32, lr: f64) -> Option<Phase> {
    Some(Phase {
        steps,
        lr: Finite(lr),
        batch_tokens: 150,
        warmup: 2,
        schedule: Schedule::Cosine,
        lengths: vec![],
        long: None,
    })
}

pub(super) fn healing() -> Distill {
    Distill {
        student: Input::new("svd"),
        teacher: Some(Input::new("model")),
        predictions: None,
        splits: vec![],
        texts: Some(Input::new("corpus")),
        samples: None,
        train: Train::Attention,
        only: vec![],
        groups: vec![],
        max_length: 64,
        layerwise: phase(20, 1e-2),
        self_fed: phase(20, 1e-2),
        kl: phase(20, 1e-2),
        loss: Loss::default(),
        cross_entropy: None,
        balance: zero(),
        round_experts_from: half(),
        dtype: Stored::AsBefore,
        held_out: HeldOut { tokens: 64, every: 1000, ..HeldOut::default() },
        ema: None,
        weight_decay: zero(),
        moments: Precision::F32,
        clip: one(),
        micro_batch_tokens: 64,
        recompute: true,
        processes: 1,
        launch: vec![],
        checkpoint_every: 7,
    }
}

fn training() -> Distill {
    Distill {
        teacher: None,
        train: Train::All,
        layerwise: None,
        self_fed: None,
        kl: None,
        cross_entropy: phase(20, 1e-2),
        balance: Finite(0.01),
        ..healing()
    }
}

fn bench() -> Bench {
    let (student, teacher) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Bench::new()
        .input("student", &checkpoint(student.path(), true, 1))
        .input("teacher", &checkpoint(teacher.path(), false, 1))
        .input("texts", &texts())
}

/// Mean loss of the first and of the last five steps of a phase.
fn ends(curve: &Curve, phase: &str) -> (f32, f32) {
    let losses: Vec<f32> = curve.points.iter().filter(|p| p.phase == phase).map(|p| p.loss).collect();
    let mean = |part: &[f32]| part.iter().sum::<f32>() / part.len() as f32;
    (mean(&losses[..5]), mean(&losses[losses.len() - 5..]))
}

#[test]
fn healing_lowers_both_losses_and_touches_converted_attention_only() {
    let bench = bench();
    bench.run(&healing()).unwrap();
    let curve: Curve = bench.load("curve");
    for name in ["layerwise", "self-fed", "kl"] {
        let (first, last) = ends(&curve, name);
        assert!(last < 0.9 * first, "{name}: {first} -> {last}");
    }
    let before = tempfile::tempdir().unwrap();
    let (before, after): (_, Checkpoint) = (checkpoint(before.path(), true, 1), bench.load("checkpoint"));
    for name in before.names() {
        let same = before.raw(name).unwrap().bytes == after.raw(name).unwrap().bytes;
        assert_eq!(same, !name.starts_with("model.layers.1.self_attn."), "{name}");
    }
}

#[test]
fn of_what_may_train_only_what_is_named_does_and_moments_of_8_bits_learn_too() {
    let bench = bench();
    let groups = vec![Group { parameters: "*.o_proj.bias".into(), lr: Finite(0.0), weight_decay: None }];
    let only = vec!["*.o_proj.*".into(), "*.sinks".into()];
    bench.run(&Distill { only, groups, moments: Precision::Eight, ..healing() }).unwrap();
    let (first, last) = ends(&bench.load("curve"), "layerwise");
    assert!(last < first, "{first} -> {last}");
    let before = tempfile::tempdir().unwrap();
    let (before, after): (_, Checkpoint) = (checkpoint(before.path(), true, 1), bench.load("checkpoint"));
    let moved = |name: &&str| before.raw(name).unwrap().bytes != after.raw(name).unwrap().bytes;
    let moved: Vec<&str> = before.names().filter(moved).collect();
    assert_eq!(moved, ["model.layers.1.self_attn.o_proj.weight", "model.layers.1.self_attn.sinks"]);
}

#[test]
fn lengths_and_long_documents_are_chosen_phase_by_phase() {
    let phase = |lengths: &[usize], from| {
        let long = Some(data::Long { share: Finite(0.5), from });
        Some(Phase { lengths: lengths.to_vec(), long, ..phase(4, 1e-2).unwrap() })
    };
    let of = |kl| Distill { layerwise: None, self_fed: None, kl, ..healing() };
    let bench = bench();
    bench.run(&of(phase(&[8, 64], 50))).unwrap();
    let curve: Curve = bench.load("curve");
    assert!(curve.points[..2].iter().all(|p| p.tokens.is_multiple_of(8)), "{:?}", curve.points);
    let error = bench.run(&of(phase(&[], 64))).unwrap_err().to_string();
    assert!(error.contains("kl: no document is as long"), "{error}");
}

#[test]
fn a_pattern_that_nothing_has_is_refused() {
    let wrong = Distill { only: vec!["*.qk_norm".into()], ..healing() };
    let error = bench().run(&wrong).unwrap_err().to_string();
    assert!(error.contains("has a name like `*.qk_norm`"), "{error}");
}

#[test]
fn every_loss_learns_and_ends_elsewhere() {
    let heal = |toml: &str| {
        let bench = bench();
        bench
            .run(&Distill {
                layerwise: None,
                self_fed: None,
                loss: toml::from_str(toml).unwrap(),
                ..healing()
            })
            .unwrap();
        let (first, last) = ends(&bench.load("curve"), "kl");
        assert!(last < first, "{toml}: {first} -> {last}");
        bench.bytes()["checkpoint/model.safetensors"].clone()
    };
    let plain = heal("");
    for toml in [
        "divergence = 'reverse'",
        "divergence = 'jsd'\nbeta = 0.3",
        "temperature = 2.0",
        "cross-entropy = 0.2",
        "hidden-mse = 0.5",
        "hidden-cosine = 0.5",
    ] {
        assert!(heal(toml) != plain, "{toml}");
    }
}

/// Defect 7 of the original's trainer: it cut at 2,048 tokens without a word, and its loss counted padding.
#[test]
fn long_documents_are_seen_whole_and_there_is_no_padding() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [student, teacher] = [(&dirs[0], true), (&dirs[1], false)]
        .map(|(dir, latent)| Model::frozen(&checkpoint(dir.path(), latent, 1)).unwrap());
    let ids = |n: u32| (0..n).map(|i| 32 + i * i % 90).collect::<Vec<_>>();
    let (short, long) = (ids(9), ids(3_000));
    let models = Models { student: &student, teacher: Some(&teacher), foretold: None, keep: Keep::Inputs };
    let loss = |batch: &Batch| {
        let predictions = batch.next_tokens().1.iter().sum();
        let whole = Whole { tokens: batch.len(), predictions };
        Objective::Kl(Loss::default()).add(models, (batch, whole), &mut Gradients::default()).unwrap() as f32
    };
    let [one, other] = [&short, &long].map(|ids| loss(&Batch::new([&ids[..]])));
    let both = Batch::new([&short[..], &long[..]]);
    assert_eq!(both.len(), 3_009, "tokens and nothing else");
    // The mean over predictions, of which a document has one fewer than tokens.
    let mean = (8.0 * one + 2_999.0 * other) / 3_007.0;
    assert!((loss(&both) - mean).abs() < 1e-5 * mean.abs(), "{} and {mean}", loss(&both));
    assert!((one - other).abs() > 1e-3 * mean, "the two differ, so the weights matter: {one}, {other}");

    let text = |n: usize| Text { text: "a".repeat(n), ..texts().0[0].clone() };
    let of = |max_length: usize| {
        let (stage, bench) = (Distill { max_length, ..healing() }, bench());
        let bench = bench.input("texts", &Texts(vec![text(3_000), text(5)]));
        let mut lengths = Vec::new();
        bench
            .run_in(&[], |cx| {
                let student = Checkpoint::load(cx.input("student")?).map_err(Failure::stage)?;
                lengths = stage.documents(cx, &student)?.iter().map(Vec::len).collect();
                Ok(())
            })
            .unwrap();
        lengths
    };
    assert_eq!((of(max_length()), of(2_048)), (vec![3_000, 5], vec![2_048, 5]));
    assert!(max_length() > 4_096, "or nothing of what makes a document long is seen");
}

#[test]
fn training_lowers_the_cross_entropy_and_stores_experts_in_mxfp4() {
    let student = tempfile::tempdir().unwrap();
    let bench = Bench::new().input("student", &checkpoint(student.path(), false, 5)).input("texts", &texts());
    bench.run(&Distill { dtype: Stored::Bf16, ..training() }).unwrap();
    let (first, last) = ends(&bench.load("curve"), "cross-entropy");
    assert!(last < 0.8 * first, "{first} -> {last}");
    let trained: Checkpoint = bench.load("checkpoint");
    assert!(trained.raw("model.layers.0.mlp.experts.gate_up_proj").is_none());
    assert_eq!(trained.raw("model.layers.0.mlp.experts.gate_up_proj_blocks").unwrap().shape, [4, 64, 1, 16]);
    assert_eq!(trained.raw("lm_head.weight").unwrap().dtype, safetensors::Dtype::BF16);
    assert_eq!(trained.config["quantization_config"]["quant_method"], "mxfp4");
    Model::frozen(&trained).unwrap();
}

#[test]
fn models_with_other_vocabularies_are_refused() {
    let (student, teacher) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let small = crate::model::testing::draft(&["full_attention"]);
    small.save(teacher.path()).unwrap();
    let bench = Bench::new()
        .input("student", &checkpoint(student.path(), true, 1))
        .input("teacher", &Checkpoint::load(&files_in(teacher.path()).unwrap()).unwrap())
        .input("texts", &texts());
    let error = bench.run(&healing()).unwrap_err().to_string();
    assert!(error.contains("128 tokens, the teacher one of 31"), "{error}");
}

#[test]
fn a_student_without_converted_layers_is_refused() {
    let (student, teacher) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let bench = Bench::new()
        .input("student", &checkpoint(student.path(), false, 1))
        .input("teacher", &checkpoint(teacher.path(), false, 1))
        .input("texts", &texts());
    let error = bench.run(&healing()).unwrap_err().to_string();
    assert!(error.contains("no converted layer"), "{error}");
}

#[test]
fn parameters_that_do_not_fit_are_refused_before_anything_runs() {
    assert!(healing().check().is_ok() && training().check().is_ok());
    for (wrong, param) in [
        (Distill { teacher: None, ..healing() }, "teacher"),
        (Distill { layerwise: None, self_fed: None, kl: None, ..healing() }, "kl"),
        (Distill { processes: 0, ..healing() }, "processes"),
        (Distill { processes: 9, ..healing() }, "processes"),
        (Distill { micro_batch_tokens: 0, ..healing() }, "micro-batch-tokens"),
        (Distill { cross_entropy: phase(1, 0.1), ..healing() }, "cross-entropy"),
        (Distill { texts: None, ..healing() }, "splits"),
        (Distill { kl: phase(0, 0.1), ..healing() }, "kl"),
        (Distill { only: vec!["{".into()], ..healing() }, "only.0"),
        (Distill { max_length: 1, ..healing() }, "max-length"),
        (Distill { ema: Some(Finite(1.0)), ..healing() }, "ema"),
        (
            Distill {
                ema: Some(Finite(0.9)),
                held_out: HeldOut { tokens: 0, ..HeldOut::default() },
                ..healing()
            },
            "ema",
        ),
        (Distill { held_out: HeldOut { every: 0, ..HeldOut::default() }, ..healing() }, "held-out"),
        (Distill { held_out: HeldOut { keep: 0, ..HeldOut::default() }, ..healing() }, "held-out"),
        (Distill { loss: Loss { temperature: Finite(0.0), ..Loss::default() }, ..healing() }, "loss"),
        (
            Distill { loss: Loss { temperature: Finite(2.0), ..Loss::default() }, kl: None, ..healing() },
            "loss",
        ),
    ] {
        assert_eq!(wrong.check().unwrap_err().param, param);
    }
}

#[test]
fn what_trains_is_the_attention_of_latent_layers_however_they_are_spelt() {
    let latent = json!({"kv_lora_rank": 10, "rope_pairs": [0]});
    // The second layer as this program writes it, the third as transformers does.
    let config = json!({"layer_types": ["full_attention", "latent_attention", "full_attention"],
        "mla": [null, latent, latent]});
    for (name, expected) in [
        ("model.layers.0.self_attn.q_proj.weight", false),
        ("model.layers.1.self_attn.q_proj.weight", true),
        ("model.layers.1.self_attn.sinks", true),
        ("model.layers.2.self_attn.kv_a_proj.bias", true),
        ("model.layers.1.mlp.router.weight", false),
        ("model.layers.1.input_layernorm.weight", false),
        ("model.layers.3.self_attn.q_proj.weight", false),
        ("model.layers.x.self_attn.q_proj.weight", false),
        ("lm_head.weight", false),
    ] {
        assert_eq!(save::is_latent_attention(&config, name), expected, "{name}");
    }
    assert!(!save::is_latent_attention(&json!({}), "model.layers.1.self_attn.sinks"));
}
