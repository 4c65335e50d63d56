//! The embed stage: rows, shards, what enters keys, and what is refused.

use super::*;
use crate::{
    artifact::texts::Text,
    stage::testing::{self, Bench},
};

fn texts(n: usize) -> Texts {
    let text = |i: usize| format!("document number {i} speaks of subject {}", i % 3);
    testing::texts(&(0..n).map(text).collect::<Vec<String>>())
}

fn stage(toml: &str) -> Embed {
    toml::from_str(&format!("texts = 'corpus'\n{toml}")).unwrap()
}

#[test]
fn one_row_per_document_the_same_for_any_number_of_threads() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let bench = Bench::new().input("texts", &texts(20)).seed(7);
        pool.install(|| bench.run(&stage("dim = 32"))).unwrap();
        bench
    };
    let one = run(1);
    let embeddings: Embeddings = one.load("embeddings");
    assert_eq!((embeddings.ids.len(), embeddings.vectors.len()), (20, 20 * 32));
    assert!(embeddings.vectors.chunks(32).all(|row| row.iter().any(|&q| q != 0)));
    assert_eq!(one.bytes(), run(2).bytes());
    assert_eq!(one.bytes(), run(7).bytes());
}

#[test]
fn a_name_without_a_folder_is_a_model_of_the_hub() {
    let hub = stage("model = 'Alibaba-NLP/gte-large-en-v1.5'\nrevision = 'v1'\npooling = 'cls'");
    assert_eq!(hub.check(), Ok(()));
    let repos = hub.repos();
    assert_eq!((&*repos[0].id, &*repos[0].revision), ("Alibaba-NLP/gte-large-en-v1.5", "v1"));
    let bench = Bench::new().input("texts", &texts(1));
    assert!(bench.run(&hub).unwrap_err().to_string().contains("config.json"));
    for toml in ["", "path = 'm'", "path = 'm'\nmodel = 'a name'"] {
        assert_eq!((stage(toml).check(), stage(toml).repos()), (Ok(()), vec![]), "{toml}");
    }
}

#[test]
fn parameters_out_of_range_are_refused() {
    for (toml, param) in [
        ("dim = 4", "dim"),
        ("dim = 1025", "dim"),
        ("word-ngrams = 0", "word-ngrams"),
        ("char-ngrams = 9", "char-ngrams"),
        ("model = ''", "model"),
        ("model = 'gte'", "model"),
        ("model = 'a/b'\nrevision = '../x'", "revision"),
        ("path = 'm'\nrevision = 'main'", "revision"),
        ("pooling = 'mean'", "pooling"),
        ("max-tokens = 100", "max-tokens"),
        ("windows = 'mean'", "windows"),
        ("prefix = 'query: '", "prefix"),
        ("path = 'm'\nmax-tokens = 7", "max-tokens"),
    ] {
        assert_eq!(stage(toml).check().unwrap_err().param, param, "{toml}");
    }
}

#[test]
fn without_centring_a_row_depends_on_its_own_text_only() {
    let run = |texts: &Texts, toml: &str| {
        let bench = Bench::new().input("texts", texts).seed(7);
        bench.run(&stage(&format!("dim = 64\n{toml}"))).unwrap();
        bench.load::<Embeddings>("embeddings")
    };
    let (many, few) = (texts(20), Texts(texts(20).0[5..9].to_vec()));
    let (all, some) = (run(&many, "centre = false"), run(&few, "centre = false"));
    assert_eq!(all.vectors[5 * 64..9 * 64], some.vectors);
    assert_eq!((all.about.centred, all.about.dim, all.about.scale), (false, 64, 4000));
    // Centred, what the corpus shares is gone: the documents are much alike, and their rows no longer.
    let centred = run(&many, "centre = true");
    let dot = |e: &Embeddings| {
        let row = |i: usize| &e.vectors[i * 64..][..64];
        row(0).iter().zip(row(1)).map(|(&a, &b)| i64::from(a) * i64::from(b)).sum::<i64>()
    };
    assert!(centred.about.centred && dot(&centred) < dot(&all) / 2, "{} {}", dot(&centred), dot(&all));
}

