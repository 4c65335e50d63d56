//! Checkpoints: shards, damage, element types, and what is written.

use super::*;

fn draft() -> Draft {
    Draft {
        config: serde_json::json!({"model_type": "gpt_oss"}),
        tensors: BTreeMap::from([
            ("a".to_owned(), Owned::f32(&[2, 2], &[1.0, -2.0, 0.5, 3.0])),
            ("b".to_owned(), Owned::bf16(&[3], &[1.0, 1.003, -7.0])),
            ("c".to_owned(), Owned::u8(&[4], vec![1, 2, 3, 255])),
        ]),
        side_files: BTreeMap::from([("tokenizer.json".to_owned(), b"{}".to_vec())]),
    }
}

#[test]
fn round_trip() {
    let dir = tempfile::tempdir().unwrap();
    draft().save(dir.path()).unwrap();
    let checkpoint = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(checkpoint.raw("a").unwrap().to_f32().unwrap(), [1.0, -2.0, 0.5, 3.0]);
    assert_eq!(checkpoint.raw("b").unwrap().to_f32().unwrap(), [1.0, 1.0, -7.0]);
    assert!(checkpoint.raw("c").unwrap().to_f32().is_none());
    assert!(checkpoint.raw("d").is_none());
    assert_eq!(checkpoint.side_files().map(|(name, _)| name).collect::<Vec<_>>(), ["tokenizer.json"]);
    let again = Draft::copy_of(&checkpoint).unwrap();
    assert_eq!((again.tensors, again.side_files), (draft().tensors, draft().side_files));
}

#[test]
fn broken_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    draft().save(dir.path()).unwrap();
    fs::write(dir.path().join(WEIGHTS), b"nonsense").unwrap();
    let error = Checkpoint::load(&files_in(dir.path()).unwrap()).err().unwrap().to_string();
    assert!(error.contains("model.safetensors") && error.contains("header"), "{error}");
    fs::remove_file(dir.path().join(WEIGHTS)).unwrap();
    let error = Checkpoint::load(&files_in(dir.path()).unwrap()).err().unwrap().to_string();
    assert!(error.contains("lacks its file `model.safetensors`"), "{error}");
}

