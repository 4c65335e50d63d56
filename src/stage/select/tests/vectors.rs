//! Choices with vectors: thinning, the certificate, the report, and clusters as the cluster stage makes them.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde_json::Value;

use super::*;
use crate::{
    artifact::embeddings::{self, Embeddings},
    math::grid,
    stage::{
        cluster::Cluster,
        select::{
            choice::{Choice, Fact, Rules, choose},
            decision::Bounds,
            moved::{moved, places},
            thin::Vectors,
        },
    },
};

/// Documents with vectors around a few directions, clustered by the cluster stage.
pub(super) struct World {
    pub(super) corpus: Corpus,
    pub(super) embeddings: Embeddings,
}

const DIM: usize = 8;

/// Vectors of `n` documents around `groups` directions.
fn scattered(n: usize, groups: usize, width: u32, seed: u64) -> Vec<i16> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut vectors = vec![0; n * DIM];
    for (i, row) in vectors.chunks_exact_mut(DIM).enumerate() {
        let spread = |_| i64::from(rng.next_u32() % width) - i64::from(width / 2);
        let mut x: Vec<i64> = (0..DIM).map(spread).collect();
        x[i % groups.min(DIM)] += 1000;
        grid::quantise(&x, row);
    }
    vectors
}

/// A world of documents with these lengths and vectors.
pub(super) fn world(lengths: &[usize], vectors: Vec<i16>, cluster: &str) -> World {
    let mut corpus = super::corpus(lengths, 1);
    let ids: Vec<String> = corpus.texts.0.iter().map(|text| text.id.clone()).collect();
    let about = embeddings::About { model: "tiny".into(), dim: DIM, scale: grid::SCALE, centred: false };
    let embeddings = Embeddings { about, ids, vectors, windows: vec![] };
    let stage: Cluster = toml::from_str(&format!("embeddings = 'e'\n{cluster}")).unwrap();
    let bench = Bench::new().input("embeddings", &embeddings);
    bench.run(&stage).unwrap();
    corpus.clusters = bench.load("clusters");
    World { corpus, embeddings }
}

pub(super) fn lengths_up_to(n: usize) -> Vec<usize> {
    (0..n).map(|i| 20 + 60 * i % 5000).collect()
}

impl World {
    pub(super) fn run(&self, toml: &str) -> Bench {
        let bench = bench(&self.corpus).input("embeddings", &self.embeddings);
        bench.run(&stage(&format!("embeddings = 'e'\n{toml}"))).unwrap();
        bench
    }
}

pub(super) fn json(bench: &Bench, port: &str, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(&bench.files(port)[file]).unwrap()).unwrap()
}

#[test]
fn every_option_gives_the_same_bytes_for_any_number_of_threads() {
    for cluster in ["rule = 'sqrt'", "rule = 'sqrt'\noutliers = 'knn'\ninit = 'k-means++'"] {
        let world = world(&lengths_up_to(150), scattered(150, 6, 900, 1), cluster);
        let toml = "distinct = 0.99\nsemantic-duplicates = 0.999\ntokens = { swa = 9000, mixed = 50000 }";
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| world.run(toml)).bytes()
        };
        let one = run(1);
        assert!(one.contains_key("report/scatter.svg") && one.contains_key("report/scatter.jsonl"));
        assert_eq!(run(2), one);
        assert_eq!(run(7), one);
    }
}

#[test]
fn a_split_keeps_to_its_tokens_and_says_what_it_left_out() {
    let world = world(&lengths_up_to(150), scattered(150, 6, 900, 2), "rule = 'sqrt'");
    let bench = world.run("outlier-percent = 20\ntokens = { swa = 3000, mixed = 40000 }");
    let tokens = |bench: &Bench, name: &str| -> usize {
        bench.load::<Split>(name).0.iter().map(|row| row.n_tokens).sum()
    };
    let (swa, mixed) = (tokens(&bench, SWA), tokens(&bench, MIXED));
    assert!((2000..=3000).contains(&swa) && (35_000..=40_000).contains(&mixed), "{swa} {mixed}");
    let free = world.run("outlier-percent = 20");
    assert!(tokens(&free, SWA) > 3000 && tokens(&free, FULL) == tokens(&bench, FULL));
    let reasons: BTreeSet<_> = bench.load::<Split>(SWA).0.into_iter().map(|row| row.reason).collect();
    assert_eq!(reasons, ["near".to_owned(), "outlier".to_owned()].into(), "both kinds have their share");
    let split = &json(&bench, "report", "certificate.json")["splits"][0];
    let dropped = split["dropped"].as_array().unwrap();
    let kept = bench.load::<Split>(SWA).0.len();
    assert_eq!(dropped.len() + kept, free.load::<Split>(SWA).0.len());
    assert!(dropped.iter().all(|d| d["reason"] == "budget"));
    assert_eq!(json(&bench, "dataset", "stats.json")["splits"][0]["over_budget"], dropped.len());
}

