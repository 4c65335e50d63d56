//! GGUF files that the `gguf` package wrote (`tests/golden/gguf_llama.py`): values, logits of transformers, tokenizers, and what is refused.

use std::{collections::HashMap, fs};

use candle_core::quantized::{
    GgmlDType,
    gguf_file::{TensorInfo, Value},
};
use serde_json::json;

use super::*;
use crate::{
    artifact::{
        Artifact,
        checkpoint::{Checkpoint, files_in},
        encoder::Encoder,
    },
    kernel::testing::flat,
    model::{Batch, Model, probe::NoProbe},
    stage::{Invalid, Stage, model::ModelSource, testing::Bench},
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf").join(name)
}

fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&fs::read(golden(name)).unwrap()).unwrap()
}

/// A file of expected tensors, with an empty configuration beside it.
fn expected(name: &str) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    fs::copy(golden(name), dir.path().join("model.safetensors")).unwrap();
    let checkpoint = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
    (dir, checkpoint)
}

fn stage(path: &Path, more: &str) -> ModelSource {
    toml::from_str(&format!("path = {path:?}\n{more}")).unwrap()
}

fn run(stage: &ModelSource) -> Result<Bench, Failure> {
    let bench = Bench::new().reads(stage.reads(&|_| "".into()).unwrap());
    bench.run(stage).map(|()| bench)
}

fn imported(name: &str) -> Bench {
    run(&stage(&golden(name), "")).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_type_of_block_has_the_values_of_the_gguf_package() {
    let gguf = Gguf::open(&golden("blocks.gguf")).unwrap();
    let (_dir, expected) = expected("blocks.safetensors");
    assert_eq!(gguf.content.tensor_infos.len(), 13);
    let infos: std::collections::BTreeMap<_, _> = gguf.content.tensor_infos.iter().collect();
    for (name, info) in infos {
        let n = info.shape.elem_count();
        let want = expected.raw(name).unwrap().to_f32().unwrap();
        assert_eq!(bits(&tensors::unpack(&gguf, info, 0, n).unwrap()), bits(&want), "{name}");
        // The second row alone.
        assert_eq!(
            bits(&tensors::unpack(&gguf, info, n / 2, n / 2).unwrap()),
            bits(&want[n / 2..]),
            "{name}"
        );
    }
}

#[test]
fn an_imported_model_has_the_logits_of_transformers() {
    let tokens: Vec<u32> = serde_json::from_value(json("tokens.json")).unwrap();
    let (_dir, expected) = expected("expected.safetensors");
    for (file, layer) in [("llama", 1), ("tied", 1)] {
        let bench = imported(&format!("{file}.gguf"));
        let checkpoint: Checkpoint = bench.load("checkpoint");
        for part in ["q_proj", "k_proj"] {
            let got = checkpoint.raw(&format!("model.layers.{layer}.self_attn.{part}.weight")).unwrap();
            let want = expected.raw(&format!("{file}.{part}")).unwrap();
            assert_eq!(
                (got.shape, bits(&got.to_f32().unwrap())),
                (want.shape, bits(&want.to_f32().unwrap()))
            );
        }
        let model = Model::frozen(&checkpoint).unwrap();
        let logits = flat(&model.logits(&Batch::new([&tokens[..]]), &mut NoProbe).unwrap());
        let vocab = model.config.vocab_size;
        let got: Vec<f32> = logits.chunks(vocab).step_by(4).flatten().copied().collect();
        let want = expected.raw(&format!("{file}.logits")).unwrap().to_f32().unwrap();
        let largest = got.iter().zip(&want).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(got.len() == want.len() && largest < 5e-4, "{file}: {largest}");
        // Without its scaling of the frequencies it is another model.
        let mut config = checkpoint.config.clone();
        config.as_object_mut().unwrap().remove("rope_scaling").expect("both have one");
        let dir = tempfile::tempdir().unwrap();
        checkpoint.save(dir.path()).unwrap();
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let other = Model::frozen(&Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap()).unwrap();
        let logits = flat(&other.logits(&Batch::new([&tokens[..]]), &mut NoProbe).unwrap());
        let apart = logits
            .chunks(vocab)
            .step_by(4)
            .flatten()
            .zip(&want)
            .fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(apart > 10.0 * largest.max(1e-4), "{file}: {apart}");
    }
}

#[test]
fn the_configuration_is_that_of_the_metadata() {
    let config = imported("llama.gguf").load::<Checkpoint>("checkpoint").config;
    for (key, value) in [
        ("model_type", json!("llama")),
        ("head_dim", json!(16)),
        ("num_key_value_heads", json!(2)),
        ("rms_norm_eps", json!(1e-5)),
        ("rope_theta", json!(500_000.0)),
        ("tie_word_embeddings", json!(false)),
        ("attention_bias", json!(false)),
        ("vocab_size", json!(320)),
        ("dtype", json!("float32")),
        ("bos_token_id", json!(316)),
        ("eos_token_id", json!(317)),
    ] {
        assert_eq!(config[key], value, "{key}");
    }
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192.0});
    assert_eq!(config["rope_scaling"], scaling);
    let tied = imported("tied.gguf").load::<Checkpoint>("checkpoint");
    assert_eq!(tied.config["tie_word_embeddings"], true);
    assert_eq!(tied.config["rope_scaling"], json!({"rope_type": "linear", "factor": 4.0}));
    assert_eq!(tied.config["dtype"], "bfloat16", "halves are kept");
    assert_eq!(tied.raw("model.embed_tokens.weight").unwrap().dtype, safetensors::Dtype::BF16);
}

