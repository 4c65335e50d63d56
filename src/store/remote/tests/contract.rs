//! The contract: what every kind of remote must do, as plain functions.

use super::*;

/// Opens the remote at a prefix of its own.
pub(super) type Open<'a> = &'a (dyn Fn(&str, Access) -> Remote + Sync);

/// A part of the contract, on the ground of a prefix.
type Clause = fn(Open<'_>, &str);

/// Everything, each on fresh ground.
pub(super) fn all(open: Open<'_>) {
    let tests: [(&str, Clause); 15] = [
        ("round-trip", round_trip),
        ("twice", a_second_push_changes_nothing),
        ("other-bytes", other_bytes_are_refused),
        ("size-claims", sizes_that_are_not_true_are_refused),
        ("lost-blob", a_record_without_its_blobs_is_refused_until_it_is_pushed_again),
        ("partial", what_is_half_uploaded_cannot_be_seen),
        ("race", of_several_pushes_of_one_key_one_wins),
        ("other-key", a_record_of_another_key_is_refused),
        ("form", what_is_no_record_is_refused),
        ("replace", what_is_refused_can_be_replaced),
        ("signers", only_trusted_signers_count),
        ("names", names_that_lead_outside_are_refused),
        ("format", another_format_is_refused),
        ("damage", local_damage_is_not_pushed),
        ("list", keys_are_listed),
    ];
    let run = crate::store::run_id(); // a service keeps what earlier runs left
    for (name, test) in tests {
        println!("{name}");
        test(open, &format!("{run}/{name}"));
    }
}

#[track_caller]
fn refused(result: Result<Option<Record>>) -> Refusal {
    match result {
        Err(RemoteError::Refused { source, .. }) => source,
        other => panic!("not refused: {other:?}"),
    }
}

/// A local cache with a record of one small file, pushed.
fn pushed(remote: &Remote, key: &Digest) -> (Local, Record) {
    let local = Local::new();
    let record = local.make(key, &[("out", "a", b"some bytes")]);
    remote.push(&local.store, &record).unwrap();
    (local, record)
}

fn blob_of(record: &Record) -> Digest {
    record.outputs["out"].files[0].blob
}

fn with_file(record: &Record, name: &str, size: u64) -> Record {
    let mut record = record.clone();
    let mut files = record.outputs["out"].files.clone();
    (files[0].name, files[0].size) = (name.to_owned(), size);
    record.outputs.insert("out".into(), crate::store::Tree::new(files));
    record
}

fn round_trip(open: Open<'_>, prefix: &str) {
    let (here, there) = (Local::new(), Local::new());
    let key = Digest::of(b"round trip");
    let big: Vec<u8> = (0..(11_u32 << 20)).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let files: [(&str, &str, &[u8]); 5] = [
        ("texts", "empty", b""),
        ("texts", "deep/er/a.json", b"{}"),
        ("texts", "same", b"{}"),
        ("weights", "big", &big),
        ("weights", "ümlaut", b"3"),
    ];
    let record = here.make(&key, &files);
    let remote = open(prefix, ours());
    assert_eq!(remote.pull(&there.store, &key).unwrap(), None, "nothing is there yet");
    there.has_nothing();
    let done = remote.push(&here.store, &record).unwrap();
    assert_eq!((done.records, done.blobs, done.bytes), (1, 4, (11 << 20) + 3));
    let remote = open(prefix, Access { sign_with: None, read_only: true, ..ours() });
    let pulled = remote.pull(&there.store, &key).unwrap().unwrap();
    assert_eq!(pulled, record);
    for (port, name, bytes) in files {
        assert!(there.read(&pulled, port, name) == bytes, "{port}/{name}");
    }
    assert!(matches!(there.store.lookup(&key).unwrap(), Lookup::Hit(_)));
    assert_eq!(there.store.key(&key).unwrap(), here.store.key(&key).unwrap());
    assert!(there.store.verify().unwrap().is_sound());
    assert_eq!(fs::read_dir(there.store.lease().tmp()).unwrap().count(), 0, "scratch was left");
}

fn a_second_push_changes_nothing(open: Open<'_>, prefix: &str) {
    let key = Digest::of(b"k");
    let remote = open(prefix, ours());
    let (local, record) = pushed(&remote, &key);
    let before = remote.objects();
    let again = remote.push(&local.store, &record).unwrap();
    let expected = Pushed { records_there: 1, blobs_there: 1, bytes_there: 10, ..Pushed::default() };
    assert_eq!(again, expected);
    // Another cache has another record of the same key: the first one stays.
    let other = Local::new();
    let second = other.make(&key, &[("out", "a", b"other bytes")]);
    let done = remote.push_all(&other.store, [&second]).unwrap();
    assert_eq!((done.records, done.records_there, done.blobs), (0, 1, 1));
    let after = remote.objects();
    assert!(before.iter().all(|(name, bytes)| after[name] == *bytes));
    assert_eq!(remote.pull(&Local::new().store, &key).unwrap(), Some(record));
    assert_eq!(remote.pull(&other.store, &key).unwrap(), Some(second), "what is here is not fetched");
}

fn other_bytes_are_refused(open: Open<'_>, prefix: &str) {
    let key = Digest::of(b"k");
    let remote = open(prefix, ours());
    let (_, record) = pushed(&remote, &key);
    let object = remote.object("blob", &blob_of(&record));
    let (there, said) = (Local::new(), 10);
    for (bytes, refusal) in [
        (&b"some bytez"[..], Refusal::Digest(Digest::of(b"some bytez"))),
        (b"some byte", Refusal::Size { said, found: 9 }),
        (b"some bytes.", Refusal::Size { said, found: 11 }),
        (b"", Refusal::Size { said, found: 0 }),
    ] {
        remote.write(&object, bytes.to_vec());
        assert_eq!(refused(remote.pull(&there.store, &key)), refusal);
        there.has_nothing();
    }
    remote.write(&object, b"some bytes".to_vec());
    assert!(remote.pull(&there.store, &key).unwrap().is_some());
}

fn sizes_that_are_not_true_are_refused(open: Open<'_>, prefix: &str) {
    let key = Digest::of(b"k");
    let remote = open(prefix, ours());
    let (here, record) = pushed(&remote, &key);
    for said in [10_000_000_000, u64::MAX, 11, 9, 0] {
        let there = Local::new();
        remote.forge(&key, &with_file(&record, "a", said), Some(&OURS));
        assert_eq!(refused(remote.pull(&there.store, &key)), Refusal::Size { said, found: 10 });
        there.has_nothing();
    }
    // A lie about a blob that is here does not harm it.
    let other = Digest::of(b"other");
    remote.forge(&other, &Record { digest: other, ..with_file(&record, "a", 3) }, Some(&OURS));
    assert_eq!(refused(remote.pull(&here.store, &other)), Refusal::Size { said: 3, found: 10 });
    assert!(here.store.verify().unwrap().is_sound());
    assert!(matches!(here.store.lookup(&key).unwrap(), Lookup::Hit(_)));
}

fn a_record_without_its_blobs_is_refused_until_it_is_pushed_again(open: Open<'_>, prefix: &str) {
    let key = Digest::of(b"k");
    let remote = open(prefix, ours());
    let (here, there) = (Local::new(), Local::new());
    let record = here.make(&key, &[("out", "a", b"some bytes"), ("out", "b", b"more")]);
    remote.push(&here.store, &record).unwrap();
    remote.remove(&remote.object("blob", &Digest::of(b"more")));
    assert_eq!(refused(remote.pull(&there.store, &key)), Refusal::Missing);
    there.has_nothing();
    let done = remote.push(&here.store, &record).unwrap();
    assert_eq!((done.blobs, done.blobs_there, done.records_there), (1, 1, 1));
    assert_eq!(remote.pull(&there.store, &key).unwrap(), Some(record.clone()));
    // What the local cache lost comes back from the remote.
    fs::remove_file(there.store.blob_path(&Digest::of(b"more"))).unwrap();
    assert!(matches!(there.store.lookup(&key).unwrap(), Lookup::Miss(_)));
    assert_eq!(remote.pull(&there.store, &key).unwrap(), Some(record.clone()));
    assert_eq!(there.read(&record, "out", "b"), b"more");
}

fn what_is_half_uploaded_cannot_be_seen(open: Open<'_>, prefix: &str) {
    let key = Digest::of(b"k");
    let remote = open(prefix, ours());
    let (here, there) = (Local::new(), Local::new());
    let record = here.make(&key, &[("out", "a", b"some bytes")]);
    remote.runtime.block_on(remote.prepare()).unwrap();
    let object = remote.object("blob", &blob_of(&record));
    if let Some(parts) = remote.link.place.parts.clone() {
        remote.runtime.block_on(async {
            let id = parts.create_multipart(&object).await.unwrap();
            parts.put_part(&object, &id, 0, b"some".to_vec().into()).await.unwrap();
        });
        assert_eq!(remote.read(&object), None);
    }
    remote.write(&object, b"some bytes".to_vec()); // all blobs, no record
    assert_eq!(remote.pull(&there.store, &key).unwrap(), None);
    there.has_nothing();
    assert_eq!(remote.push(&here.store, &record).unwrap().blobs_there, 1);
    assert_eq!(remote.pull(&there.store, &key).unwrap(), Some(record));
}

fn of_several_pushes_of_one_key_one_wins(open: Open<'_>, prefix: &str) {
    let key = Digest::of(b"k");
    let locals: Vec<(Local, Record)> = (0..6_u8)
        .map(|i| {
            let local = Local::new();
            let record = local.make(&key, &[("out", "a", &[i; 1000]), ("out", "b", b"common")]);
            (local, record)
        })
        .collect();
    let shared = open(prefix, ours());
    let push = &|i: usize, (local, record): &(Local, Record)| {
        // Some share a client, some have their own, as other machines do.
        let own = (i % 2 == 1).then(|| open(prefix, ours()));
        own.as_ref().unwrap_or(&shared).push(&local.store, record).unwrap()
    };
    let done: Vec<Pushed> = std::thread::scope(|scope| {
        let start = |(i, one)| scope.spawn(move || push(i, one));
        let threads: Vec<_> = locals.iter().enumerate().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(done.iter().map(|done| done.records).sum::<u64>(), 1, "{done:?}");
    let there = Local::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(shared.pull(&there.store, &key).unwrap().is_some()));
        }
    });
    let pulled = there.store.record(&key).unwrap().unwrap();
    assert!(locals.iter().any(|(_, record)| *record == pulled));
    assert!(there.store.verify().unwrap().is_sound());
}