#[test]
fn rows_alike_are_left_out_where_asked() {
    // Every vector stands twice.
    let half = scattered(40, 5, 700, 3);
    let twice: Vec<i16> = half.chunks(DIM).flat_map(|row| [row, row].concat()).collect();
    let world = world(&lengths_up_to(80), twice, "rule = 'fixed'\nk = 4");
    let distinct = |bench: &Bench, name: &str| {
        let index = |row: &splits::Chosen| world.embeddings.ids.iter().position(|id| *id == row.id).unwrap();
        let rows = bench.load::<Split>(name).0;
        let vectors: BTreeSet<_> =
            rows.iter().map(|row| &world.embeddings.vectors[index(row) * DIM..][..DIM]).collect();
        (rows.len(), vectors.len())
    };
    let all = "outlier-percent = 50\nmixed = 60\nfull-above = 5000\nswa-below = 5001\n";
    let (rows, vectors) = distinct(&world.run(all), SWA);
    assert!(rows > vectors, "{rows} {vectors}");
    for rule in ["distinct = 0.9999", "semantic-duplicates = 0.9999"] {
        let bench = world.run(&format!("{all}{rule}"));
        for name in [SWA, MIXED] {
            let (rows, vectors) = distinct(&bench, name);
            assert!(rows == vectors && rows > 8, "{name}: {rows} {vectors}");
        }
    }
    let bench = world.run("semantic-duplicates = 0.9999");
    let repeats = &json(&bench, "report", "certificate.json")["repeats"]["dropped"];
    assert_eq!(repeats.as_array().unwrap().len(), 40);
    assert!(repeats.as_array().unwrap().iter().all(|d| d["of"].as_str() < d["id"].as_str()));
    assert_eq!(json(&bench, "dataset", "stats.json")["repeats"], 40);
}

