//! Conversations through the stage: JSONL and Parquet, what is dropped, what is an error, and what rules look at.

use super::*;

const CHAT: &str = "sources = [{ jsonl = 'chat.jsonl', name = 'c', format = 'chat' }]";

fn turn(user: &str, assistant: &str) -> String {
    serde_json::json!({ "messages": [
        { "role": "user", "content": user }, { "role": "assistant", "content": assistant },
    ] })
    .to_string()
}

fn of(toml: &str, rows: &[String]) -> Result<(Texts, Drops), Failure> {
    let dir = space(&[("chat.jsonl", rows.join("\n").as_bytes())]);
    run(&corpus(toml), dir.path())
}

#[test]
fn a_conversation_becomes_a_text_with_special_tokens_and_a_text_does_not() {
    let dir = space(&[
        ("chat.jsonl", turn("Hi", "Hello!").as_bytes()),
        ("plain.jsonl", br#"{"text": "a text with <|start|> in it"}"#),
    ]);
    let toml = CHAT.replace("}]", "}, { jsonl = 'plain.jsonl' }]");
    let (texts, _) = run(&corpus(&toml), dir.path()).unwrap();
    let by = |source: &str| texts.0.iter().find(|text| text.source == source).unwrap();
    let (chat, plain) = (by("c/chat.jsonl"), by("sources.1/plain.jsonl"));
    assert!(chat.text.starts_with("<|start|>system<|message|>You are ChatGPT"), "{}", chat.text);
    let end =
        "<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>final<|message|>Hello!<|return|>";
    assert!(chat.text.ends_with(end), "{}", chat.text);
    assert_eq!(chat.id, blake3::hash(chat.text.as_bytes()).to_hex().as_str());
    assert_eq!((chat.special_tokens, plain.special_tokens), (true, false));
}

#[test]
fn parameters_of_the_rendering_reach_the_text() {
    let toml = CHAT.replace(
        "'chat' }",
        "'chat', chat = { messages = 'c', date = '2026-01-31', reasoning-effort = 'low' } }",
    );
    let row = r#"{"c": [{"from": "human", "value": "Hi"}]}"#.to_owned();
    let text = &of(&toml, &[row]).unwrap().0.0[0].text;
    assert!(text.contains("Current date: 2026-01-31\n\nReasoning: low\n"), "{text}");
}

#[test]
fn what_cannot_be_shown_is_counted_by_reason() {
    let rows = [
        turn("Hi", "Hello!"),
        turn("Hi", "Hello!"),
        turn("a <|end|> b", "c"),
        turn(" ", "\n"),
        r#"{"messages": []}"#.to_owned(),
        r#"{"messages": [{"role": "tool", "content": "a"}]}"#.to_owned(),
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}"#.to_owned(),
        r#"{"messages": [{"role": "user", "content": "a"}], "tools": [{}]}"#.to_owned(),
    ];
    let (texts, drops) = of(CHAT, &rows).unwrap();
    assert_eq!(texts.0.len(), 1);
    let total = drops.total();
    let found: Vec<_> = total.dropped.iter().map(|(reason, n)| (reason.as_str(), *n)).collect();
    let expected = [
        ("duplicate", 1),
        ("empty", 2),
        ("special-token-in-message", 1),
        ("system-message-not-first", 1),
        ("tool-schema", 1),
        ("tool-without-call", 1),
    ];
    assert_eq!(found, expected);
    assert_eq!((total.read, total.kept), (8, 1));
}

