//! The spool against a corpus that is held in memory as a whole.

use proptest::{
    prelude::{ProptestConfig, any},
    prop_assert_eq, proptest,
};

use super::*;
use crate::artifact::{Artifact, texts::Texts};

/// A document by a few figures: equal ones are duplicates, texts of one topic are near.
fn text(topic: u8, edit: u8, source: u8) -> Text {
    let words: Vec<String> =
        (0..60).map(|i| format!("{topic}w{}", i + u32::from(i == 30) * u32::from(edit))).collect();
    let text = words.join(" ");
    Text {
        id: blake3::hash(text.as_bytes()).to_hex().to_string(),
        source: format!("s/{source}"),
        licence: if source.is_multiple_of(2) { "MIT".into() } else { String::new() },
        text,
        special_tokens: false,
        marks: vec![],
    }
}

fn judged(text: &Text, near: Option<&NearDuplicates>) -> Judged {
    let id = blake3::hash(text.text.as_bytes());
    let signature = near.map(|near| near.signature(&text.text)).unwrap_or_default();
    Judged::kept(id, text, [text.source.as_str().into(), text.licence.as_str().into()], signature)
}

/// What is left of the texts, by the rules as they are written: sort, one per id, then one per set of near duplicates, where sets
/// grow until nothing changes.
fn reference(mut texts: Vec<Text>, near: Option<&NearDuplicates>) -> Vec<Text> {
    texts.sort_by(|a, b| (&a.id, &a.source, &a.licence).cmp(&(&b.id, &b.source, &b.licence)));
    texts.dedup_by(|a, b| a.id == b.id);
    let Some(near) = near else { return texts };
    let signatures: Vec<_> = texts.iter().map(|text| near.signature(&text.text)).collect();
    let linked = |i: usize, j: usize| signatures[i].iter().zip(&signatures[j]).any(|(a, b)| a == b);
    let mut first: Vec<usize> = (0..texts.len()).collect();
    loop {
        let before = first.clone();
        for i in 0..texts.len() {
            for j in (0..texts.len()).filter(|&j| linked(i, j)) {
                first[i] = first[i].min(first[j]);
            }
        }
        if first == before {
            break;
        }
    }
    let kept = texts.into_iter().enumerate().filter(|(i, _)| first[*i] == *i);
    kept.map(|(_, text)| text).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn runs_of_any_size_give_the_bytes_of_the_whole_in_memory(
        docs in proptest::collection::vec((0u8..6, 0u8..4, 0u8..5), 1..60),
        run in 1usize..20,
        look_for_near in any::<bool>(),
    ) {
        let texts: Vec<Text> = docs.iter().map(|&(topic, edit, source)| text(topic, edit, source)).collect();
        let near = look_for_near.then(NearDuplicates::default);
        let dir = tempfile::tempdir().unwrap();
        let mut spool = Spool::create(dir.path()).unwrap();
        for batch in texts.chunks(run) {
            spool.add(batch.iter().map(|text| judged(text, near.as_ref())).collect()).unwrap();
        }
        let [found, want] = ["found", "want"].map(|name| dir.path().join(name));
        std::fs::create_dir(&found).unwrap();
        std::fs::create_dir(&want).unwrap();
        let drops = spool.finish(near.as_ref(), &found, &|| Ok(())).unwrap();
        let kept = Texts(reference(texts.clone(), near.as_ref()));
        kept.save(&want).unwrap();
        let bytes = |folder: &Path| std::fs::read_to_string(folder.join("texts.jsonl")).unwrap();
        prop_assert_eq!(bytes(&found), bytes(&want));
        prop_assert_eq!(drops.total().kept as usize, kept.0.len());
        prop_assert_eq!(drops.total().read as usize, texts.len());
        prop_assert_eq!(drops.rows.len() + kept.0.len(), texts.len());
    }
}

#[test]
fn drops_are_counted_with_what_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::create(dir.path()).unwrap();
    let one = text(1, 0, 1);
    spool.add(vec![Judged::Dropped(Drop::new("empty", "s/9")), judged(&one, None)]).unwrap();
    spool.add(vec![judged(&text(1, 0, 0), None), Judged::Dropped(Drop::new("empty", "t/1"))]).unwrap();
    let drops = spool.finish(None, dir.path(), &|| Ok(())).unwrap();
    let rows: Vec<_> = drops.rows.iter().map(|d| (&*d.source, &*d.reason, &*d.kept)).collect();
    assert_eq!(rows, [("s/1", "duplicate", &*one.id), ("s/9", "empty", ""), ("t/1", "empty", "")]);
    assert_eq!((drops.sources["s"].read, drops.sources["s"].kept), (3, 1));
    assert_eq!((drops.sources["t"].read, drops.sources["t"].kept), (1, 0));
}

#[test]
fn a_scratch_folder_that_is_not_there_is_named() {
    let path = tempfile::tempdir().unwrap().path().join("gone");
    let error = Spool::create(&path).err().unwrap().to_string();
    assert!(error.starts_with(&path.display().to_string()), "{error}");
}

#[test]
fn a_stop_ends_the_writing() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::create(dir.path()).unwrap();
    spool.add(vec![judged(&text(1, 0, 1), None)]).unwrap();
    let stopped = spool.finish(None, dir.path(), &|| Err(Failure::Stopped));
    assert!(matches!(stopped, Err(Failure::Stopped)));
}
