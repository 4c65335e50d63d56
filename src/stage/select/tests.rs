//! The select stage as a whole: bounds of the strata, order, threads; in files of their own, what needs vectors and what the original
//! toolkit got wrong.

mod defects;
mod gain;
mod vectors;

use std::collections::BTreeSet;

use ::parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::RowAccessor,
};

use super::*;
use crate::{
    artifact::{
        clusters::{self, Member},
        drops::Tally,
        encoder::tests::WORDS,
        files::FileSet,
        splits,
        texts::Text,
    },
    stage::testing::Bench,
};

/// A corpus of documents with these numbers of words, in clusters of about `size`.
struct Corpus {
    texts: Texts,
    clusters: Clusters,
}

fn corpus(lengths: &[usize], k: u32) -> Corpus {
    let text = |(i, &words): (usize, &usize)| {
        let text = format!("d{i} ") + &"w ".repeat(words - 1);
        let id = blake3::hash(text.as_bytes()).to_hex().to_string();
        let source = format!("sources.{}/{i}", i % 3);
        Text { id, source, licence: "MIT".into(), text, special_tokens: false, marks: vec![] }
    };
    let mut texts: Vec<_> = lengths.iter().enumerate().map(text).collect();
    texts.sort_by(|a, b| a.id.cmp(&b.id));
    let member = |text: &Text| {
        // Scores that are spread and sometimes equal, a function of the text.
        let hash = blake3::hash(text.text.as_bytes());
        let bytes = hash.as_bytes();
        let score = 10_000_000 + i64::from(bytes[0] % 64) * 50_000;
        Member {
            id: text.id.clone(),
            cluster: u32::from(bytes[1]) % k,
            score,
            margin: Some(i64::from(bytes[2])),
            density: None,
        }
    };
    let members = texts.iter().map(member).collect();
    let about = clusters::About { k: k as usize, dim: 1, scale: 4000, ..Default::default() };
    Corpus { texts: Texts(texts), clusters: Clusters { about, members, centroids: vec![0; k as usize] } }
}

fn stage(toml: &str) -> Select {
    toml::from_str(&format!("texts = 'c'\nclusters = 'k'\ntokenizer = 't'\n{toml}")).unwrap()
}

fn bench(corpus: &Corpus) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    std::fs::write(&path, WORDS).unwrap();
    Bench::new()
        .input("texts", &corpus.texts)
        .input("clusters", &corpus.clusters)
        .input("tokenizer", &FileSet([("tokenizer.json".to_owned(), path)].into()))
}

fn run(corpus: &Corpus, toml: &str) -> Bench {
    let bench = bench(corpus);
    bench.run(&stage(toml)).unwrap();
    bench
}

fn lengths(bench: &Bench, port: &str) -> BTreeSet<usize> {
    bench.load::<Split>(port).0.iter().map(|row| row.n_tokens).collect()
}

#[test]
fn the_bounds_hold_in_tokens() {
    // Every document has its own cluster, so that each is the nearest of its stratum.
    let mut at_the_edges = corpus(&[2047, 2048, 4096, 4097], 4);
    for (i, member) in at_the_edges.clusters.members.iter_mut().enumerate() {
        member.cluster = i as u32;
    }
    let bench = run(&at_the_edges, "mixed = 4");
    assert_eq!(lengths(&bench, SWA), [2047].into());
    assert_eq!(lengths(&bench, FULL), [4097].into());
    let mixed: Split = bench.load(MIXED);
    assert_eq!(mixed.0.len(), 2, "never the whole corpus");

    let buckets: BTreeSet<_> = [2047, 2048, 4096, 4097].map(|n| stage("").bucket(n)).into();
    assert_eq!(buckets, ["swa", "gap", "full"].into());
    assert_eq!([2048, 4096].map(|n| stage("").bucket(n)), ["gap", "gap"]);
}

