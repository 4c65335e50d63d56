//! The model stage: what it takes, what it refuses, and what it writes.

use super::*;
use crate::{
    artifact::checkpoint::{Draft, Owned},
    engine::action::{NoCheckpoints, Stop},
    stage::testing::{Bench, Says},
};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");

fn source(toml: &str) -> ModelSource {
    toml::from_str(toml).unwrap()
}

fn broken(change: impl Fn(&mut Draft)) -> (tempfile::TempDir, ModelSource) {
    let folder = Path::new(GOLDEN).join("gptoss-dense");
    let mut files = files_in(&folder).unwrap();
    files.remove("expected.safetensors");
    let mut draft = Draft::copy_of(&Checkpoint::load(&files).unwrap()).unwrap();
    change(&mut draft);
    let dir = tempfile::tempdir().unwrap();
    draft.save(dir.path()).unwrap();
    let stage = source(&format!("path = {:?}", dir.path()));
    (dir, stage)
}

fn run(stage: &ModelSource) -> Result<Bench, Failure> {
    let bench = Bench::new().reads(stage.reads(&|_| "".into()).unwrap());
    bench.run(stage).map(|()| bench)
}

#[test]
fn a_sound_model_passes_with_its_side_files() {
    let (_dir, stage) = broken(|draft| {
        draft.side_files.insert("tokenizer.json".into(), b"{}".to_vec());
    });
    let bench = run(&stage).unwrap();
    let checkpoint: Checkpoint = bench.load("checkpoint");
    assert!(checkpoint.raw("model.layers.0.self_attn.sinks").is_some());
    assert_eq!(
        bench.files("checkpoint").keys().collect::<Vec<_>>(),
        ["config.json", "model.safetensors", "tokenizer.json", "tokens.json"]
    );
}

#[test]
fn every_fault_is_reported_in_one_error() {
    let (_dir, stage) = broken(|draft| {
        draft.tensors.remove("model.norm.weight");
        draft.tensors.remove("model.layers.3.self_attn.sinks");
        draft.tensors.insert("model.layers.1.self_attn.q_proj.bias".into(), Owned::f32(&[1], &[0.0]));
    });
    let error = run(&stage).err().unwrap().to_string();
    for part in [
        "`model.norm.weight` is missing",
        "`model.layers.3.self_attn.sinks` is missing",
        "`model.layers.1.self_attn.q_proj.bias` has shape [1], expected [128]",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn an_unknown_architecture_is_named() {
    let (_dir, stage) = broken(|draft| draft.config["model_type"] = "gpt9".into());
    let error = run(&stage).err().unwrap().to_string();
    assert!(error.contains("model_type `gpt9` is not supported"), "{error}");
}

#[test]
fn folders_that_are_no_model_are_refused_at_path() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("empty")).unwrap();
    fs::create_dir(dir.path().join("half")).unwrap();
    fs::write(dir.path().join("half/config.json"), "{}").unwrap();
    for (folder, message) in [
        ("missing", "there is no folder `"),
        ("empty", "there is no config.json in `"),
        ("half", "there is no *.safetensors in `"),
    ] {
        let error = source(&format!("path = {folder:?}")).reads(&|_| dir.path().to_owned()).unwrap_err();
        assert_eq!(error.param, "path");
        assert!(error.message.starts_with(message), "{error}");
    }
}

#[test]
fn random_weights_come_alone_and_with_a_tokenizer_that_is_there() {
    for (toml, param) in [
        ("random = 'gpt-oss-20b'\npath = 'm'", "path"),
        ("random = 'gpt-oss-20b'\nhub = 'a/b'", "hub"),
        ("random = 'gpt-oss-20b'\nrevision = 'v1'", "revision"),
        ("hub = 'a/b'\ntokenizer = 't.json'", "tokenizer"),
    ] {
        assert_eq!(source(toml).check().unwrap_err().param, param, "{toml}");
    }
    let stage = source("random = 'gpt-oss-120b'\ntokenizer = 't.json'");
    assert_eq!((stage.check(), stage.repos()), (Ok(()), vec![]));
    let dir = tempfile::tempdir().unwrap();
    let reads = || stage.reads(&|_| dir.path().to_owned());
    assert_eq!(reads().unwrap_err().param, "tokenizer");
    fs::write(dir.path().join("t.json"), "{}").unwrap();
    assert_eq!(reads().unwrap()[0].name, "tokenizer.json");
    assert_eq!(
        serde_json::to_value(source("random = 'gpt-oss-20b'")).unwrap(),
        serde_json::json!({"random": "gpt-oss-20b"})
    );
}

#[test]
fn of_the_hub_only_what_lies_at_the_top_is_read() {
    let stage = source("hub = 'openai/gpt-oss-20b'\nrevision = 'v1'");
    assert_eq!((stage.check(), stage.reads(&|_| "".into())), (Ok(()), Ok(vec![])));
    let repos = stage.repos();
    assert_eq!((&*repos[0].id, &*repos[0].revision), ("openai/gpt-oss-20b", "v1"));
    assert!(repos[0].files.iter().all(|glob| glob.starts_with('*') && !glob.contains('/')));
    assert_eq!(
        serde_json::to_value(&stage).unwrap(),
        serde_json::json!({}),
        "object ids are in the key instead"
    );
    assert!(Bench::new().run(&stage).unwrap_err().to_string().contains("config.json"));
}

