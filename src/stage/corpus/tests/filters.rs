//! The filters inside the stage: what each drops, in which source, and that they enter the key.

use super::*;

const PROSE: &str = "The river rises in the hills above the town, where rain falls for most of the year. It turns \
    twice around the old mill before it meets the road, and a stone bridge carries carts over it on market \
    days. Children fish from the bank in summer. In winter the water is high, brown and fast, and nobody \
    goes near it after dark except the keeper, who walks down with a lamp to read the gauge.";

fn reasons_of(drops: &Drops) -> Vec<(&str, &str, &str)> {
    drops.rows.iter().map(|d| (&*d.source, &*d.reason, &*d.by)).collect()
}

#[test]
fn documents_that_repeat_evaluation_data_go_and_the_file_is_named() {
    let dir = space(&[
        ("docs/clean.md", PROSE.as_bytes()),
        ("docs/quotes.md", format!("{PROSE}\nAsked: how MANY legs has a spider, and why?").as_bytes()),
        ("docs/answers.md", b"so: eight legs, since it is no insect at all."),
        (
            "eval/a.jsonl",
            br#"{"q": "How many legs has a spider, and why?", "a": "eight legs since it is no insect at all"}
               {"q": "Short?", "a": "yes"}"#,
        ),
        ("eval/b.jsonl", br#"{"q": "What else has many legs and no name?", "a": "no"}"#),
    ]);
    let rule = "decontaminate = { jsonl = 'eval/*.jsonl', fields = ['q', 'a'], ngram = 6 }";
    let stage = corpus(&format!("{rule}\nsources = [{{ files = 'docs/*' }}]"));
    let reads = stage.reads(&|_| dir.path().to_owned()).unwrap();
    let names: Vec<_> = reads.iter().map(|read| read.name.as_str()).filter(|n| n.starts_with('d')).collect();
    assert_eq!(names, ["decontaminate/a.jsonl", "decontaminate/b.jsonl"], "they are declared");
    let (texts, drops) = run(&stage, dir.path()).unwrap();
    assert_eq!(texts.0.len(), 1);
    let by = |source| (source, "contaminated", "a.jsonl");
    assert_eq!(reasons_of(&drops), [by("sources.0/answers.md"), by("sources.0/quotes.md")]);

    let questions = corpus(&format!("{}\nsources = [{{ files = 'docs/*' }}]", rule.replace(", 'a'", "")));
    assert_eq!(run(&questions, dir.path()).unwrap().0.0.len(), 2, "the answers are not looked for");
    let params = |stage: &Corpus| serde_json::to_string(stage).unwrap();
    assert_ne!(params(&stage), params(&questions));
}

#[test]
fn evaluation_data_may_be_columns_of_a_table() {
    let dir =
        space(&[("a.md", PROSE.as_bytes()), ("b.md", b"so: eight legs, since it is no insect at all.")]);
    let (questions, answers) = (["How many?", "Why?"], ["none", "eight legs since it is no insect at all"]);
    let [q, a] = [questions, answers].map(|texts| texts.map(Some));
    columns::tests::write(&dir.path().join("eval.parquet"), &[("q", &q), ("a", &a)], 1);
    let kept = |fields: &str| {
        let rule = format!("decontaminate = {{ parquet = 'eval.parquet', fields = [{fields}], ngram = 3 }}");
        run(&corpus(&format!("{rule}\nsources = [{{ files = '*.md' }}]")), dir.path())
            .map(|(texts, _)| texts.0.len())
    };
    assert_eq!(kept("'a'").unwrap(), 1);
    assert_eq!(kept("'q', 'a'").unwrap(), 1);
    let error = kept("'q', 'b'").unwrap_err().to_string();
    assert!(error.contains("there is no column `b`; the file has `q`, `a`"), "{error}");
}

#[test]
fn evaluation_data_that_says_nothing_is_an_error() {
    let dir = space(&[("a.md", b"a text"), ("short.txt", b"three words only"), ("bad.txt", b"caf\xe9")]);
    let error = |file: &str| {
        let stage = format!("decontaminate = {{ files = '{file}' }}\nsources = [{{ files = 'a.md' }}]");
        run(&corpus(&stage), dir.path()).unwrap_err().to_string()
    };
    assert!(error("short.txt").starts_with("`decontaminate`: none of 1 texts has 13 words; "));
    assert!(error("bad.txt").contains("bad.txt: the evaluation data is not UTF-8; "));
    assert_eq!(error("none.txt"), "no file matches `none.txt`");
}

#[test]
fn quality_and_language_hold_for_their_source_only() {
    let code = "fn main() {\n    let x = [1, 2, 3];\n}\n";
    let list = "- one\n- two\n- three\n".repeat(30);
    let german = "Der Fluss entspringt in den Hügeln über der Stadt, wo es fast das ganze Jahr regnet. ";
    let dir = space(&[
        ("docs/code.md", code.as_bytes()),
        ("docs/german.md", german.as_bytes()),
        ("docs/list.md", list.as_bytes()),
        ("docs/prose.md", PROSE.as_bytes()),
        ("src/main.rs", code.as_bytes()),
    ]);
    let toml = "sources = [
        { files = 'docs/*', name = 'docs', languages = ['en'], quality = {} },
        { files = 'src/*', name = 'src' },
    ]";
    let (texts, drops) = run(&corpus(toml), dir.path()).unwrap();
    let mut kept: Vec<_> = texts.0.iter().map(|text| &*text.source).collect();
    kept.sort_unstable();
    assert_eq!(kept, ["docs/prose.md", "src/main.rs"]);
    let reasons = reasons_of(&drops);
    assert_eq!(reasons[1], ("docs/german.md", "language", ""));
    assert_eq!(reasons.len(), 3);
    assert_eq!((drops.sources["docs"].read, drops.sources["docs"].kept), (4, 1));

    let only = toml.replace("languages = ['en'], ", "");
    let (_, drops) = run(&corpus(&only), dir.path()).unwrap();
    let expected = [
        ("docs/code.md", "too-few-words", ""),
        ("docs/german.md", "too-few-words", ""),
        ("docs/list.md", "short-words", ""),
    ];
    assert_eq!(reasons_of(&drops)[1..], expected[1..]);
    assert_eq!(reasons_of(&drops)[0], expected[0]);
}
