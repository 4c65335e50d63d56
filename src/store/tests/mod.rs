//! Publishing and looking up, with every kind of damage.

mod bytes;
mod changes;
mod gc;
mod publish;

use std::os::unix::fs::PermissionsExt;

use super::*;

fn key() -> Digest {
    Digest::of(b"some key")
}

fn made(ports: &[&str]) -> Made {
    Made {
        kind: "fake".into(),
        key: serde_json::json!({ "kind": "fake" }),
        ports: ports.iter().map(|&p| p.to_owned()).collect(),
        seconds: 0.5,
        peak_memory: None,
        why: vec!["never run".into()],
    }
}

fn miss(store: &Store) -> Slot {
    match store.lookup(&key()).unwrap() {
        Lookup::Miss(slot) => slot,
        Lookup::Hit(_) => panic!("expected a miss"),
    }
}

fn hit(store: &Store) -> Record {
    match store.lookup(&key()).unwrap() {
        Lookup::Hit(record) => record,
        Lookup::Miss(slot) => panic!("expected a hit: {:?}", slot.lost),
    }
}

fn record(slot: Slot, text: &str) -> Result<Record> {
    let work = slot.workdir(&["a", "b"])?;
    fs::write(work.out.join("a/one"), text).unwrap();
    fs::create_dir(work.out.join("b/sub")).unwrap();
    fs::write(work.out.join("b/sub/two"), "same").unwrap();
    fs::write(work.out.join("b/three"), "same").unwrap();
    slot.record(made(&["a", "b"]), &work)
}

fn overwrite(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_record_is_found_again_by_another_process() {
    let dir = tempfile::tempdir().unwrap();
    let first = record(miss(&Store::open(dir.path()).unwrap()), "text").unwrap();
    let store = Store::open(dir.path()).unwrap();
    let second = hit(&store);
    assert_eq!(first, second);
    assert_eq!(store.key(&key()).unwrap(), Some(serde_json::json!({ "kind": "fake" })));
    assert_eq!(store.key(&Digest::of(b"other")).unwrap(), None);
    assert_eq!(second.outputs["b"].files.len(), 2, "two names of equal bytes are both kept");
    assert_eq!(fs::read_dir(store.lease().tmp()).unwrap().count(), 0, "scratch is gone");
}

#[test]
fn an_unknown_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    fs::write(dir.path().join("FORMAT"), "mla-run cache 9\n").unwrap();
    fs::create_dir(dir.path().join("tmp/theirs")).unwrap();
    let Err(error) = Store::open(dir.path()) else { panic!("opened") };
    assert!(dir.path().join("tmp/theirs").exists(), "a foreign cache is left as it is");
    let message = error.to_string();
    assert!(message.contains("says `mla-run cache 9` but this version reads `mla-run cache 1`"), "{message}");
}

#[test]
fn an_output_that_was_not_written_is_not_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let slot = miss(&store);
    let work = slot.workdir(&["a"]).unwrap();
    let error = slot.record(made(&["a"]), &work).unwrap_err();
    assert_eq!(error.to_string(), "nothing was written to output `a`");
    miss(&store);
}

