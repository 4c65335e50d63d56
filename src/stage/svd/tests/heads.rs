//! The embedded GPT-OSS with 2, 4 and 8 key/value heads whose keys have much or little in common.

use super::*;
use crate::{kernel::testing::noise, stage::corpus::Corpus};

/// Query heads of the embedded model, and the width of a head.
const HEADS: usize = 8;
const D: usize = 32;
const HIDDEN: usize = 128;

/// How keys of different heads relate.
#[derive(Debug, Clone, Copy)]
enum Common {
    /// All heads have the first one's keys, each turned by an angle of its own at each frequency.
    Much,
    /// Each head has its own real keys, of inputs that were turned by a random rotation of its own.
    Little,
}

/// The embedded model with so many key/value heads.
fn variant(kv_heads: usize, common: Common) -> (tempfile::TempDir, Checkpoint) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/tiny");
    let mut draft = Draft::copy_of(&Checkpoint::load(&files_in(&folder).unwrap()).unwrap()).unwrap();
    draft.config["num_key_value_heads"] = kv_heads.into();
    let names: Vec<String> = draft.tensors.keys().cloned().collect();
    for name in names.iter().filter(|name| name.contains("k_proj") || name.contains("v_proj")) {
        let values = floats(&draft, name);
        let (width, keys) = (values.len() / (4 * D), name.contains("k_proj"));
        let head = |g: usize| &values[(g * 4 / kv_heads) * D * width..][..D * width];
        let new = |g: usize| match common {
            Common::Much if keys => turned(head(0), width, g),
            Common::Little if keys && width == HIDDEN => mixed(head(g), g),
            _ => head(g).to_vec(),
        };
        let all: Vec<f32> = (0..kv_heads).flat_map(new).collect();
        let mut shape = draft.tensors[name].shape.clone();
        shape[0] = kv_heads * D;
        draft.tensors.insert(name.clone(), Owned::f32(&shape, &all));
    }
    let dir = tempfile::tempdir().unwrap();
    draft.save(dir.path()).unwrap();
    let checkpoint = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
    (dir, checkpoint)
}

/// Rows of a head [d, width] with each rotary pair turned by an angle of its own.
fn turned(head: &[f32], width: usize, g: usize) -> Vec<f32> {
    let angles = noise(100 + g as u64, D / 2, 3.0);
    let mut out = head.to_vec();
    for at in 0..D / 2 * width {
        let (sin, cos) = (g.min(1) as f32 * angles[at / width]).sin_cos();
        let (a, b) = (head[at], head[at + D / 2 * width]);
        (out[at], out[at + D / 2 * width]) = (cos * a - sin * b, sin * a + cos * b);
    }
    out
}

/// Rows of a head [d, hidden] of inputs that went through random reflections.
fn mixed(head: &[f32], g: usize) -> Vec<f32> {
    let mut out = head.to_vec();
    for seed in 0..4 {
        let v = noise(1000 + 10 * g as u64 + seed, HIDDEN, 1.0);
        let square: f32 = v.iter().map(|x| x * x).sum();
        for row in out.chunks_exact_mut(HIDDEN) {
            let dot: f32 = row.iter().zip(&v).map(|(a, b)| a * b).sum();
            row.iter_mut().zip(&v).for_each(|(x, v)| *x -= 2.0 * dot / square * v);
        }
    }
    out
}

/// `--nocapture` prints the table.
#[test]
fn with_any_number_of_heads_ours_loses_least() {
    let corpus = Bench::new();
    let toml = "sources = [{ synthetic = { prose = 4, programs = 4, maths = 4, min-tokens = 100, max-tokens = 600 } }]";
    corpus.run::<Corpus>(&toml::from_str(toml).unwrap()).unwrap();
    let texts: Texts = corpus.load("texts");
    for (kv_heads, common) in [2, 4, 8].into_iter().flat_map(|n| [(n, Common::Much), (n, Common::Little)]) {
        assert!(HEADS.is_multiple_of(kv_heads));
        let (dir, checkpoint) = variant(kv_heads, common);
        let bench = Bench::new().input("model", &checkpoint).input("texts", &texts);
        let analyze = "model = 'model'\ntexts = 'corpus'\nheld-out-tokens = 1000\nmax-tokens = 4000";
        bench.run::<Analyze>(&toml::from_str(analyze).unwrap()).unwrap();
        let model = Calibrated { _dir: dir, checkpoint, moments: bench.load("moments"), _bench: bench };
        let budget = kv_heads * D / 2;
        let kl = |method: &str| {
            let toml =
                format!("kv-budget = {budget}\nmeasure = 8\nmeasure-tokens = 1000\nmethod = '{method}'");
            let (_bench, converted, report) = model.convert(&toml);
            assert!(report.parity.relative_difference <= 1e-5);
            assert!(Config::parse(&converted.config).is_ok());
            report.candidates.iter().find(|c| c.chosen).and_then(|c| c.kl).expect("measured")
        };
        let [ours, theirs, care, mha2mla] = ["metric", "transmla", "care", "mha2mla"].map(kl);
        println!(
            "{kv_heads} heads with {common:?} in common, {budget} of {} elements: metric {ours:.4}, transmla {theirs:.4}, care \
             {care:.4}, mha2mla {mha2mla:.4}",
            2 * kv_heads * D
        );
        assert!(ours < theirs && ours < care && ours < mha2mla, "{kv_heads} {common:?}");
    }
}
