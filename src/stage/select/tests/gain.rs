//! Choices with context gains: rows carry them, and only `min-gain` lets them decide.

use super::{
    vectors::{World, json, lengths_up_to, world},
    *,
};
use crate::artifact::gains::{About, Gain};

/// A gain for each document: a function of its length, none for the short ones.
fn gains(corpus: &Corpus) -> Gains {
    let row = |text: &Text| {
        let tokens = text.text.split_whitespace().count();
        let measured = tokens > 1000;
        Gain {
            id: text.id.clone(),
            gain: measured.then(|| (tokens as i64 % 100 - 20) * 1000),
            error: measured.then_some(500),
            scored: if measured { 64 } else { 0 },
            tokens,
            truncated: false,
        }
    };
    let about = About { window: 128, samples: 64, max_tokens: 8192 };
    Gains { about, rows: corpus.texts.0.iter().map(row).collect() }
}

/// Documents in clusters; about one in five is `full`.
fn spread() -> Corpus {
    corpus(&(0..200).map(|i| if i % 5 == 0 { 4100 + 7 * i } else { 100 + 13 * i }).collect::<Vec<_>>(), 3)
}

fn run_with(corpus: &Corpus, toml: &str) -> Bench {
    let bench = bench(corpus).input("context-gain", &gains(corpus));
    bench.run(&stage(&format!("context-gain = 'g'\n{toml}"))).unwrap();
    bench
}

/// The rows as if nothing had been measured.
fn bare(bench: &Bench, name: &str) -> Vec<splits::Chosen> {
    let bare = |row| splits::Chosen { context_gain: None, context_gain_error: None, ..row };
    bench.load::<Split>(name).0.into_iter().map(bare).collect()
}

fn ids(rows: &[splits::Chosen]) -> Vec<&str> {
    rows.iter().map(|row| row.id.as_str()).collect()
}

#[test]
fn rows_say_their_gain_and_nothing_else_changes() {
    let corpus = spread();
    let (plain, with) = (run(&corpus, "mixed = 40"), run_with(&corpus, "mixed = 40"));
    let measured = gains(&corpus);
    let mut without = 0;
    for name in [SWA, FULL, MIXED] {
        assert_eq!(bare(&with, name), plain.load::<Split>(name).0, "{name}");
        for row in with.load::<Split>(name).0 {
            let gain = measured.rows.iter().find(|gain| gain.id == row.id).unwrap();
            assert_eq!((row.context_gain, row.context_gain_error), (gain.gain, gain.error));
            without += usize::from(row.context_gain.is_none());
        }
    }
    assert!(without > 0, "rows without a figure are among them");
    let report = |bench: &Bench| {
        bench.bytes().into_iter().filter(|(name, _)| name.starts_with("report/")).collect::<Vec<_>>()
    };
    assert_eq!(report(&with), report(&plain), "the certificate and the figures for plots");
    let lines = |bench: &Bench| std::fs::read_to_string(&bench.files(FULL)["split.jsonl"]).unwrap();
    assert!(lines(&with).contains("\"context_gain\":") && !lines(&plain).contains("context_gain"));
}

#[test]
fn the_card_says_how_gains_were_measured() {
    let corpus = spread();
    let bench = run_with(&corpus, "mixed = 40\nmin-gain = 0.03");
    let stats = json(&bench, "dataset", "stats.json");
    let measured = gains(&corpus).rows.iter().filter(|row| row.gain.is_some()).count();
    let full = |row: &&Gain| row.tokens > 4096;
    let out = gains(&corpus).rows.iter().filter(full).filter(|row| row.gain.unwrap() < 30_000).count();
    let expected = serde_json::json!({ "window": 128, "samples": 64, "max_tokens": 8192, "measured": measured,
        "least": 0.03, "left_out": out });
    assert_eq!(stats["context_gain"], expected);
    let mut full: Vec<i64> =
        bench.load::<Split>(FULL).0.iter().map(|row| row.context_gain.unwrap()).collect();
    full.sort_unstable();
    assert_eq!(stats["splits"][1]["context_gain"], full[(full.len() - 1) / 2]);
    let card = String::from_utf8(bench.bytes()["dataset/README.md"].clone()).unwrap();
    assert!(card.contains("At least 0.03 was asked of `full`"), "{card}");
    let plain = String::from_utf8(run(&corpus, "").bytes()["dataset/README.md"].clone()).unwrap();
    assert!(!plain.contains("context gain"), "{plain}");
}

