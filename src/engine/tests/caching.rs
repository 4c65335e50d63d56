//! What hits, what misses, and why.

use std::sync::Arc;

use super::*;

#[test]
fn a_second_run_does_nothing() {
    let space = Space::new();
    let first = space.run(space.chain(96));
    assert_eq!(line(&first), "a:ran b:ran c:ran");
    assert_eq!(space.log.take(), ["a", "b", "c"]);
    assert!(text(&first, "c").contains("in0/data"), "{}", text(&first, "c"));
    let second = space.run(space.chain(96));
    assert_eq!(line(&second), "a:cached b:cached c:cached");
    assert_eq!(space.log.take(), [""; 0]);
    for (a, b) in first.stages.iter().zip(&second.stages) {
        assert_eq!((a.key, &a.outputs), (b.key, &b.outputs));
    }
}

#[test]
fn a_parameter_reruns_what_depends_on_it_and_says_why() {
    let space = Space::new();
    space.run(space.chain(96));
    let second = space.run(space.chain(64));
    assert_eq!(line(&second), "a:cached b:ran c:ran");
    assert_eq!(stage(&second, "b").why, "parameter `rank` changed: 96 -> 64");
    assert_eq!(stage(&second, "c").why, "input `in0` has other content");
    assert_eq!(
        line(&space.run(space.chain(96))),
        "a:cached b:cached c:cached",
        "the old result is still there"
    );
}

#[test]
fn the_reason_is_kept_in_the_record() {
    let space = Space::new();
    space.run(space.chain(96));
    space.run(space.chain(64));
    let third = space.run(space.chain(64));
    let record = stage(&third, "b").record.as_ref().unwrap();
    assert_eq!(record.why, ["parameter `rank` changed: 96 -> 64"]);
}

#[test]
fn equal_bytes_cut_the_rerun_off() {
    let space = Space::new();
    let nodes = |version| {
        vec![
            space.fake("a").version(version).constant().node(),
            space.fake("b").reading(&[0]),
            space.fake("c").reading(&[1]),
        ]
    };
    space.run(nodes(1));
    let second = space.run(nodes(2));
    assert_eq!(line(&second), "a:ran b:cached c:cached");
    assert_eq!(stage(&second, "a").why, "the code changed: fake.rs");
}

#[test]
fn renaming_a_node_hits_and_swapping_inputs_misses() {
    let space = Space::new();
    let nodes = |reader: &str, inputs: &[usize]| {
        let named = |mut node: Node| {
            node.name = reader.to_owned();
            node
        };
        vec![space.fake("a").node(), space.fake("b").node(), named(space.fake("c").reading(inputs))]
    };
    space.run(nodes("c", &[0, 1]));
    assert_eq!(line(&space.run(nodes("renamed", &[0, 1]))), "a:cached b:cached renamed:cached");
    let swapped = space.run(nodes("c", &[1, 0]));
    assert_eq!(line(&swapped), "a:cached b:cached c:ran");
    assert_eq!(stage(&swapped, "c").why, "input `in0` has other content; input `in1` has other content");
}

#[test]
fn files_of_the_user_count_by_content() {
    let space = Space::new();
    let nodes = |file: &str| {
        let mut node = space.fake("a").node();
        node.reads.push(("doc".to_owned(), space.dir.path().join(file)));
        vec![node]
    };
    space.file("one", "text");
    assert_eq!(line(&space.run(nodes("one"))), "a:ran");
    space.file("one", "text"); // another time
    assert_eq!(line(&space.run(nodes("one"))), "a:cached");
    space.file("two", "text"); // another place
    assert_eq!(line(&space.run(nodes("two"))), "a:cached");
    space.file("one", "TEXT");
    let changed = space.run(nodes("one"));
    assert_eq!(stage(&changed, "a").why, "file `doc` has other content");
    let missing = space.run(nodes("three"));
    assert_eq!(line(&missing), "a:failed");
    assert!(stage(&missing, "a").why.starts_with("cannot read "), "{}", stage(&missing, "a").why);
}

#[test]
fn a_file_that_changes_during_the_run_is_not_cached() {
    let space = Space::new();
    let path = space.file("doc", "before");
    let nodes = |edit: bool| {
        let path = path.clone();
        let act = move |_: &Cx<'_>| {
            if edit { fs::write(&path, "during").map_err(Failure::stage) } else { Ok(()) }
        };
        let mut node = space.fake("a").first(act).node();
        node.reads.push(("doc".to_owned(), space.dir.path().join("doc")));
        vec![node]
    };
    let first = space.run(nodes(true));
    assert_eq!(line(&first), "a:failed");
    assert!(stage(&first, "a").why.starts_with("file `doc` changed while the stage read it"));
    assert_eq!(line(&space.run(nodes(false))), "a:ran", "nothing was recorded");
}

