//! The corpus stage as a whole: order of files, drops, errors.

mod chat;
mod filters;
mod robust;

use std::{fs, path::Path};

use super::*;
use crate::stage::testing::Bench;

fn corpus(toml: &str) -> Corpus {
    toml::from_str(toml).unwrap()
}

fn space(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

fn run(stage: &Corpus, base: &Path) -> Result<(Texts, Drops), Failure> {
    stage.check().map_err(Failure::stage)?;
    let bench = Bench::new().reads(stage.reads(&|_| base.to_owned()).map_err(Failure::stage)?);
    bench.run(stage)?;
    Ok((bench.load("texts"), bench.load("drops")))
}

const SOURCES: &str = r#"
    sources = [
        { files = "docs/**/*.md", name = "docs", licence = "MIT", min-chars = 5, max-chars = 20 },
        { jsonl = "rows/*.jsonl", text = "body", licence = "CC0-1.0" },
    ]
"#;

#[test]
fn every_drop_is_counted_by_reason() {
    let dir = space(&[
        ("docs/a.md", b"one text"),
        ("docs/b.md", b"one text"),
        ("docs/bad.md", b"caf\xe9 au lait"),
        ("docs/blank.md", b" \n\t     "),
        ("docs/long.md", b"a text that is much too long"),
        ("docs/short.md", b"hi"),
        ("rows/r.jsonl", b"{\"body\": \"one text\"}\n{\"body\": \"two\\r\\ntexts\"}\n"),
    ]);
    let (texts, drops) = run(&corpus(SOURCES), dir.path()).unwrap();

    let mut rows: Vec<_> = texts.0.iter().map(|t| (&*t.source, &*t.licence, &*t.text)).collect();
    assert!(texts.0.is_sorted_by_key(|t| &t.id));
    rows.sort_unstable();
    assert_eq!(rows, [("docs/a.md", "MIT", "one text"), ("sources.1/r.jsonl", "CC0-1.0", "two\ntexts")]);

    let dropped: Vec<_> = drops.rows.iter().map(|d| (&*d.source, &*d.reason)).collect();
    assert_eq!(
        dropped,
        [
            ("docs/b.md", "duplicate"),
            ("docs/bad.md", "invalid-utf8"),
            ("docs/blank.md", "empty"),
            ("docs/long.md", "too-long"),
            ("docs/short.md", "too-short"),
            ("sources.1/r.jsonl", "duplicate"),
        ]
    );
    assert_eq!((drops.sources["docs"].read, drops.sources["docs"].kept), (6, 1));
    assert_eq!((drops.total().read, drops.total().kept), (8, 2));
}

#[test]
fn order_of_rows_and_place_of_the_folder_do_not_matter() {
    let rows = ["{\"body\": \"row one\"}", "{\"body\": \"row two\"}", "{\"body\": \"row one\"}"];
    let forwards = rows.join("\n");
    let backwards = rows.iter().rev().copied().collect::<Vec<_>>().join("\n\n");
    let a = space(&[
        ("docs/x.md", b"some text"),
        ("docs/y.md", b"more text"),
        ("rows/r.jsonl", forwards.as_bytes()),
    ]);
    let b = space(&[
        ("rows/r.jsonl", backwards.as_bytes()),
        ("docs/y.md", b"more text"),
        ("docs/x.md", b"some text"),
    ]);
    let stage = corpus(SOURCES);
    assert_eq!(run(&stage, a.path()).unwrap(), run(&stage, b.path()).unwrap());
}

#[test]
fn near_duplicates_go_where_it_is_asked_for() {
    let words: Vec<String> = (0..100).map(|i| format!("word{i}")).collect();
    let (a, b) = (words.join(" "), words.join(" ") + " and an end");
    let dir =
        space(&[("docs/a.md", a.as_bytes()), ("docs/b.md", b.as_bytes()), ("docs/c.md", b"other text")]);
    let kept = |toml: &str| run(&corpus(toml), dir.path()).unwrap();
    assert_eq!(kept("sources = [{ files = 'docs/*' }]").0.0.len(), 3);
    let (texts, drops) = kept("sources = [{ files = 'docs/*' }]\nnear-duplicates = {}");
    assert_eq!((texts.0.len(), drops.total().dropped["near-duplicate"]), (2, 1));
    assert!(texts.0.iter().any(|text| text.id == drops.rows[0].kept));
}

#[test]
fn a_bad_row_or_an_empty_corpus_is_an_error() {
    let bad = space(&[("docs/x.md", b"some text"), ("rows/r.jsonl", b"{\"body\": \"ok\"}\n{\"body\": 1}\n")]);
    let error = run(&corpus(SOURCES), bad.path()).unwrap_err().to_string();
    assert!(error.ends_with("rows/r.jsonl:2: the field `body` is not a string"), "{error}");

    let short = space(&[("docs/x.md", b"hi"), ("docs/y.md", b"ho")]);
    let stage = corpus("sources = [{ files = 'docs/*', min-chars = 5 }]");
    let error = run(&stage, short.path()).unwrap_err().to_string();
    assert_eq!(error, "no document is left of 2: 2 too-short; check the globs and the limits");
}

#[test]
fn mistakes_in_sources_name_the_parameter() {
    for (sources, param) in [
        ("", "sources"),
        ("{}", "sources.0"),
        ("{ files = 'a', jsonl = 'b' }", "sources.0"),
        ("{ parquet = 'a', jsonl = 'b' }", "sources.0"),
        ("{ files = 'a', text = 'b' }", "sources.0.text"),
        ("{ files = 'a', licence-field = 'b' }", "sources.0.licence-field"),
        ("{ synthetic = {}, source-field = 'b' }", "sources.0.source-field"),
        ("{ files = 'a', min-chars = 9, max-chars = 8 }", "sources.0.max-chars"),
        ("{ files = 'a', name = 'a/b' }", "sources.0.name"),
        ("{ files = 'a', name = 'sources.1' }", "sources.0.name"),
        ("{ files = 'a', name = 'decontaminate' }", "sources.0.name"),
        ("{ files = 'a', languages = ['xx'] }", "sources.0.languages"),
        ("{ files = 'a', quality = { max-symbols = 2000 } }", "sources.0.quality.max-symbols"),
        ("{ files = 'a', name = 'x' }, { files = 'b', name = 'x' }", "sources.1.name"),
    ] {
        let invalid = corpus(&format!("sources = [{sources}]")).check().unwrap_err();
        assert_eq!(invalid.param, param, "{sources}");
    }
}

#[test]
fn the_key_knows_the_format_but_not_the_path() {
    let params = |toml: &str| serde_json::to_value(corpus(toml)).unwrap();
    assert_eq!(params("sources = [{ files = 'a/*' }]"), params("sources = [{ files = 'b/*' }]"));
    assert_ne!(params("sources = [{ files = 'a/*' }]"), params("sources = [{ jsonl = 'a/*' }]"));
}

#[test]
fn a_synthetic_source_is_canonical_and_follows_the_seed() {
    let stage =
        corpus("sources = [{ synthetic = { prose = 3, programs = 2, maths = 1 }, max-chars = 100000 }]");
    stage.check().unwrap();
    let bench = Bench::new().seed(9);
    bench.run(&stage).unwrap();
    let texts: Texts = bench.load("texts");
    let params = synthetic::Synthetic { prose: 3, programs: 2, maths: 1, ..synthetic::Synthetic::default() };
    assert_eq!(texts.0, synthetic::generate(&params, 9));
    for text in &texts.0 {
        assert_eq!(normalise::canonical_text(text.text.clone()), text.text);
        assert_eq!(blake3::hash(text.text.as_bytes()).to_hex().as_str(), text.id);
    }
    let drops: Drops = bench.load("drops");
    assert_eq!(drops.sources["synthetic/programs"].kept, 2);
}

#[test]
fn faults_of_synthetic_sources_name_the_place() {
    let check = |toml: &str, expected: &str| {
        let error = corpus(toml).check().unwrap_err();
        assert!(format!("{}: {}", error.param, error.message).starts_with(expected), "{error:?}");
    };
    check("sources = [{ synthetic = { min-tokens = 1 } }]", "sources.0.synthetic.min-tokens: is 1");
    check("sources = [{ synthetic = {} }, { synthetic = {} }]", "sources.1.synthetic: two sources");
    check("sources = [{ synthetic = {}, files = 'a' }]", "sources.0: a source needs exactly one of");
    check("sources = [{ synthetic = {}, name = 'a' }]", "sources.0.name: a synthetic source");
}

#[test]
fn one_text_in_many_encodings_is_one_document() {
    let dir = space(&[
        ("docs/a.md", "caf\u{e9}\nau lait".as_bytes()),
        ("docs/b.md", "cafe\u{301}\r\nau lait".as_bytes()),
        ("docs/c.md", "\u{feff}caf\u{e9}\rau lait".as_bytes()),
        ("docs/d.md", "CAF\u{c9}\nau lait".as_bytes()),
        ("rows/r.jsonl", br#"{"body": "cafe\u0301\r\nau lait"}"#),
    ]);
    let (texts, drops) = run(&corpus(SOURCES), dir.path()).unwrap();
    assert_eq!(texts.0.len(), 2, "letters are not folded");
    let dropped: Vec<_> = drops.rows.iter().map(|d| (&*d.source, &*d.reason)).collect();
    let duplicate = |source| (source, "duplicate");
    assert_eq!(dropped, ["docs/b.md", "docs/c.md", "sources.1/r.jsonl"].map(duplicate));
    let kept = texts.0.iter().find(|text| text.source == "docs/a.md").unwrap();
    assert!(drops.rows.iter().all(|row| row.kept == kept.id));
}

#[test]
fn length_limits_count_characters_and_include_their_ends() {
    let check = |text: &str, expected: Option<&str>| {
        let source = &corpus("sources = [{ files = 'a', min-chars = 3, max-chars = 5 }]").sources[0];
        assert_eq!(source.fault(text), expected, "{text:?}");
    };
    check("", Some("empty"));
    check(" \n\t\u{a0}\u{3000}", Some("empty"));
    check("ab", Some("too-short"));
    check("abc", None);
    check("\u{e9}\u{e9}\u{e9}", None);
    check("\u{1f600}\u{1f600}\u{1f600}\u{1f600}\u{1f600}", None);
    check("abcde", None);
    check("abcdef", Some("too-long"));
    check("  a  ", None);
}

#[test]
fn every_document_read_is_kept_or_dropped_once() {
    let names: Vec<String> = (0..40).map(|i| format!("docs/{i:02}.md")).collect();
    let text = |i: usize| match i % 5 {
        0 => b"\xff\xfe".to_vec(),
        1 => b"hi".to_vec(),
        2 => format!("number {}", i / 10).into_bytes(),
        3 => vec![b'x'; 30],
        _ => format!("alone {i}").into_bytes(),
    };
    let bytes: Vec<Vec<u8>> = (0..40).map(text).collect();
    let files: Vec<(&str, &[u8])> =
        names.iter().map(String::as_str).zip(bytes.iter().map(Vec::as_slice)).collect();
    let mut all = files.clone();
    all.push(("rows/r.jsonl", b"{\"body\": \"a row\"}"));
    let dir = space(&all);
    let (texts, drops) = run(&corpus(SOURCES), dir.path()).unwrap();
    let total = drops.total();
    assert_eq!((total.read, total.kept), (41, texts.0.len() as u64));
    assert_eq!(total.dropped.values().sum::<u64>(), drops.rows.len() as u64);
    assert_eq!(total.read, total.kept + drops.rows.len() as u64);
    let want = [("duplicate", 4), ("invalid-utf8", 8), ("too-long", 8), ("too-short", 8)];
    assert!(total.dropped.iter().map(|(reason, n)| (reason.as_str(), *n)).eq(want), "{:?}", total.dropped);
}

#[test]
fn rows_of_parquet_and_jsonl_are_the_same_documents() {
    let dir = space(&[(
        "rows.jsonl",
        br#"{"body": "row one", "by": "MIT", "at": "web"}
            {"body": "row two", "by": null, "at": ""}
            {"body": "row one", "by": "MIT", "at": "book"}"#,
    )]);
    columns::tests::write(
        &dir.path().join("rows.parquet"),
        &[
            ("body", &[Some("row one"), Some("row two"), Some("row one")]),
            ("by", &[Some("MIT"), None, Some("MIT")]),
            ("at", &[Some("web"), Some(""), Some("book")]),
        ],
        2,
    );
    let read = |format: &str| {
        let source = format!(
            "{{ {format} = 'rows.{format}', name = 'r', licence = 'CC0', text = 'body', licence-field = 'by', source-field = 'at' }}"
        );
        run(&corpus(&format!("sources = [{source}]")), dir.path()).unwrap()
    };
    let (texts, drops) = read("parquet");
    let mut rows: Vec<_> = texts.0.iter().map(|t| (&*t.source, &*t.licence, &*t.text)).collect();
    rows.sort_unstable();
    assert_eq!(rows, [("r/book", "MIT", "row one"), ("r/rows.parquet", "CC0", "row two")]);
    assert_eq!((&*drops.rows[0].source, &*drops.rows[0].reason), ("r/web", "duplicate"));

    let (mut other, other_drops) = read("jsonl");
    other.0.iter_mut().for_each(|text| text.source = text.source.replace(".jsonl", ".parquet"));
    assert_eq!((other, other_drops), (texts, drops));
}

#[test]
fn batches_of_any_size_give_the_same_bytes() {
    let rows: Vec<String> = (0..50).map(|i| format!("{{\"body\": \"text {}\"}}", i % 30)).collect();
    let dir = space(&[
        ("docs/a.md", b"a text"),
        ("docs/b.md", b"text 7"),
        ("docs/bad.md", b"\xff\xff\xff"),
        ("rows/r.jsonl", rows.join("\n").as_bytes()),
    ]);
    let stage = corpus(SOURCES);
    let bytes = |limit| {
        let bench = Bench::new().reads(stage.reads(&|_| dir.path().to_owned()).unwrap());
        bench.run_in(Corpus::OUTPUTS, |cx| stage.run_in_batches(cx, limit)).unwrap();
        bench.bytes()
    };
    let whole = bytes(BATCH);
    for limit in [1, 20, 100, 333] {
        assert_eq!(bytes(limit), whole, "batches of {limit} bytes");
    }
}

#[test]
fn parameters_that_are_not_given_are_not_in_the_key() {
    let params = serde_json::to_string(&corpus("sources = [{ jsonl = 'a' }, { files = 'b' }]")).unwrap();
    let source = |glob: &str| format!(r#"{{"{glob}":null,"licence":"","min-chars":1}}"#);
    assert_eq!(params, format!(r#"{{"sources":[{},{}]}}"#, source("jsonl"), source("files")));
}
