//! Several processes on one cache.

use std::process::{Child, Stdio};

use crate::harness::space::{Ran, Space};

/// Stages that leave a line in a file outside the cache each time they run.
fn manifest(count: usize) -> String {
    let stage = |i: usize| {
        let input = if i < 3 { String::new() } else { format!("inputs = {{ n = \"s{}\" }}\n", i - 3) };
        format!(
            "[stage.s{i}]\nkind = \"exec\"\nargv = [\"sh\", \"-c\", \"echo s{i} >> ${{log}}; sleep 0.02; echo {i} > {{out}}/n\"]\n\
             {input}outputs = [\"n\"]\n"
        )
    };
    (0..count).map(stage).collect()
}

fn start(space: &Space) -> Child {
    let log = format!("log=\"{}\"", space.path("log").display());
    let mut command = space.command(&["run", "p.toml", "--format", "json", "--set", &log]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn sixteen_processes_run_each_stage_once() {
    const STAGES: usize = 9;
    let space = Space::new(&format!("[vars]\nlog = \"none\"\n{}", manifest(STAGES)));
    let children: Vec<Child> = (0..16).map(|_| start(&space)).collect();
    let mut digests = Vec::new();
    for child in children {
        let ran = Ran::new(&child.wait_with_output().unwrap()).ok();
        digests.push(ran.digests());
    }
    assert!(digests.windows(2).all(|pair| pair[0] == pair[1]));
    let mut ran: Vec<String> = space.read("log").lines().map(str::to_owned).collect();
    ran.sort();
    assert_eq!(ran, (0..STAGES).map(|i| format!("s{i}")).collect::<Vec<_>>());
    space.does("cache verify").ok();
    for folder in ["claim", "lease", "tmp"] {
        assert!(space.tree(&format!("cache/{folder}")).is_empty(), "{folder} is not empty");
    }
}

#[test]
fn a_clean_up_that_never_ends_takes_nothing_that_lives() {
    const STAGES: usize = 9;
    let space = Space::new(&format!("[vars]\nlog = \"none\"\n{}", manifest(STAGES)));
    let mut children: Vec<Child> = (0..16).map(|_| start(&space)).collect();
    let mut rounds = 0;
    while children.iter_mut().any(|child| child.try_wait().unwrap().is_none()) {
        space.does("cache gc --cache cache --older-than 0s --keep-runs 0 --all").ok();
        rounds += 1;
    }
    for child in children {
        Ran::new(&child.wait_with_output().unwrap()).ok();
    }
    assert!(rounds > 3, "{rounds} clean-ups ran beside them");
    let mut ran: Vec<String> = space.read("log").lines().map(str::to_owned).collect();
    ran.sort();
    assert_eq!(ran, (0..STAGES).map(|i| format!("s{i}")).collect::<Vec<_>>());
    space.does("cache verify").ok();
    let log = format!("log=\"{}\"", space.path("log").display());
    let again =
        Ran::new(&space.command(&["run", "p.toml", "--format", "json", "--set", &log]).output().unwrap());
    again.ok().hits(STAGES);
}
