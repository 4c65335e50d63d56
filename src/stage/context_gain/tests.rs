//! The whole stage on the golden model, against a reference that works another way; and what the embedded model recalls.

mod recall;

use std::sync::Mutex;

use tempfile::TempDir;

use super::*;
use crate::{
    artifact::{
        checkpoint::{Draft, files_in},
        texts::Text,
    },
    engine::action::{Checkpoints, Files, NoCheckpoints, Progress, Quiet, Stop},
    model::{Batch, Model, probe::NoProbe},
    stage::testing::Bench,
};

const VOCAB: u32 = 96;

/// The golden model (sliding window 8) with a tokenizer of the words `t0` to `t95`; `change` spoils a copy.
fn checkpoint(change: impl Fn(&mut Draft)) -> (TempDir, Checkpoint) {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gptoss-dense");
    let mut draft = Draft::copy_of(&Checkpoint::load(&files_in(&golden).unwrap()).unwrap()).unwrap();
    draft.side_files.clear();
    let vocab: serde_json::Map<String, Value> = (0..=VOCAB).map(|id| (format!("t{id}"), id.into())).collect();
    let tokenizer = json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}});
    draft.side_files.insert("tokenizer.json".into(), tokenizer.to_string().into_bytes());
    change(&mut draft);
    let dir = tempfile::tempdir().unwrap();
    draft.save(dir.path()).unwrap();
    let checkpoint = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
    (dir, checkpoint)
}

fn noise(seed: u32, n: u32) -> Vec<u32> {
    let draw =
        |i: u32| (seed.wrapping_mul(747_796_405) ^ i.wrapping_mul(2_891_336_453)).rotate_left(13) % VOCAB;
    (0..n).map(draw).collect()
}

fn text(ids: &[u32]) -> Text {
    let words: Vec<String> = ids.iter().map(|id| format!("t{id}")).collect();
    let text = words.join(" ");
    let id = blake3::hash(text.as_bytes()).to_hex().to_string();
    Text { id, source: "a".into(), licence: String::new(), text, special_tokens: false, marks: vec![] }
}

/// Documents of these lengths, sorted by id.
fn texts(lengths: &[u32]) -> Texts {
    let mut rows: Vec<Text> = lengths.iter().map(|&n| text(&noise(n, n))).collect();
    rows.sort_by(|a, b| a.id.cmp(&b.id));
    Texts(rows)
}

fn ids(text: &Text) -> Vec<u32> {
    text.text.split_whitespace().map(|word| word[1..].parse().unwrap()).collect()
}

fn stage(toml: &str) -> ContextGain {
    toml::from_str(&format!("texts = 'corpus'\nmodel = 'model'\n{toml}")).unwrap()
}

fn bench(model: &Checkpoint, texts: &Texts) -> Bench {
    Bench::new().input("model", model).input("texts", texts).seed(5)
}

fn run(toml: &str, texts: &Texts) -> Gains {
    let bench = bench(&checkpoint(|_| {}).1, texts);
    bench.run(&stage(toml)).unwrap();
    bench.load("gains")
}

fn error(model: &Checkpoint, texts: &Texts, toml: &str) -> String {
    bench(model, texts).run(&stage(toml)).unwrap_err().to_string()
}

/// The loss of `target` after `context`, by the definition: one sequence, one softmax in f64.
fn loss(model: &Model, context: &[u32], target: u32) -> f64 {
    let logits = model.logits(&Batch::new([context]), &mut NoProbe).unwrap().to_vec2::<f32>().unwrap();
    let e: Vec<f64> = logits.last().unwrap().iter().map(|&x| f64::from(x).exp()).collect();
    -(e[target as usize] / e.iter().sum::<f64>()).ln()
}