#[test]
fn the_mixed_split_has_all_lengths_whatever_the_other_splits_do() {
    let lengths: Vec<usize> = (0..120).map(|i| [100, 3000, 5000, 900][i % 4] + i).collect();
    let corpus = corpus(&lengths, 5);
    let bench = run(&corpus, "mixed = 60");
    let mixed: Split = bench.load(MIXED);
    let count = |bucket: &str| mixed.0.iter().filter(|row| row.bucket == bucket).count();
    assert_eq!(["swa", "gap", "full"].map(count), [30, 15, 15], "quotas follow the corpus");
    let longest = mixed.0.iter().map(|row| row.n_tokens).max().unwrap();
    assert!(longest > 5060, "not only the shortest of the long ones: {longest}");

    let other = run(&corpus, "mixed = 60\noutlier-percent = 0\nswa-below = 2000");
    assert_eq!(other.load::<Split>(MIXED), mixed, "it does not depend on the choice of the others");
}

#[test]
fn every_row_says_why_it_was_chosen() {
    let corpus = corpus(&(0..200).map(|i| 100 + i).collect::<Vec<_>>(), 8);
    let bench = run(&corpus, "");
    let split: Split = bench.load(SWA);
    assert!(split.0.is_sorted_by_key(|row| &row.id));
    let of = |reason: &str| split.0.iter().filter(|row| row.reason == reason).collect::<Vec<_>>();
    assert_eq!((of("near").len(), of("near").len() + of("outlier").len()), (8, split.0.len()));
    let ranks: BTreeSet<u32> = of("near").iter().map(|row| row.rank).collect();
    assert_eq!(ranks, (0..8).collect());
    let farthest = corpus.clusters.members.iter().map(|m| m.score).min().unwrap();
    assert!(of("outlier").iter().any(|row| row.rank == 0 && row.score == farthest));
    assert!(split.0.iter().all(|row| row.margin >= 0));
    assert!(bench.load::<Split>(FULL).0.is_empty());
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let corpus = corpus(&(0..90).map(|i| 100 + 70 * i).collect::<Vec<_>>(), 4);
    let bytes = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(&corpus, "mixed = 20")).bytes()
    };
    let one = bytes(1);
    let names: Vec<_> = one.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "calib_full_golden/split.jsonl",
            "calib_mixed_golden/split.jsonl",
            "calib_swa_golden/split.jsonl",
            "dataset/README.md",
            "dataset/calib_full_golden.jsonl",
            "dataset/calib_mixed_golden.jsonl",
            "dataset/calib_swa_golden.jsonl",
            "dataset/data/calib_full_golden-00000-of-00001.parquet",
            "dataset/data/calib_mixed_golden-00000-of-00001.parquet",
            "dataset/data/calib_swa_golden-00000-of-00001.parquet",
            "dataset/stats.json",
            "report/certificate.json",
            "report/report.json",
        ]
    );
    assert_eq!(bytes(2), one);
    assert_eq!(bytes(7), one);
}

#[test]
fn the_card_lists_drops_where_they_are_given() {
    let corpus = corpus(&[10, 20, 30], 1);
    let sources = [("sources.0".to_owned(), Tally { read: 4, kept: 3, ..Tally::default() })].into();
    let bench = bench(&corpus).input("drops", &Drops { sources, rows: vec![] });
    bench.run(&stage("drops = 'c'")).unwrap();
    let card = String::from_utf8(bench.bytes()["dataset/README.md"].clone()).unwrap();
    assert!(card.contains("| sources.0 | 4 | 3 |"), "{card}");
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let right = corpus(&[10, 20, 30], 1);
    let error = |corpus: &Corpus| bench(corpus).run(&stage("")).unwrap_err().to_string();
    let clusters = corpus(&[10, 20], 1).clusters;
    let fewer = Corpus { texts: right.texts.clone(), clusters };
    assert!(error(&fewer).starts_with("inputs are of different corpora: 3 documents, 2 cluster members"));
    let clusters = corpus(&[10, 20, 31], 1).clusters;
    let other = Corpus { texts: right.texts.clone(), clusters };
    assert!(error(&other).starts_with("inputs are of different corpora: "));

    let no_file = Bench::new()
        .input("texts", &right.texts)
        .input("clusters", &right.clusters)
        .input("tokenizer", &FileSet::default());
    let error = no_file.run(&stage("")).unwrap_err().to_string();
    assert_eq!(error, "the output of `t` has no file `tokenizer.json`");
}