#[test]
fn shards_merge_to_the_bytes_of_the_whole() {
    let mut rows = texts(50).0;
    for row in &mut rows {
        row.id = blake3::hash(row.text.as_bytes()).to_hex().to_string();
    }
    rows.sort_by(|a, b| a.id.cmp(&b.id));
    for (toml, of) in [("dim = 32", 4), ("dim = 32\ncentre = false", 1), ("dim = 32", 40)] {
        let whole = Bench::new().input("texts", &Texts(rows.clone())).seed(7);
        whole.run(&stage(toml)).unwrap();
        let divided =
            Bench::new().input("texts", &Texts(rows.clone())).seed(7).run_shards(&stage(toml), of).unwrap();
        assert_eq!(divided.bytes(), whole.bytes(), "{toml} in {of} shards");
    }
}

#[test]
fn the_mean_is_of_no_concern_to_a_shard() {
    let (a, b) = (stage("centre = true"), stage("centre = false"));
    let shard = Shard { index: 0, of: 2 };
    assert_eq!(a.shard_params(shard), b.shard_params(shard));
    assert_ne!(a.merge_params(), b.merge_params());
    assert_ne!(a.shard_params(shard), stage("dim = 64").shard_params(shard));
}

#[test]
fn no_documents_give_no_rows() {
    let bench = Bench::new().input("texts", &Texts::default());
    bench.run(&stage("")).unwrap();
    assert_eq!(bench.load::<Embeddings>("embeddings").ids.len(), 0);
}

mod transformer {
    use std::{
        collections::BTreeMap,
        path::{Path, PathBuf},
    };

    use serde_json::json;

    use super::*;
    use crate::{
        artifact::{
            checkpoint::{Checkpoint, Draft, Owned, files_in},
            clusters::Clusters,
        },
        kernel::{arch::testing::on_all, testing::on_threads},
        stage::{cluster::Cluster, select::Select},
    };

    /// A folder with the small BERT of the golden files and a tokenizer of one token a word; `change` may spoil it.
    fn model(name: &str, words: u32, change: impl FnOnce(&mut Draft)) -> tempfile::TempDir {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        let mut files = files_in(&golden).unwrap();
        files.retain(|name, _| name == "config.json" || name == "model.safetensors");
        let mut draft = Draft::copy_of(&Checkpoint::load(&files).unwrap()).unwrap();
        let vocabulary: serde_json::Map<String, Value> = (0..words)
            .map(|i| {
                (
                    ["[CLS]", "[SEP]", "[UNK]"]
                        .get(i as usize)
                        .map_or(format!("w{i}"), |name| (*name).to_owned()),
                    json!(i),
                )
            })
            .collect();
        let special = |id: &str| json!({ "SpecialToken": { "id": id, "type_id": 0 } });
        let token = |id: &str, n: u32| json!({ "id": id, "ids": [n], "tokens": [id] });
        let tokenizer = json!({
            "version": "1.0", "pre_tokenizer": { "type": "WhitespaceSplit" },
            "post_processor": {
                "type": "TemplateProcessing", "pair": [],
                "single": [special("[CLS]"), { "Sequence": { "id": "A", "type_id": 0 } }, special("[SEP]")],
                "special_tokens": { "[CLS]": token("[CLS]", 0), "[SEP]": token("[SEP]", 1) }
            },
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" }
        });
        draft.side_files.insert("tokenizer.json".into(), serde_json::to_vec(&tokenizer).unwrap());
        change(&mut draft);
        let dir = tempfile::tempdir().unwrap();
        draft.save(dir.path()).unwrap();
        dir
    }

    /// Texts of 1 to `longest` words, with the ids that documents have.
    fn texts(n: usize, longest: usize) -> Texts {
        let words = |i: usize| {
            (0..=i * 7 % longest)
                .map(|j| format!("w{}", 3 + (i * 11 + j * 5) % 50))
                .collect::<Vec<_>>()
                .join(" ")
        };
        let mut rows: Vec<Text> = (0..n)
            .map(|i| {
                let text = words(i);
                let id = blake3::hash(format!("{i} {text}").as_bytes()).to_hex().to_string();
                Text {
                    id,
                    source: "a".into(),
                    licence: String::new(),
                    text,
                    special_tokens: false,
                    marks: vec![],
                }
            })
            .collect();
        rows.sort_by(|a, b| a.id.cmp(&b.id));
        Texts(rows)
    }

