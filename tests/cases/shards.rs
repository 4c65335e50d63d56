//! Stages with shards: what runs again after a change, and that the result is that of the undivided stage.

use crate::harness::space::Space;

const EMBED: &str = "
[stage.corpus]
sources = [{ files = 'in/*.txt', name = 'a', licence = 'MIT' }]
[stage.embed]
texts = 'corpus'
dim = 32
shards = 8
[stage.cluster]
embeddings = 'embed'
rule = 'fixed'
k = 3
";

/// A corpus of sixty documents, run once in eight shards.
fn embedded() -> Space {
    let space = Space::new(EMBED);
    for i in 0..60 {
        space.file(&format!("in/{i}.txt"), &format!("Document {i} is about subject {}.\n", i % 7));
    }
    let ran = space.run("").ok();
    assert_eq!(ran.with_status("ran").len(), 12);
    space
}

#[test]
fn the_merged_result_is_that_of_the_undivided_stage() {
    let space = embedded();
    let divided = space.run("").ok().hits(12).digests();
    space.edit("shards = 8\n", "");
    let whole = space.run("").ok().ran(["embed"]).hits(2).digests();
    let outputs = ["embed.embeddings", "cluster.clusters"];
    assert!(outputs.iter().all(|output| whole[*output] == divided[*output]), "{whole:?} {divided:?}");
}

#[test]
fn a_changed_document_reruns_the_shards_that_it_leaves_and_comes_to() {
    let space = embedded();
    space.file("in/7.txt", "Another text altogether.\n");
    let ran = space.run("").ok();
    let shards = ran.with_status("ran").into_iter().filter(|name| name.contains("shard")).count();
    assert!((1..=2).contains(&shards), "{shards}");
    assert_eq!(ran.with_status("cached").len(), 8 - shards);
    assert!(ran.why("embed").starts_with("input `embeddings.00"), "{}", ran.why("embed"));
}

#[test]
fn what_only_the_merge_does_reruns_the_merge() {
    let space = embedded();
    space.edit("dim = 32", "dim = 32\ncentre = false");
    let ran = space.run("").ok().ran(["embed", "cluster"]).hits(10);
    assert!(ran.why("embed").contains("centre"), "{}", ran.why("embed"));
}

const WORK: &str = "
[stage.work]
kind = 'exec'
argv = ['sh', '-c', 'test {shard} != ${bad} && echo {shard} of {shards} > {out}/part-{shard}.txt']
outputs = ['part-*.txt']
shards = 4
[stage.sum]
kind = 'exec'
argv = ['sh', '-c', 'cat {in.parts}/*.txt > {out}/all.txt']
inputs = { parts = 'work' }
outputs = ['all.txt']
[vars]
bad = '2'
";

#[test]
fn after_a_failed_shard_only_that_one_runs_again() {
    let space = Space::new(WORK);
    space.file("ok", "");
    // What a shard waits for is no part of its key here, as with a machine that broke.
    space.edit("test {shard} != ${bad}", "test {shard} != 2 -o -e ${done}");
    let done = format!("done = '{}'", space.path("done").display());
    space.edit("bad = '2'", &done);
    let failed = space.run("--keep-going").exits(1);
    assert_eq!(failed.with_status("failed"), ["work[shard=2]"]);
    assert_eq!(failed.with_status("blocked").len(), 2);
    space.file("done", "");
    space.run("").ok().ran(["work[shard=2]", "work", "sum"]).hits(3);
    let all = space.does("show sum --path").ok().stdout;
    assert_eq!(std::fs::read_to_string(all.trim()).unwrap(), "0 of 4\n1 of 4\n2 of 4\n3 of 4\n");
}

#[test]
fn a_stage_with_shards_is_called_by_its_name() {
    let space = Space::new(&WORK.replace("bad = '2'", "bad = '9'"));
    space.run("").ok();
    let all = ["work[shard=0]", "work[shard=1]", "work[shard=2]", "work[shard=3]", "work"];
    space.run("--force work").ok().ran(all).hits(1);
    space.run("--force work[shard=1]").ok().ran(["work[shard=1]"]).hits(5);
    let why = space.does("why work p.toml").ok();
    assert!(why.stdout.contains("cached"), "{}", why.stdout);
    let graph = space.does("graph p.toml").ok();
    assert!(graph.stdout.contains("exec · 4 shards"), "{}", graph.stdout);
}
