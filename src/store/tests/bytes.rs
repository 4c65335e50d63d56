//! Records and stamps of which any byte may be wrong: what is read is what was written, or nothing.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::store::record::{first_line, seal, to_json};

fn some_record(seconds: f64, why: Vec<String>) -> Record {
    let file = |name: &str| TreeFile { name: name.into(), blob: Digest::of(name.as_bytes()), size: 7 };
    let tree = Tree::new(vec![file("b"), file("a/ü")]);
    let outputs = BTreeMap::from([("texts".to_owned(), tree)]);
    Record {
        digest: key(),
        kind: "fake".into(),
        outputs,
        seconds,
        peak_memory: None,
        why,
        made: 1_700_000_000,
    }
}

fn sealed() -> Vec<u8> {
    let record = some_record(1.5, vec!["line one\nline two".into(), "ü \"x\"".into()]);
    seal(&[&to_json(&record), br#"{"kind":"fake"}"#])
}

#[test]
fn a_record_cut_anywhere_is_no_record() {
    let whole = sealed();
    assert!(first_line::<Record>(&whole).is_some());
    for end in 0..whole.len() {
        assert_eq!(first_line::<Record>(&whole[..end]), None, "cut at {end}");
    }
}

#[test]
fn a_record_with_any_bit_turned_over_is_no_record() {
    let whole = sealed();
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            // Hex digits of the checksum in upper case are refused too.
            assert_eq!(first_line::<Record>(&bytes), None, "byte {at}, bit {bit}");
        }
    }
}

#[test]
fn a_sealed_text_of_another_form_is_no_record() {
    for lines in [&[&b"{}"[..]][..], &[b""], &[], &[b"[]", b"{}"], &[b"{\"digest\":3}"]] {
        assert_eq!(first_line::<Record>(&seal(lines)), None, "{lines:?}");
    }
    for bytes in [&b""[..], b"\n", b"\n\n", &[b'a'; 64], &[b'\n'; 70], &[0xff; 200]] {
        assert_eq!(first_line::<Record>(bytes), None, "{bytes:?}");
    }
}

proptest! {
    #[test]
    fn any_record_reads_back_as_it_was(
        seconds in 0.0..1e9_f64,
        why in proptest::collection::vec(".{0,20}|\n\n", 0..4),
    ) {
        // Times go through text, which keeps fifteen digits and more.
        let seconds = (seconds * 1e3).round() / 1e3;
        let record = some_record(seconds, why);
        prop_assert_eq!(first_line::<Record>(&seal(&[&to_json(&record), b"{}"])), Some(record));
    }

    #[test]
    fn bytes_put_in_or_after_a_record_make_it_none(
        at in any::<prop::sample::Index>(),
        more in proptest::collection::vec(any::<u8>(), 1..6),
    ) {
        let mut bytes = sealed();
        let at = at.index(bytes.len() + 1);
        bytes.splice(at..at, more);
        prop_assert_eq!(first_line::<Record>(&bytes), None);
    }

    #[test]
    fn a_log_of_stamps_that_is_damaged_anywhere_never_answers_wrong(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stamps");
        let files: Vec<_> = (0..4_u8).map(|i| {
            let file = dir.path().join(i.to_string());
            fs::write(&file, [i]).unwrap();
            (Stamp::of(&fs::metadata(&file).unwrap()), Digest::of(&[i]))
        }).collect();
        stamp::StampLog::open(path.clone(), dir.path()).unwrap().remember(&files);
        let mut bytes = fs::read(&path).unwrap();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        fs::write(&path, &bytes).unwrap();
        let log = stamp::StampLog::open(path.clone(), dir.path()).unwrap();
        for (stamp, digest) in &files {
            prop_assert!(log.get(stamp).is_none_or(|found| found == *digest));
        }
        // What was opened once is sound, and can be added to.
        log.remember(&files);
        let again = stamp::StampLog::open(path, dir.path()).unwrap();
        prop_assert!(files.iter().all(|(stamp, digest)| again.get(stamp) == Some(*digest)));
    }
}
