//! What the original toolkit's selection got wrong, by the numbers of its audit; each test fails on what it did.

use super::{
    vectors::{World, json, lengths_up_to, world},
    *,
};

/// A corpus of these texts in one cluster.
fn of_texts(texts: &[String]) -> Corpus {
    let mut corpus = corpus(&(0..texts.len()).map(|i| i + 1).collect::<Vec<_>>(), 1);
    for (row, text) in corpus.texts.0.iter_mut().zip(texts) {
        row.id = blake3::hash(text.as_bytes()).to_hex().to_string();
        row.text.clone_from(text);
    }
    corpus.texts.0.sort_by(|a, b| a.id.cmp(&b.id));
    for (row, member) in corpus.texts.0.iter().zip(&mut corpus.clusters.members) {
        member.id.clone_from(&row.id);
    }
    corpus
}

fn ids(bench: &Bench, name: &str) -> Vec<String> {
    bench.load::<Split>(name).0.into_iter().map(|row| row.id).collect()
}

/// Defect 1: strata were cut at 12,000 characters, whatever the tokens.
#[test]
fn strata_are_cut_at_tokens_not_at_characters() {
    let (long_words, short_words) = ("w".repeat(30) + " ", "w ".repeat(4100));
    let corpus = of_texts(&[long_words.repeat(500), short_words]);
    let bench = run(&corpus, "");
    let [swa, full] = [SWA, FULL].map(|name| bench.load::<Split>(name).0);
    assert_eq!([swa.len(), full.len()], [1, 1]);
    assert!(swa[0].text.len() > 12_000 && swa[0].n_tokens == 500);
    assert!(full[0].text.len() < 12_000 && full[0].n_tokens == 4100);
}

/// Defect 2: the other splits sorted their lists by length in place, so the mixed one got the shortest of each side.
#[test]
fn the_mixed_split_is_not_made_of_the_shortest() {
    let lengths: Vec<usize> = (0..200).map(|i| if i < 100 { 100 + i } else { 4200 + 10 * i }).collect();
    let mixed = run(&corpus(&lengths, 4), "mixed = 40").load::<Split>(MIXED).0;
    let in_upper_half = |from, to| mixed.iter().filter(|row| (from..to).contains(&row.n_tokens)).count();
    assert_eq!(mixed.len(), 40);
    assert!(in_upper_half(150, 200) >= 5 && in_upper_half(5700, 9000) >= 5, "long ones of both sides");
}

/// Defect 3: 5 % of fewer than 20 documents is none, and a slice from minus none took them all.
#[test]
fn few_documents_are_not_taken_whole() {
    for n in [2, 5, 19] {
        let bench = run(&corpus(&(0..n).map(|i| 100 + i).collect::<Vec<_>>(), 1), "");
        assert_eq!(ids(&bench, SWA).len(), 1, "{n} documents, one cluster");
        assert_eq!(ids(&bench, MIXED).len(), n.div_ceil(2));
    }
}

/// Defect 4: rows stood in the order of a hash set, and floats decided.
#[test]
fn rows_stand_in_the_order_of_their_ids_and_values_are_integers() {
    let bench = run(&corpus(&(0..90).map(|i| 100 + 70 * i).collect::<Vec<_>>(), 4), "");
    for name in [SWA, FULL, MIXED] {
        assert!(ids(&bench, name).is_sorted() && ids(&bench, name).len() > 3);
        let text = std::fs::read_to_string(&bench.files(name)["split.jsonl"]).unwrap();
        for line in text.lines() {
            let row: serde_json::Value = serde_json::from_str(line).unwrap();
            let mut numbers = row.as_object().unwrap().values().filter(|value| value.is_number());
            assert!(numbers.all(serde_json::Value::is_i64), "{line}");
            assert!(line.starts_with("{\"id\":"), "keys have one order");
        }
    }
}

