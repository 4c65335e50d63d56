//! The cluster stage as a whole: how many clusters, odd corpora, and a report that agrees with its members.

use super::*;
use crate::{artifact::embeddings, math::grid, stage::testing::Bench};

fn stage(toml: &str) -> Cluster {
    toml::from_str(&format!("embeddings = 'embed'\n{toml}")).unwrap()
}

fn vectors(n: usize) -> Embeddings {
    let dim = 5;
    let mut vectors = vec![0; n * dim];
    for (i, row) in vectors.chunks_exact_mut(dim).enumerate() {
        let i = i as i64;
        grid::quantise(&[i * 37 % 11, i * 17 % 13, i * 5 % 7, 3 - i % 6, 1], row);
    }
    let about = embeddings::About { model: "m".into(), dim, scale: grid::SCALE, centred: false };
    Embeddings { about, ids: (0..n).map(|i| format!("{i:064}")).collect(), vectors, windows: vec![] }
}

#[test]
fn the_number_of_clusters_follows_the_rule() {
    for (toml, counts) in [
        ("", [1, 1, 2, 512]),
        ("rule = 'sqrt'", [1, 7, 10, 1000]),
        ("rule = 'fixed'\nk = 40", [1, 40, 40, 40]),
    ] {
        assert_eq!([1, 49, 100, 1_000_000].map(|n| stage(toml).count(n)), counts, "{toml}");
    }
}

#[test]
fn rule_and_k_must_fit() {
    for toml in ["rule = 'fixed'", "rule = 'fixed'\nk = 0", "k = 3", "rule = 'sqrt'\nk = 3"] {
        assert_eq!(stage(toml).check().unwrap_err().param, "k", "{toml}");
    }
    assert_eq!(stage("rule = 'fixed'\nk = 3").check(), Ok(()));
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let bench = Bench::new().input("embeddings", &vectors(300));
        pool.install(|| bench.run(&stage("rule = 'fixed'\nk = 7"))).unwrap();
        bench
    };
    let one = run(1);
    assert_eq!(one.bytes(), run(2).bytes());
    assert_eq!(one.bytes(), run(7).bytes());

    let clusters: Clusters = one.load("clusters");
    assert_eq!(clusters.about.sizes.iter().sum::<u64>(), 300);
    assert!(clusters.about.stable);
    assert_eq!(clusters.about.similarity.last(), Some(&clusters.members.iter().map(|m| m.score).sum()));
    assert!(clusters.members.iter().all(|m| m.margin.is_some_and(|margin| margin >= 0)));
}

#[test]
fn one_cluster_has_no_margin_and_no_documents_are_an_error() {
    let bench = Bench::new().input("embeddings", &vectors(3));
    bench.run(&stage("")).unwrap();
    let clusters: Clusters = bench.load("clusters");
    assert!(clusters.members.iter().all(|m| m.cluster == 0 && m.margin.is_none()));

    let error = Bench::new().input("embeddings", &vectors(0)).run(&stage("")).unwrap_err();
    assert_eq!(error.to_string(), "there are no documents to cluster");
}

fn run(embeddings: &Embeddings, toml: &str) -> Clusters {
    let bench = Bench::new().input("embeddings", embeddings);
    bench.run(&stage(toml)).unwrap();
    bench.load("clusters")
}

