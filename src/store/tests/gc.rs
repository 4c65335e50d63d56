//! Clean-ups: what goes, what stays, and when bytes that somebody may read are deleted.

use std::time::Duration;

use super::*;
use crate::store::{Policy, clock};

/// A cache with records `1`, `2` … of given texts, made so many seconds ago with so much work.
fn filled(records: &[(&str, i64, f64)]) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for (i, (text, ago, seconds)) in records.iter().enumerate() {
        let Lookup::Miss(slot) = store.lookup(&nth(i + 1)).unwrap() else { panic!("already there") };
        let work = slot.workdir(&["a"]).unwrap();
        fs::write(work.out.join("a/file"), text).unwrap();
        let made = Made { ports: vec!["a".into()], seconds: *seconds, ..made(&["a"]) };
        let key = made.key.clone();
        let mut record = slot.record(made, &work).unwrap();
        record.made = clock::now_ns() / 1_000_000_000 - ago;
        store.publish_record(&record, &key, true).unwrap();
    }
    (dir, store)
}

fn nth(i: usize) -> Digest {
    Digest::of(i.to_string().as_bytes())
}

fn left(store: &Store, count: usize) -> Vec<usize> {
    (1..=count).filter(|&i| store.record(&nth(i)).unwrap().is_some()).collect()
}

fn blobs(store: &Store) -> usize {
    store.objects("blob").unwrap().len()
}

fn policy(keep: &[usize]) -> Policy {
    let keep = keep.iter().map(|&i| (nth(i), "kept by the test".to_owned())).collect();
    Policy { keep, older_than: Duration::from_hours(1), ..Policy::default() }
}

const DAY: i64 = 86_400;

#[test]
fn old_records_that_nobody_keeps_go_with_the_bytes_that_only_they_name() {
    let (_dir, store) = filled(&[("one", DAY, 1.0), ("both", DAY, 2.0), ("both", DAY, 3.0), ("new", 0, 4.0)]);
    let dry = store.gc(&Policy { dry_run: true, ..policy(&[3]) }).unwrap();
    assert_eq!(left(&store, 4), [1, 2, 3, 4], "a dry run removes nothing");
    let wet = store.gc(&policy(&[3])).unwrap();
    assert_eq!(dry, wet, "and tells what would go");
    assert_eq!(left(&store, 4), [3, 4]);
    assert_eq!((wet.records, wet.seconds, wet.blobs, wet.bytes), (2, 3, 1, 3));
    assert_eq!(wet.left_bytes, 7);
    let kept = [("kept by the test".to_owned(), 1), ("made or used lately".to_owned(), 1)];
    assert_eq!(wet.kept, kept.into());
    assert!(store.verify().unwrap().is_sound());
    assert_eq!(blobs(&store), 2);
}

#[test]
fn what_was_used_lately_stays() {
    let (_dir, store) = filled(&[("one", DAY, 1.0), ("two", DAY, 1.0)]);
    let used = [(nth(2), clock::now_ns() / 1_000_000_000 - 60)].into();
    store.gc(&Policy { used, ..policy(&[]) }).unwrap();
    assert_eq!(left(&store, 2), [2]);
}

#[test]
fn a_size_takes_what_is_cheap_to_make_again_and_no_more_than_it_must() {
    // Seconds per byte: 10, 1, 0.1, and one that is kept.
    let records = [
        ("aaaaaaaaaa", DAY, 100.0),
        ("bbbbbbbbbb", DAY, 10.0),
        ("cccccccccc", DAY, 1.0),
        ("dddddddddd", DAY, 0.0),
    ];
    for (size, expected) in [(40, vec![1, 2, 3, 4]), (39, vec![1, 2, 4]), (20, vec![1, 4]), (5, vec![4])] {
        let (_dir, store) = filled(&records);
        let report = store.gc(&Policy { max_size: Some(size), ..policy(&[4]) }).unwrap();
        assert_eq!(left(&store, 4), expected, "{size}");
        assert_eq!(report.left_bytes, 10 * expected.len() as u64);
    }
}

#[test]
fn bytes_that_two_records_share_count_once() {
    let (_dir, store) = filled(&[("same", DAY, 1.0), ("same", DAY, 1.0), ("more", DAY, 9.0)]);
    let report = store.gc(&Policy { max_size: Some(4), ..policy(&[]) }).unwrap();
    assert_eq!(left(&store, 3), [3], "both that share must go before anything is freed");
    assert_eq!((report.records, report.bytes), (2, 4));
}