/// The metadata of the fixture with some of it changed.
fn metadata(changes: &[(&str, Value)]) -> HashMap<String, Value> {
    let mut metadata = Gguf::open(&golden("llama.gguf")).unwrap().content.metadata;
    metadata.extend(changes.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    metadata
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

#[test]
fn texts_become_the_ids_that_the_families_own_tokenizers_give() {
    let expected = json("tokenizer.json");
    let texts: Vec<String> = serde_json::from_value(expected["texts"].clone()).unwrap();
    for (pre, ids) in expected["ids"].as_object().unwrap() {
        let metadata = metadata(&[("tokenizer.ggml.pre", text(pre))]);
        let files: HashMap<_, _> = tokenizer::files(Meta(&metadata)).unwrap().into_iter().collect();
        let encoder = Encoder::from_json(&files["tokenizer.json"]).unwrap();
        let got: Vec<Vec<u32>> = texts.iter().map(|text| encoder.ids(text).unwrap()).collect();
        assert_eq!(json!(got), *ids, "{pre}");
        let begins = if pre == "llama-bpe" { vec![316] } else { vec![] };
        assert_eq!(encoder.around().unwrap(), (begins, vec![]), "{pre}");
    }
}

#[test]
fn special_tokens_are_known_by_kind_and_role() {
    let bench = imported("llama.gguf");
    let files = bench.files("checkpoint");
    let encoder = Encoder::from_file(&files["tokenizer.json"]).unwrap();
    assert_eq!(encoder.ids_of("a<|end|>", true).unwrap().last(), Some(&317));
    assert_eq!(
        (encoder.id("<|user|>"), encoder.id("[PAD319]")),
        (Some(318), None),
        "what fills up is no token"
    );
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(&files["tokenizer_config.json"]).unwrap()).unwrap();
    assert_eq!((&config["bos_token"], &config["eos_token"]), (&json!("<|begin|>"), &json!("<|end|>")));
    assert_eq!(fs::read_to_string(&files["chat_template.jinja"]).unwrap(), "{{ messages }}");
}

#[test]
fn a_tokenizer_that_cannot_be_made_is_asked_for() {
    for (key, value, part) in [
        ("tokenizer.ggml.pre", "viking", "tokenizer.ggml.pre is `viking`, which is not known; known: gpt-2"),
        ("tokenizer.ggml.model", "llama", "tokenizer.ggml.model is `llama`, and only `gpt2`"),
    ] {
        let error = tokenizer::files(Meta(&metadata(&[(key, text(value))]))).unwrap_err().to_string();
        assert!(error.contains(part) && error.ends_with("`tokenizer = \"tokenizer.json\"`"), "{error}");
    }
    let far = metadata(&[("tokenizer.ggml.eos_token_id", Value::U32(320))]);
    let error = tokenizer::files(Meta(&far)).unwrap_err().to_string();
    assert!(error.contains("tokenizer.ggml.eos_token_id is 320, and there are 320 tokens"), "{error}");
}

#[test]
fn a_tokenizer_that_is_given_takes_the_place_of_the_files_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.json");
    fs::write(&path, "{}").unwrap();
    let bench = run(&stage(&golden("llama.gguf"), &format!("tokenizer = {path:?}"))).unwrap();
    let files = bench.files("checkpoint");
    assert_eq!(fs::read_to_string(&files["tokenizer.json"]).unwrap(), "{}");
    assert!(!files.contains_key("tokenizer_config.json"), "{files:?}");
}

