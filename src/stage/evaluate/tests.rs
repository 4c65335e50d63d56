//! The whole stage on a small model, against a reference that works another way.

use tempfile::TempDir;

use super::*;
use crate::{
    artifact::{
        checkpoint::{Draft, files_in},
        scores::Figures,
        texts::{Mark, Text},
    },
    model::{Batch, Model as Whole, probe::NoProbe},
    stage::testing::Bench,
};

const VOCAB: u32 = 96;

/// The golden model (window 8, original context 32) with a tokenizer of the words `t0` to `t95`; `change` spoils a copy.
fn checkpoint(change: impl Fn(&mut Draft)) -> (TempDir, Checkpoint) {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gptoss-dense");
    let mut draft = Draft::copy_of(&Checkpoint::load(&files_in(&golden).unwrap()).unwrap()).unwrap();
    draft.side_files.retain(|name, _| name == "generation_config.json");
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..VOCAB).map(|id| (format!("t{id}"), id.into())).collect();
    let tokenizer = serde_json::json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}});
    draft.side_files.insert("tokenizer.json".into(), tokenizer.to_string().into_bytes());
    change(&mut draft);
    let dir = tempfile::tempdir().unwrap();
    draft.save(dir.path()).unwrap();
    let checkpoint = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
    (dir, checkpoint)
}

/// Queries of the second layer, which sees all tokens, halved.
fn spoil(draft: &mut Draft) {
    let tensor = draft.tensors.get_mut("model.layers.1.self_attn.q_proj.weight").unwrap();
    for pair in tensor.bytes.chunks_exact_mut(2) {
        let half = half::bf16::from_le_bytes([pair[0], pair[1]]).to_f32() / 2.0;
        pair.copy_from_slice(&half::bf16::from_f32(half).to_le_bytes());
    }
}

fn noise(seed: u32, n: u32) -> Vec<u32> {
    (0..n)
        .map(|i| (seed.wrapping_mul(747_796_405) ^ i.wrapping_mul(2_891_336_453)).rotate_left(13) % VOCAB)
        .collect()
}

fn text(ids: &[u32], marks: Vec<Mark>) -> Text {
    let words: Vec<String> = ids.iter().map(|id| format!("t{id}")).collect();
    let text = words.join(" ");
    let id = blake3::hash(text.as_bytes()).to_hex().to_string();
    Text { id, source: "a/b".into(), licence: String::new(), text, special_tokens: false, marks }
}

fn texts() -> Texts {
    let mut rows: Vec<Text> = (1..6).map(|seed| text(&noise(seed, 20 + 10 * seed), vec![])).collect();
    rows.sort_by(|a, b| a.id.cmp(&b.id));
    Texts(rows)
}

fn stage(toml: &str) -> Evaluate {
    let inputs = if toml.contains("split =") { "" } else { "texts = 'texts'" };
    toml::from_str(&format!("original = 'model'\nconverted = 'svd'\n{inputs}\n{toml}")).unwrap()
}

/// The scores of the spoiled model as `converted` and the original again as `healed`.
fn run(toml: &str, texts: &Texts) -> (Scores, String) {
    let (original, converted) = (checkpoint(|_| {}), checkpoint(spoil));
    let bench = Bench::new()
        .input("original", &original.1)
        .input("converted", &converted.1)
        .input("healed", &original.1)
        .input("texts", texts);
    bench.run(&stage(&format!("healed = 'distill'\n{toml}"))).unwrap();
    (bench.load("scores"), String::from_utf8(bench.bytes()["scores/scores.md"].clone()).unwrap())
}

/// Probabilities of every token after each prefix, one document at a time, softmax by its definition in f64.
fn reference(checkpoint: &Checkpoint, ids: &[u32]) -> Vec<Vec<f64>> {
    let model = Whole::frozen(checkpoint).unwrap();
    let logits = model.logits(&Batch::new([ids]), &mut NoProbe).unwrap().to_vec2::<f32>().unwrap();
    let softmax = |row: &Vec<f32>| {
        let e: Vec<f64> = row.iter().map(|&x| f64::from(x).exp()).collect();
        let sum: f64 = e.iter().sum();
        e.into_iter().map(|e| e / sum).collect()
    };
    logits.iter().map(softmax).collect()
}

fn ids(text: &Text) -> Vec<u32> {
    text.text.split(' ').map(|word| word[1..].parse().unwrap()).collect()
}