#[test]
fn combinations_that_make_no_sense() {
    for (toml, param) in [
        ("", "path"),
        ("path = 'a'\nhub = 'b/c'", "hub"),
        ("path = 'a'\nrevision = 'x'", "revision"),
        ("hub = 'gpt'", "hub"),
    ] {
        assert_eq!(source(toml).check().unwrap_err().param, param, "{toml}");
    }
}

#[test]
fn a_tokenizer_goes_beside_a_folder_that_has_none() {
    let (dir, _) = broken(|_| {});
    let path = dir.path().join("mine");
    fs::write(&path, "{}").unwrap();
    let stage = source(&format!("path = {:?}\ntokenizer = {path:?}", dir.path()));
    assert_eq!(stage.check(), Ok(()));
    let bench = run(&stage).unwrap();
    assert_eq!(fs::read_to_string(&bench.files("checkpoint")["tokenizer.json"]).unwrap(), "{}");
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    let error = stage.reads(&|_| "".into()).unwrap_err();
    assert_eq!(
        (&*error.param, &*error.message),
        ("tokenizer", "the model's folder has a tokenizer.json of its own")
    );
}

#[test]
fn a_shard_that_the_index_names_and_nobody_has_is_told() {
    let index = |files: &[&str]| {
        let tensor = |(i, file): (usize, &&str)| (format!("t{i}"), serde_json::json!(file));
        let map: serde_json::Map<_, _> = files.iter().enumerate().map(tensor).collect();
        serde_json::json!({"weight_map": map}).to_string().into_bytes()
    };
    let with = |files: &[&str]| {
        let index = index(files);
        let (_dir, stage) = broken(|draft| {
            draft.side_files.insert("model.safetensors.index.json".into(), index.clone());
        });
        run(&stage).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(with(&["model.safetensors"]), Ok(()));
    let error =
        with(&["model.safetensors", "model-2.safetensors", "model-3.safetensors", "model-3.safetensors"]);
    let error = error.unwrap_err();
    for line in [
        "`model-2.safetensors` is not there; by model.safetensors.index.json it holds 1 tensors, such as `t1`",
        "`model-3.safetensors` is not there; by model.safetensors.index.json it holds 2 tensors, such as `t2`",
    ] {
        assert!(error.contains(line), "{error}");
    }
}

#[test]
fn a_file_that_is_cut_off_is_named() {
    let (dir, stage) = broken(|_| {});
    let path = dir.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    for n in [4, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..n]).unwrap();
        let error = run(&stage).err().unwrap().to_string();
        assert!(error.contains("file `model.safetensors`, header: "), "{n}: {error}");
    }
}

#[test]
fn a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused() {
    let with = |tokenizer: &str| {
        let (_dir, stage) = broken(|draft| {
            draft.side_files.insert("tokenizer.json".into(), tokenizer.as_bytes().to_vec());
        });
        run(&stage).map(drop).map_err(|error| error.to_string())
    };
    let added = |id: usize| {
        format!(
            "{{\"added_tokens\": [{{\"id\": 3}}, {{\"id\": {id}}}], \"model\": {{\"vocab\": {{\"a\": 7}}}}}}"
        )
    };
    let listed = |n: usize| format!("{{\"model\": {{\"vocab\": {:?}}}}}", vec![1; n]);
    for good in [added(95), listed(96), "{\"model\": {\"vocab\": {\"a\": 95}}}".to_owned()] {
        assert_eq!(with(&good), Ok(()), "{good}");
    }
    for bad in [added(96), listed(97), "{\"model\": {\"vocab\": {\"a\": 96}}}".to_owned()] {
        let error = with(&bad).unwrap_err();
        assert!(
            error.contains("has ids up to 96, and the embedding has 96 rows; is this the model's own"),
            "{error}"
        );
    }
}

#[test]
fn weights_that_are_not_finite_are_told_all_at_once() {
    let (_dir, stage) = broken(|draft| {
        for (name, at, bits) in [
            ("model.layers.3.self_attn.q_proj.weight", 33, 0x7fc0u16),
            ("model.norm.weight", 2, 0xff80),
            ("model.layers.1.mlp.experts.down_proj", 0, 0x7f80),
        ] {
            draft.tensors.get_mut(name).unwrap().bytes[2 * at..][..2].copy_from_slice(&bits.to_le_bytes());
        }
    });
    let error = run(&stage).err().unwrap().to_string();
    for line in [
        "the weights cannot be used:",
        "`model.layers.3.self_attn.q_proj.weight` is NaN at [1, 1]",
        "`model.norm.weight` is -inf at [2]",
        "`model.layers.1.mlp.experts.down_proj` is inf at [0, 0, 0]",
    ] {
        assert!(error.contains(line), "{error}");
    }
}

#[test]
fn tensors_that_the_model_does_not_read_are_said() {
    let said = |names: usize| {
        let (_dir, stage) = broken(|draft| {
            for i in 0..names {
                draft.tensors.insert(format!("extra.{i:02}"), Owned::f32(&[1], &[0.0]));
            }
        });
        let (bench, said) = (Bench::new().reads(stage.reads(&|_| "".into()).unwrap()), Says::default());
        bench.run_with(&stage, &said, &NoCheckpoints, &Stop::default()).unwrap();
        said.0.into_inner().unwrap()
    };
    assert_eq!(said(0), [""; 0]);
    assert_eq!(said(2), ["the model does not read 2 of the tensors: `extra.00`, `extra.01`"]);
    assert!(said(20)[0].ends_with("`extra.07` and 12 more"), "{:?}", said(20));
}