fn a_record_of_another_key_is_refused(open: Open<'_>, prefix: &str) {
    let (key, other) = (Digest::of(b"k"), Digest::of(b"other"));
    let remote = open(prefix, ours());
    pushed(&remote, &key);
    let bytes = remote.read(&remote.object("act", &key)).unwrap();
    remote.write(&remote.object("act", &other), bytes);
    let there = Local::new();
    assert_eq!(refused(remote.pull(&there.store, &other)), Refusal::OtherKey(key));
    there.has_nothing();
}

fn what_is_no_record_is_refused(open: Open<'_>, prefix: &str) {
    let key = Digest::of(b"k");
    let remote = open(prefix, ours());
    pushed(&remote, &key);
    let object = remote.object("act", &key);
    let there = Local::new();
    let good = remote.read(&object).unwrap();
    let mut flipped = good.clone();
    flipped[5] ^= 1;
    let unseal = |bytes: &[u8]| OURS.sign(bytes);
    for (bytes, refusal) in [
        (flipped, Refusal::BadSignature(OURS.public())),
        (good[..good.len() / 2].to_vec(), Refusal::Unsigned),
        (Vec::new(), Refusal::Unsigned),
        (unseal(b"{}\nnull\n"), Refusal::Seal),
        (unseal(&record::seal(&[b"{}", b"null"])), Refusal::Form),
    ] {
        remote.write(&object, bytes);
        assert_eq!(refused(remote.pull(&there.store, &key)), refusal);
        there.has_nothing();
    }
    let lax = open(prefix, Access { unsigned: true, ..Access::default() });
    remote.write(&object, good[..good.len() / 2].to_vec());
    assert_eq!(refused(lax.pull(&there.store, &key)), Refusal::Seal);
    there.has_nothing();
}

