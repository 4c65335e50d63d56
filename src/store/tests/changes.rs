//! Files that change after they were hashed: what is hashed again, what is found wrong, and what is not.

use std::{
    thread,
    time::{Duration, SystemTime},
};

use super::*;

/// A cache with one blob of these bytes that was hashed under its present stamp.
fn with_blob(bytes: &[u8]) -> (tempfile::TempDir, Store, Digest) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let from = store.lease().fresh("put");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("f"), bytes).unwrap();
    let digest = store.put_dir(&from).unwrap()[0].blob;
    (dir, store, digest)
}

fn set_time(path: &Path, time: SystemTime) {
    fs::File::open(path).unwrap().set_modified(time).unwrap();
}

/// Longer than the steps in which a file system counts time.
fn wait_for_another_time() {
    thread::sleep(Duration::from_millis(25));
}

#[test]
fn what_changes_a_blob_is_found_and_what_only_touches_it_is_not_held_against_it() {
    type Change = fn(&Path);
    let changes: [(&str, Change, Result<(), Flaw>); 7] = [
        ("nothing", |_| {}, Ok(())),
        ("touched", |path| set_time(path, SystemTime::UNIX_EPOCH), Ok(())),
        (
            "made writable",
            |path| fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap(),
            Ok(()),
        ),
        (
            "replaced by an equal file",
            |path| {
                fs::copy(path, path.with_extension("new")).unwrap();
                fs::rename(path.with_extension("new"), path).unwrap();
            },
            Ok(()),
        ),
        ("one byte more", |path| overwrite(path, b"bytes!"), Err(Flaw::Damaged)),
        ("other bytes of the same size", |path| overwrite(path, b"BYTES"), Err(Flaw::Damaged)),
        (
            "other bytes of the same size and time",
            |path| {
                let time = fs::metadata(path).unwrap().modified().unwrap();
                overwrite(path, b"BYTES");
                set_time(path, time);
            },
            Err(Flaw::Damaged),
        ),
    ];
    for (what, change, expected) in changes {
        let (_dir, store, digest) = with_blob(b"bytes");
        wait_for_another_time();
        change(&store.blob_path(&digest));
        assert_eq!(store.check_blob(&digest, 5).unwrap(), expected, "{what}");
        // The answer stays, whether from the stamp or because the blob is gone.
        let again = expected.map_err(|_| Flaw::Missing);
        assert_eq!(store.check_blob(&digest, 5).unwrap(), again, "{what}");
    }
}

#[test]
fn a_stamp_saves_the_reading_and_its_loss_costs_one() {
    let (dir, store, digest) = with_blob(b"bytes");
    let path = store.blob_path(&digest);
    let stamp = Stamp::of(&fs::metadata(&path).unwrap());
    assert_eq!(store.stamps().get(&stamp), Some(digest));
    drop(store);
    for spoil in
        [|path: &Path| fs::remove_file(path).unwrap(), |path: &Path| fs::write(path, "junk").unwrap()]
    {
        spoil(&dir.path().join("stamps"));
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.stamps().get(&stamp), None);
        assert_eq!(store.check_blob(&digest, 5).unwrap(), Ok(()));
        assert_eq!(store.stamps().get(&stamp), Some(digest), "it is remembered again");
    }
}

#[test]
fn a_stamp_of_another_blob_does_not_vouch_for_this_one() {
    let (_dir, store, digest) = with_blob(b"bytes");
    let path = store.blob_path(&digest);
    overwrite(&path, b"BYTES");
    let stamp = Stamp::of(&fs::metadata(&path).unwrap());
    store.stamps().remember(&[(stamp, Digest::of(b"BYTES"))]);
    assert_eq!(store.check_blob(&digest, 5).unwrap(), Err(Flaw::Damaged));
}

#[test]
fn a_file_of_the_user_is_known_by_its_bytes_through_every_change() {
    let (dir, store, _) = with_blob(b"bytes");
    let path = dir.path().join("mine");
    let digest = |bytes: &[u8], time: Option<SystemTime>| {
        fs::write(&path, bytes).unwrap();
        if let Some(time) = time {
            set_time(&path, time);
        }
        assert_eq!(store.digest_file(&path).unwrap().0, Digest::of(bytes), "{bytes:?}");
    };
    let old = SystemTime::UNIX_EPOCH + Duration::from_hours(24);
    for _ in 0..3 {
        digest(b"one", None);
        digest(b"two", None);
        digest(b"one", Some(old));
        digest(b"two", Some(old));
        digest(b"three", Some(old));
        digest(b"", Some(old));
    }
    fs::remove_file(&path).unwrap();
    assert!(store.digest_file(&path).unwrap_err().to_string().starts_with("cannot read "));
}

#[test]
fn a_stamp_is_of_the_file_behind_a_link_and_not_of_the_link() {
    let (dir, store, _) = with_blob(b"bytes");
    let [file, link] = ["file", "link"].map(|name| dir.path().join(name));
    fs::write(&file, "text").unwrap();
    std::os::unix::fs::symlink("file", &link).unwrap();
    assert_eq!(store.digest_file(&link).unwrap(), store.digest_file(&file).unwrap());
}