#[test]
fn the_device_counts_only_where_bytes_depend_on_it() {
    let space = Space::new();
    let nodes =
        || vec![space.fake("exact").node(), space.fake("float").numerics(Numerics::PerDevice).reading(&[0])];
    let on = |fingerprint: &str| Options { fingerprint: fingerprint.into(), ..Options::default() };
    space.run_with(nodes(), &on("cpu avx2"));
    let other = space.run_with(nodes(), &on("cuda 9.0"));
    assert_eq!(line(&other), "exact:cached float:ran");
    assert_eq!(stage(&other, "float").why, "the device changed: cpu avx2 -> cuda 9.0");
    let index = Options { device: "cuda:7".into(), ..on("cuda 9.0") };
    assert_eq!(line(&space.run_with(nodes(), &index)), "exact:cached float:cached");
}

#[test]
fn seed_salt_and_jobs() {
    let space = Space::new();
    let nodes = |seed, salt: Option<&str>| {
        let mut node = space.fake("a").node();
        (node.seed, node.salt) = (seed, salt.map(str::to_owned));
        vec![node]
    };
    space.run(nodes(1, None));
    assert_eq!(stage(&space.run(nodes(2, None)), "a").why, "the seed changed: 1 -> 2");
    assert_eq!(stage(&space.run(nodes(2, Some("x"))), "a").why, "the salt changed");
    assert_eq!(line(&space.run_with(nodes(1, None), &Options { jobs: 7, ..Options::default() })), "a:cached");
}

#[test]
fn damage_is_found_put_aside_and_repaired() {
    let space = Space::new();
    let first = space.run(space.chain(1));
    let tree = &stage(&first, "a").record.as_ref().unwrap().outputs["out"];
    let blob = space.store().blob_path(&tree.files[0].blob);
    let size = fs::metadata(&blob).unwrap().len() as usize;
    let bad = || fs::read_dir(space.dir.path().join("cache/bad")).unwrap().count();
    for (count, bytes) in [vec![0; size], vec![1; size - 1], Vec::new()].into_iter().enumerate() {
        fs::remove_file(&blob).unwrap();
        fs::write(&blob, bytes).unwrap();
        let repaired = space.run(space.chain(1));
        assert_eq!(line(&repaired), "a:ran b:cached c:cached");
        assert_eq!(stage(&repaired, "a").why, "output `out` was damaged in the cache and moved to bad/");
        assert_eq!(text(&repaired, "a"), text(&first, "a"));
        assert_eq!(bad(), count + 1);
    }
    fs::remove_file(&blob).unwrap();
    let repaired = space.run(space.chain(1));
    assert_eq!(stage(&repaired, "a").why, "output `out` is gone from the cache");
    assert!(space.store().verify().unwrap().is_sound());
}

#[test]
fn nodes_of_one_key_run_once_in_a_run() {
    let space = Space::new();
    let twin = |name: &str| Node { name: name.to_owned(), ..space.fake("a").node() };
    let nodes = || vec![twin("a"), twin("b"), twin("c"), space.fake("end").reading(&[0, 1, 2])];
    let options = Options { jobs: 4, ..Options::default() };
    let summary = space.run_with(nodes(), &options);
    assert_eq!(line(&summary), "a:ran b:cached c:cached end:ran");
    assert_eq!(space.log.take(), ["a", "end"]);
    assert_eq!(stage(&summary, "a").outputs, stage(&summary, "c").outputs);
    assert_eq!(line(&space.run_with(nodes(), &options)), "a:cached b:cached c:cached end:cached");
}

#[test]
fn a_failure_is_no_result_for_a_node_of_the_same_key() {
    let space = Space::new();
    let tries = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let twin = |name: &str| {
        let tries = tries.clone();
        let act = move |_: &Cx<'_>| match tries.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
            0 => Err(Failure::stage("no luck")),
            _ => Ok(()),
        };
        Node { name: name.to_owned(), ..space.fake("a").first(act).node() }
    };
    let options = Options { jobs: 4, keep_going: true, ..Options::default() };
    let summary = space.run_with(vec![twin("a"), twin("b"), twin("c")], &options);
    assert_eq!(line(&summary), "a:failed b:ran c:cached");
    let strict = Space::new();
    let summary = strict.run_with(
        vec![
            strict.fake("a").fails("no luck").node(),
            Node { name: "b".to_owned(), ..strict.fake("a").fails("no luck").node() },
        ],
        &Options { jobs: 4, ..Options::default() },
    );
    assert_eq!(line(&summary), "a:failed b:skipped");
}