fn what_is_refused_can_be_replaced(open: Open<'_>, prefix: &str) {
    let key = Digest::of(b"k");
    let remote = open(prefix, ours());
    let (here, record) = pushed(&remote, &key);
    remote.write(&remote.object("act", &key), b"poison".to_vec());
    remote.write(&remote.object("blob", &blob_of(&record)), b"some bytez".to_vec());
    let there = Local::new();
    refused(remote.pull(&there.store, &key));
    let done = remote.push(&here.store, &record).unwrap();
    assert_eq!((done.records_there, done.blobs_there), (1, 1), "a push leaves what is there");
    refused(remote.pull(&there.store, &key));
    let done = remote.replace(&here.store, &record).unwrap();
    assert_eq!((done.records, done.blobs, done.records_there), (1, 1, 0));
    assert_eq!(remote.pull(&there.store, &key).unwrap(), Some(record));
}

fn only_trusted_signers_count(open: Open<'_>, prefix: &str) {
    let (signed, plain) = (Digest::of(b"signed"), Digest::of(b"plain"));
    let theirs = open(prefix, Access { sign_with: Some(THEIRS.clone()), ..Access::default() });
    pushed(&theirs, &signed);
    pushed(&open(prefix, Access { unsigned: true, ..Access::default() }), &plain);
    let there = Local::new();
    let pull = |access: Access, key| open(prefix, access).pull(&there.store, key);
    let error = pull(Access::default(), &signed).unwrap_err();
    assert!(matches!(error, RemoteError::NoTrust { .. }), "{error:?}");
    assert!(error.to_string().contains("`trust = [\"…\"]`"), "{error}");
    assert_eq!(refused(pull(ours(), &signed)), Refusal::UnknownSigner(THEIRS.public()));
    assert_eq!(refused(pull(ours(), &plain)), Refusal::Unsigned);
    let lax = || Access { unsigned: true, ..ours() };
    assert_eq!(refused(pull(lax(), &plain)), Refusal::Unsigned, "trusted keys are asked for all the same");
    there.has_nothing();
    let both = Access { trust: vec![OURS.public(), THEIRS.public()], ..Access::default() };
    assert!(pull(both, &signed).unwrap().is_some());
    let anybody = || Access { unsigned: true, ..Access::default() };
    for key in [&signed, &plain] {
        assert!(open(prefix, anybody()).pull(&Local::new().store, key).unwrap().is_some());
    }
}