    fn bench(stage: &Embed, texts: &Texts) -> Bench {
        let base = |_: &str| PathBuf::new();
        Bench::new().input("texts", texts).reads(stage.reads(&base).unwrap())
    }

    fn with(dir: &tempfile::TempDir, toml: &str) -> Embed {
        let stage = stage(&format!("path = '{}'\ncentre = false\n{toml}", dir.path().display()));
        assert_eq!(stage.check(), Ok(()));
        stage
    }

    fn run(stage: &Embed, texts: &Texts) -> Embeddings {
        let bench = bench(stage, texts);
        bench.run(stage).unwrap();
        bench.load("embeddings")
    }

    #[test]
    fn rows_are_those_of_the_encoder_whatever_the_threads_and_shards() {
        let dir = model("encoder-bert", 60, |_| {});
        let (stage, texts) = (with(&dir, ""), texts(90, 30));
        let whole = run(&stage, &texts);
        assert_eq!((whole.about.dim, whole.windows.len()), (32, 90));
        assert!(whole.vectors.chunks(32).all(|row| {
            let norm: i64 = row.iter().map(|&q| i64::from(q).pow(2)).sum();
            (3980..=4020).contains(&norm.isqrt())
        }));
        for threads in [1, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(pool.install(|| run(&stage, &texts)) == whole, "{threads} threads");
        }
        let divided: Embeddings = bench(&stage, &texts).run_shards(&stage, 4).unwrap().load("embeddings");
        assert!(divided == whole);
        // A text alone has the row that it has among others.
        let alone = run(&stage, &Texts(vec![texts.0[33].clone()]));
        assert_eq!(alone.vectors, whole.vectors[33 * 32..34 * 32]);
    }

    #[test]
    fn of_a_long_text_the_first_window_counts_or_the_mean_of_all() {
        let dir = model("encoder-new", 60, |_| {});
        let words = |n: usize| (0..n).map(|j| format!("w{}", 3 + j * 5 % 50)).collect::<Vec<_>>().join(" ");
        let of = |text: String| {
            Texts(vec![Text {
                id: "a".repeat(64),
                source: "a".into(),
                licence: String::new(),
                text,
                special_tokens: false,
                marks: vec![],
            }])
        };
        let long = of(words(25));
        let first = run(&with(&dir, "max-tokens = 12"), &long);
        assert_eq!(first.windows, [3]);
        assert_eq!(
            first.vectors,
            run(&with(&dir, ""), &of(words(10))).vectors,
            "ten words and two special tokens"
        );
        let mean = run(&with(&dir, "max-tokens = 12\nwindows = 'mean'"), &long);
        assert_eq!(mean.windows, [3]);
        assert_ne!(mean.vectors, first.vectors);
        assert_eq!(run(&with(&dir, ""), &long).windows, [1]);
        assert_eq!(run(&with(&dir, ""), &of(String::new())).windows, [1], "no text is its special tokens");
        let prefixed = run(&with(&dir, "prefix = 'w3 '"), &of("w4".into()));
        assert_eq!(prefixed.vectors, run(&with(&dir, ""), &of("w3 w4".into())).vectors);
        assert_ne!(run(&with(&dir, "pooling = 'mean'"), &long).vectors, run(&with(&dir, ""), &long).vectors);
    }

