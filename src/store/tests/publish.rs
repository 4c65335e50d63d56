//! What is published over what lies there, what is refused, and what strangers leave in the folders.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use super::*;

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

/// A private folder with these files.
fn folder(store: &Store, files: &[(&str, &str)]) -> PathBuf {
    let dir = store.lease().fresh("put");
    for (name, text) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

#[test]
fn a_good_blob_is_left_alone_and_a_bad_one_is_replaced() {
    type Spoil = fn(&Path);
    let spoils: [(&str, Spoil, usize); 5] = [
        ("good", |_| {}, 0),
        ("gone", |path| fs::remove_file(path).unwrap(), 0),
        ("short", |path| overwrite(path, b"rig"), 1),
        ("of other bytes", |path| overwrite(path, b"wrong"), 1),
        (
            "a folder",
            |path| {
                fs::remove_file(path).unwrap();
                fs::create_dir_all(path.join("deep")).unwrap();
            },
            1,
        ),
    ];
    for (what, spoil, bad) in spoils {
        let (dir, store) = open();
        let blob = store.put_dir(&folder(&store, &[("f", "right")])).unwrap()[0].blob;
        let path = store.blob_path(&blob);
        let before = Stamp::of(&fs::metadata(&path).unwrap());
        spoil(&path);
        let again = folder(&store, &[("f", "right")]);
        store.put_dir(&again).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"right", "{what}");
        assert_eq!(fs::read_dir(dir.path().join("bad")).unwrap().count(), bad, "{what}");
        let kept = Stamp::of(&fs::metadata(&path).unwrap()) == before;
        assert_eq!(kept, what == "good", "{what}");
        assert_eq!(again.join("f").exists(), what == "good", "only what is needed is moved: {what}");
    }
}

#[test]
fn equal_bytes_are_one_blob_and_names_are_sorted_with_their_folders() {
    let (dir, store) = open();
    let files = [("b", "same"), ("a/z", "same"), ("a/b/c", ""), ("a.x", "other"), ("ü/é", "same")];
    let listed = Tree::new(store.put_dir(&folder(&store, &files)).unwrap());
    let names: Vec<&str> = listed.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(names, ["a.x", "a/b/c", "a/z", "b", "ü/é"]);
    assert_eq!(listed.bytes(), 17);
    let blobs = walkdir::WalkDir::new(dir.path().join("blob")).into_iter().flatten();
    assert_eq!(blobs.filter(|entry| entry.file_type().is_file()).count(), 3);
}

#[test]
fn outputs_that_are_no_plain_files_with_plain_names_are_refused() {
    type Make = fn(&Path);
    let makes: [(&str, Make, &str); 4] = [
        (
            "a link to a folder",
            |dir| std::os::unix::fs::symlink("/tmp", dir.join("x")).unwrap(),
            "is not a plain file",
        ),
        (
            "a link to nothing",
            |dir| std::os::unix::fs::symlink("gone", dir.join("x")).unwrap(),
            "is not a plain file",
        ),
        (
            "a socket",
            |dir| drop(std::os::unix::net::UnixListener::bind(dir.join("x")).unwrap()),
            "is not a plain file",
        ),
        (
            "no UTF-8",
            |dir| fs::write(dir.join(OsStr::from_bytes(b"a\xff")), "").unwrap(),
            "is not valid UTF-8",
        ),
    ];
    for (what, make, expected) in makes {
        let (_dir, store) = open();
        let slot = miss(&store);
        let work = slot.workdir(&["a"]).unwrap();
        fs::write(work.out.join("a/good"), "good").unwrap();
        fs::create_dir(work.out.join("a/sub")).unwrap();
        make(&work.out.join("a/sub"));
        let error = slot.record(made(&["a"]), &work).unwrap_err().to_string();
        assert!(error.contains(expected), "{what}: {error}");
        miss(&store);
    }
}

#[test]
fn an_attempt_has_empty_folders_of_its_own_which_go_with_it() {
    let (_dir, store) = open();
    let slot = miss(&store);
    let (one, two) = (slot.workdir(&["a", "b"]).unwrap(), slot.workdir(&["a"]).unwrap());
    assert_ne!(one.out, two.out);
    for folder in [&one.out.join("a"), &one.out.join("b"), &one.scratch, &two.out.join("a")] {
        assert_eq!(fs::read_dir(folder).unwrap().count(), 0, "{}", folder.display());
    }
    fs::create_dir_all(one.scratch.join("deep/er")).unwrap();
    let path = one.out.clone();
    drop(one);
    assert!(!path.exists() && two.out.exists());
}

#[test]
fn while_a_key_is_made_again_others_still_find_the_old_result() {
    let (_dir, store) = open();
    let old = record(miss(&store), "old").unwrap();
    let slot = store.refresh(&key()).unwrap();
    assert_eq!(hit(&store), old);
    drop(slot);
    assert_eq!(hit(&store), old, "an attempt that came to nothing takes nothing away");
}

#[test]
fn what_is_lost_is_told_of_the_first_output_and_all_of_it_is_looked_at() {
    let (dir, store) = open();
    let made = record(miss(&store), "text").unwrap();
    let blobs: Vec<PathBuf> =
        made.outputs.values().map(|tree| store.blob_path(&tree.files[0].blob)).collect();
    for blob in &blobs {
        overwrite(blob, b"xxxx");
    }
    let slot = miss(&store);
    assert_eq!(slot.lost.as_deref(), Some("output `a` was damaged in the cache and moved to bad/"));
    assert_eq!(fs::read_dir(dir.path().join("bad")).unwrap().count(), 2, "one look finds both");
}

