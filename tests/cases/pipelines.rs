//! The pipelines that come with the program.

use std::{fs, path::PathBuf};

use crate::harness::space::Space;
use mla_run::{cli::diagnostic, manifest::Options, plan, stage::table::STAGES};

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

/// On text that it was not trained on: whoever trains it anew must not make it worse than this.
#[test]
fn the_embedded_model_predicts_and_recalls() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/tiny");
    let space = Space::new(&format!(
        "[stage.model]\npath = '{model}'\n\
         [stage.corpus]\nseed = 1000003\n\
         sources = [{{ synthetic = {{ prose = 4, programs = 4, maths = 4, min-tokens = 300, max-tokens = 2000 }} }}]\n\
         [stage.evaluate]\noriginal = 'model'\nconverted = 'model'\ntexts = 'corpus'\nmax-tokens = 12000\n"
    ));
    let ran = space.run("").ok();
    let outputs = ran.stage("evaluate")["outputs"].clone();
    let folder = std::path::Path::new(outputs["scores"]["path"].as_str().unwrap());
    let scores: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("scores.json")).unwrap()).unwrap();
    let original = &scores["models"][0];
    let perplexity = original["all"]["perplexity"].as_f64().unwrap();
    assert!(perplexity < 3.0, "{perplexity}");
    let recall = &original["recall"];
    let figure = |name: &str| recall[name].as_f64().unwrap();
    assert!(figure("answers") > 100.0, "{recall}");
    assert!(figure("accuracy") > 4.0 * figure("chance"), "{recall}");
    assert_eq!(scores["models"][1]["all"]["kl_max"], 0.0, "the same model again");
}
