//! A tiny model in OpenAI's layout (`tests/golden/original.py`): what it becomes, logits of OpenAI's own code, and every fault.

use std::{fs, path::PathBuf};

use super::*;
use crate::{
    artifact::{
        Artifact,
        checkpoint::{Draft, Owned, files_in},
    },
    model::{Batch, Model, probe::NoProbe},
    stage::{Stage, model::ModelSource, testing::Bench},
};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gptoss-original")
}

/// A copy of the fixture, as a user would have it.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model--00001-of-00002.safetensors", "model--00002-of-00002.safetensors"] {
        fs::copy(golden().join(file), dir.path().join(file)).unwrap();
    }
    fs::write(dir.path().join("dtypes.json"), "{}").unwrap();
    dir
}

fn source(dir: &Path) -> Checkpoint {
    Checkpoint::load(&files_in(dir).unwrap()).unwrap()
}

fn run(dir: &Path) -> Result<Bench, Failure> {
    let stage: ModelSource = toml::from_str(&format!("path = {dir:?}")).unwrap();
    let bench = Bench::new().reads(stage.reads(&|_| "".into()).unwrap());
    bench.run(&stage).map(|()| bench)
}

fn logits(checkpoint: &Checkpoint) -> Vec<f32> {
    let tokens: Vec<u32> = serde_json::from_slice(&fs::read(golden().join("tokens.json")).unwrap()).unwrap();
    let model = Model::frozen(checkpoint).unwrap();
    crate::kernel::testing::flat(&model.logits(&Batch::new([&tokens[..]]), &mut NoProbe).unwrap())
}

/// What OpenAI's code computes.
fn expected() -> Vec<f32> {
    let bytes = fs::read(golden().join("expected.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor("logits").unwrap().data().to_vec();
    data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn largest_difference(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

#[test]
fn the_logits_are_those_of_openais_code() {
    let dir = folder();
    let difference = largest_difference(&logits(&run(dir.path()).unwrap().load("checkpoint")), &expected());
    assert!(difference <= 1e-4, "{difference}");
}

#[test]
fn names_shapes_and_bytes_are_those_of_hugging_faces_layout() {
    let dir = folder();
    let bench = run(dir.path()).unwrap();
    assert_eq!(
        bench.files("checkpoint").into_keys().collect::<Vec<_>>(),
        ["config.json", "model.safetensors"]
    );
    let (from, to): (_, Checkpoint) = (source(dir.path()), bench.load("checkpoint"));
    assert_eq!(to.names().count(), 3 + 19 * 3);
    let layer = |part: &str| format!("model.layers.1.{part}");
    for (ours, theirs) in [
        ("model.embed_tokens.weight".to_owned(), "embedding.weight"),
        ("lm_head.weight".to_owned(), "unembedding.weight"),
        (layer("mlp.experts.gate_up_proj_blocks"), "block.1.mlp.mlp1_weight.blocks"),
        (layer("mlp.experts.down_proj_scales"), "block.1.mlp.mlp2_weight.scales"),
        (layer("mlp.experts.gate_up_proj_bias"), "block.1.mlp.mlp1_bias"),
        (layer("post_attention_layernorm.weight"), "block.1.mlp.norm.scale"),
        (layer("input_layernorm.weight"), "block.1.attn.norm.scale"),
    ] {
        let (ours, theirs) = (to.raw(&ours).unwrap(), from.raw(theirs).unwrap());
        assert_eq!((ours.dtype, ours.shape, ours.bytes), (theirs.dtype, theirs.shape, theirs.bytes));
    }
    for (part, shape) in [("weight", &[32][..]), ("bias", &[])] {
        let of = |map: &str| to.raw(&layer(&format!("self_attn.{map}_proj.{part}"))).unwrap();
        let joined = ["q", "k", "v"].map(|map| of(map).bytes).concat();
        assert_eq!(joined, from.raw(&format!("block.1.attn.qkv.{part}")).unwrap().bytes);
        assert_eq!(of("q").shape, [&[64], shape].concat());
        assert_eq!(of("k").shape, [&[32], shape].concat());
    }
}

#[test]
fn the_configuration_is_spelled_as_hugging_face_does() {
    let dir = folder();
    let config = run(dir.path()).unwrap().load::<Checkpoint>("checkpoint").config;
    for (key, value) in [
        ("model_type", json!("gpt_oss")),
        ("num_local_experts", json!(4)),
        ("num_experts_per_tok", json!(2)),
        ("max_position_embeddings", json!(131_072)),
        ("swiglu_limit", json!(1.5)),
        ("eos_token_id", Value::Null),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    let yarn = json!({"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "original_max_position_embeddings": 4096, "truncate": false});
    assert_eq!(config["rope_scaling"], yarn);
    // Of the published vocabulary the ends are known, and a factor of 1 scales nothing.
    let mut json = source(dir.path()).config;
    (json["vocab_size"], json["rope_scaling_factor"]) = (201_088.into(), 1.0.into());
    json.as_object_mut().unwrap().remove("swiglu_limit");
    let plain = serde_json::from_value::<Config>(json).unwrap().json();
    assert_eq!((&plain["eos_token_id"], plain.get("rope_scaling")), (&json!(200_002), None));
    assert_eq!((&plain["max_position_embeddings"], &plain["swiglu_limit"]), (&json!(4096), &json!(7.0)));
}

#[test]
fn all_faults_are_told_under_openais_names_and_nothing_is_written() {
    let mut draft = Draft::copy_of(&source(folder().path())).unwrap();
    draft.tensors.remove("norm.scale");
    draft.tensors.remove("block.2.mlp.mlp1_weight.scales");
    draft.tensors.insert("block.1.attn.qkv.bias".into(), Owned::f32(&[1], &[0.0]));
    draft.tensors.insert("block.0.attn.sinks".into(), Owned::u8(&[4], vec![0; 4]));
    let dir = tempfile::tempdir().unwrap();
    draft.save(dir.path()).unwrap();
    let error = run(dir.path()).err().unwrap().to_string();
    for line in [
        "`norm.scale` is missing",
        "`block.2.mlp.mlp1_weight.scales` is missing",
        "`block.1.attn.qkv.bias` has shape [1], expected [128]",
        "`block.0.attn.sinks` has element type U8, expected BF16, F16 or F32",
    ] {
        assert!(error.contains(line), "{error}");
    }
    assert_eq!(error.lines().count(), 5, "{error}");
}

#[test]
fn a_configuration_of_another_spelling_is_told() {
    let dir = folder();
    fs::write(dir.path().join("config.json"), "{\"model_type\": \"gpt_oss\"}").unwrap();
    let error = run(dir.path()).err().unwrap().to_string();
    assert!(error.contains("config.json is not OpenAI's: missing field"), "{error}");
}