fn names_that_lead_outside_are_refused(open: Open<'_>, prefix: &str) {
    let key = Digest::of(b"k");
    let remote = open(prefix, ours());
    let (_, record) = pushed(&remote, &key);
    let there = Local::new();
    for name in ["../../../../outside", "/tmp/outside", "", ".", "..", "a/../../b", "a//b", "a\0b"] {
        remote.forge(&key, &with_file(&record, name, 10), Some(&OURS));
        let refusal = refused(remote.pull(&there.store, &key));
        assert!(matches!(refusal, Refusal::Tree { .. }), "{name}: {refusal:?}");
        there.has_nothing();
    }
    for pair in [["a", "A"], ["a", "a/b"], ["x", "x"], ["q/É", "q/é"]] {
        let mut record = record.clone();
        let file = record.outputs["out"].files[0].clone();
        let named = |name: &str| crate::store::TreeFile { name: name.into(), ..file.clone() };
        record.outputs.insert("out".into(), crate::store::Tree::new(pair.map(named).to_vec()));
        remote.forge(&key, &record, Some(&OURS));
        let refusal = refused(remote.pull(&there.store, &key));
        assert!(matches!(refusal, Refusal::Tree { .. }), "{pair:?}: {refusal:?}");
        there.has_nothing();
    }
    for port in ["", ".", "..", "../out", "a/b", "/out"] {
        let mut record = record.clone();
        let tree = record.outputs.remove("out").unwrap();
        record.outputs.insert(port.into(), tree);
        remote.forge(&key, &record, Some(&OURS));
        assert_eq!(refused(remote.pull(&there.store, &key)), Refusal::Port(port.into()));
        there.has_nothing();
    }
    // A listing under another's digest would pass for that artifact in later keys.
    let mut record = record;
    record.outputs.get_mut("out").unwrap().digest = Digest::of(b"another artifact");
    remote.forge(&key, &record, Some(&OURS));
    let flaw = crate::store::TreeFlaw::Digest;
    assert_eq!(refused(remote.pull(&there.store, &key)), Refusal::Tree { port: "out".into(), flaw });
}

