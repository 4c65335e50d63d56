//! Bad and odd input: each gives a documented result or a clear error, and none aborts the program.

use super::*;

#[test]
fn broken_utf8_is_dropped_and_counted_in_every_format() {
    let dir = space(&[
        ("docs/bad.md", b"\xc3\x28"),
        ("docs/cut.md", b"a text that ends inside a letter: \xe2\x82"),
        ("docs/good.md", b"a text"),
        ("rows/r.jsonl", b"{\"body\": \"\xff\"}\n{\"body\": \"a row\"}\n\xfe\xff\x00{\n"),
    ]);
    let (texts, drops) = run(&corpus(SOURCES), dir.path()).unwrap();
    assert_eq!(texts.0.len(), 2);
    let dropped: Vec<_> = drops.rows.iter().map(|d| (&*d.source, &*d.reason)).collect();
    let bad = |source| (source, "invalid-utf8");
    assert_eq!(dropped, ["docs/bad.md", "docs/cut.md", "sources.1/r.jsonl", "sources.1/r.jsonl"].map(bad));
}

#[test]
fn an_empty_corpus_says_what_became_of_everything() {
    let dir = space(&[("docs/empty.md", b""), ("rows/r.jsonl", b"\n\n")]);
    let error =
        |sources: &str| run(&corpus(&format!("sources = [{sources}]")), dir.path()).unwrap_err().to_string();
    assert_eq!(
        error("{ files = 'docs/*' }"),
        "no document is left of 1: 1 empty; check the globs and the limits"
    );
    assert_eq!(error("{ jsonl = 'rows/*' }"), "no document is left of 0; check the globs and the limits");
}

#[test]
fn one_document_and_documents_that_are_all_equal_are_a_corpus() {
    let one = space(&[("docs/a.md", b"the only text")]);
    let toml = "near-duplicates = {}\nsources = [{ files = 'docs/*' }]";
    let (texts, drops) = run(&corpus(toml), one.path()).unwrap();
    assert_eq!((texts.0.len(), drops.rows.len()), (1, 0));

    let names: Vec<String> = (0..300).map(|i| format!("docs/{i:03}.md")).collect();
    let equal: Vec<(&str, &[u8])> = names.iter().map(|name| (&**name, &b"the only text"[..])).collect();
    let equal = space(&equal);
    let (same, drops) = run(&corpus(toml), equal.path()).unwrap();
    assert_eq!((&*same.0[0].source, same.0.len()), ("sources.0/000.md", 1));
    assert_eq!(same.0[0].id, texts.0[0].id);
    assert_eq!(drops.total().dropped["duplicate"], 299);
    assert!(drops.rows.iter().all(|row| row.kept == same.0[0].id));
}

/// A JSONL file of one line whose text has `bytes` bytes, through all rules.
fn one_line(bytes: usize) {
    let dir = tempfile::tempdir().unwrap();
    let words = "the text of this line goes on and on ".repeat(bytes / 37 + 1);
    fs::create_dir(dir.path().join("rows")).unwrap();
    fs::write(dir.path().join("rows/r.jsonl"), format!("{{\"text\": \"{words}\"}}")).unwrap();
    let toml = "sources = [{ jsonl = 'rows/*', languages = ['en'], max-chars = 1000000000 }]";
    let (texts, drops) = run(&corpus(toml), dir.path()).unwrap();
    assert_eq!((texts.0[0].text.len(), drops.rows.len()), (words.len(), 0));
    let gated = toml.replace("languages", "quality = {}, languages");
    let error = run(&corpus(&gated), dir.path()).unwrap_err().to_string();
    assert!(error.contains("1 too-many-words"), "{error}");
}

#[test]
fn a_long_line_is_a_document() {
    // 8 MB here; the next test has the 200 MB.
    one_line(8 << 20);
}

/// Peak memory of this process in bytes, as the system counts it.
#[cfg(target_os = "linux")]
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "200 MB, and needs a process of its own to measure: run it alone"]
fn a_line_of_200_mb_takes_a_few_times_its_length() {
    const LINE: usize = 200 << 20;
    let dir = tempfile::tempdir().unwrap();
    let line = "the text of this line goes on and on ".repeat(LINE / 37);
    let mut file = fs::File::create(dir.path().join("r.jsonl")).unwrap();
    for part in ["{\"text\": \"", &line, "\"}\n"] {
        std::io::Write::write_all(&mut file, part.as_bytes()).unwrap();
    }
    drop((file, line));
    let before = peak();
    let stage = corpus("sources = [{ jsonl = 'r.jsonl' }]");
    let bench = Bench::new().reads(stage.reads(&|_| dir.path().to_owned()).unwrap());
    bench.run(&stage).unwrap();
    let grown = peak().saturating_sub(before) + LINE as u64; // the line was in memory before
    assert!(grown < 5 * LINE as u64, "{} MB", grown >> 20);
    println!("{} MB for a line of {} MB", grown >> 20, LINE >> 20);
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "400 MB of files, and needs a process of its own to measure: run it alone"]
fn memory_does_not_grow_with_the_corpus() {
    let dir = tempfile::tempdir().unwrap();
    let grown = |files: usize| {
        for i in 0..files {
            let rows: Vec<String> = (0..1000)
                .map(|row| format!("{{\"text\": \"{i} {row} {}\"}}", "words ".repeat(1600)))
                .collect();
            fs::write(dir.path().join(format!("{i}.jsonl")), rows.join("\n")).unwrap();
        }
        let stage = corpus("sources = [{ jsonl = '*.jsonl' }]");
        let bench = Bench::new().reads(stage.reads(&|_| dir.path().to_owned()).unwrap());
        bench.run(&stage).unwrap();
        peak()
    };
    let few = grown(10);
    let many = grown(40);
    println!("{} MB for 100 MB, {} MB for 400 MB", few >> 20, many >> 20);
    assert!(many < few + (60 << 20));
}