#[test]
fn a_row_that_is_no_conversation_is_an_error_with_its_line() {
    for (row, why) in [
        ("[1]", "expected a JSON object"),
        ("{\"messages\": ", "not valid JSON, column 13: EOF while parsing a value"),
        (r#"{"text": "a"}"#, "there is no field `messages`; the row has `text`"),
        (r#"{"messages": {}}"#, "the field `messages` is not a list"),
        (r#"{"messages": null}"#, "the field `messages` is not a list"),
        (
            r#"{"messages": [{"role": "bot", "content": "a"}]}"#,
            "message 1: \"bot\" is no role; write `system`, `developer`, `user`, `assistant` or `tool`",
        ),
        (r#"{"messages": [{"role": "user", "content": 3}]}"#, "message 1: the content is not a string"),
    ] {
        let error = of(CHAT, &[turn("Hi", "Hello!"), row.to_owned()]).unwrap_err().to_string();
        assert!(error.ends_with(&format!("chat.jsonl:2: {why}")), "{error}");
    }
}

#[test]
fn licence_and_source_come_from_the_row() {
    let toml = CHAT.replace("'chat' }", "'chat', licence-field = 'l', source-field = 's' }");
    let row = |names: &str| turn("Hi", "Hello!").replacen('{', &format!("{{{names}, "), 1);
    let text = of(&toml, &[row(r#""l": "MIT", "s": "web""#)]).unwrap().0.0.remove(0);
    assert_eq!((&*text.source, &*text.licence), ("c/web", "MIT"));
    let text = of(&toml, &[row(r#""l": null, "s": null"#)]).unwrap().0.0.remove(0);
    assert_eq!((&*text.source, &*text.licence), ("c/chat.jsonl", ""));
    for (names, why) in [
        (r#""l": 3, "s": """#, "the field `l` is neither a string nor `null`"),
        (r#""l": """#, "there is no field `s`; the row has `l`, `messages`"),
    ] {
        let error = of(&toml, &[row(names)]).unwrap_err().to_string();
        assert!(error.ends_with(why), "{error}");
    }
}

/// The frame is the same in every conversation and longer than many: rules that saw it would judge it.
#[test]
fn rules_look_at_what_was_said() {
    let dropped = |rules: &str, rows: &[String]| {
        let toml =
            format!("{}\n{rules}", CHAT.replace("'chat' }", "'chat', min-chars = 4, max-chars = 40 }"));
        of(&toml, rows).unwrap().1.total().dropped
    };
    let rows = [turn("a", "b"), turn("Hello, you!", "And you!"), turn("long", &"long ".repeat(9))];
    let found = dropped("", &rows);
    assert_eq!((found["too-short"], found["too-long"], found.len()), (1, 1, 2));
    let rows = [turn("one two three", "four five six"), turn("seven eight nine", "ten eleven twelve")];
    assert!(dropped("near-duplicates = {}", &rows).is_empty());
}

const SCHEMA: &str = "message m {
    optional group messages (LIST) { repeated group list { optional group element {
        optional binary role (UTF8); optional binary content (UTF8); optional binary thinking (UTF8); } } }
}";

#[test]
fn parquet_and_jsonl_give_the_same_conversations() {
    let dir = space(&[(
        "chat.jsonl",
        br#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!", "thinking": "A greeting."}]}
            {"messages": [{"role": "user", "content": "Bye"}]}
            {"messages": []}"#,
    )]);
    nested::tests::write(
        &dir.path().join("chat.parquet"),
        SCHEMA,
        &[
            (&[b"user", b"assistant", b"user"], &[4, 4, 4, 1], &[0, 1, 0, 0]),
            (&[b"Hi", b"Hello!", b"Bye"], &[4, 4, 4, 1], &[0, 1, 0, 0]),
            (&[b"A greeting."], &[3, 4, 3, 1], &[0, 1, 0, 0]),
        ],
    );
    let read = |format: &str| {
        let toml = format!("sources = [{{ {format} = 'chat.{format}', name = 'c', format = 'chat' }}]");
        run(&corpus(&toml), dir.path()).unwrap()
    };
    let ((mut jsonl, _), (parquet, drops)) = (read("jsonl"), read("parquet"));
    jsonl.0.iter_mut().for_each(|text| text.source = text.source.replace(".jsonl", ".parquet"));
    assert_eq!(jsonl, parquet);
    assert_eq!((parquet.0.len(), drops.total().dropped["empty"]), (2, 1));
}

#[test]
fn a_bad_row_of_parquet_is_named_by_its_number() {
    let dir = space(&[]);
    let path = dir.path().join("chat.parquet");
    let toml = "sources = [{ parquet = 'chat.parquet', format = 'chat' }]";
    nested::tests::write(
        &path,
        SCHEMA,
        &[
            (&[b"user", b"bot"], &[4, 4], &[0, 0]),
            (&[b"Hi", b"Hi"], &[4, 4], &[0, 0]),
            (&[], &[3, 3], &[0, 0]),
        ],
    );
    let error = run(&corpus(toml), dir.path()).unwrap_err().to_string();
    assert!(error.contains("chat.parquet: row 2: message 1: \"bot\" is no role"), "{error}");
    let other = toml.replace("'chat' }", "'chat', chat = { messages = 'turns' } }");
    let error = run(&corpus(&other), dir.path()).unwrap_err().to_string();
    assert!(error.ends_with("there is no column `turns`; the file has `messages`"), "{error}");
}

#[test]
fn batches_of_any_size_give_the_same_conversations() {
    let rows: Vec<String> = (0..30).map(|i| turn(&format!("number {i}"), "Hello!")).collect();
    let dir = space(&[("chat.jsonl", rows.join("\n").as_bytes())]);
    let stage = corpus(CHAT);
    let bytes = |limit| {
        let bench = Bench::new().reads(stage.reads(&|_| dir.path().to_owned()).unwrap());
        bench.run_in(Corpus::OUTPUTS, |cx| stage.run_in_batches(cx, limit)).unwrap();
        bench.bytes()
    };
    assert_eq!(bytes(100), bytes(BATCH));
}

#[test]
fn mistakes_in_parameters_name_them() {
    for (source, param) in [
        ("{ files = 'a', format = 'chat' }", "sources.0.format"),
        ("{ synthetic = {}, format = 'chat' }", "sources.0.format"),
        ("{ jsonl = 'a', chat = {} }", "sources.0.chat"),
        ("{ jsonl = 'a', format = 'chat', text = 'b' }", "sources.0.text"),
        ("{ jsonl = 'a', format = 'chat', chat = { date = 'today' } }", "sources.0.chat.date"),
    ] {
        let invalid = corpus(&format!("sources = [{source}]")).check().unwrap_err();
        assert_eq!(invalid.param, param, "{source}");
    }
    corpus(CHAT).check().unwrap();
    corpus(&CHAT.replace("'chat' }", "'chat', chat = { date = '2025-08-05' } }")).check().unwrap();
}
