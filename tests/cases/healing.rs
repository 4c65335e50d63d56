//! Healing that dies goes on from its checkpoint: twenty steps are ten, kill -9, and ten; and so they are when a disk is full, or lies.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::space::{Ran, Space};

/// A tiny model that trains for twenty steps, and forgets nothing after the tenth.
const PIPELINE: &str = r#"
[pipeline]
name = "healing"

[stage.corpus]
sources = [{ synthetic = { prose = 8, programs = 8, maths = 8, min-tokens = 64, max-tokens = 200 }, licence = "MIT" }]

[stage.tokenizer]
texts = "corpus"
vocab-size = 300

[stage.init]
tokenizer = "tokenizer"
hidden-size = 32
intermediate-size = 32
num-hidden-layers = 2
num-attention-heads = 2
num-key-value-heads = 1
head-dim = 16
num-local-experts = 2
num-experts-per-tok = 1
sliding-window = 32
original-max-position-embeddings = 64

[stage.distill]
student = "init"
texts = "corpus"
train = "all"
max-length = 256
cross-entropy = { steps = 20, lr = 1e-3, batch-tokens = 1024 }
micro-batch-tokens = 256
held-out = { tokens = 512, every = 3000 }
ema = 0.9
checkpoint-every = 10
"#;

#[test]
fn twenty_steps_are_ten_and_a_kill_and_ten() {
    let expected = Space::new(PIPELINE).run("").ok().digests();
    let space = killed();
    let ran = space.run("").ok();
    assert_eq!(ran.digests(), expected);
    ran.ran(["distill"]);
    assert!(kept(&space).is_empty(), "what is done needs no checkpoint");
}

#[test]
fn a_plan_tells_the_memory_that_healing_takes() {
    let space = Space::new(PIPELINE);
    let took = space.run("").ok().stage("distill")["peak_memory"].as_u64().unwrap();
    space.edit("lr = 1e-3", "lr = 2e-3");
    let plan = space.does("plan p.toml --format json").ok().json();
    let stages = plan["stages"].as_array().unwrap();
    let told = |name: &str| stages.iter().find(|stage| stage["name"] == name).unwrap()["forecast"].clone();
    assert!(told("init").is_null(), "it is cached");
    let parts = told("distill")["memory"].as_array().unwrap().clone();
    let told_bytes: u64 = parts.iter().map(|part| part[1].as_u64().unwrap()).sum();
    // A model this small takes less than the program, for which a fixed size is told.
    assert!(
        (took..2 * took + (200 << 20)).contains(&told_bytes),
        "{told_bytes} told, {took} taken: {parts:?}"
    );
    assert!(told("distill")["flop"].as_f64().unwrap() > 1e9);
    let text = space.does("plan p.toml").ok().stdout;
    assert!(text.contains("distill takes up to ") && text.contains("GFLOP/s"), "{text}");
}

#[test]
fn two_processes_make_the_steps_of_one_and_one_that_is_lost_is_told() {
    let expected = Space::new(PIPELINE).run("").ok().digests();
    let shared = |more: &str| {
        Space::new(&PIPELINE.replace("checkpoint-every", &format!("processes = 2\n{more}checkpoint-every")))
    };
    let ran = shared("").run("").ok();
    assert_eq!(ran.digests(), expected);
    assert!(ran.stderr.contains("2 processes share the parts of a step"), "{}", ran.stderr);
    // What starts the second process may be anything; this ends at once.
    let ran = shared("launch = [\"false\"]\n").run("").exits(1);
    assert!(ran.stderr.contains("process 1 of 2: "), "{}", ran.stderr);
}

#[test]
fn a_full_disk_ends_the_run_and_the_checkpoint_before_stays() {
    let expected = Space::new(PIPELINE).run("").ok().digests();
    let space = killed();
    let before = kept(&space);
    let largest = before.values().map(Vec::len).max().unwrap();
    // Files of half its size can still be written: as good as a full disk, for whom a test may not fill one.
    let program = space.command(&["run", "p.toml"]);
    let script =
        format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" run p.toml --format json", largest / 2 / 1024);
    let mut limited = Command::new("sh");
    limited.arg("-c").arg(script).arg(program.get_program()).current_dir(space.path("")).env_clear();
    limited.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    let ran = Ran::new(&limited.output().unwrap()).exits(1);
    assert!(ran.stderr.contains("File too large"), "{}", ran.stderr);
    assert!(kept(&space) == before, "the checkpoint of before is untouched");
    let ran = space.run("").ok();
    assert_eq!(ran.digests(), expected);
    ran.ran(["distill"]);
}

#[test]
fn a_damaged_checkpoint_is_not_gone_on_from() {
    let expected = Space::new(PIPELINE).run("").ok().digests();
    let space = killed();
    let kept = kept(&space);
    let (name, bytes) = kept.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
    let mut bytes = bytes.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(space.path("cache/ckpt").join(name), bytes).unwrap();
    let ran = space.run("").ok();
    assert_eq!(ran.digests(), expected, "one bit of the weights would have gone into all that follow");
    ran.ran(["distill"]);
}

/// A run that was killed as soon as it had a checkpoint.
fn killed() -> Space {
    let space = Space::new(PIPELINE);
    let (started, mut met) = (Instant::now(), false);
    let mut child =
        space.command(&["run", "p.toml"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !met && child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < Duration::from_mins(2), "no checkpoint was written");
        met = !kept(&space).is_empty();
        thread::sleep(Duration::from_millis(1));
    }
    assert!(met, "the run ended before its checkpoint was seen");
    let _already_gone = kill_process(Pid::from_child(&child), Signal::KILL);
    child.wait().unwrap();
    assert!(!kept(&space).is_empty(), "the checkpoint is there for the next run");
    space
}

/// The files of the training checkpoints in the cache; none as long as one is not whole.
fn kept(space: &Space) -> BTreeMap<String, Vec<u8>> {
    let files = space.tree("cache/ckpt");
    if files.keys().any(|name| name.ends_with("place.json")) { files } else { BTreeMap::new() }
}