fn near(got: f64, want: f64) {
    assert!((got - want).abs() < 2e-5 * (1.0 + want.abs()), "{got}, expected {want}");
}

#[test]
fn variants_stand_beside_under_their_names() {
    let (original, converted) = (checkpoint(|_| {}), checkpoint(spoil));
    let bench = Bench::new()
        .input("original", &original.1)
        .input("converted", &original.1)
        .input("variants.b-2", &original.1)
        .input("variants.a_1", &converted.1)
        .input("texts", &texts());
    bench.run(&stage("variants = { b-2 = 'x', a_1 = 'y' }")).unwrap();
    let scores: Scores = bench.load("scores");
    let names: Vec<&str> = scores.models.iter().map(|row| row.model.as_str()).collect();
    assert_eq!(names, ["original", "converted", "a_1", "b-2"]);
    assert_eq!(scores.models[3].all, scores.models[0].all);
    assert!(scores.models[2].all.kl_mean > 1e-3);
    for name in ["healed", "", "a b", "../up"] {
        let stage = stage(&format!("variants = {{ '{name}' = 'x' }}"));
        assert_eq!(stage.check().unwrap_err().param, "variants", "{name}");
    }
}

/// Fewer bits cost more, and save bytes; the original in BF16 stands beside.
#[test]
fn caches_in_fewer_bits_are_columns_of_their_own() {
    let (original, converted) = (checkpoint(|_| {}), checkpoint(spoil));
    let bench =
        Bench::new().input("original", &original.1).input("converted", &converted.1).input("texts", &texts());
    bench.run(&stage("caches = ['bf16', 'fp8', 'int4']\nnoise-floor = true")).unwrap();
    let scores: Scores = bench.load("scores");
    let names: Vec<&str> = scores.models.iter().map(|row| row.model.as_str()).collect();
    let expected = ["original", "converted", "original-bf16", "original-fp8", "original-int4"];
    assert_eq!(names[..5], expected);
    assert_eq!(names[5..], ["converted-bf16", "converted-fp8", "converted-int4", "bf16-noise"]);
    let [bf16, fp8, int4, noise] = [2, 3, 4, 8].map(|i| scores.models[i].all.kl_mean);
    assert!(0.0 < bf16 && bf16 < noise && noise < fp8, "{bf16} {noise} {fp8}");
    assert!(fp8 < 10.0 * int4, "{fp8} {int4}");
    let bytes = |i: usize| scores.models[i].kv_bytes_per_token;
    assert_eq!([bytes(2), 2 * bytes(3), 16 * bytes(4)], [bytes(0), bytes(0), 5 * bytes(0)]);
    assert!((scores.models[3].kv_cut - 0.5).abs() < 1e-12);
    bench.run(&stage("absorbed = true")).unwrap();
    let scores: Scores = bench.load("scores");
    let names: Vec<&str> = scores.models.iter().map(|row| row.model.as_str()).collect();
    assert_eq!(names, ["original", "converted", "converted-absorbed"]);
    assert_eq!(stage("caches = ['exact']").check().unwrap_err().param, "caches");
    let twice = stage("caches = ['fp8']\nvariants = { original-fp8 = 'x' }");
    assert_eq!(twice.check().unwrap_err().param, "variants");
}

#[test]
fn figures_equal_an_independent_reference() {
    let texts = texts();
    let (scores, _) = run("buckets = [16, 32]\nmax-length = 64", &texts);
    let (original, converted) = (checkpoint(|_| {}), checkpoint(spoil));
    let (mut kl, mut nll, mut agree, mut late) = (Vec::new(), [0.0, 0.0], 0, Vec::new());
    for row in &texts.0 {
        let mut ids = ids(row);
        ids.truncate(64);
        let (p, q) = (reference(&original.1, &ids), reference(&converted.1, &ids));
        for i in 0..ids.len() - 1 {
            let one: f64 = p[i].iter().zip(&q[i]).map(|(p, q)| p * (p / q).ln()).sum();
            kl.push(one);
            if i >= 32 {
                late.push(one);
            }
            nll[0] -= p[i][ids[i + 1] as usize].ln();
            nll[1] -= q[i][ids[i + 1] as usize].ln();
            let top = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
            agree += usize::from(top(&p[i]) == top(&q[i]));
        }
    }
    let n = kl.len() as f64;
    let [original, converted, healed] = &scores.models[..] else { panic!("three models") };
    let Figures { tokens, kl_mean, kl_max, top1, perplexity, perplexity_ratio, .. } = converted.all.clone();
    assert_eq!((tokens, scores.protocol.tokens, scores.protocol.documents), (kl.len(), kl.len(), 5));
    near(kl_mean, kl.iter().sum::<f64>() / n);
    near(kl_max, kl.iter().copied().fold(0.0, f64::max));
    near(top1, agree as f64 / n);
    near(perplexity, (nll[1] / n).exp());
    near(original.all.perplexity, (nll[0] / n).exp());
    near(perplexity_ratio, ((nll[1] - nll[0]) / n).exp());
    assert!(kl_mean > 1e-3 && top1 < 1.0, "the spoiled model must differ: {kl_mean}, {top1}");
    let spans: Vec<_> = converted.buckets.iter().map(|b| (b.from, b.to)).collect();
    assert_eq!(spans, [(0, 16), (16, 32), (32, 64)]);
    near(converted.buckets[2].figures.kl_mean, late.iter().sum::<f64>() / late.len() as f64);
    assert_eq!(converted.buckets[2].figures.tokens, late.len());
    assert_eq!(healed.all, original.all);
    assert_eq!((healed.all.kl_max, healed.all.perplexity_ratio, healed.all.top1), (0.0, 1.0, 1.0));
}