    #[test]
    fn models_that_do_not_fit_are_told() {
        let error = |dir: &tempfile::TempDir, toml: &str| {
            let stage = with(dir, toml);
            bench(&stage, &texts(5, 9)).run(&stage).unwrap_err().to_string()
        };
        let nan = model("encoder-bert", 60, |draft| {
            draft
                .tensors
                .insert("encoder.layer.1.output.dense.bias".into(), Owned::f32(&[32], &[f32::INFINITY; 32]));
        });
        assert!(error(&nan, "").contains("`encoder.layer.1.output.dense.bias` holds inf at element 0"));
        let large = model("encoder-bert", 60, |draft| {
            let ones = vec![3e38; 60 * 32];
            draft.tensors.insert("embeddings.word_embeddings.weight".into(), Owned::f32(&[60, 32], &ones));
            draft
                .tensors
                .insert("embeddings.token_type_embeddings.weight".into(), Owned::f32(&[2, 32], &ones[..64]));
        });
        assert!(error(&large, "").contains("its vector is not finite"), "{}", error(&large, ""));
        let lacking =
            model("encoder-bert", 60, |draft| drop(draft.tensors.remove("embeddings.LayerNorm.bias")));
        assert!(error(&lacking, "").contains("`embeddings.LayerNorm.bias` is missing"));
        let other = model("encoder-bert", 90, |_| {});
        let told = {
            let stage = with(&other, "");
            let text = Text {
                id: "a".repeat(64),
                source: "a".into(),
                licence: String::new(),
                text: "w75".into(),
                special_tokens: false,
                marks: vec![],
            };
            bench(&stage, &Texts(vec![text])).run(&stage).unwrap_err().to_string()
        };
        assert!(told.contains("token 75 is outside the model's vocabulary of 60"), "{told}");
        let unknown = model("encoder-bert", 60, |draft| draft.config["model_type"] = json!("t5"));
        assert!(error(&unknown, "").contains("the architecture `t5` is not known"));
        let short = model("encoder-bert", 60, |draft| {
            draft.side_files.insert("sentence_bert_config.json".into(), b"{\"max_seq_length\": 2}".to_vec());
        });
        assert!(error(&short, "").contains("sees 2 tokens at once, and 2 of them are special"));
    }

    /// All that follows from the vectors of a transformer, as its bytes.
    fn splits(embedded: &Embeddings, texts: &Texts) -> BTreeMap<String, Vec<u8>> {
        let cluster: Cluster = toml::from_str("embeddings = 'e'\nrule = 'fixed'\nk = 6").unwrap();
        let clustered = Bench::new().input("embeddings", embedded);
        clustered.run(&cluster).unwrap();
        let select: Select = toml::from_str(
            "texts = 't'\nclusters = 'c'\nembeddings = 'e'\nswa-below = 25\nfull-above = 60\nmixed = 20\noutlier-percent = 10",
        )
        .unwrap();
        let selected = Bench::new()
            .input("texts", texts)
            .input("clusters", &clustered.load::<Clusters>("clusters"))
            .input("embeddings", embedded);
        selected.run(&select).unwrap();
        selected.bytes()
    }

    /// The promise of the whole data side, on one machine: the instruction set, threads and shards decide nothing.
    #[test]
    fn splits_are_the_same_bytes_on_every_instruction_set() {
        for name in ["encoder-bert", "encoder-new"] {
            let dir = model(name, 60, |_| {});
            let (stage, texts) = (with(&dir, "windows = 'mean'\nmax-tokens = 16"), texts(90, 30));
            let all = || {
                let whole = run(&stage, &texts);
                let divided = bench(&stage, &texts).run_shards(&stage, 4).unwrap();
                assert!(divided.load::<Embeddings>("embeddings") == whole, "four shards");
                splits(&whole, &texts)
            };
            let made = on_all(|| on_threads(all));
            let first = &made[0][0];
            assert!(first["calib_mixed_golden/split.jsonl"].len() > 1_000 && first.len() > 8);
            assert!(made.iter().flatten().all(|bytes| bytes == first), "{name}");
        }
    }

    #[test]
    fn the_files_enter_the_key_and_the_path_does_not() {
        let dir = model("encoder-bert", 60, |_| {});
        let stage = with(&dir, "");
        let params = serde_json::to_value(&stage).unwrap();
        assert_eq!(params["path"], Value::Null);
        let names: Vec<String> =
            stage.reads(&|_| PathBuf::new()).unwrap().into_iter().map(|read| read.name).collect();
        assert_eq!(names, ["config.json", "model.safetensors", "tokenizer.json"]);
        assert_eq!(stage.numerics(), Numerics::Bitwise);
    }
}