fn write(dir: &Path, name: &str, tensors: &[(&str, Owned)]) {
    let views =
        tensors.iter().map(|(name, t)| (*name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    safetensors::serialize_to_file(views, None, &dir.join(name)).unwrap();
}

fn load(dir: &Path) -> Result<Checkpoint, ArtifactError> {
    Checkpoint::load(&files_in(dir).unwrap())
}

/// Two shards, their index and what else lies beside them on a hub.
fn sharded() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let one = |x: f32| Owned::f32(&[1], &[x]);
    write(dir.path(), "model-00001-of-00002.safetensors", &[("a", one(1.0)), ("d", one(4.0))]);
    write(dir.path(), "model-00002-of-00002.safetensors", &[("b", one(2.0)), ("c", one(3.0))]);
    for (name, text) in [
        ("config.json", "{\"model_type\": \"gpt_oss\"}"),
        ("model.safetensors.index.json", "{\"weight_map\": {}}"),
        ("tokenizer.json", "{}"),
        ("LICENSE", "MIT"),
    ] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

#[test]
fn shards_are_one_checkpoint() {
    let dir = sharded();
    let checkpoint = load(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    let value = |name: &str| checkpoint.raw(name).unwrap().to_f32().unwrap();
    assert_eq!(["a", "b", "c", "d"].map(value), [[1.0], [2.0], [3.0], [4.0]]);
    let side: Vec<&str> = checkpoint.side_files().map(|(name, _)| name).collect();
    assert_eq!(side, ["LICENSE", "tokenizer.json"], "weights, their index and the config are none");
    // Saved, it keeps its shards; as a draft, it becomes one.
    let copy = tempfile::tempdir().unwrap();
    checkpoint.save(copy.path()).unwrap();
    let names = |dir: &Path| files_in(dir).unwrap().into_keys().collect::<Vec<_>>();
    assert_eq!(names(copy.path()), names(dir.path()));
    let joined = tempfile::tempdir().unwrap();
    Draft::copy_of(&checkpoint).unwrap().save(joined.path()).unwrap();
    assert_eq!(names(joined.path()), ["LICENSE", "config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(load(joined.path()).unwrap().names().count(), 4);
}

#[test]
fn a_tensor_in_two_shards_is_named_with_the_second() {
    let dir = sharded();
    write(dir.path(), "model-00003-of-00002.safetensors", &[("b", Owned::f32(&[1], &[9.0]))]);
    let error = load(dir.path()).err().unwrap().to_string();
    assert_eq!(
        error,
        "artifact `checkpoint`, file `model-00003-of-00002.safetensors`, header: tensor `b` is in another shard too"
    );
}

#[test]
fn a_cut_shard_and_a_broken_config_are_named() {
    let dir = sharded();
    let path = dir.path().join("model-00002-of-00002.safetensors");
    let bytes = fs::read(&path).unwrap();
    for keep in [0, 7, 8, 20, bytes.len() - 1] {
        fs::write(&path, &bytes[..keep]).unwrap();
        let error = load(dir.path()).err().unwrap().to_string();
        assert!(error.contains("model-00002-of-00002.safetensors"), "{keep}: {error}");
    }
    fs::write(&path, [&bytes[..], b"more"].concat()).unwrap();
    assert!(load(dir.path()).is_err(), "bytes behind the last tensor");
    fs::write(dir.path().join("config.json"), "{\n\"a\": }").unwrap();
    let error = load(dir.path()).err().unwrap().to_string();
    assert!(error.starts_with("artifact `checkpoint`, file `config.json`, line 2: "), "{error}");
    fs::remove_file(dir.path().join("config.json")).unwrap();
    let error = load(dir.path()).err().unwrap().to_string();
    assert_eq!(error, "artifact `checkpoint` lacks its file `config.json`");
}

#[test]
fn element_types_are_kept_and_only_floats_become_f32() {
    let dir = tempfile::tempdir().unwrap();
    let halves = [1.0f32, -0.0, 65504.0, 5.960_464_5e-8, f32::INFINITY];
    let f16s = halves.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
    let raw = |dtype, shape: &[usize], bytes| Owned { dtype, shape: shape.to_vec(), bytes };
    let tensors = [
        ("f16", raw(Dtype::F16, &[5], f16s)),
        ("f64", raw(Dtype::F64, &[1], vec![0; 8])),
        ("i8", raw(Dtype::I8, &[3], vec![0; 3])),
        ("bool", raw(Dtype::BOOL, &[2], vec![0, 1])),
        ("none", Owned::f32(&[0, 4], &[])),
        ("scalar", Owned::f32(&[], &[7.0])),
    ];
    write(dir.path(), WEIGHTS, &tensors);
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    let checkpoint = load(dir.path()).unwrap();
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&checkpoint.raw("f16").unwrap().to_f32().unwrap()), bits(&halves));
    for name in ["f64", "i8", "bool"] {
        assert!(checkpoint.raw(name).unwrap().to_f32().is_none(), "{name}");
    }
    assert!(checkpoint.raw("none").unwrap().to_f32().unwrap().is_empty());
    assert_eq!(checkpoint.raw("scalar").unwrap().to_f32().unwrap(), [7.0]);
    let again = Draft::copy_of(&checkpoint).unwrap();
    assert!(tensors.iter().all(|(name, tensor)| again.tensors[*name] == *tensor));
}

#[test]
fn bf16_is_rounded_to_nearest_even() {
    let unit = 2f32.powi(-7); // the distance of neighbours above 1
    for (x, want) in [
        (1.0 + unit / 2.0, 1.0),
        (1.0 + 1.5 * unit, 1.0 + 2.0 * unit),
        (1.0 + unit / 2.0 + 1e-6, 1.0 + unit),
        (-1.0 - 1.5 * unit, -1.0 - 2.0 * unit),
        (f32::MAX, f32::INFINITY),
        (1e-45, 0.0),
    ] {
        let stored = Owned::bf16(&[1], &[x]);
        let raw = Raw { dtype: stored.dtype, shape: &stored.shape, bytes: &stored.bytes };
        assert_eq!(raw.to_f32().unwrap()[0].to_bits(), want.to_bits(), "{x}");
    }
}

#[test]
fn a_draft_whose_bytes_do_not_fit_a_shape_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut draft = draft();
    draft.tensors.insert("z".into(), Owned::u8(&[5], vec![0; 4]));
    let error = draft.save(dir.path()).unwrap_err().to_string();
    assert!(error.contains("model.safetensors: "), "{error}");
    assert_eq!(files_in(dir.path()).unwrap().len(), 0);
    let gone = dir.path().join("no/such");
    assert!(files_in(&gone).unwrap_err().to_string().starts_with(&gone.display().to_string()));
}

#[test]
fn equal_drafts_give_equal_bytes_and_transformers_can_tell_the_format() {
    let bytes = || {
        let dir = tempfile::tempdir().unwrap();
        draft().save(dir.path()).unwrap();
        fs::read(dir.path().join(WEIGHTS)).unwrap()
    };
    assert_eq!(bytes(), bytes());
    let (_, metadata) = SafeTensors::read_metadata(&bytes()).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
}

#[test]
fn a_folder_lists_its_own_files_only() {
    let dir = sharded();
    fs::create_dir(dir.path().join("original")).unwrap();
    fs::copy(
        dir.path().join("model-00001-of-00002.safetensors"),
        dir.path().join("original/model.safetensors"),
    )
    .unwrap();
    assert_eq!(load(dir.path()).unwrap().names().count(), 4, "a second copy below is not looked at");
}

#[test]
fn tensors_over_a_file_are_read_in_their_place_and_the_file_stays() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = [("a", 1.0), ("b", 2.0), ("c", 3.0)];
    let tensors = tensors.map(|(name, x)| (name.to_owned(), Owned::f32(&[1], &[x]))).into();
    Draft { tensors, ..Draft::default() }.save(dir.path()).unwrap();
    let below = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
    let over = [("b", 4.0), ("d", 5.0)].map(|(name, x)| (name.to_owned(), Owned::f32(&[1], &[x]))).into();
    let above = below.overlaid(serde_json::json!({"x": 1}), |name| name == "a", over);
    let value = |checkpoint: &Checkpoint, name: &str| {
        let raw = checkpoint.raw(name).map(|raw| raw.to_f32().unwrap()[0]);
        assert_eq!(raw.is_some(), checkpoint.shared(name).is_some());
        above.release(name);
        raw
    };
    assert_eq!(above.names().collect::<Vec<_>>(), ["b", "c", "d"]);
    assert_eq!(["a", "b", "c", "d"].map(|name| value(&above, name)), [None, Some(4.0), Some(3.0), Some(5.0)]);
    assert_eq!(["a", "b", "c", "d"].map(|name| value(&below, name)), [Some(1.0), Some(2.0), Some(3.0), None]);
    assert_eq!((&above.config["x"], &below.config["x"]), (&1.into(), &Value::Null));
}