/// The gain of each token with more than `window` before it.
fn reference(model: &Model, ids: &[u32], window: usize, bos: Option<u32>) -> Vec<f64> {
    let with = |ids: &[u32]| [bos.as_slice(), ids].concat();
    let short = |at: usize| loss(model, &with(&ids[at - window..at]), ids[at]);
    let gain = |at: usize| short(at) - loss(model, &with(&ids[..at]), ids[at]);
    (window + 1..ids.len()).map(gain).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[track_caller]
fn near(millionths: Option<i64>, nats: f64) {
    let got = millionths.unwrap() as f64 / 1e6;
    assert!((got - nats).abs() < 5e-6, "{got}, expected {nats}");
}

#[test]
fn gains_equal_the_definition() {
    let texts = texts(&[14, 30, 45]);
    let model = Model::frozen(&checkpoint(|_| {}).1).unwrap();
    for (toml, bos) in [("", None), ("bos = 't3'", Some(3))] {
        let gains = run(&format!("window = 10\nsamples = 100\n{toml}"), &texts);
        let mut largest = 0.0_f64;
        for (row, text) in gains.rows.iter().zip(&texts.0) {
            let all = reference(&model, &ids(text), 10, bos);
            assert_eq!((row.scored, row.tokens, row.truncated), (all.len(), ids(text).len(), false));
            near(row.gain, mean(&all));
            let square: f64 = all.iter().map(|gain| (gain - mean(&all)).powi(2)).sum();
            let n = all.len() as f64;
            near(row.error, (square / (n * (n - 1.0))).sqrt());
            largest = largest.max(mean(&all).abs());
        }
        assert!(largest > 1e-3, "the model must see beyond the window: {largest}");
    }
}

#[test]
fn a_sample_is_scored_where_there_is_more_and_a_long_document_is_cut() {
    let texts = texts(&[60]);
    let model = Model::frozen(&checkpoint(|_| {}).1).unwrap();
    let Gains { about, rows } = run("window = 10\nsamples = 6\nmax-tokens = 50", &texts);
    assert_eq!(about, About { window: 10, samples: 6, max_tokens: 50 });
    assert_eq!((rows[0].scored, rows[0].tokens, rows[0].truncated), (6, 60, true));
    let plan = Plan { window: 10, samples: 6, max_tokens: 50, min_tokens: 0, bos: None, seed: 5 };
    let all = reference(&model, &ids(&texts.0[0]), 10, None);
    let scored: Vec<f64> = plan.places(&rows[0].id, 50).into_iter().map(|at| all[at - 11]).collect();
    near(rows[0].gain, mean(&scored));
    assert!((mean(&scored) - mean(&all)).abs() > 1e-4, "the sample must differ from the whole");
}

#[test]
fn a_figure_depends_on_its_document_alone() {
    let corpus = texts(&[14, 30, 45, 3, 60, 21, 0]);
    let toml = |chunk: usize| format!("window = 10\nsamples = 9\nchunk = {chunk}");
    let whole = run(&toml(1_000_000), &corpus);
    for chunk in [1, 50, 300] {
        assert_eq!(run(&toml(chunk), &corpus), whole, "chunk {chunk}");
    }
    for (row, text) in whole.rows.iter().zip(&corpus.0) {
        assert_eq!(
            run("window = 10\nsamples = 9", &Texts(vec![text.clone()])).rows,
            std::slice::from_ref(row)
        );
    }
    let model = checkpoint(|_| {});
    let shards = bench(&model.1, &corpus).run_shards(&stage(&toml(300)), 3).unwrap();
    assert_eq!(shards.load::<Gains>("gains"), whole);
    for threads in [1, 2, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(|| run(&toml(300), &corpus)), whole, "{threads} threads");
    }
    let other = bench(&model.1, &corpus).seed(6);
    other.run(&stage(&toml(300))).unwrap();
    assert_ne!(other.load::<Gains>("gains"), whole, "the seed draws other tokens");
}

#[test]
fn what_is_too_short_has_no_figure_and_is_counted() {
    let corpus = texts(&[11, 12, 13, 40]);
    let by_length = |toml: &str| {
        let gains = run(toml, &corpus);
        let mut rows: Vec<_> = gains.rows.iter().map(|row| (row.tokens, row.scored)).collect();
        rows.sort_unstable();
        assert!(gains.rows.iter().all(|row| row.gain.is_some() == (row.scored > 0)));
        assert!(gains.rows.iter().all(|row| row.error.is_some() == (row.scored > 1)));
        (rows, line(&gains))
    };
    let (rows, told) = by_length("window = 10\nsamples = 5");
    assert_eq!(rows, [(11, 0), (12, 1), (13, 2), (40, 5)]);
    assert!(told.starts_with("context gain: 3 of 4 documents measured, 8 tokens scored; median "), "{told}");
    let (rows, told) = by_length("window = 10\nsamples = 5\nmin-tokens = 13");
    assert_eq!(rows, [(11, 0), (12, 0), (13, 2), (40, 5)]);
    assert!(told.starts_with("context gain: 2 of 4 documents measured"), "{told}");
    let (rows, told) = by_length("window = 39\nmax-tokens = 41");
    assert_eq!(rows, [(11, 0), (12, 0), (13, 0), (40, 0)]);
    assert_eq!(
        told,
        "context gain: 0 of 4 documents measured; none is longer than 40 tokens and has `min-tokens`"
    );
    assert_eq!(run("", &Texts::default()).rows, []);
    assert_eq!(run("", &texts(&[0])).rows[0].tokens, 0, "an empty document");
}

/// Keeps the newest checkpoint, counts tokens, and stops after some checkpoints.
#[derive(Default)]
struct Interrupted {
    kept: Mutex<Option<TempDir>>,
    totals: Mutex<Vec<u64>>,
    published: Mutex<usize>,
    stop_after: usize,
    stop: Stop,
}

impl Checkpoints for Interrupted {
    fn latest(&self) -> std::io::Result<Option<Files>> {
        Ok(self.kept.lock().unwrap().as_ref().map(|dir| files_in(dir.path()).unwrap()))
    }
    fn publish(&self, dir: &std::path::Path) -> std::io::Result<()> {
        let kept = tempfile::tempdir()?;
        for (name, path) in files_in(dir).unwrap() {
            std::fs::rename(path, kept.path().join(name))?;
        }
        *self.kept.lock().unwrap() = Some(kept);
        let mut published = self.published.lock().unwrap();
        *published += 1;
        if *published == self.stop_after {
            self.stop.raise();
        }
        Ok(())
    }
}

