//! kill -9 at any moment, and signals: the next run ends with the same bytes.

use std::{
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::space::Space;

/// Eight stages in two chains with a common end, each a few milliseconds long.
fn chains() -> String {
    let mut text = String::new();
    for chain in ["a", "b"] {
        for i in 0..4 {
            let (input, words) = match i {
                0 => (String::new(), "seq 1 2000 > {out}/n".to_owned()),
                _ => (
                    format!("inputs = {{ n = \"{chain}{}\" }}\n", i - 1),
                    format!(
                        "sleep 0.002; sed s/^/{chain}/ {{in.n}}/n > {{out}}/n; seq {i} 900 > {{out}}/more"
                    ),
                ),
            };
            let outputs = if i == 0 { "\"n\"" } else { "\"n\", \"more\"" };
            let stage = format!(
                "[stage.{chain}{i}]\nkind = \"exec\"\nargv = [\"sh\", \"-c\", \"{words}\"]\n{input}outputs = [{outputs}]\n\n"
            );
            text += &stage;
        }
    }
    text + "[stage.end]\nkind = \"exec\"\nargv = [\"sh\", \"-c\", \"cat {in.a}/n {in.b}/n > {out}/n\"]\n\
            inputs = { a = \"a3\", b = \"b3\" }\noutputs = [\"n\"]\n"
}

fn start(space: &Space) -> Child {
    // Forced, so that every run has as much to do as the first.
    let mut command = space.command(&["run", "p.toml", "--force", "all"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

/// A run of numbers that looks random and is the same every time.
fn spread(i: u64) -> f64 {
    let mixed = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

#[test]
fn kill_9_at_fifty_points_leaves_nothing_wrong() {
    const POINTS: u32 = 50;
    let space = Space::new(&chains());
    let expected = space.run("").ok().digests();
    let started = Instant::now();
    space.run("--force all").ok();
    let took = started.elapsed();

    let mut space = Space::new(&chains());
    let mut met = 0;
    for i in 0.. {
        assert!(i < 4 * u64::from(POINTS), "only {met} of {i} kills met a running process");
        let mut child = start(&space);
        thread::sleep(took.mul_f64(spread(i)));
        met += u32::from(child.try_wait().unwrap().is_none());
        let _already_gone = kill_process(pid(&child), Signal::KILL);
        child.wait().unwrap();
        if i % 5 == 4 {
            let ran = space.run("").ok();
            assert_eq!(ran.digests(), expected, "after kill {i}: {}", ran.stderr);
            space.does("cache verify").ok();
        }
        match i % 10 {
            9 if met >= POINTS => break,
            // What the next kills meet is an empty cache again.
            9 => space = Space::new(&chains()),
            _ => {}
        }
    }
}

#[test]
fn what_dead_runs_left_is_swept() {
    let space = Space::new(&chains());
    for i in 0..5 {
        let mut child = start(&space);
        thread::sleep(Duration::from_millis(30 + 20 * i));
        let _already_gone = kill_process(pid(&child), Signal::KILL);
        child.wait().unwrap();
    }
    // Commands that outlived their killed run end by themselves.
    thread::sleep(Duration::from_millis(200));
    space.run("").ok();
    for folder in ["tmp", "lease"] {
        let left: Vec<_> = space.tree(&format!("cache/{folder}")).into_keys().collect();
        assert!(left.len() <= 1, "{folder}: {left:?}");
    }
}

#[test]
fn the_first_signal_ends_the_run_in_order_and_the_next_run_goes_on() {
    let slow = "[stage.quick]\nkind = \"exec\"\nargv = [\"sh\", \"-c\", \"echo 1 > {out}/x\"]\noutputs = [\"x\"]\n\
                [stage.slow]\nkind = \"exec\"\nargv = [\"sh\", \"-c\", \"touch started; sleep ${seconds}; echo 2 > {out}/x\"]\n\
                inputs = { x = \"quick\" }\noutputs = [\"x\"]\n[vars]\nseconds = \"60\"\n";
    for signal in [Signal::INT, Signal::TERM] {
        let space = Space::new(slow);
        let started = Instant::now();
        let child = space
            .command(&["run", "p.toml", "--format", "json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The quick stage is recorded before the slow one starts.
        while !space.tree("cache").keys().any(|name| name.ends_with("work/started")) {
            assert!(started.elapsed() < Duration::from_secs(30), "the slow stage did not start");
            thread::sleep(Duration::from_millis(5));
        }
        kill_process(pid(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{output:?}");
        assert!(started.elapsed() < Duration::from_secs(30), "the command was ended too");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let statuses: Vec<&str> =
            json["stages"].as_array().unwrap().iter().map(|s| s["status"].as_str().unwrap()).collect();
        assert_eq!((json["status"].as_str(), statuses), (Some("failed"), vec!["ran", "failed"]));
        space.run("--set seconds=\"0\"").ok().ran(["slow"]).hits(1);
    }
}