#[test]
fn bytes_are_deleted_once_no_process_lives_that_was_there_when_their_record_went() {
    let (dir, store) = filled(&[("one", DAY, 1.0)]);
    let reader = Store::open(dir.path()).unwrap();
    // The reader has been there for long, but what it found is older still.
    let Lookup::Hit(record) = reader.lookup(&nth(1)).unwrap() else { panic!("it is there") };
    let first = store.gc(&policy(&[])).unwrap();
    assert_eq!((first.records, first.blobs, first.waiting, first.waiting_bytes), (1, 0, 1, 3));
    assert_eq!(fs::read(reader.files(&record.outputs["a"]).unwrap()["file"].clone()).unwrap(), b"one");
    let late = Store::open(dir.path()).unwrap();
    assert_eq!(store.gc(&policy(&[])).unwrap().waiting, 1, "the reader still lives");
    drop(reader);
    let last = store.gc(&policy(&[])).unwrap();
    assert_eq!((last.blobs, last.waiting), (1, 0), "the late one cannot have found it");
    assert!(matches!(late.lookup(&nth(1)).unwrap(), Lookup::Miss(_)));
    assert_eq!(fs::read_dir(dir.path().join("view")).unwrap().count(), 0, "its view shows nothing any more");
}

#[test]
fn bytes_that_are_named_again_while_they_wait_stay() {
    let (dir, store) = filled(&[("one", DAY, 1.0)]);
    let reader = Store::open(dir.path()).unwrap();
    assert_eq!(store.gc(&policy(&[])).unwrap().waiting, 1);
    let Lookup::Miss(slot) = reader.lookup(&nth(2)).unwrap() else { panic!("a new key") };
    let work = slot.workdir(&["a"]).unwrap();
    fs::write(work.out.join("a/file"), "one").unwrap();
    slot.record(made(&["a"]), &work).unwrap();
    drop(work);
    drop(reader);
    let report = store.gc(&policy(&[2])).unwrap();
    assert_eq!((report.blobs, report.waiting), (0, 0));
    assert!(matches!(store.lookup(&nth(2)).unwrap(), Lookup::Hit(_)));
}

#[test]
fn what_was_made_since_a_living_process_came_is_not_touched() {
    let (dir, store) = filled(&[]);
    let _other = Store::open(dir.path()).unwrap();
    let Lookup::Miss(slot) = store.lookup(&nth(1)).unwrap() else { panic!("a new key") };
    let work = slot.workdir(&["a"]).unwrap();
    fs::write(work.out.join("a/file"), "one").unwrap();
    slot.record(made(&["a"]), &work).unwrap();
    let report = store.gc(&Policy::default()).unwrap();
    assert_eq!(report.kept, [("made or used while a process runs".to_owned(), 1)].into());
    assert_eq!(left(&store, 1), [1]);
}

#[test]
fn old_checkpoints_wrong_objects_and_journals_go_and_claimed_ones_stay() {
    let (dir, store) = filled(&[]);
    let checkpoint = |i: usize| {
        let folder = dir.path().join("new");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("step"), "1").unwrap();
        store.publish_checkpoint(&nth(i), &folder).unwrap();
        let home = dir.path().join("ckpt").join(nth(i).to_string());
        let old = std::time::SystemTime::UNIX_EPOCH;
        fs::File::open(&home).unwrap().set_modified(old).unwrap();
        home
    };
    let (free, claimed, kept) = (checkpoint(1), checkpoint(2), checkpoint(3));
    let _claim = store.claim(&nth(2)).unwrap();
    fs::write(dir.path().join("bad/new"), "x").unwrap();
    fs::create_dir_all(dir.path().join("run/20260101-1")).unwrap();
    let report = store.gc(&Policy { runs: vec!["20260101-1".into()], ..policy(&[3]) }).unwrap();
    assert_eq!(report.others, 2);
    assert!(!free.exists() && claimed.exists() && kept.exists());
    assert!(dir.path().join("bad/new").exists() && !dir.path().join("run/20260101-1").exists());
}

#[test]
fn a_share_of_the_bytes_is_checked_and_lost_records_are_removed_on_request() {
    let texts: Vec<String> = (0..200).map(|i| format!("text {i}")).collect();
    let records: Vec<(&str, i64, f64)> = texts.iter().map(|text| (&**text, 0, 1.0)).collect();
    let (_dir, store) = filled(&records);
    let some = store.check(0.25, false).unwrap();
    assert!((20..80).contains(&some.blobs), "{}", some.blobs);
    fs::remove_file(store.blob_path(&Digest::of(b"text 7"))).unwrap();
    assert_eq!(store.check(1.0, false).unwrap().incomplete.len(), 1);
    assert_eq!(store.check(1.0, true).unwrap().incomplete.len(), 1, "it says what it removed");
    assert!(store.check(1.0, false).unwrap().is_sound());
}