/// Defect 5: a row said neither where it came from, nor under which licence, nor why it was chosen; repeats stayed.
#[test]
fn a_row_says_where_it_comes_from_and_why_it_is_here() {
    let world = two_of_each(30);
    let bench = world.run("distinct = 0.9999");
    let rows = bench.load::<Split>(SWA).0;
    let text = std::fs::read_to_string(&bench.files(SWA)["split.jsonl"]).unwrap();
    let row: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let keys =
        ["id", "text", "source", "licence", "n_tokens", "split", "cluster", "reason", "score", "margin"];
    assert!(keys.iter().all(|key| row.get(key).is_some()), "{row}");
    for row in rows {
        assert_eq!(row.id, blake3::hash(row.text.as_bytes()).to_hex().to_string());
        assert!(row.source.starts_with("sources.") && row.licence == "MIT" && row.split == SWA);
    }
    let dropped = json(&bench, "report", "certificate.json")["splits"][2]["dropped"].clone();
    assert!(dropped.as_array().unwrap().iter().any(|d| d["reason"] == "similar" && d["of"].is_string()));
}

/// Defect 6: what lies far from its centroid was called a hard negative.
#[test]
fn outliers_are_not_said_to_be_hard() {
    let bench = run(&corpus(&(0..60).map(|i| 100 + i).collect::<Vec<_>>(), 2), "");
    let reasons: BTreeSet<_> =
        [SWA, MIXED].iter().flat_map(|name| bench.load::<Split>(name).0).map(|row| row.reason).collect();
    assert_eq!(reasons, ["mix", "near", "outlier"].map(str::to_owned).into());
    let card = String::from_utf8(bench.bytes()["dataset/README.md"].clone()).unwrap();
    let flat = card.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(flat.contains("unusual texts, not known to be hard ones") && !flat.contains("negative"));
}

/// Defect 9: a length below 2k says nothing of what a window of 128 tokens cannot see.
#[test]
fn a_row_says_whether_it_reaches_beyond_the_window() {
    let far = format!("one {}one two", "w ".repeat(200));
    let close = format!("two {}two {}", "w ".repeat(100), "w ".repeat(100));
    let row = |toml: &str, text: &str| {
        // In a corpus of its own each word is rare.
        let rows = run(&of_texts(&[text.to_owned()]), toml).load::<Split>(SWA).0;
        let row = &rows[0];
        (row.recalls, row.recall_typical, row.recall_longest)
    };
    assert_eq!(row("", &far), (1, 201, 201));
    assert_eq!(row("", &close), (0, 0, 0));
    assert_eq!(row("window = 100", &close), (1, 101, 101));
    // Other words stand in both documents, so they are not rare.
    let both = run(&of_texts(&[far.clone(), close]), "mixed = 2\noutlier-percent = 50").load::<Split>(SWA).0;
    let of_far = both.iter().find(|row| row.text == far).unwrap();
    assert_eq!((of_far.recalls, of_far.recall_longest), (1, 201));
}

fn two_of_each(n: usize) -> World {
    let one = [4000, 0, 0, 0, 0, 0, 0, 0];
    let row = |i: usize| {
        let mut row = one;
        row.rotate_right(i / 2 % 8);
        row
    };
    world(&lengths_up_to(n), (0..n).flat_map(row).collect(), "rule = 'fixed'\nk = 4")
}

#[test]
fn odd_corpora_give_whole_splits() {
    let all = "distinct = 0.99\nsemantic-duplicates = 0.99\ntokens = { swa = 100000 }\n";
    let same = |n: usize| [4000, 0, 0, 0, 0, 0, 0, 0].repeat(n);
    for (cluster, outliers) in [("", ""), ("rule = 'fixed'\nk = 50\n", "outliers = 'knn'")] {
        let cluster = format!("{cluster}{outliers}");
        // One document; fewer documents than clusters, all alike; fewer than 20.
        for n in [1, 6, 19] {
            let world = world(&[40, 50, 60].repeat(7)[..n], same(n), &cluster);
            assert_eq!(ids(&world.run(all), SWA).len(), 1, "{n} equal documents are one");
            let plain = ids(&world.run("mixed = 3"), SWA).len();
            assert!(plain >= 1 && (n == 1 || plain < n), "{plain} of {n}");
        }
    }
    let world = two_of_each(16);
    assert!(ids(&world.run(all), SWA).len() <= 8);
}

#[test]
fn no_documents_are_told_by_the_cluster_stage_and_give_empty_splits_here() {
    let bench = run(&corpus(&[], 1), "");
    assert!([SWA, FULL, MIXED].iter().all(|name| ids(&bench, name).is_empty()));
}