#[test]
fn a_record_that_is_no_file_is_put_aside_and_made_again() {
    type Spoil = fn(&Path);
    let spoils: [(&str, Spoil); 3] = [
        ("a folder", |path| fs::create_dir(path).unwrap()),
        ("a link", |path| std::os::unix::fs::symlink("/etc/hostname", path).unwrap()),
        ("a link to nothing", |path| std::os::unix::fs::symlink("gone", path).unwrap()),
    ];
    for (what, spoil) in spoils {
        let (dir, store) = open();
        record(miss(&store), "text").unwrap();
        let path = store.sharded("act", &key());
        fs::remove_file(&path).unwrap();
        spoil(&path);
        let slot = miss(&store);
        assert_eq!(
            slot.lost.as_deref(),
            Some("its record was damaged in the cache and moved to bad/"),
            "{what}"
        );
        assert_eq!(fs::read_dir(dir.path().join("bad")).unwrap().count(), 1, "{what}");
        record(slot, "text").unwrap();
        hit(&store);
    }
}

#[test]
fn what_strangers_leave_among_the_objects_is_left_alone() {
    let (dir, store) = open();
    let made = record(miss(&store), "text").unwrap();
    for kind in ["blob", "act"] {
        let shard = store.sharded(kind, &key()).parent().unwrap().to_owned();
        fs::create_dir_all(&shard).unwrap();
        fs::create_dir(dir.path().join(kind).join("zz")).unwrap();
        for name in [
            dir.path().join(kind).join(".DS_Store"),
            shard.join("notes.txt"),
            dir.path().join(kind).join("zz/x"),
        ] {
            fs::write(name, "not ours").unwrap();
        }
    }
    let report = store.verify().unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!((report.blobs, report.records), (2, 1));
    assert_eq!(store.ls().unwrap(), [made]);
    assert!(dir.path().join("blob/.DS_Store").exists());
}

#[test]
fn verify_counts_every_object_once_and_tells_of_each_that_is_wrong() {
    let (_dir, store) = open();
    let digests: Vec<Digest> = (0..3_u8).map(|i| Digest::of(&[i])).collect();
    for (i, digest) in digests.iter().enumerate() {
        let Lookup::Miss(slot) = store.lookup(digest).unwrap() else { panic!("{i} is there") };
        record(slot, &format!("text {i}")).unwrap();
    }
    // Three texts, and the bytes that all share.
    let report = store.verify().unwrap();
    assert_eq!((report.blobs, report.bytes, report.records), (4, 22, 3), "{report:?}");
    fs::remove_file(store.blob_path(&Digest::of(b"same"))).unwrap();
    overwrite(&store.blob_path(&Digest::of(b"text 1")), b"text 9");
    let report = store.verify().unwrap();
    assert_eq!((report.blobs, report.records), (2, 0), "{report:?}");
    assert_eq!(report.damaged, [format!("blob {} had other bytes", Digest::of(b"text 1"))]);
    assert_eq!(report.incomplete.len(), 3);
    assert!(
        report
            .incomplete
            .iter()
            .all(|line| line.contains(" (fake): output `") && line.ends_with("is gone from the cache")),
        "{report:?}"
    );
    assert_eq!(store.ls().unwrap().len(), 3, "records are listed whatever became of their blobs");
}

#[test]
fn records_are_listed_oldest_first() {
    let (_dir, store) = open();
    let sample = record(miss(&store), "text").unwrap();
    let mut expected: Vec<Record> = (0..6_u8)
        .map(|i| Record { digest: Digest::of(&[i]), made: 1_000 + i64::from(i) / 2, ..sample.clone() })
        .collect();
    for old in expected.iter().rev() {
        let path = store.sharded("act", &old.digest);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, record::seal(&[&record::to_json(old), b"{}"])).unwrap();
    }
    expected.push(sample);
    // Those of the same second by their digests.
    let mut sorted = expected.clone();
    sorted.sort_by_key(|record| (record.made, record.digest));
    assert_eq!(store.ls().unwrap(), sorted);
    assert!(sorted.windows(2).all(|pair| pair[0].made <= pair[1].made));
}

#[test]
fn a_folder_of_another_format_is_refused_and_a_new_one_says_what_it_is() {
    for text in
        ["", "mla-run cache 1", "mla-run cache 1\r\n", "mla-run cache 10\n", "other\n", "mla-run cache 1\n\n"]
    {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("FORMAT"), text).unwrap();
        assert!(matches!(Store::open(dir.path()), Err(StoreError::Format { .. })), "{text:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is made beside it: {text:?}");
    }
    let (dir, store) = open();
    assert_eq!(fs::read_to_string(dir.path().join("FORMAT")).unwrap(), "mla-run cache 1\n");
    assert!(store.root().is_absolute());
    let file = dir.path().join("FORMAT");
    assert!(Store::open(&file).is_err(), "a file is no cache");
}

#[test]
fn scratch_of_a_process_is_swept_once_it_ended_and_not_before() {
    let (dir, store) = open();
    let kept = store.lease().fresh("work");
    fs::create_dir(&kept).unwrap();
    let others: Vec<Store> = (0..3).map(|_| Store::open(dir.path()).unwrap()).collect();
    assert!(kept.exists());
    drop(others);
    let clone = store.clone();
    drop(store);
    assert!(kept.exists(), "clones share one lease");
    drop(clone);
    assert!(!kept.exists());
    assert_eq!(fs::read_dir(dir.path().join("lease")).unwrap().count(), 0);
}