/// Defect 11 of the original's script: the mean over windows, whatever the number of targets in each.
#[test]
fn perplexity_counts_tokens_not_documents() {
    let texts = Texts(vec![text(&noise(1, 3), vec![]), text(&noise(2, 60), vec![])]);
    let model = checkpoint(|_| {});
    let nll = |row: &Text| -> Vec<f64> {
        let ids = ids(row);
        let p = reference(&model.1, &ids);
        (0..ids.len() - 1).map(|i| -p[i][ids[i + 1] as usize].ln()).collect()
    };
    let [short, long] = [0, 1].map(|i| nll(&texts.0[i]));
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (by_token, by_document) =
        (mean(&[&short[..], &long].concat()), f64::midpoint(mean(&short), mean(&long)));
    assert!((by_token - by_document).abs() > 0.05, "{by_token} and {by_document} must differ here");
    let scores = run("", &texts).0;
    near(scores.models[0].all.perplexity, by_token.exp());
}

#[test]
fn the_chunk_changes_figures_by_rounding_only() {
    let scores = |chunk: usize| run(&format!("chunk = {chunk}"), &texts()).0;
    let whole = scores(1000);
    assert!(whole.models[1].all.kl_mean > 1e-3);
    for chunk in [1, 7, 64] {
        // A matrix product of other shape may round its f32 sums in another order; nothing else may differ.
        for (got, want) in scores(chunk).models.iter().zip(&whole.models) {
            let values = |f: &Figures| [f.kl_mean, f.kl_median, f.kl_p95, f.kl_max, f.perplexity, f.ln_ratio];
            for (got, want) in values(&got.all).into_iter().zip(values(&want.all)) {
                assert!(
                    (got - want).abs() < 1e-6 * (1.0 + want.abs()),
                    "chunk {chunk}: {got}, expected {want}"
                );
            }
            assert_eq!((got.all.tokens, got.all.top1), (want.all.tokens, want.all.top1));
        }
    }
}

/// A document that goes on as the original model would, then against it.
fn with_answers(original: &Checkpoint) -> Text {
    let mut ids = noise(9, 40);
    let mut answers = Vec::new();
    for step in 0..6 {
        let row = reference(original, &ids).pop().unwrap();
        let top = (0..VOCAB).max_by(|&a, &b| row[a as usize].total_cmp(&row[b as usize])).unwrap();
        let right = step % 3 != 2;
        answers.push(ids.len());
        ids.push(if right { top } else { (top + 1) % VOCAB });
    }
    let mut row = text(&ids, vec![]);
    let starts: Vec<usize> =
        row.text.match_indices('t').map(|(at, _)| at).chain([row.text.len() + 1]).collect();
    let mark =
        |&token: &usize| Mark { start: starts[token], end: starts[token + 1] - 1, stated: 0, choices: 8 };
    row.marks = answers.iter().map(mark).collect();
    row
}

