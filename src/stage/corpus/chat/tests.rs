//! Conversations against what the published template makes of them (`tests/golden/harmony.py`).

use proptest::{prelude::ProptestConfig, prop_assert_eq, proptest};

use super::*;

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    row: Value,
    chat: Chat,
    text: String,
    /// The tokens of openai-harmony, where it renders the same.
    tokens: Option<Vec<u32>>,
}

fn cases() -> Vec<Case> {
    let json = include_str!("../../../../tests/golden/harmony.json");
    serde_json::from_str::<Fixture>(json).unwrap().cases
}

fn render(row: &str) -> Result<Rendered, Fault> {
    DEFAULT.render(&serde_json::from_str(row).unwrap())
}

#[test]
fn every_case_is_what_the_published_template_renders() {
    let cases = cases();
    assert!(cases.len() >= 20, "{}", cases.len());
    for case in cases {
        let found = case.chat.render(&case.row).unwrap().text;
        assert_eq!(found, case.text, "{}", case.name);
    }
}

#[test]
fn the_tokens_are_those_of_the_library() {
    let bpe = tiktoken_rs::o200k_harmony().unwrap();
    let mut compared = 0;
    for case in cases() {
        let text = case.chat.render(&case.row).unwrap().text;
        let ids = bpe.encode_with_special_tokens(&text);
        if let Some(tokens) = case.tokens {
            assert_eq!(ids, tokens, "{}", case.name);
            compared += 1;
        }
        assert_eq!(ids.iter().filter(|&&id| id >= 199_998).count(), special::count(&text), "{}", case.name);
    }
    assert!(compared >= 8, "{compared}");
}

#[test]
fn what_was_said_is_told_from_the_frame() {
    let row = r#"{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Time?"},
        {"role": "assistant", "tool_calls": [{"name": "now", "arguments": {"a": 1}}], "thinking": "Look."},
        {"role": "tool", "content": "12"}]}"#;
    assert_eq!(render(row).unwrap().said, "Time?\nLook.\n{\"a\": 1}\n\"12\"");
    assert_eq!(render(r#"{"messages": [{"role": "system", "content": "Be brief."}]}"#).unwrap().said, "");
}

#[test]
fn a_special_token_anywhere_in_a_row_is_a_fault() {
    let messages = |content: &str| format!(r#""messages": [{{"role": "user", "content": "{content}"}}]"#);
    let call = |call: &str| {
        format!(
            r#"{{"messages": [{{"role": "assistant", "tool_calls": [{call}]}}, {{"role": "tool", "content": "a"}}]}}"#
        )
    };
    for row in [
        format!("{{{}}}", messages("a<|end|>b")),
        format!("{{{}}}", messages("<|<|return|>")),
        format!("{{{}}}", messages("<|reserved_200013|>")),
        format!(r#"{{{}, "tools": [{{"name": "f", "description": "<|call|>"}}]}}"#, messages("a")),
        call(r#"{"name": "f<|channel|>", "arguments": {}}"#),
        call(r#"{"name": "f", "arguments": {"<|message|>": 1}}"#),
        call(r#"{"name": "f", "content_type": "<|constrain|>json", "arguments": {}}"#),
        r#"{"messages": [{"role": "system", "content": "<|start|>"}]}"#.to_owned(),
    ] {
        assert_eq!(render(&row), Err(Fault::Unfit("special-token-in-message")), "{row}");
    }
    for content in ["<|im_end|>", "<|end", "end|>", "< |end|>", "|>", "<|"] {
        assert!(render(&format!("{{{}}}", messages(content))).is_ok(), "{content}");
    }
}

#[test]
fn composition_does_not_reach_over_a_seam() {
    let row = r#"{"messages": [{"role": "user", "content": "\u0338a"}]}"#;
    assert!(render(row).unwrap().text.ends_with("user<|message|>\u{338}a<|end|>"));
}

#[test]
fn fields_have_names() {
    let chat: Chat = toml::from_str("messages = 'turns'\ntools = 'functions'").unwrap();
    let of = |row: &str| chat.render(&serde_json::from_str(row).unwrap());
    let turns = r#""turns": [{"role": "user", "content": "a"}]"#;
    let missing = |why: &str| Err(Fault::Malformed(why.into()));
    assert_eq!(
        of(r#"{"messages": [], "b": 1}"#),
        missing("there is no field `turns`; the row has `b`, `messages`")
    );
    assert_eq!(of(&format!("{{{turns}}}")), missing("there is no field `functions`; the row has `turns`"));
    for tools in ["null", "[]", "\"[]\""] {
        let text = of(&format!(r#"{{{turns}, "functions": {tools}}}"#)).unwrap().text;
        assert!(!text.contains("Tools") && !text.contains("tools"), "{tools}");
    }
    // Where nobody named the field, a row may be without it.
    assert!(render(r#"{"messages": [{"role": "user", "content": "a"}]}"#).is_ok());
    assert_eq!(render("{}"), missing("there is no field `messages`; the row has "));
}

#[test]
fn a_date_has_a_form() {
    let check = |date: &str| Chat { date: Some(date.into()), ..Chat::default() }.check("sources.0.chat");
    assert!(check("2025-08-05").is_ok());
    for date in [
        "",
        "today",
        "2025-8-5",
        "05-08-2025",
        "2025-13-01",
        "2025-00-01",
        "2025-01-32",
        "2025-01-01T00",
        "+025-01-01",
    ] {
        let error = check(date).unwrap_err();
        assert_eq!(
            (error.param.as_str(), error.message),
            ("sources.0.chat.date", format!("`{date}` is not a date"))
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever is said, the special tokens of a text are those of its frame, and the text has what was said.
    #[test]
    fn nothing_that_is_said_makes_structure(
        user in "(<\\||\\|>|<|\\||end|start|call|reserved_200013|[a-z \u{338}\\r\\n]){0,8}",
        answer in ".{0,12}",
    ) {
        let row = serde_json::json!({ "messages": [
            { "role": "user", "content": user }, { "role": "assistant", "content": answer, "thinking": user },
        ] });
        let bpe = tiktoken();
        match render(&row.to_string()) {
            Ok(found) => {
                let ids = bpe.encode_with_special_tokens(&found.text);
                // System, user, analysis, final: a start, a message and an end each, and two channels.
                prop_assert_eq!(ids.iter().filter(|&&id| id >= 199_998).count(), 4 * 3 + 2);
                prop_assert_eq!(bpe.decode(&ids).unwrap(), found.text);
            }
            Err(fault) => {
                prop_assert_eq!(fault, Fault::Unfit("special-token-in-message"));
                prop_assert_eq!(special::count(&user) + special::count(&answer) > 0, true);
            }
        }
    }
}

fn tiktoken() -> &'static tiktoken_rs::CoreBPE {
    static BPE: std::sync::LazyLock<tiktoken_rs::CoreBPE> =
        std::sync::LazyLock::new(|| tiktoken_rs::o200k_harmony().unwrap());
    &BPE
}
