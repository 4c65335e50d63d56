//! Shards: what goes where, and that the index finds every byte again.

use proptest::{prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::artifact::{
    Artifact,
    checkpoint::{Draft, Owned, files_in},
};

fn checkpoint(dir: &Path) -> Checkpoint {
    let bf16 = |n: usize| Owned::bf16(&[n], &vec![n as f32; n]);
    let tensors = [
        ("model.layers.10.a", bf16(3)),
        ("model.layers.2.blocks", Owned::u8(&[5], vec![1, 2, 3, 4, 5])),
        ("model.layers.2.a", Owned::f32(&[1, 2], &[0.5, -0.25])),
        ("lm_head.weight", bf16(20)),
    ];
    let tensors = tensors.map(|(name, t)| (name.to_owned(), t)).into();
    Draft { tensors, ..Draft::default() }.save(dir).unwrap();
    Checkpoint::load(&files_in(dir).unwrap()).unwrap()
}

#[test]
fn shards_hold_the_same_tensors_and_the_index_finds_them() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = checkpoint(from.path());
    let mut seen = 0;
    let written = write(&source, 20, to.path(), &mut |bytes| seen += bytes).unwrap();
    assert_eq!(written, Written { bytes: 59, shards: 2 });
    assert_eq!(seen, 59);
    let index: serde_json::Value = serde_json::from_slice(&fs::read(to.path().join(INDEX)).unwrap()).unwrap();
    assert_eq!(index["metadata"]["total_size"], 59);
    assert_eq!(index["weight_map"]["lm_head.weight"], "model-00001-of-00002.safetensors");
    assert_eq!(index["weight_map"]["model.layers.10.a"], "model-00002-of-00002.safetensors");

    fs::write(to.path().join("config.json"), "{}").unwrap();
    let again = Checkpoint::load(&files_in(to.path()).unwrap()).unwrap();
    for name in source.names() {
        let (a, b) = (source.raw(name).unwrap(), again.raw(name).unwrap());
        assert_eq!((a.dtype, a.shape, a.bytes), (b.dtype, b.shape, b.bytes), "{name}");
    }
    assert!(source.names().eq(again.names()));
}

#[test]
fn wide_elements_come_first_in_a_file() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(&checkpoint(from.path()), 1 << 20, to.path(), &mut |_| {}).unwrap();
    let bytes = fs::read(to.path().join("model-00001-of-00001.safetensors")).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let place = |name: &str| parsed.tensor(name).unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
    assert!(place("model.layers.2.a") < place("lm_head.weight"));
    assert!(place("lm_head.weight") < place("model.layers.2.blocks"));
    assert_eq!(place("model.layers.2.a") % 8, 0);
}

#[test]
fn a_tensor_above_the_limit_gets_its_own_file() {
    let shards = fill(&["a", "big", "b", "c"], 10, |name| if name == "big" { 99 } else { 4 });
    assert_eq!(shards, [vec!["a"], vec!["big"], vec!["b", "c"]]);
}

#[test]
fn layers_are_sorted_by_number() {
    assert!(natural("model.layers.2.x") < natural("model.layers.10.a"));
    assert!(natural("lm_head.weight") < natural("model.norm.weight"));
}

proptest! {
    #[test]
    fn shards_keep_the_order_hold_the_limit_and_are_as_full_as_can_be(
        sizes in proptest::collection::vec(0u64..30, 1..40),
        limit in 1u64..60,
    ) {
        let names: Vec<String> = (0..sizes.len()).map(|i| i.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let size = |name: &str| sizes[name.parse::<usize>().unwrap()];
        let shards = fill(&names, limit, size);
        prop_assert_eq!(shards.concat(), names);
        let used = |shard: &[&str]| shard.iter().map(|name| size(name)).sum::<u64>();
        for shard in &shards {
            let full = shard.iter().filter(|name| size(name) > 0).count();
            prop_assert!(used(shard) <= limit || full == 1, "only a tensor above the limit is alone above it");
        }
        for pair in shards.windows(2) {
            prop_assert!(used(&pair[0]) + size(pair[1][0]) > limit, "the next one would not have fitted");
        }
    }
}

#[test]
fn every_limit_gives_files_that_the_index_names_exactly() {
    let from = tempfile::tempdir().unwrap();
    let source = checkpoint(from.path());
    for (limit, shards) in [(1, 4), (13, 3), (48, 2), (59, 1), (u64::MAX, 1)] {
        let to = tempfile::tempdir().unwrap();
        assert_eq!(
            write(&source, limit, to.path(), &mut |_| {}).unwrap(),
            Written { bytes: 59, shards },
            "{limit}"
        );
        let files = files_in(to.path()).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&fs::read(&files[INDEX]).unwrap()).unwrap();
        let map = index["weight_map"].as_object().unwrap();
        assert!(map.keys().map(String::as_str).eq(source.names()));
        for (tensor, file) in map {
            let bytes = fs::read(&files[file.as_str().unwrap()]).unwrap();
            let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(parsed.tensor(tensor).unwrap().data(), source.raw(tensor).unwrap().bytes);
        }
        let named: std::collections::BTreeSet<&str> = map.values().filter_map(|file| file.as_str()).collect();
        assert_eq!(named.len(), files.len() - 1, "no file but those and the index");
    }
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let from = tempfile::tempdir().unwrap();
    let gone = from.path().join("gone");
    let error = write(&checkpoint(from.path()), 1 << 20, &gone, &mut |_| {}).unwrap_err().to_string();
    assert!(
        error.starts_with(&gone.join("model-00001-of-00001.safetensors").display().to_string()),
        "{error}"
    );
}
