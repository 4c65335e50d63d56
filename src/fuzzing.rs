//! Doors for `tests/fuzz`: what takes bytes that somebody else wrote, and what must hold whatever they are. Exists only with
//! the feature `fuzzing`; knows of each decoder what it promises and nothing of how it works.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Component, Path},
};

use unicode_normalization::UnicodeNormalization;

use crate::{
    cli::diagnostic,
    engine::{key::Key, reason, value::Value},
    manifest::{Options, Sources},
    plan::{self, Plan, Rejected},
    stage::table::STAGES,
    store::{
        Digest, Record, Tree, TreeFile, TreeFlaw,
        record::{first_line, seal, to_json},
        remote::{SecretKey, pull, sign},
    },
};

/// A manifest, and after NUL bytes the file it may extend (`base.toml`), a profile and any number of `--set`: planned with
/// all stages, twice alike, and its faults shown in every form.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (plan, again) = (planned(text), planned(text));
    match (plan, again) {
        (Ok(plan), Ok(again)) => {
            let mut names = BTreeSet::new();
            for (i, (node, same)) in plan.nodes.iter().zip(&again.nodes).enumerate() {
                assert!(names.insert(&node.name), "two nodes are named {:?}", node.name);
                assert!(
                    node.inputs.iter().all(|edge| edge.node < i),
                    "{} is before its producers",
                    node.name
                );
                assert_eq!((&node.name, &node.inputs, node.seed), (&same.name, &same.inputs, same.seed));
            }
            assert_eq!(plan.nodes.len(), again.nodes.len());
            if let Err(rejected) = plan.require_reads() {
                show(&rejected);
            }
        }
        (Err(rejected), Err(again)) => assert_eq!(show(&rejected), show(&again)),
        _ => panic!("the manifest is sound only at times"),
    }
}

fn planned(text: &str) -> Result<Plan, Rejected> {
    let mut texts = text.split('\0');
    let file = texts.next().unwrap_or_default();
    let base = texts.next();
    let profile = texts.next().filter(|profile| !profile.is_empty()).map(str::to_owned);
    let options = Options { profile, set: texts.map(str::to_owned).collect() };
    let path = Path::new("m.toml");
    let open = |asked: &Path| match base {
        _ if asked == path => Ok(file.to_owned()),
        Some(base) if asked == Path::new("base.toml") => Ok(base.to_owned()),
        _ => Err(io::ErrorKind::NotFound.into()),
    };
    let (sources, faults) = Sources::read_with(path, &options, &open);
    plan::plan(path, sources, faults, STAGES)
}

/// All forms of the faults; gives the plain one.
fn show(rejected: &Rejected) -> String {
    assert!(!rejected.faults.is_empty(), "rejected without a fault");
    assert_eq!(diagnostic::list(rejected).len(), rejected.faults.len());
    assert!(!diagnostic::render(rejected, true).is_empty());
    diagnostic::render(rejected, false)
}

/// A file in `act/` or `ckpt/`, as it stands and sealed: none, or a record that reads back as it was and whose names stay in
/// their folder.
pub fn record(bytes: &[u8]) {
    let lines: Vec<&[u8]> = bytes.split(|&b| b == b'\n').collect();
    for bytes in [bytes, &seal(&lines)] {
        if let Some(tree) = first_line::<Tree>(bytes) {
            checked(&tree);
        }
        let Some(record) = first_line::<Record>(bytes) else { continue };
        if record.check().is_ok() {
            record.outputs.values().for_each(checked);
        }
        let again = seal(&[&to_json(&record), b"null"]);
        let back = first_line::<Record>(&again).expect("a record reads back");
        // The text of a float may lose its last bit.
        assert_eq!(Record { seconds: 0.0, ..back }, Record { seconds: 0.0, ..record });
    }
}

fn checked(tree: &Tree) {
    if tree.check().is_ok() {
        assert_eq!(clash(&tree.files), None, "found sound");
    }
}

/// Lines of names, each after a byte for its content: one listing in any order, sound if and only if no two of its names meet
/// and none leaves its folder.
pub fn tree(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let file = |line: &str| {
        let mut chars = line.chars();
        let first = chars.next().unwrap_or_default();
        let size = u64::from(u32::from(first)) << 43;
        TreeFile { name: chars.as_str().to_owned(), blob: Digest::of(first.to_string().as_bytes()), size }
    };
    let files: Vec<TreeFile> = text.split('\n').map(file).collect();
    let tree = Tree::new(files.clone());
    let mut turned = files.clone();
    turned.reverse();
    turned.rotate_left(files.len() / 2);
    assert_eq!(Tree::new(turned.clone()), tree, "the order matters");
    let (found, clash) = (tree.check(), clash(&files));
    assert_eq!(found.is_ok(), clash.is_none(), "{found:?} and {clash:?}");
    let listed = Tree { digest: tree.digest, files: turned };
    if listed.files != tree.files && found.is_ok() {
        assert_eq!(listed.check(), Err(TreeFlaw::Digest), "the listing is not sorted");
    }
    let json = to_json(&tree);
    assert_eq!(serde_json::from_slice::<Tree>(&json).ok(), Some(tree), "does not read back");
}