fn another_format_is_refused(open: Open<'_>, prefix: &str) {
    let key = Digest::of(b"k");
    let remote = open(prefix, ours());
    remote.write(&remote.link.place.object("FORMAT"), b"mla-run cache 9\nmore".to_vec());
    let local = Local::new();
    let record = local.make(&key, &[("out", "a", b"1")]);
    let pushed = remote.push(&local.store, &record).map(|_| ());
    let pulled = remote.pull(&Local::new().store, &key).map(|_| ());
    for result in [pushed, pulled, remote.list().map(|_| ())] {
        let text = result.unwrap_err().to_string();
        assert!(text.contains("says `mla-run cache 9` but this version reads `mla-run cache 1`"), "{text}");
    }
    assert_eq!(remote.objects().len(), 1, "nothing was written");
}

fn local_damage_is_not_pushed(open: Open<'_>, prefix: &str) {
    let key = Digest::of(b"k");
    let remote = open(prefix, ours());
    let local = Local::new();
    let record = local.make(&key, &[("out", "a", b"some bytes")]);
    let path = local.store.blob_path(&blob_of(&record));
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"some bytez").unwrap();
    let error = remote.push(&local.store, &record).unwrap_err();
    assert!(matches!(error, RemoteError::Lost { .. }), "{error:?}");
    let unknown = Record { digest: Digest::of(b"unknown"), ..record };
    let error = remote.push(&local.store, &unknown).unwrap_err();
    assert!(matches!(error, RemoteError::NoRecord(_)), "{error:?}");
    assert!(remote.objects().is_empty());
}

fn keys_are_listed(open: Open<'_>, prefix: &str) {
    let remote = open(prefix, ours());
    assert_eq!(remote.list().unwrap(), []);
    let local = Local::new();
    let mut keys: Vec<Digest> = (0..5_u8).map(|i| Digest::of(&[i])).collect();
    let records: Vec<Record> = keys.iter().map(|key| local.make(key, &[("out", "a", b"same")])).collect();
    let done = remote.push_all(&local.store, &records).unwrap();
    assert_eq!((done.records, done.blobs, done.blobs_there), (5, 1, 4));
    remote.write(&remote.link.place.object("act/zz/not-a-digest"), b"".to_vec());
    keys.sort_unstable();
    assert_eq!(remote.list().unwrap(), keys);
}
