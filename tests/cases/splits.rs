//! Calibration splits are the same bytes whatever the threads, the jobs and the order in which the texts lie about.

use std::{collections::BTreeMap, path::Path};

use crate::harness::space::{Ran, Space};

const FILES: &str = "{ files = 'notes/*.txt', name = 'notes', licence = 'MIT' }";
const JSONL: &str = "{ jsonl = 'rows.jsonl', name = 'rows', licence = 'CC0-1.0' }";

fn manifest(sources: [&str; 2]) -> String {
    format!(
        "[stage.corpus]\nsources = [{}, {}]\nnear-duplicates = {{}}\n\
         [stage.embed]\ntexts = 'corpus'\ndim = 64\n\
         [stage.cluster]\nembeddings = 'embed'\nrule = 'fixed'\nk = 5\n\
         [stage.tokenizer]\ntexts = 'corpus'\nvocab-size = 400\n\
         [stage.select]\ntexts = 'corpus'\nclusters = 'cluster'\ntokenizer = 'tokenizer'\ndrops = 'corpus'\n\
         swa-below = 60\nfull-above = 90\nmixed = 20\n",
        sources[0], sources[1]
    )
}

/// Sentences over one of five vocabularies; some texts stand twice, some nearly.
fn text(i: usize) -> String {
    let stem = if i % 11 == 10 { i - 1 } else { i };
    let word = |j: usize| format!("{}{}", ["mo", "ka", "ti", "ru", "se"][stem % 5], (stem * 7 + j * j) % 23);
    let words: Vec<String> = (0..20 + 9 * (stem % 8)).map(word).collect();
    words.join(" ") + if i % 22 == 10 { " indeed" } else { "" }
}

/// The texts of `order`, the even ones as files, the odd ones as lines.
fn space(order: &[usize], sources: [&str; 2]) -> Space {
    let space = Space::new(&manifest(sources));
    let mut lines = String::new();
    for &i in order {
        if i % 2 == 0 {
            space.file(&format!("notes/{i:02}.txt"), &text(i));
        } else {
            lines += &(serde_json::json!({ "text": text(i) }).to_string() + "\n");
        }
    }
    space.file("rows.jsonl", &lines);
    space
}

fn run(space: &Space, threads: &str, jobs: &str) -> Ran {
    let words = ["run", "p.toml", "--format", "json", "--force", "all", "--jobs", jobs];
    Ran::new(&space.command(&words).env("RAYON_NUM_THREADS", threads).output().unwrap()).ok()
}

#[test]
fn the_same_splits_for_any_threads_jobs_and_order() {
    let order: Vec<usize> = (0..80).collect();
    let here = space(&order, [FILES, JSONL]);
    let expected = run(&here, "1", "1").digests();
    assert!(expected.keys().any(|output| output.starts_with("select.calib_mixed_golden")), "{expected:?}");
    for (threads, jobs) in [("2", "2"), ("7", "7"), ("7", "1")] {
        assert_eq!(run(&here, threads, jobs).digests(), expected, "{threads} threads, {jobs} jobs");
    }
    // What the rows say of their origin is the line that they stood on, so only what is selected must be equal, and its order.
    let mut other = order.clone();
    other.reverse();
    other.rotate_left(31);
    let there = space(&other, [JSONL, FILES]);
    run(&there, "2", "2");
    assert_eq!(chosen(&there), chosen(&here));
    // Files that lie in another order are the same files.
    let lines_first: Vec<usize> =
        (0..80).filter(|i| i % 2 == 1).chain((0..80).rev().filter(|i| i % 2 == 0)).collect();
    assert_eq!(run(&space(&lines_first, [FILES, JSONL]), "2", "2").digests(), expected);
}

/// Defect 10 of the original: nothing showed that one run ever made all three splits.
#[test]
fn one_run_makes_all_three_splits_and_the_lock_file_says_so() {
    let here = space(&(0..80).collect::<Vec<_>>(), [FILES, JSONL]);
    let ran = here.run("").ok();
    let lock = here.read("p.lock.toml");
    for split in ["calib_swa_golden", "calib_full_golden", "calib_mixed_golden"] {
        let digest = &ran.digests()[&format!("select.{split}")];
        assert!(lock.contains(split) && lock.contains(&**digest), "{split} {digest}\n{lock}");
    }
    assert!(chosen(&here).values().all(|ids| !ids.is_empty()));
    here.does("run p.toml --locked").ok();
}

/// The splits of texts that are made from a seed, on every machine: what is committed is what is made from nothing. Where a change of
/// the code means to change them, the new digests are in the test's words.
#[test]
fn the_splits_of_a_seed_are_the_committed_ones() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/splits");
    let committed: BTreeMap<String, String> =
        serde_json::from_slice(&std::fs::read(golden.join("digests.json")).unwrap()).unwrap();
    let space = Space::new("");
    let manifest = golden.join("synthetic.toml");
    for (threads, jobs, shards) in [("1", "1", None), ("2", "2", Some("embed.shards=4")), ("8", "3", None)] {
        let mut words = vec!["run", manifest.to_str().unwrap(), "--format", "json", "--no-lock"];
        words.extend(["--force", "all", "--jobs", jobs]);
        words.extend(shards.iter().flat_map(|shards| ["--set", shards]));
        let ran = Ran::new(&space.command(&words).env("RAYON_NUM_THREADS", threads).output().unwrap()).ok();
        let mut made = ran.digests();
        made.retain(|output, _| output.starts_with("select.calib_"));
        let made: BTreeMap<String, String> =
            made.into_iter().map(|(output, digest)| (output["select.".len()..].to_owned(), digest)).collect();
        assert_eq!(made, committed, "{threads} threads, {jobs} jobs, {shards:?}");
    }
}

/// The ids of each split in their order.
fn chosen(space: &Space) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    for split in ["calib_swa_golden", "calib_full_golden", "calib_mixed_golden"] {
        let path = space.does(&format!("show select {split} p.toml --path")).ok().stdout;
        let rows = std::fs::read_to_string(path.trim()).unwrap();
        let id = |row: &str| {
            let row: serde_json::Value = serde_json::from_str(row).unwrap();
            row["id"].as_str().unwrap().to_owned()
        };
        let ids: Vec<String> = rows.lines().map(id).collect();
        assert!(!ids.is_empty(), "{split} is empty");
        all.insert(split.to_owned(), ids);
    }
    all
}
