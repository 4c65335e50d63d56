//! The pipelines that come with the program.

use std::{fs, path::PathBuf};

use mla_run::{cli::diagnostic, manifest::Options, plan, stage::STAGES};

fn pipelines() -> Vec<PathBuf> {
    let all = fs::read_dir("pipelines").unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.extension().is_some_and(|ext| ext == "toml")).collect()
}

#[test]
fn every_pipeline_can_be_planned() {
    assert!(pipelines().iter().any(|path| path.ends_with("smoke.toml")));
    for path in pipelines() {
        if path.to_string_lossy().ends_with(".lock.toml") {
            continue;
        }
        match plan::open(&path, &Options::default(), STAGES) {
            Ok(plan) => assert!(!plan.nodes.is_empty()),
            Err(rejected) => panic!("{}", diagnostic::render(&rejected, false)),
        }
    }
}
