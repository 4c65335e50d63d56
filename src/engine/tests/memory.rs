//! Why a stage runs when what is remembered of it is gone, old, or another pipeline's.

use super::*;
use crate::{
    engine::latest::Latest,
    store::{Digest, Lookup, Made},
};

fn act_of(space: &Space, digest: &Digest) -> PathBuf {
    let hex = digest.to_string();
    space.dir.path().join("cache/act").join(&hex[..2]).join(&hex[2..])
}

#[test]
fn a_record_that_is_gone_is_said_to_be_gone() {
    let space = Space::new();
    let first = space.run(space.chain(1));
    let key = stage(&first, "b").key.unwrap();
    fs::remove_file(act_of(&space, &key)).unwrap();
    let planned = space.plan(space.chain(1), &Options::default());
    assert_eq!(line(&planned), "a:cached b:run c:maybe");
    let again = space.run(space.chain(1));
    assert_eq!(line(&again), "a:cached b:ran c:cached");
    assert_eq!(stage(&again, "b").why, "its record is gone from the cache");
    // The last key's record is gone, so there is nothing to compare a new key with.
    fs::remove_file(act_of(&space, &key)).unwrap();
    assert_eq!(stage(&space.run(space.chain(2)), "b").why, "its record is gone from the cache");
}

#[test]
fn a_key_of_an_older_version_is_said_to_be_made_in_another_way() {
    let space = Space::new();
    let store = space.store();
    let old = Digest::of(b"a key of an older version");
    let Lookup::Miss(slot) = store.lookup(&old).unwrap() else { panic!("it is there") };
    let work = slot.workdir(&["out"]).unwrap();
    fs::write(work.out.join("out/data"), "old").unwrap();
    let key = serde_json::json!({ "format": 0, "stage": "a" });
    let made = Made {
        kind: "fake".into(),
        key,
        ports: vec!["out".into()],
        seconds: 0.0,
        peak_memory: None,
        why: Vec::new(),
    };
    slot.record(made, &work).unwrap();
    Latest::open(&store, "").unwrap().set("a", old).unwrap();
    let nodes = || vec![space.fake("a").node(), space.fake("b").reading(&[0])];
    assert_eq!(stage(&space.plan(nodes(), &Options::default()), "a").why, "keys are made in a newer way");
    assert_eq!(stage(&space.run(nodes()), "a").why, "keys are made in a newer way");
}

#[test]
fn pipelines_share_results_and_not_reasons() {
    let space = Space::new();
    let of = |pipeline: &str| Options { pipeline: pipeline.into(), ..Options::default() };
    space.run_with(space.chain(1), &of("one"));
    assert_eq!(line(&space.run_with(space.chain(1), &of("two"))), "a:cached b:cached c:cached");
    let changed = space.run_with(space.chain(2), &of("two"));
    assert_eq!(stage(&changed, "b").why, "parameter `rank` changed: 1 -> 2", "a hit is remembered too");
    let third = space.run_with(space.chain(3), &of("three"));
    assert_eq!(stage(&third, "b").why, "never run");
}

#[test]
fn the_reason_compares_with_the_last_key_and_not_with_the_last_run() {
    let space = Space::new();
    space.run(space.chain(1));
    space.run(space.chain(2));
    space.run(space.chain(1)); // hits
    assert_eq!(stage(&space.run(space.chain(3)), "b").why, "parameter `rank` changed: 1 -> 3");
    let failing = |rank: u32| {
        vec![space.fake("a").node(), space.fake("b").param("rank", rank).fails("no").reading(&[0])]
    };
    space.run(failing(4));
    let after = space.run(space.chain(5));
    assert_eq!(
        stage(&after, "b").why,
        "parameter `rank` changed: 3 -> 5",
        "a failure has no key to compare with"
    );
}

#[test]
fn a_damaged_memory_costs_a_reason_and_no_result() {
    let space = Space::new();
    space.run_with(space.chain(1), &Options { pipeline: "p".into(), ..Options::default() });
    let path = space.dir.path().join("cache/run/latest/p");
    let text = fs::read_to_string(&path).unwrap();
    for damage in
        ["", "junk\n\n \n", &text[..text.len() - 3], &text.replace('"', "'"), &format!("{text}{text}ff")]
    {
        fs::write(&path, damage).unwrap();
        let options = || Options { pipeline: "p".into(), ..Options::default() };
        assert_eq!(
            line(&space.run_with(space.chain(1), &options())),
            "a:cached b:cached c:cached",
            "{damage:?}"
        );
    }
}

#[test]
fn every_difference_of_a_node_is_told_in_one_line() {
    let space = Space::new();
    let file = space.file("doc", "one");
    let nodes = |changed: bool| {
        let mut node =
            space.fake("b").param("x", u32::from(changed)).version(1 + u32::from(changed)).reading(&[0]);
        node.seed = u64::from(changed);
        node.reads.push((if changed { "new" } else { "old" }.to_owned(), file.clone()));
        vec![space.fake("a").param("y", u32::from(changed)).node(), node]
    };
    space.run(nodes(false));
    let changed = space.run(nodes(true));
    let b = stage(&changed, "b");
    assert_eq!(
        b.why,
        "the code changed: fake.rs; parameter `x` changed: 0 -> 1; input `in0` has other content; and 3 more"
    );
    let record = b.record.as_ref().unwrap();
    assert_eq!(record.why[3..], ["file `new` is new", "file `old` is gone", "the seed changed: 0 -> 1"]);
}
