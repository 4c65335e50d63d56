//! Healing that dies goes on from its checkpoint: twenty steps are ten, kill -9, and ten.

use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::space::Space;

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
held-out = { tokens = 512, every = 3000 }
ema = 0.9
checkpoint-every = 10
"#;

#[test]
fn twenty_steps_are_ten_and_a_kill_and_ten() {
    let expected = Space::new(PIPELINE).run("").ok().digests();
    let space = Space::new(PIPELINE);
    let (started, mut met) = (Instant::now(), false);
    let mut child =
        space.command(&["run", "p.toml"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !met && child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < Duration::from_mins(2), "no checkpoint was written");
        met = kept(&space);
        thread::sleep(Duration::from_millis(1));
    }
    assert!(met, "the run ended before its checkpoint was seen");
    let _already_gone = kill_process(Pid::from_child(&child), Signal::KILL);
    child.wait().unwrap();
    assert!(kept(&space), "the checkpoint is there for the next run");
    let ran = space.run("").ok();
    assert_eq!(ran.digests(), expected);
    ran.ran(["distill"]);
    assert!(!kept(&space), "what is done needs no checkpoint");
}

/// Whether the cache has a training checkpoint.
fn kept(space: &Space) -> bool {
    space.tree("cache/ckpt").keys().any(|name| name.ends_with("place.json"))
}