#[test]
fn a_folder_with_one_file_is_that_file_and_with_several_a_question() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(golden("tied.gguf"), dir.path().join("a.gguf")).unwrap();
    fs::write(dir.path().join("LICENSE"), "MIT").unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    let bench = run(&stage(dir.path(), "")).unwrap();
    assert!(bench.files("checkpoint").contains_key("LICENSE"));
    let (one, other) = (bench.bytes(), imported("tied.gguf").bytes());
    assert_eq!(one["checkpoint/model.safetensors"], other["checkpoint/model.safetensors"]);
    assert_eq!(one["checkpoint/config.json"], other["checkpoint/config.json"]);
    fs::copy(golden("tied.gguf"), dir.path().join("b.gguf")).unwrap();
    let Invalid { message, hint, .. } = stage(dir.path(), "").reads(&|_| "".into()).unwrap_err();
    assert!(message.starts_with("there are several .gguf files in"), "{message}");
    assert!(hint.unwrap().contains("name one of them"));
}

#[test]
fn metadata_that_cannot_be_honoured_are_refused_by_key() {
    for (key, value, part) in [
        ("general.architecture", text("qwen2"), "general.architecture is `qwen2`; only `llama`"),
        ("split.count", Value::U16(3), "llama-gguf-split --merge"),
        ("llama.expert_count", Value::U32(8), "`llama.expert_count` is not supported"),
        ("llama.rope.dimension_count", Value::U32(8), "is 8 where a head has 16"),
        ("llama.rope.scaling.type", text("longrope"), "`longrope`"),
        ("llama.rope.scaling.type", text("yarn"), "`llama.rope.scaling.factor` is missing"),
        ("llama.block_count", text("two"), "`llama.block_count` is not one whole number"),
        (
            "llama.attention.head_count_kv",
            Value::Array(vec![Value::I32(2), Value::I32(1)]),
            "`llama.attention.head_count_kv` is not one",
        ),
    ] {
        let error = Meta(&metadata(&[(key, value)])).llama().unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let mut lacking = metadata(&[]);
    lacking.remove("llama.attention.layer_norm_rms_epsilon");
    let error = Meta(&lacking).llama().unwrap_err().to_string();
    assert!(error.contains("layer_norm_rms_epsilon` is missing"), "{error}");
    let equal = Value::Array(vec![Value::I32(2); 2]);
    let same = Meta(&metadata(&[("llama.attention.head_count_kv", equal)])).llama().unwrap();
    assert_eq!(same, Meta(&metadata(&[])).llama().unwrap());
}

#[test]
fn yarn_and_the_old_key_of_linear_scaling_are_read() {
    let llama = |changes: &[(&str, Value)]| Meta(&metadata(changes)).llama().unwrap();
    let of = |changes: &[(&str, Value)]| {
        // Through the tied file, which has no divisors of its own.
        let gguf = Gguf::open(&golden("tied.gguf")).unwrap();
        let llama = llama(changes);
        let tensors = Tensors::of(&gguf, &llama).unwrap();
        llama.config(&tensors, &gguf).unwrap()["rope_scaling"].clone()
    };
    let linear = of(&[("llama.rope.scale_linear", Value::F32(2.5))]);
    assert_eq!(linear, json!({"rope_type": "linear", "factor": 2.5}));
    let yarn = of(&[
        ("llama.rope.scaling.type", text("yarn")),
        ("llama.rope.scaling.factor", Value::F32(4.0)),
        ("llama.rope.scaling.original_context_length", Value::U32(2048)),
    ]);
    assert_eq!((&yarn["factor"], &yarn["original_max_position_embeddings"]), (&json!(4.0), &json!(2048.0)));
}

#[test]
fn divisors_that_are_not_llama_3s_are_refused() {
    let mut gguf = Gguf::open(&golden("llama.gguf")).unwrap();
    let llama = Meta(&metadata(&[("llama.rope.freq_base", Value::F32(10_000.0))])).llama().unwrap();
    let tensors = Tensors::of(&gguf, &llama).unwrap();
    let error = llama.config(&tensors, &gguf).unwrap_err().to_string();
    assert!(error.contains("does not hold the divisors of Llama 3's frequencies"), "{error}");
    gguf.content.metadata.clear();
}

#[test]
fn everything_that_is_wrong_with_the_tensors_is_told_at_once() {
    let mut gguf = Gguf::open(&golden("llama.gguf")).unwrap();
    let infos = &mut gguf.content.tensor_infos;
    let info = |dtype, shape: &[usize], offset| TensorInfo { ggml_dtype: dtype, shape: shape.into(), offset };
    infos.remove("token_embd.weight");
    infos.insert("blk.0.ffn_gate_exps.weight".into(), info(GgmlDType::F32, &[8, 8], 0));
    infos.insert("blk.1.attn_q.weight".into(), info(GgmlDType::F32, &[24, 64], 0));
    infos.insert("blk.1.attn_k.bias".into(), info(GgmlDType::Q8_0, &[32], 0));
    infos.insert("blk.1.ffn_up.weight".into(), info(GgmlDType::Q4K, &[96, 64], 0));
    infos.insert("blk.1.ffn_down.weight".into(), info(GgmlDType::F32, &[64, 96], 1 << 40));
    let llama = Meta(&metadata(&[])).llama().unwrap();
    let error = Tensors::of(&gguf, &llama).err().unwrap().to_string();
    for line in [
        "`blk.0.ffn_gate_exps.weight` is no tensor of a Llama",
        "`blk.1.attn_q.weight` has 24 rows, which are no whole heads of 16",
        "`blk.1.attn_k.bias` is a vector of Q8_0, whose elements cannot be reordered",
        "`blk.1.ffn_up.weight` has shape [96, 64], whose rows are no whole blocks of Q4K",
        "`blk.1.ffn_down.weight` ends at byte ",
        "`token_embd.weight` is missing",
    ] {
        assert!(error.contains(line), "{error}");
    }
    assert_eq!(error.lines().count(), 7, "{error}");
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_refused() {
    let whole = fs::read(golden("tied.gguf")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.gguf");
    for (n, part) in [
        (2, "cannot be read"),
        (1000, "cannot be read"),
        (whole.len() / 2, "tensors cannot be imported"),
        (whole.len() - 64, "tensors cannot be imported"),
    ] {
        fs::write(&path, &whole[..n]).unwrap();
        let error = run(&stage(&path, "")).err().unwrap().to_string();
        assert!(error.contains(part), "{n}: {error}");
    }
    fs::write(&path, b"safetensors").unwrap();
    let error = run(&stage(&path, "")).err().unwrap().to_string();
    assert!(error.contains("unknown magic") && error.contains("types that are imported: F32"), "{error}");
}

#[test]
fn rows_of_a_head_that_lie_in_turns_come_apart() {
    let rows: Vec<u8> = (0..8).flat_map(|row| [10 * row, 10 * row + 1]).collect();
    let want: Vec<u8> = [0, 2, 1, 3, 4, 6, 5, 7].iter().flat_map(|row| [10 * row, 10 * row + 1]).collect();
    assert_eq!(tensors::halves(&rows, 4, 2), want);
}