#[test]
fn what_is_not_listed_does_not_change() {
    let lengths = [100; 24];
    let facts: Vec<_> = (0..24).map(|i| ["a", "b", "c"][i % 3]).collect();
    let ids: Vec<String> = (0..24).map(|i| format!("{i:02}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let fact = |i: usize| Fact {
        id: ids[i],
        group: facts[i],
        bucket: "swa",
        n_tokens: lengths[i] + 7 * i,
        eligible: i % 11 != 7,
    };
    let facts: Vec<_> = (0..24).map(fact).collect();
    let picks = |choice: &Choice| -> Vec<Vec<(usize, &str)>> {
        choice.splits.iter().map(|s| s.picks.iter().map(|p| (p.index, p.reason)).collect()).collect()
    };
    let (mut proved, mut changed) = (0, 0);
    for seed in 0..60 {
        let vectors = scattered(24, 3, 200 + 40 * (seed as u32 % 20), seed);
        let one = 16_000_000;
        let rules = Rules {
            clusters: 3,
            outlier_percent: 25,
            mixed: 8,
            seed,
            semantic: (seed % 4 == 0).then_some(one / 150),
            distinct: (seed % 3 == 0).then_some(one / 20),
            budgets: [(seed % 2 == 0).then_some(900), None, None],
        };
        let centroids: Vec<i16> = vectors[..3 * DIM].to_vec();
        let neighbours = (seed % 5 == 0).then_some(3);
        let place =
            |data: &[i16]| places((DIM, data), &centroids, neighbours, || Ok::<_, SelectError>(())).unwrap();
        let choice = |data: &[i16]| choose(&rules, &facts, &place(data), Some(Vectors { dim: DIM, data }));
        let given = choice(&vectors);
        for (copy, radius) in [2, 10, 60, 300].into_iter().enumerate() {
            let other = moved((DIM, &vectors), &ids, radius, (seed, copy as u32));
            let farthest = vectors.chunks(DIM).zip(other.chunks(DIM)).map(|(a, b)| {
                let square: i64 = a.iter().zip(b).map(|(&a, &b)| i64::from(a - b).pow(2)).sum();
                (square as f64).sqrt()
            });
            let noise = farthest.fold(0.0, f64::max) / 4000.0;
            let thresholds = [rules.semantic, rules.distinct];
            let bounds = Bounds::new(Some(noise), (DIM, 4000), neighbours.is_some(), thresholds);
            let listed = |of: usize| {
                given.decisions.iter().chain(&given.splits[of].decisions).any(|d| bounds.reach(d))
            };
            let again = choice(&other);
            for split in 0..3 {
                if picks(&given)[split] == picks(&again)[split] {
                    proved +=
                        usize::from(!listed(split) && split < 2 && !given.splits[split].picks.is_empty());
                } else {
                    changed += 1;
                    assert!(listed(split), "seed {seed}, radius {radius}, split {split}");
                }
            }
        }
    }
    assert!(proved > 10 && changed > 10, "{proved} proved, {changed} changed: too few to show anything");
}

#[test]
fn the_certificate_tells_how_much_stays() {
    let world = world(&lengths_up_to(100), scattered(100, 5, 1200, 4), "rule = 'sqrt'");
    let percent = |bench: &Bench| -> Vec<u64> {
        let copies = json(bench, "report", "certificate.json")["copies"].clone();
        let number = |v: &Value| v.as_u64().unwrap();
        let share = |c: &Value| number(&c["all"]["common"]) * 100 / number(&c["all"]["either"]).max(1);
        copies.as_array().unwrap().iter().filter(|c| c["split"] == SWA).map(share).collect()
    };
    let exact = world.run("noise = 0.0\ncopies = 2");
    assert_eq!(percent(&exact), [100, 100]);
    let proof = json(&exact, "report", "certificate.json");
    assert!(
        proof["splits"].as_array().unwrap().iter().all(|s| s["borderline"].as_array().unwrap().is_empty())
    );
    let far = world.run("noise = 0.3");
    assert_eq!(percent(&far).len(), 5);
    assert!(percent(&far).iter().all(|&p| p < 100), "{:?}", percent(&far));
    let standard = json(&world.run(""), "report", "certificate.json");
    assert_eq!(standard["bounds"]["radius"], 2, "√8 / 2, rounded up");
    assert!(percent(&world.run("copies = 0")).is_empty());
}

#[test]
fn the_report_has_every_document() {
    let world = world(&lengths_up_to(60), scattered(60, 4, 800, 5), "rule = 'fixed'\nk = 5");
    let bench = world.run("");
    let report = json(&bench, "report", "report.json");
    let sum = |list: &str| -> u64 {
        report[list].as_array().unwrap().iter().map(|row| row["documents"].as_u64().unwrap()).sum()
    };
    assert_eq!([sum("clusters"), sum("lengths"), sum("sources")], [60; 3]);
    let scatter = std::fs::read_to_string(&bench.files("report")["scatter.jsonl"]).unwrap();
    let rows: Vec<Value> = scatter.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 60);
    let chosen = rows.iter().filter(|row| row["chosen"][SWA].is_string()).count();
    assert_eq!(chosen, bench.load::<Split>(SWA).0.len());
    assert!(!run(&world.corpus, "").files("report").contains_key("scatter.jsonl"), "no vectors, no plane");
}

#[test]
fn the_old_shape_is_that_of_the_original() {
    let world = world(&lengths_up_to(60), scattered(60, 4, 800, 6), "");
    let bench = world.run("compat = 'original'");
    for (name, kind) in [(SWA, "swa"), (FULL, "full"), (MIXED, "mixed")] {
        let text = std::fs::read_to_string(&bench.files("dataset")[&format!("{name}.jsonl")]).unwrap();
        let rows = bench.load::<Split>(name).0;
        let line = |row: &splits::Chosen| {
            let text = serde_json::to_string(&row.text).unwrap();
            format!("{{\"text\":{text},\"meta\":{{\"type\":\"{kind}\",\"model\":\"tiny\"}}}}\n")
        };
        assert_eq!(text, rows.iter().map(line).collect::<String>());
    }
    assert!(
        String::from_utf8(bench.bytes()["dataset/README.md"].clone()).unwrap().contains("original toolkit")
    );
}

#[test]
fn vectors_that_were_not_clustered_are_refused() {
    let mut world = world(&lengths_up_to(30), scattered(30, 4, 800, 7), "");
    let error = |world: &World| {
        let bench = bench(&world.corpus).input("embeddings", &world.embeddings);
        bench.run(&stage("embeddings = 'e'")).unwrap_err().to_string()
    };
    let right = world.embeddings.clone();
    world.embeddings.vectors[0] += 50;
    assert!(
        error(&world).starts_with("these embeddings are not the ones that were clustered; "),
        "{}",
        error(&world)
    );
    world.embeddings = right;
    world.embeddings.ids[0] = "00".into();
    assert!(error(&world).starts_with("inputs are of different corpora: "), "{}", error(&world));
}
