//! Bundles of the golden models with latent layers, written by the export stage where `tests/export/check.sh` finds them.
//!
//! Layer by layer the latent form is exact (all pairs rotated), partly content, or without any rotated key.

use std::{collections::BTreeMap, fs, path::Path};

use mla_run::{
    artifact::{Artifact, Files, scores::Scores},
    engine::action::{Cx, NoCheckpoints, Quiet, Stop},
    stage::{Stage, export::Export},
};
use serde_json::json;

use crate::harness::golden::Golden;

#[test]
fn dense_experts_with_an_exact_and_a_partly_rotated_layer() {
    let mut golden = Golden::load("gptoss-dense");
    golden.make_latent(1, &(0..8).collect::<Vec<_>>());
    golden.make_latent(3, &[0, 2, 3]);
    write_bundle("bundle-dense", &golden);
}

#[test]
fn mxfp4_experts_with_a_layer_that_rotates_nothing() {
    let mut golden = Golden::load("gptoss-mxfp4");
    golden.config["layer_types"] = json!(["sliding_attention", "full_attention", "full_attention"]);
    golden.make_latent(1, &[]);
    golden.make_latent(2, &[1, 4, 5, 6]);
    write_bundle("bundle-mxfp4", &golden);
}

#[test]
fn an_unconverted_model() {
    write_bundle("bundle-stock", &Golden::load("gptoss-mxfp4"));
}

/// Runs the export stage into `target/tmp/<name>`.
fn write_bundle(name: &str, golden: &Golden) {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if target.exists() {
        fs::remove_dir_all(&target).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    };
    let stage: Export =
        serde_json::from_value(json!({"checkpoint": "a", "scores": "b", "shard-bytes": 100_000})).unwrap();
    scores().save(&folder("scores")).unwrap();
    let scores = Files::from([("scores.json".to_owned(), dir.path().join("scores/scores.json"))]);
    folder("out/bundle");
    let inputs = [("checkpoint", golden.write(&folder("checkpoint"))), ("scores", scores)];
    let cx = Cx {
        memory: None,
        inputs: inputs.map(|(port, files)| (port.to_owned(), files)).into(),
        reads: BTreeMap::new(),
        out: folder("out"),
        scratch: folder("scratch"),
        log: folder("scratch").join("log"),
        seed: 5,
        device: "cpu".to_owned(),
        progress: &Quiet,
        checkpoints: &NoCheckpoints,
        stop: &Stop::default(),
    };
    stage.run(&cx).unwrap();
    fs::rename(cx.output("bundle"), &target).or_else(|_| copy(&cx.output("bundle"), &target)).unwrap();
    assert!(target.join("check.safetensors").exists());
}

/// Figures are not what this file is about: an original compared with itself.
fn scores() -> Scores {
    let figures = json!({"tokens": 1, "kl_mean": 0.0, "kl_mean_se": null, "kl_median": 0.0, "kl_p90": 0.0, "kl_p95": 0.0, "kl_p99": 0.0, "kl_p999": 0.0,
        "kl_max": 0.0, "top1": 1.0, "top1_se": null, "delta_p_mean": 0.0, "delta_p_rms": 0.0, "perplexity": 90.0, "perplexity_ratio": 1.0, "ln_ratio": 0.0, "ln_ratio_se": null});
    let original = json!({"model": "original", "all": figures, "buckets": [], "recall": null, "kv_bytes_per_token": 256,
        "kv_bytes_per_token_sliding": 256, "kv_elements_per_layer": [64, 64], "kv_cut": 0.0, "kv_cut_whole_model": 0.0});
    serde_json::from_value(json!({
        "protocol": {"text": "none", "documents": 1, "tokens": 1, "max_tokens": 2, "bos": null, "numerics": "f32",
            "kv_element_bytes": 2},
        "models": [original]
    }))
    .unwrap()
}

/// The temporary folder may lie on another file system, where a rename does not reach.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        fs::copy(&path, to.join(path.file_name().unwrap()))?;
    }
    Ok(())
}