#[test]
fn more_clusters_than_documents_give_each_its_own() {
    let clusters = run(&vectors(6), "rule = 'fixed'\nk = 50");
    assert_eq!((clusters.about.k, clusters.about.sizes.as_slice()), (6, &[1; 6][..]));
    assert_eq!(clusters.centroids, vectors(6).vectors, "a lone document is its centroid");
    let ids: Vec<u32> = clusters.members.iter().map(|m| m.cluster).collect();
    assert_eq!(ids, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn equal_documents_stay_together_and_the_run_ends() {
    let mut same = vectors(9);
    let row = same.vectors[..5].to_vec();
    same.vectors = row.repeat(9);
    let clusters = run(&same, "rule = 'fixed'\nk = 3");
    assert_eq!(clusters.about.sizes.iter().sum::<u64>(), 9);
    assert!(clusters.about.stable, "{:?}", clusters.about);
    assert!(clusters.members.iter().all(|m| m.cluster == clusters.members[0].cluster && m.margin == Some(0)));
}

#[test]
fn a_document_of_zeros_belongs_to_the_first_cluster() {
    let mut some = vectors(8);
    some.vectors[7 * 5..].fill(0);
    let clusters = run(&some, "rule = 'fixed'\nk = 2");
    assert_eq!((clusters.members[7].cluster, clusters.members[7].score), (0, 0));
}

#[test]
fn the_report_agrees_with_the_members() {
    for k in [1, 2, 5, 40] {
        let given = vectors(80);
        let clusters = run(&given, &format!("rule = 'fixed'\nk = {k}"));
        let product = |a: &[i16], b: &[i16]| -> i64 {
            a.iter().zip(b).map(|(&a, &b)| i64::from(a) * i64::from(b)).sum()
        };
        let mut sizes = vec![0; k];
        for (member, row) in clusters.members.iter().zip(given.vectors.chunks(5)) {
            sizes[member.cluster as usize] += 1;
            let scores: Vec<i64> = clusters.centroids.chunks(5).map(|c| product(row, c)).collect();
            let best = *scores.iter().max().unwrap();
            assert_eq!(member.score, best);
            assert_eq!(scores.iter().position(|&s| s == best), Some(member.cluster as usize));
            let rest = scores.iter().enumerate().filter(|(i, _)| *i != member.cluster as usize);
            assert_eq!(member.margin, rest.map(|(_, s)| best - s).min());
        }
        assert_eq!(clusters.about.sizes, sizes);
        assert_eq!(clusters.about.similarity.len(), clusters.about.iterations as usize + 1);
    }
}

#[test]
fn neighbours_go_with_knn() {
    for toml in ["neighbours = 3", "outliers = 'knn'\nneighbours = 0", "outliers = 'knn'\nneighbours = 1001"]
    {
        assert_eq!(stage(toml).check().unwrap_err().param, "neighbours", "{toml}");
    }
    assert_eq!(stage("outliers = 'knn'\nneighbours = 3").check(), Ok(()));
}

#[test]
fn parameters_that_are_not_given_are_not_in_the_key() {
    let json = |toml| serde_json::to_value(stage(toml)).unwrap();
    let names: Vec<_> = json("").as_object().unwrap().keys().cloned().collect();
    assert_eq!(names, ["embeddings", "max-iterations", "rule"]);
    assert_eq!(json("init = 'hash'\noutliers = 'centroid'"), json(""));
    assert_eq!(json("init = 'k-means++'\noutliers = 'knn'")["init"], "k-means++");
}

#[test]
fn drawn_centroids_follow_the_seed_and_no_thread() {
    let run = |seed, threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let bench = Bench::new().input("embeddings", &vectors(300)).seed(seed);
        let stage = stage("rule = 'fixed'\nk = 9\ninit = 'k-means++'\nmax-iterations = 0");
        pool.install(|| bench.run(&stage)).unwrap();
        bench.load::<Clusters>("clusters")
    };
    let one = run(1, 1);
    assert_eq!(one, run(1, 7));
    assert_ne!(one.centroids, run(2, 1).centroids);
    let distinct: std::collections::BTreeSet<_> = one.centroids.chunks(5).collect();
    assert_eq!(distinct.len(), 9, "a point at distance 0 is not drawn");
}

#[test]
fn densities_are_those_of_the_definition_whatever_the_clusters() {
    let given = vectors(80);
    let expected = neighbours::definition(Rows::new(5, &given.vectors).unwrap(), 10);
    for k in [1, 7] {
        let clusters = run(&given, &format!("rule = 'fixed'\nk = {k}\noutliers = 'knn'"));
        assert_eq!(clusters.about.neighbours, Some(10));
        let densities: Vec<i64> = clusters.members.iter().filter_map(|m| m.density).collect();
        assert_eq!(densities, expected);
    }
    let plain = run(&given, "rule = 'fixed'\nk = 7");
    assert!(plain.about.neighbours.is_none() && plain.members.iter().all(|m| m.density.is_none()));
    let alone = run(&vectors(1), "outliers = 'knn'");
    assert_eq!(alone.members[0].density, Some(0), "no neighbour");
}

#[test]
fn every_start_and_odd_corpus_gives_a_whole_clustering() {
    // n < k, one document, all documents equal, documents of zeros.
    let mut same = vectors(9);
    same.vectors = same.vectors[..5].repeat(9);
    let mut zeros = vectors(4);
    zeros.vectors.fill(0);
    for (given, n) in [(vectors(6), 6), (vectors(1), 1), (same, 9), (zeros, 4)] {
        for init in ["hash", "k-means++"] {
            let toml = format!("rule = 'fixed'\nk = 8\ninit = '{init}'\noutliers = 'knn'");
            let clusters = run(&given, &toml);
            assert_eq!((clusters.about.k, clusters.members.len()), (n.min(8), n), "{init}");
            assert_eq!(clusters.about.sizes.iter().sum::<u64>(), n as u64);
        }
    }
}