impl Progress for Interrupted {
    fn phase(&self, what: &str, total: Option<u64>, _: &str) {
        if what == "measuring" {
            self.totals.lock().unwrap().extend(total);
        }
    }
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
    fn say(&self, _: &str) {}
}

#[test]
fn a_run_that_was_stopped_goes_on_from_its_checkpoint() {
    let corpus = texts(&[14, 30, 45, 3, 60, 21]);
    let model = checkpoint(|_| {});
    let toml = "window = 10\nsamples = 9\nchunk = 120";
    let whole = run(toml, &corpus);
    let bench = bench(&model.1, &corpus);
    let first = Interrupted { stop_after: 3, ..Interrupted::default() };
    let stopped = bench.run_with(&stage(toml), &first, &first, &first.stop);
    assert!(matches!(stopped, Err(Failure::Stopped)), "{stopped:?}");
    let second = Interrupted { kept: first.kept, ..Interrupted::default() };
    bench.run_with(&stage(toml), &second, &second, &second.stop).unwrap();
    assert_eq!(bench.load::<Gains>("gains"), whole);
    let [all, rest] = [first.totals, second.totals].map(|totals| totals.into_inner().unwrap()[0]);
    assert!(rest < all && rest > 0, "{rest} of {all} tokens were left");
    let stop = Stop::default();
    stop.raise();
    let at_once = bench.run_with(&stage(toml), &Quiet, &NoCheckpoints, &stop);
    assert!(matches!(at_once, Err(Failure::Stopped)));
}

#[test]
fn faults_of_the_model_are_told() {
    let corpus = texts(&[40]);
    let bare = checkpoint(|draft| draft.side_files.clear());
    assert_eq!(
        error(&bare.1, &corpus, "window = 10"),
        "artifact `checkpoint` lacks its file `tokenizer.json`"
    );
    let broken = checkpoint(|draft| drop(draft.side_files.insert("tokenizer.json".into(), b"{".to_vec())));
    let told = error(&broken.1, &corpus, "window = 10");
    assert!(told.starts_with("the model: the tokenizer in `") && told.contains("cannot be read"), "{told}");
    let model = checkpoint(|_| {});
    let told = error(&model.1, &corpus, "window = 10\nbos = '<s>'");
    assert_eq!(told, "`bos` is `<s>`, which is not in the model's vocabulary");

    let missing = checkpoint(|draft| drop(draft.tensors.remove("model.layers.2.self_attn.sinks")));
    let told = error(&missing.1, &corpus, "window = 10");
    assert!(
        told.starts_with("the model: ") && told.contains("`model.layers.2.self_attn.sinks` is missing"),
        "{told}"
    );
    let hole = checkpoint(|draft| {
        draft.tensors.get_mut("lm_head.weight").unwrap().bytes[..2].copy_from_slice(&[0xc0, 0x7f]);
    });
    let told = error(&hole.1, &corpus, "window = 10");
    let id = &corpus.0[0].id;
    assert_eq!(
        told,
        format!("the model gives logits that are not finite for document {id}; its weights are damaged")
    );
}

#[test]
fn a_token_that_the_model_does_not_have_is_told_wherever_it_stands() {
    let model = checkpoint(|_| {});
    for at in [0, 20, 39] {
        let mut ids = noise(1, 40);
        ids[at] = VOCAB;
        let told = error(&model.1, &Texts(vec![text(&ids)]), "window = 10\nsamples = 100");
        assert!(told.starts_with("the model: token id 96 is outside the vocabulary of 96"), "{at}: {told}");
    }
}

#[test]
fn parameters_out_of_range_are_refused() {
    for (toml, param) in [
        ("window = 0", "window"),
        ("samples = 0", "samples"),
        ("chunk = 0", "chunk"),
        ("max-tokens = 129", "max-tokens"),
        ("window = 8191", "max-tokens"),
    ] {
        assert_eq!(stage(toml).check().unwrap_err().param, param, "{toml}");
    }
    assert_eq!(stage("max-tokens = 130").check(), Ok(()));
    let ports: Vec<String> = stage("").inputs().into_iter().map(|port| port.port.into_owned()).collect();
    assert_eq!(ports, ["texts", "model"]);
}

#[test]
fn what_changes_no_figure_is_not_in_the_key() {
    let key = |toml: &str| serde_json::to_value(stage(toml)).unwrap();
    assert_eq!(key("chunk = 99"), key(""));
    let expected = json!({"texts": null, "model": null, "window": 128, "samples": 64, "max-tokens": 8192});
    assert_eq!(key(""), expected);
    let shard = stage("").shard_params(Shard { index: 1, of: 2 });
    assert_eq!((shard, stage("").merge_params()), (expected, json!({})));
}
