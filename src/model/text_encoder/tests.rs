//! Text encoders against other implementations (tests/golden/encoders.py), and what must not change a bit.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::{
    artifact::{
        Artifact,
        checkpoint::{Draft, Owned, files_in},
        encoder::Encoder,
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

/// The vectors of a folder's model for texts, as its first token has them after the last block.
fn of_weights(folder: &Path, texts: &[&str]) -> Vec<Vec<f64>> {
    let files = files_in(folder).unwrap();
    let encoder = TextEncoder::load(&Checkpoint::load(&files).unwrap()).unwrap();
    let tokenizer = Encoder::from_file(&files["tokenizer.json"]).unwrap();
    let (before, behind) = tokenizer.around().unwrap();
    let ids = |text: &&str| [&before[..], &tokenizer.ids(text).unwrap(), &behind].concat();
    let ids: Vec<Vec<u32>> = texts.iter().map(ids).collect();
    encoder.embed(&views(&ids), Pooling::Cls).unwrap()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Snapshots of text-embeddings-inference for the published weights (f32, CPU); its own runs differ by 3e-3 between batches.
#[test]
#[ignore = "needs weights: GTE_BASE=FOLDER cargo test --lib published -- --ignored, with Alibaba-NLP/gte-base-en-v1.5 in FOLDER"]
fn published_vectors_of_gte_base() {
    #[expect(clippy::disallowed_methods, reason = "a test that the user asks for")]
    let folder = std::env::var("GTE_BASE").expect("GTE_BASE names the folder with the weights");
    let texts = ["What is Deep Learning?", "Deep Learning is..."];
    let [question, answer] = &of_weights(Path::new(&folder), &texts)[..] else { panic!("two vectors") };
    let of_question = [
        0.441_512_9,
        0.610_668_84,
        0.069_486_84,
        -0.593_061_45,
        0.881_581_7,
        -0.109_781_32,
        0.088_771_455,
        -0.208_330_27,
        1.933_712,
        0.623_739_8,
        0.593_116_5,
        0.185_807_06,
    ];
    let of_answer = [0.040_542_047, 0.424_460_17, 0.196_127_27, -0.495_746_97, 0.591_925_26];
    for (i, (got, want)) in question.iter().zip(of_question).chain(answer.iter().zip(of_answer)).enumerate() {
        assert!((got - want).abs() < 3e-3, "{i}: {got}, published {want}");
    }
    let (q, a) = (dot(question, question).sqrt(), dot(answer, answer).sqrt());
    assert!((q - 21.437).abs() < 2e-3 && (a - 21.277).abs() < 2e-3, "norms {q}, {a}");
    let cosine = dot(question, answer) / q / a;
    assert!((cosine - 0.776_02).abs() < 1e-4, "cosine {cosine}");
}

/// As above.
#[test]
#[ignore = "needs weights: GTE_MULTILINGUAL=FOLDER cargo test --lib published -- --ignored, with Alibaba-NLP/gte-multilingual-base in FOLDER"]
fn published_vectors_of_gte_multilingual() {
    #[expect(clippy::disallowed_methods, reason = "a test that the user asks for")]
    let folder =
        std::env::var("GTE_MULTILINGUAL").expect("GTE_MULTILINGUAL names the folder with the weights");
    let vectors = of_weights(Path::new(&folder), &["What is Deep Learning?"]);
    let published = [0.016_608_043, -0.573_814_1, -1.264_700_5, 0.114_309_5, 1.139_528_6];
    for (i, (got, want)) in vectors[0].iter().zip(published).enumerate() {
        assert!((got - want).abs() < 3e-3, "{i}: {got}, published {want}");
    }
}
