//! Tests of the whole stage on a tiny model.

use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::{
    artifact::{
        Files,
        bundle::INDEX,
        checkpoint::{Draft, Owned, files_in},
        scores::tests::example,
    },
    model::{Batch, Model, probe::NoProbe},
    stage::testing::Bench,
};

fn golden() -> Checkpoint {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gptoss-dense");
    let mut files = files_in(&dir).unwrap();
    files.retain(|name, _| ["config.json", "model.safetensors"].contains(&name.as_str()));
    Checkpoint::load(&files).unwrap()
}

/// The golden model with a latent layer 1 of random weights and some side files.
fn latent() -> (tempfile::TempDir, Checkpoint) {
    let mut draft = Draft::copy_of(&golden()).unwrap();
    let random = |shape: &[usize]| {
        let value = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 4000.0 - 0.125;
        Owned::f32(shape, &(0..shape.iter().product()).map(value).collect::<Vec<_>>())
    };
    let attention = |map: &str| format!("model.layers.1.self_attn.{map}");
    draft.tensors.retain(|name, _| !["k_proj", "v_proj"].iter().any(|map| name.starts_with(&attention(map))));
    for (map, shape) in [
        ("k_rope_proj.weight", &[12, 32][..]),
        ("k_rope_proj.bias", &[12]),
        ("kv_a_proj.weight", &[20, 32]),
        ("kv_a_proj.bias", &[20]),
        ("kv_b_proj.weight", &[2 * (10 + 16), 20]),
    ] {
        draft.tensors.insert(attention(map), random(shape));
    }
    draft.config["model_type"] = json!("gpt_oss_mla");
    draft.config["layer_types"][1] = json!("latent_attention");
    draft.config["mla"] = json!([null, {"kv_lora_rank": 20, "rope_pairs": [0, 1, 2]}, null, null]);
    draft.config["eos_token_id"] = json!(3);
    for (name, bytes) in
        [("tokenizer.json", "{}"), ("optimizer.bin", "state"), ("chat_template.jinja", "{{ x }}")]
    {
        draft.side_files.insert(name.to_owned(), bytes.into());
    }
    let dir = tempfile::tempdir().unwrap();
    draft.save(dir.path()).unwrap();
    let checkpoint = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
    (dir, checkpoint)
}

fn stage(extra: &Value) -> Export {
    let mut params =
        json!({"checkpoint": "distill", "scores": "evaluate", "check-tokens": 24, "shard-bytes": 60_000});
    params.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    serde_json::from_value(params).unwrap()
}

fn text(files: &Files, name: &str) -> String {
    fs::read_to_string(&files[name]).unwrap()
}

fn parsed(files: &Files, name: &str) -> Value {
    serde_json::from_str(&text(files, name)).unwrap()
}

#[test]
fn a_latent_model_becomes_a_complete_folder() {
    let (dir, checkpoint) = latent();
    let card = dir.path().join("chat_template.jinja"); // any file will do
    let dataset =
        FileSet(["README.md", "data/calib.parquet"].map(|name| (name.to_owned(), card.clone())).into());
    let bench =
        Bench::new().input("checkpoint", &checkpoint).input("scores", &example()).input("dataset", &dataset);
    bench.run(&stage(&json!({"dataset": "select.dataset", "name": "o/tiny"}))).unwrap();

    let files = bench.load::<Bundle>("bundle").0;
    let names: Vec<&str> =
        files.keys().map(String::as_str).filter(|name| !name.ends_with(".safetensors")).collect();
    assert_eq!(
        names,
        [
            "LICENSE",
            "README.md",
            "chat_template.jinja",
            "config.json",
            "configuration_gpt_oss_mla.py",
            "conversion_report.json",
            "data/README.md",
            "data/data/calib.parquet",
            "generation_config.json",
            INDEX,
            "modeling_gpt_oss_mla.py",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    );
    assert_eq!(text(&files, "data/data/calib.parquet"), "{{ x }}");
    assert_eq!(parsed(&files, "generation_config.json"), json!({"eos_token_id": 3}));
    assert_eq!(parsed(&files, "conversion_report.json")["layers"][1]["kv_elements_per_token"], 20 + 12);
    assert!(text(&files, "README.md").contains("trust_remote_code=True"));
    let index = parsed(&files, INDEX);
    let shards = files.keys().filter(|name| name.starts_with("model-")).count();
    assert!(shards >= 3, "{shards} shards of 60 kB");
    assert_eq!(index["weight_map"].as_object().unwrap().len(), checkpoint.names().count());
}

#[test]
fn the_bundle_is_a_checkpoint_again_and_its_check_file_holds_our_logits() {
    let (_dir, checkpoint) = latent();
    let bench = Bench::new().input("checkpoint", &checkpoint).input("scores", &example()).seed(7);
    bench.run(&stage(&json!({}))).unwrap();
    let mut files = bench.files("bundle");
    let check = fs::read(files.remove("check.safetensors").unwrap()).unwrap();
    let check = safetensors::SafeTensors::deserialize(&check).unwrap();
    let words = |name: &str| -> Vec<[u8; 4]> {
        check.tensor(name).unwrap().data().chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]).collect()
    };
    let tokens: Vec<u32> = words("tokens").into_iter().map(u32::from_le_bytes).collect();
    assert_eq!(tokens.len(), 24);

    let model = Model::frozen(&Checkpoint::load(&files).unwrap()).unwrap();
    let logits = model.logits(&Batch::new([tokens.as_slice()]), &mut NoProbe).unwrap();
    let logits: Vec<Vec<f32>> = logits.to_vec2().unwrap();
    let positions = words("positions").into_iter().map(|b| u32::from_le_bytes(b) as usize);
    let want: Vec<f32> = positions.flat_map(|p| logits[p].clone()).collect();
    let got: Vec<f32> = words("logits").into_iter().map(f32::from_le_bytes).collect();
    assert_eq!(got.len(), 8 * 96);
    let difference = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference < 1e-5, "{difference}");
}