#[test]
fn damage_makes_a_miss_and_the_rerun_repairs_it() {
    type Spoil = fn(&Path, &Path);
    let damage: [(&str, &str, Spoil); 7] = [
        ("blob truncated", "output `a` was damaged", |blob, _| overwrite(blob, b"tex")),
        ("blob zeroed", "output `a` was damaged", |blob, _| overwrite(blob, &[0; 4])),
        ("blob missing", "output `a` is gone", |blob, _| fs::remove_file(blob).unwrap()),
        ("record truncated", "its record was damaged", |_, act| {
            let bytes = fs::read(act).unwrap();
            fs::write(act, &bytes[..bytes.len() - 30]).unwrap();
        }),
        ("record changed", "its record was damaged", |_, act| {
            let text = fs::read_to_string(act).unwrap();
            fs::write(act, text.replace("0.5", "0.6")).unwrap();
        }),
        ("record emptied", "its record was damaged", |_, act| fs::write(act, "").unwrap()),
        ("record of another key", "its record was damaged", |_, act| {
            let mut record: Record = record::first_line(&fs::read(act).unwrap()).unwrap();
            record.digest = Digest::of(b"other");
            fs::write(act, record::seal(&[&record::to_json(&record), b"{}"])).unwrap();
        }),
    ];
    for (what, lost, spoil) in damage {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let before = record(miss(&store), "text").unwrap();
        let blob = store.blob_path(&before.outputs["a"].files[0].blob);
        spoil(&blob, &store.sharded("act", &key()));
        let slot = miss(&store);
        assert!(slot.lost.as_ref().is_some_and(|l| l.starts_with(lost)), "{what}: {:?}", slot.lost);
        let after = record(slot, "text").unwrap();
        assert_eq!(after.outputs, before.outputs, "{what}");
        assert_eq!(hit(&store).outputs, before.outputs, "{what}");
        assert_eq!(fs::read(&blob).unwrap(), b"text", "{what}");
    }
}

#[test]
fn of_two_at_once_the_first_record_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (Store::open(dir.path()).unwrap(), Store::open(dir.path()).unwrap());
    let (slot_one, slot_two) = (miss(&one), miss(&two));
    let first = record(slot_one, "first").unwrap();
    let second = record(slot_two, "second").unwrap();
    assert_eq!(second, first, "the late one adopts what is there");
    assert_eq!(hit(&one), first);
}

#[test]
fn a_refresh_replaces_the_record() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    record(miss(&store), "old").unwrap();
    let new = record(store.refresh(&key()).unwrap(), "new").unwrap();
    assert_eq!(hit(&store), new);
    assert_eq!(new.outputs["a"].bytes(), 3);
}

#[test]
fn recording_removes_the_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let slot = miss(&store);
    let step = store.lease().fresh("step");
    fs::create_dir(&step).unwrap();
    fs::write(step.join("state"), "1").unwrap();
    store.publish_checkpoint(slot.digest(), &step).unwrap();
    assert!(store.latest_checkpoint(&key()).unwrap().is_some());
    record(slot, "x").unwrap();
    assert!(store.latest_checkpoint(&key()).unwrap().is_none());
}

#[test]
fn checkpoints_that_a_dead_process_left_after_recording_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let slot = miss(&store);
    let publish = || {
        let step = store.lease().fresh("step");
        fs::create_dir(&step).unwrap();
        fs::write(step.join("state"), "1").unwrap();
        store.publish_checkpoint(&key(), &step).unwrap();
    };
    publish();
    let (home, aside) = (dir.path().join("ckpt").join(key().to_string()), dir.path().join("aside"));
    fs::rename(&home, &aside).unwrap();
    record(slot, "x").unwrap();
    fs::rename(&aside, &home).unwrap(); // as if the process had died before it removed them
    assert!(Store::open(dir.path()).unwrap().latest_checkpoint(&key()).unwrap().is_none());
    publish(); // by a forced run, which is younger than the record
    assert!(Store::open(dir.path()).unwrap().latest_checkpoint(&key()).unwrap().is_some());
}

#[test]
fn verify_reports_and_quarantines() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let made = record(miss(&store), "text").unwrap();
    let sound = store.verify().unwrap();
    assert!(sound.is_sound(), "{sound:?}");
    assert_eq!((sound.blobs, sound.bytes, sound.records), (2, 8, 1));
    assert_eq!(store.ls().unwrap(), std::slice::from_ref(&made));

    overwrite(&store.blob_path(&made.outputs["a"].files[0].blob), b"TEXT");
    let found = store.verify().unwrap();
    assert_eq!((found.blobs, found.damaged.len(), found.incomplete.len()), (1, 1, 1), "{found:?}");
    fs::write(store.sharded("act", &key()), "junk").unwrap();
    let found = store.verify().unwrap();
    assert_eq!((found.records, found.damaged.len(), found.incomplete.len()), (0, 1, 0), "{found:?}");
    assert!(store.verify().unwrap().is_sound());
}