#[test]
fn recall_counts_the_answers_that_the_model_would_give() {
    let row = with_answers(&checkpoint(|_| {}).1);
    let (scores, table) = run("distances = [41, 44]", &Texts(vec![row]));
    let recall = scores.models[0].recall.clone().unwrap();
    assert_eq!((recall.answers, recall.skipped), (6, 0));
    near(recall.accuracy, 4.0 / 6.0);
    near(recall.chance, 0.125);
    let far: Vec<_> = recall.by_distance.iter().map(|d| (d.from, d.answers)).collect();
    assert_eq!(far, [(0, 1), (41, 3), (44, 2)]);
    near(recall.by_distance[1].accuracy, 2.0 / 3.0);
    assert_eq!(scores.models[2].recall, scores.models[0].recall);
    assert!(table.contains("| recall, 6 answers | 66.7 % |"), "{table}");
    assert!(table.contains("held-out text (1 a): 1 documents"), "{table}");
}

#[test]
fn the_budget_takes_documents_in_the_order_of_their_ids_and_leaves_out_what_calibration_saw() {
    let texts = texts();
    let lengths: Vec<usize> = texts.0.iter().map(|row| ids(row).len()).collect();
    let (scores, _) = run(&format!("max-tokens = {}", lengths[0] + 1), &texts);
    assert_eq!((scores.protocol.documents, scores.protocol.tokens), (2, lengths[0] + lengths[1] - 2));

    let chosen = |row: &Text| {
        let json = serde_json::json!({"id": row.id, "text": row.text, "source": row.source, "licence": "", "n_tokens": 1,
            "split": "full", "bucket": "swa", "cluster": 0, "reason": "near", "rank": 0, "score": 0, "margin": 0,
            "recalls": 0, "recall_typical": 0, "recall_longest": 0});
        serde_json::from_value(json).unwrap()
    };
    let model = checkpoint(|_| {});
    let bench = |saw: &[Text]| {
        Bench::new()
            .input("original", &model.1)
            .input("converted", &model.1)
            .input("split", &Split(texts.0.iter().map(chosen).collect()))
            .input("exclude.0", &Split(saw.iter().map(chosen).collect()))
    };
    let held_out = stage("split = 'select.mixed'\nexclude = ['select.full']");
    let some = bench(&texts.0[1..3]);
    some.run(&held_out).unwrap();
    let scores: Scores = some.load("scores");
    assert_eq!((scores.protocol.documents, scores.models.len()), (3, 2));
    assert_eq!(scores.protocol.text, "held-out text (3 a, 2 left out because calibration saw them)");
    let error = bench(&texts.0).run(&held_out).unwrap_err().to_string();
    assert_eq!(error, "no held-out document has two tokens or more (5 were left out by `exclude`)");
}

#[test]
fn models_that_cannot_be_compared_are_named() {
    let original = checkpoint(|_| {});
    let error = |change: &dyn Fn(&mut Draft)| {
        let converted = checkpoint(change);
        let bench = Bench::new().input("original", &original.1).input("converted", &converted.1);
        bench.input("texts", &texts()).run(&stage("")).unwrap_err().to_string()
    };
    let vocabulary = error(&|draft| draft.config["vocab_size"] = 95.into());
    assert!(
        vocabulary.starts_with("the model `converted` has a vocabulary of 95, the original one of 96"),
        "{vocabulary}"
    );
    let missing = error(&|draft| drop(draft.tensors.remove("model.layers.2.self_attn.sinks")));
    assert!(
        missing.starts_with("the model `converted`: ")
            && missing.contains("`model.layers.2.self_attn.sinks` is missing")
    );
    let hole = error(&|draft| {
        draft.tensors.get_mut("lm_head.weight").unwrap().bytes[..2].copy_from_slice(&[0xc0, 0x7f]);
    });
    assert!(hole.starts_with("the model `converted` gives logits that are not finite"), "{hole}");
}

#[test]
fn parameters_out_of_range_are_refused() {
    for (toml, param) in [
        ("split = 's'\ntexts = 't'", "texts"),
        ("max-tokens = 1", "max-tokens"),
        ("max-length = 1", "max-length"),
        ("chunk = 0", "chunk"),
        ("buckets = [0, 128]", "buckets"),
        ("distances = [128, 128]", "distances"),
    ] {
        assert_eq!(stage(toml).check().unwrap_err().param, param, "{toml}");
    }
    let neither: Evaluate = toml::from_str("original = 'model'\nconverted = 'svd'").unwrap();
    assert_eq!(neither.check().unwrap_err().param, "texts");
    let ports: Vec<String> = stage("healed = 'h'\nexclude = ['a', 'b']")
        .inputs()
        .into_iter()
        .map(|p| p.port.into_owned())
        .collect();
    assert_eq!(ports, ["original", "converted", "healed", "texts", "exclude.0", "exclude.1"]);
}
