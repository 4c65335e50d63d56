//! Text encoders against other implementations (tests/golden/encoders.py), and what must not change a bit.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::{
    artifact::{
        Artifact,
        checkpoint::{Draft, Owned, files_in},
    },
    kernel::{arch::testing::on_all, testing::on_threads},
};

const BOTH: [&str; 2] = ["encoder-bert", "encoder-new"];

fn folder(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn checkpoint(name: &str) -> Checkpoint {
    let mut files = files_in(&folder(name)).unwrap();
    files.retain(|name, _| name == "config.json" || name == "model.safetensors");
    Checkpoint::load(&files).unwrap()
}

fn texts(name: &str) -> Vec<Vec<u32>> {
    serde_json::from_slice(&std::fs::read(folder(name).join("tokens.json")).unwrap()).unwrap()
}

fn expected(name: &str) -> Vec<f32> {
    let bytes = std::fs::read(folder(name).join("expected.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let data = tensors.tensor("hidden").unwrap().data().to_vec();
    data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn views(texts: &[Vec<u32>]) -> Vec<&[u32]> {
    texts.iter().map(Vec::as_slice).collect()
}

#[test]
fn every_token_has_the_vector_that_others_compute() {
    for name in BOTH {
        let encoder = TextEncoder::load(&checkpoint(name)).unwrap();
        let got = encoder.hidden(&views(&texts(name))).unwrap();
        let want = expected(name);
        let apart = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(got.len() == want.len() && apart < 2e-5, "{name}: {apart:e}");
    }
}

#[test]
fn neither_batch_nor_threads_change_a_bit() {
    for name in BOTH {
        let encoder = TextEncoder::load(&checkpoint(name)).unwrap();
        let texts = texts(name);
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        let [one, two, seven] = on_threads(|| bits(&encoder.hidden(&views(&texts)).unwrap()));
        assert!(one == two && one == seven, "{name}");
        let alone: Vec<u32> = texts.iter().flat_map(|text| bits(&encoder.hidden(&[text]).unwrap())).collect();
        assert_eq!(alone, one, "{name}");
    }
}

/// The bits themselves: a machine that computes something else fails here.
#[test]
fn the_bits_are_these() {
    let sums = BOTH.map(|name| {
        let encoder = TextEncoder::load(&checkpoint(name)).unwrap();
        let hidden = encoder.hidden(&views(&texts(name))).unwrap();
        hidden.iter().fold(0_u64, |sum, x| sum.rotate_left(9) ^ u64::from(x.to_bits()))
    });
    assert_eq!(sums, [9_444_352_355_689_882_452, 8_606_902_897_453_003_018]);
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    for name in BOTH {
        let encoder = TextEncoder::load(&checkpoint(name)).unwrap();
        let texts = texts(name);
        let bits =
            || encoder.hidden(&views(&texts)).unwrap().iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        let all = on_all(bits);
        assert!(all.iter().all(|one| *one == all[0]), "{name} on {} sets of instructions", all.len());
    }
}

#[test]
fn pooling_takes_the_first_token_or_the_mean() {
    let encoder = TextEncoder::load(&checkpoint("encoder-bert")).unwrap();
    let texts = texts("encoder-bert");
    let hidden = encoder.hidden(&views(&texts)).unwrap();
    let cls = encoder.embed(&views(&texts), Pooling::Cls).unwrap();
    let mean = encoder.embed(&views(&texts), Pooling::Mean).unwrap();
    let mut start = 0;
    for (i, text) in texts.iter().enumerate() {
        for j in 0..32 {
            let column = || (0..text.len()).map(|t| f64::from(hidden[(start + t) * 32 + j]));
            assert_eq!(cls[i][j].to_bits(), column().next().unwrap().to_bits());
            assert!((mean[i][j] - column().sum::<f64>() / text.len() as f64).abs() < 1e-12);
        }
        start += text.len();
    }
    assert_eq!(encoder.embed(&[], Pooling::Mean).unwrap().len(), 0);
}

#[test]
fn a_token_of_another_tokenizer_is_refused() {
    let encoder = TextEncoder::load(&checkpoint("encoder-new")).unwrap();
    let error = encoder.hidden(&[&[3, 60]]).unwrap_err().to_string();
    assert_eq!(
        error,
        "token 60 is outside the model's vocabulary of 60: the tokenizer belongs to another model"
    );
}

#[test]
fn all_that_is_wrong_with_weights_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut draft = Draft::copy_of(&checkpoint("encoder-new")).unwrap();
    draft.tensors.remove("encoder.layer.1.attn_ln.bias");
    draft.tensors.insert("encoder.layer.0.mlp.down_proj.bias".into(), Owned::f32(&[31], &[0.0; 31]));
    draft.tensors.insert("embeddings.LayerNorm.weight".into(), Owned::f32(&[32], &[f32::NAN; 32]));
    draft.tensors.insert("encoder.layer.0.attn_ln.bias".into(), Owned::u8(&[32], vec![0; 32]));
    draft.save(dir.path()).unwrap();
    let broken = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
    let error = TextEncoder::load(&broken).err().unwrap().to_string();
    let lines = [
        "the weights do not fit config.json:",
        "  `embeddings.LayerNorm.weight` holds NaN at element 0",
        "  `encoder.layer.0.attn_ln.bias` has elements of type U8",
        "  `encoder.layer.0.mlp.down_proj.bias` has the shape [31], not [32]",
        "  `encoder.layer.1.attn_ln.bias` is missing",
    ];
    assert_eq!(error.lines().collect::<Vec<_>>(), lines);
}

#[test]
fn names_may_have_the_prefix_of_a_model_around() {
    for (name, prefix) in [("encoder-bert", "bert."), ("encoder-new", "new.")] {
        let dir = tempfile::tempdir().unwrap();
        let mut draft = Draft::copy_of(&checkpoint(name)).unwrap();
        draft.tensors =
            draft.tensors.into_iter().map(|(tensor, owned)| (format!("{prefix}{tensor}"), owned)).collect();
        draft.config["architectures"] = json!(["Other"]);
        draft.save(dir.path()).unwrap();
        let around = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
        assert!(TextEncoder::load(&around).is_ok(), "{name}");
    }
}