/// What [`Tree::check`] promises not to let through, said another way: a name that leaves its folder, or two names (files or
/// their folders) that are one to a file system that tells neither case nor forms of accents apart.
fn clash(files: &[TreeFile]) -> Option<String> {
    // From the folded name to the name, and whether it is a file.
    let mut seen: BTreeMap<String, (&str, bool)> = BTreeMap::new();
    for file in files {
        let name = file.name.as_str();
        let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        let parts = name.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        if !plain || !parts || name.contains('\0') {
            return Some(format!("{name:?} is no name"));
        }
        let ends = name.match_indices('/').map(|(i, _)| i).chain([name.len()]);
        for end in ends {
            let is_file = end == name.len();
            let folded: String = name[..end].nfd().collect::<String>().to_lowercase().nfc().collect();
            match seen.insert(folded, (&name[..end], is_file)) {
                Some((other, file)) if file || is_file || other != &name[..end] => {
                    return Some(format!("{name:?} meets {other:?}"));
                }
                _ => {}
            }
        }
    }
    None
}

/// Two lines: each a stored key as JSON. And the whole as an encoded value.
pub fn key(bytes: &[u8]) {
    if let Ok(value) = Value::decode(bytes) {
        assert_eq!(value.encode(), bytes, "two encodings of one value");
    }
    let mut keys = Vec::new();
    for line in bytes.splitn(2, |&b| b == b'\n') {
        let Ok(json) = serde_json::from_slice::<serde_json::Value>(line) else { continue };
        round_trip(&Value::from(&json));
        let Some(key) = Key::from_json(&json) else { continue };
        round_trip(&key.value());
        assert_eq!(Key::from_json(&key.to_json()).map(|key| key.digest()), Some(key.digest()));
        assert!(reason::diff(&key, &key).is_empty(), "a key differs from itself");
        keys.push(key);
    }
    if let [old, new] = &keys[..] {
        let reasons = reason::diff(old, new);
        assert_eq!(reasons.is_empty(), old.digest() == new.digest(), "{reasons:?}");
        reason::sentence(&reasons);
    }
}

fn round_trip(value: &Value) {
    assert_eq!(Value::decode(&value.encode()).as_ref(), Ok(value));
}

/// What a remote holds under a key: as it stands, sealed, and sealed and signed. Only what a trusted key signed is taken.
pub fn signature(bytes: &[u8]) {
    let (key, other) = (SecretKey::known(1), SecretKey::known(2));
    let trust = [key.public()];
    if let Ok(sealed) = sign::verified(bytes, &[]) {
        assert!(bytes.starts_with(sealed));
    }
    pulled(bytes, &[]);
    pulled(bytes, &trust);
    let lines: Vec<&[u8]> = bytes.split(|&b| b == b'\n').collect();
    let sealed = seal(&lines);
    pulled(&sealed, &[]);
    let signed = key.sign(&sealed);
    assert_eq!(sign::verified(&signed, &trust), Ok(&sealed[..]));
    assert_eq!(sign::verified(&signed, &[]), Ok(&sealed[..]));
    assert!(sign::verified(&signed, &[other.public()]).is_err(), "another key is taken");
    pulled(&signed, &trust);
    // One bit, which the bytes choose, turned over.
    let choice = Digest::of(bytes);
    let at = choice.as_bytes().iter().fold(0, |at, &byte| (at << 8 | usize::from(byte)) % signed.len());
    let mut changed = signed;
    changed[at] ^= 1 << (choice.as_bytes()[0] % 8);
    assert!(sign::verified(&changed, &trust).is_err(), "a changed byte is taken");
}

fn pulled(bytes: &[u8], trust: &[sign::PublicKey]) {
    let key = Digest::of(b"");
    let record = match pull::check(&key, bytes, trust) {
        Ok((record, _)) => record,
        Err(refusal) => return drop(refusal.to_string()),
    };
    assert_eq!(record.digest, key);
    record.outputs.values().for_each(checked);
}