#[test]
fn the_long_split_can_ask_for_a_gain() {
    let corpus = spread();
    let plain = run_with(&corpus, "mixed = 40\noutlier-percent = 20");
    let asked = run_with(&corpus, "mixed = 40\noutlier-percent = 20\nmin-gain = 0.030001");
    for name in [SWA, MIXED] {
        assert_eq!(asked.load::<Split>(name), plain.load::<Split>(name), "{name}");
    }
    // The choice is that of a corpus in which the others are not long.
    let mut fewer = spread();
    let enough = |id: &str| gains(&corpus).rows.iter().any(|row| row.id == id && row.gain >= Some(30_001));
    let keep: Vec<bool> =
        corpus.texts.0.iter().map(|text| text.text.len() < 8192 || enough(&text.id)).collect();
    let mut kept = keep.iter();
    fewer.texts.0.retain(|_| *kept.next().unwrap());
    let mut kept = keep.iter();
    fewer.clusters.members.retain(|_| *kept.next().unwrap());
    let expected = run_with(&fewer, "mixed = 40\noutlier-percent = 20");
    let full = asked.load::<Split>(FULL).0;
    assert_eq!(full, expected.load::<Split>(FULL).0);
    assert!(full.len() > 4 && full.iter().all(|row| row.context_gain.unwrap() > 30_000));
    assert!(ids(&plain.load::<Split>(FULL).0) != ids(&full));
}

#[test]
fn a_threshold_is_met_exactly_and_what_was_not_measured_never_meets_it() {
    let corpus = corpus(&[5000, 5001, 5002, 5003], 1);
    let mut measured = gains(&corpus);
    for (row, gain) in measured.rows.iter_mut().zip([Some(-1), Some(250_000), Some(249_999), None]) {
        (row.gain, row.error, row.scored) = (gain, None, usize::from(gain.is_some()));
    }
    let chosen = |least: &str| {
        let bench = bench(&corpus).input("context-gain", &measured);
        bench.run(&stage(&format!("context-gain = 'g'\noutlier-percent = 50\nmin-gain = {least}"))).unwrap();
        let rows = bench.load::<Split>(FULL).0;
        let place = |row: &splits::Chosen| measured.rows.iter().position(|gain| gain.id == row.id).unwrap();
        rows.iter().map(place).collect::<BTreeSet<_>>()
    };
    assert_eq!(chosen("0.25"), [1].into());
    assert!(chosen("0.250001").is_empty());
    assert!(chosen("0.249999").is_subset(&[1, 2].into()));
    assert!(!chosen("-100.0").contains(&3));
}

#[test]
fn the_old_shape_stays_as_it_was() {
    let World { corpus, embeddings } = world(&lengths_up_to(60), vec![40; 60 * 8], "");
    let jsonl = |measured: bool| {
        let mut bench = bench(&corpus).input("embeddings", &embeddings);
        let mut toml = "embeddings = 'e'\ncompat = 'original'\n".to_owned();
        if measured {
            bench = bench.input("context-gain", &gains(&corpus));
            toml += "context-gain = 'g'";
        }
        bench.run(&stage(&toml)).unwrap();
        bench.bytes().into_iter().filter(|(name, _)| name.starts_with("dataset/calib_")).collect::<Vec<_>>()
    };
    let plain = jsonl(false);
    assert_eq!(plain.len(), 3);
    assert_eq!(jsonl(true), plain);
}

#[test]
fn gains_of_another_corpus_are_refused() {
    let corpus = spread();
    let error = |change: &dyn Fn(&mut Vec<Gain>)| {
        let mut measured = gains(&corpus);
        change(&mut measured.rows);
        let bench = bench(&corpus).input("context-gain", &measured);
        bench.run(&stage("context-gain = 'g'")).unwrap_err().to_string()
    };
    let missing = error(&|rows| drop(rows.remove(3)));
    assert_eq!(
        missing,
        "inputs are of different corpora: 200 documents, 199 context gains; let all inputs come from the same corpus"
    );
    let last = "f".repeat(64);
    let other = error(&|rows| rows.last_mut().unwrap().id.clone_from(&last));
    assert!(other.starts_with("inputs are of different corpora: "), "{other}");
    assert!(other.contains(&format!("against {last} of the context gains; ")), "{other}");
}

#[test]
fn a_threshold_needs_gains() {
    let error = stage("min-gain = 0.1").check().unwrap_err();
    assert_eq!(
        (error.param.as_str(), error.message.as_str()),
        ("min-gain", "`min-gain` needs `context-gain`")
    );
    let with = stage("context-gain = 'g'\nmin-gain = 0.1");
    assert_eq!(with.check(), Ok(()));
    assert!(with.inputs().iter().any(|port| port.port == "context-gain" && port.kind == "gains"));
}