#[test]
fn a_stock_model_needs_no_code_and_a_checkpoints_own_files_win() {
    let mut draft = Draft::copy_of(&golden()).unwrap();
    draft.side_files.insert("LICENSE".to_owned(), b"theirs".to_vec());
    draft.side_files.insert("generation_config.json".to_owned(), b"{\"eos_token_id\": 9}".to_vec());
    let dir = tempfile::tempdir().unwrap();
    draft.save(dir.path()).unwrap();
    let checkpoint = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
    let bench = Bench::new().input("checkpoint", &checkpoint).input("scores", &example());
    bench.run(&stage(&json!({"check-tokens": 0, "shard-bytes": 1_000_000_000}))).unwrap();
    let files = bench.files("bundle");
    assert!(!files.keys().any(|name| name.contains("gpt_oss_mla")
        || name.starts_with("data/")
        || name == "check.safetensors"));
    assert!(files.contains_key("model-00001-of-00001.safetensors"));
    assert!(!files.contains_key("tokenizer_config.json"), "there is no tokenizer");
    assert_eq!(text(&files, "LICENSE"), "theirs");
    assert_eq!(parsed(&files, "generation_config.json")["eos_token_id"], 9);
    assert_eq!(parsed(&files, "config.json").get("auto_map"), None);
}

#[test]
fn inputs_and_their_ports() {
    let stage = stage(&json!({"dataset": "select.dataset"}));
    let ports: Vec<(String, &str, String)> =
        stage.inputs().into_iter().map(|p| (p.port.into_owned(), p.kind, p.from)).collect();
    let row = |port: &str, kind, from: &str| (port.to_owned(), kind, from.to_owned());
    assert_eq!(
        ports,
        [
            row("checkpoint", "checkpoint", "distill"),
            row("scores", "scores", "evaluate"),
            row("dataset", "files", "select.dataset"),
        ]
    );
}

#[test]
fn parameters_that_make_no_folder_are_refused() {
    for (params, at) in [
        (json!({"name": ""}), "name"),
        (json!({"name": "a/b/c"}), "name"),
        (json!({"name": "a b"}), "name"),
        (json!({"shard-bytes": 0}), "shard-bytes"),
    ] {
        assert_eq!(stage(&params).check().unwrap_err().param, at);
    }
    stage(&json!({"name": "owner/gpt-oss-20b-mla"})).check().unwrap();
}

#[test]
fn a_broken_checkpoint_is_named() {
    let mut draft = Draft::copy_of(&golden()).unwrap();
    draft.tensors.remove("model.layers.2.self_attn.sinks");
    let dir = tempfile::tempdir().unwrap();
    draft.save(dir.path()).unwrap();
    let checkpoint = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
    let bench = Bench::new().input("checkpoint", &checkpoint).input("scores", &example());
    let error = bench.run(&stage(&json!({}))).unwrap_err().to_string();
    assert!(error.contains("`model.layers.2.self_attn.sinks` is missing"), "{error}");
}