#[test]
fn parameters_out_of_range_are_refused() {
    for (toml, param) in [
        ("swa-below = 4098", "swa-below"),
        ("outlier-percent = 51", "outlier-percent"),
        ("noise = 1.5", "noise"),
        ("embeddings = 'e'\ndistinct = 1.5", "distinct"),
        ("embeddings = 'e'\nsemantic-duplicates = -0.1", "semantic-duplicates"),
        ("embeddings = 'e'\ncopies = 101", "copies"),
        ("distinct = 0.9", "distinct"),
        ("semantic-duplicates = 0.9", "semantic-duplicates"),
        ("copies = 3", "copies"),
        ("compat = 'original'", "compat"),
    ] {
        assert_eq!(stage(toml).check().unwrap_err().param, param);
    }
    assert_eq!(stage("swa-below = 4097").check(), Ok(()), "no gap at all");
    assert_eq!(stage("copies = 0").check(), Ok(()));
    assert_eq!(stage("embeddings = 'e'\ncopies = 3\ndistinct = 0.9\ncompat = 'original'").check(), Ok(()));
}

#[test]
fn parameters_that_are_not_given_are_not_in_the_key() {
    let json = serde_json::to_value(stage("")).unwrap();
    let names: Vec<_> = json.as_object().unwrap().keys().cloned().collect();
    let expected =
        ["clusters", "encoding", "full-above", "mixed", "outlier-percent", "swa-below", "texts", "tokenizer"];
    assert_eq!(names, expected);
}

#[test]
fn the_dataset_folder_holds_the_rows_of_the_splits() {
    let corpus = corpus(&(0..60).map(|i| 1500 + 60 * i).collect::<Vec<_>>(), 4);
    let bench = run(&corpus, "mixed = 12");
    for name in [SWA, FULL, MIXED] {
        let split: Split = bench.load(name);
        assert!(split.0.len() > 2, "{name}");
        let files = bench.files("dataset");
        let bytes = |file: &str| std::fs::read(&files[file]).unwrap();
        assert_eq!(
            bytes(&format!("{name}.jsonl")),
            std::fs::read(&bench.files(name)["split.jsonl"]).unwrap()
        );
        let file = std::fs::File::open(&files[&format!("data/{name}-00000-of-00001.parquet")]).unwrap();
        let reader = SerializedFileReader::new(file).unwrap();
        let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows.len(), split.0.len());
        for (row, chosen) in rows.iter().zip(&split.0) {
            assert_eq!(row.get_string(0).unwrap(), &chosen.id);
            assert_eq!(row.get_string(1).unwrap(), &chosen.text);
            assert_eq!(row.get_long(4).unwrap(), chosen.n_tokens as i64);
        }
        let card = String::from_utf8(bytes("README.md")).unwrap();
        assert!(card.contains(&format!("data/{name}-")), "the card tells loaders where {name} is");
    }
}

#[test]
fn rows_keep_what_the_corpus_said_about_them() {
    let mut corpus = corpus(&[30, 40, 50], 1);
    let mark = crate::artifact::texts::Mark { start: 0, end: 2, stated: 0, choices: 4 };
    corpus.texts.0[1].marks = vec![mark];
    corpus.texts.0[1].licence = "CC0-1.0".into();
    let bench = run(&corpus, "outlier-percent = 50\nmixed = 3");
    for name in [SWA, MIXED] {
        for row in bench.load::<Split>(name).0 {
            let text = corpus.texts.0.iter().find(|text| text.id == row.id).unwrap();
            assert_eq!((&row.text, &row.source, &row.licence), (&text.text, &text.source, &text.licence));
            assert_eq!(row.marks, text.marks);
            assert_eq!(row.n_tokens, row.text.split_whitespace().count());
        }
    }
}

#[test]
fn outliers_are_a_share_rounded_down() {
    for (n, percent, expected) in [(19, 5, 0), (20, 5, 1), (39, 5, 1), (40, 5, 2), (10, 50, 5), (40, 0, 0)] {
        let lengths: Vec<usize> = (0..n).map(|i| 100 + i).collect();
        let bench = run(&corpus(&lengths, 1), &format!("outlier-percent = {percent}"));
        let split: Split = bench.load(SWA);
        let of = |reason: &str| split.0.iter().filter(|row| row.reason == reason).count();
        assert_eq!((of("near"), of("outlier")), (1, expected), "{n} documents, {percent} %");
    }
}
