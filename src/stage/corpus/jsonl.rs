//! Documents in a JSONL file: one object a line, the text or the messages in a named field. Knows no other format.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{
    normalise,
    rows::{Fields, Row, conversation},
};

/// The document of a line; a line that is not UTF-8 has no text. Any other fault is an error, as a fragment.
pub(super) fn row(line: Vec<u8>, fields: Fields<'_>) -> Result<Row, String> {
    let Ok(line) = String::from_utf8(line) else {
        return Ok(Row::default());
    };
    if let Some(chat) = fields.chat {
        return conversation(&parse(&line)?, chat, fields);
    }
    let row: Value = parse(&line)?;
    drop(line); // may be as long as the text
    let Value::Object(mut row) = row else {
        return Err("expected a JSON object".to_owned());
    };
    let name = |field: Option<&str>| field.map(|field| name(&row, field)).transpose().map(Option::flatten);
    let (licence, source) = (name(fields.licence)?, name(fields.source)?);
    // Taken out, because it may be long.
    match row.remove(fields.text) {
        Some(Value::String(text)) => {
            Ok(Row { text: Some(normalise::canonical_text(text)), licence, source, ..Row::default() })
        }
        Some(_) => Err(format!("the field `{}` is not a string", fields.text)),
        None => Err(missing(&row, fields.text)),
    }
}

fn parse<T: DeserializeOwned>(line: &str) -> Result<T, String> {
    serde_json::from_str(line)
        .map_err(|e| format!("not valid JSON, column {}: {}", e.column(), first_words(&e)))
}

/// A field that says something about the text; `null` says nothing.
fn name(row: &Map<String, Value>, field: &str) -> Result<Option<String>, String> {
    match row.get(field) {
        Some(Value::String(name)) => Ok(Some(name.clone())),
        Some(Value::Null) => Ok(None),
        Some(_) => Err(format!("the field `{field}` is neither a string nor `null`")),
        None => Err(missing(row, field)),
    }
}

fn missing(row: &Map<String, Value>, field: &str) -> String {
    let fields: Vec<_> = row.keys().map(|k| format!("`{k}`")).collect();
    format!("there is no field `{field}`; the row has {}", fields.join(", "))
}

/// The error without its own ` at line 1 column n`, which would contradict the file's line.
fn first_words(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(line: &[u8], field: &str) -> Result<Option<String>, String> {
        let fields = Fields { text: field, licence: None, source: None, chat: None };
        row(line.to_vec(), fields).map(|row| row.text)
    }

    #[test]
    fn a_bad_line_says_what_is_wrong() {
        for (bad, message) in [
            ("{\"text\": ", "not valid JSON, column 9: EOF while parsing a value"),
            ("[1]", "expected a JSON object"),
            ("{\"text\": 3}", "the field `text` is not a string"),
            ("{\"body\": \"\"}", "there is no field `text`; the row has `body`"),
        ] {
            assert_eq!(text(bad.as_bytes(), "text").unwrap_err(), message);
        }
    }

    #[test]
    fn escapes_line_ends_and_fields_of_any_name() {
        let check = |line: &[u8], field: &str, expected: Result<&str, &str>| {
            let found = text(line, field);
            match expected {
                Ok(text) => assert_eq!(found.unwrap().as_deref(), Some(text)),
                Err(start) => assert!(found.as_ref().is_err_and(|e| e.starts_with(start)), "{found:?}"),
            }
        };
        check(br#"{"text": "a\u00e9\ud83d\ude00\r\n"}"#, "text", Ok("a\u{e9}\u{1f600}\n"));
        check(b"{\"text\": \"a\"}\r\n", "text", Ok("a"));
        check(b"{\"text\": \"\"}", "text", Ok(""));
        // A field's name is taken as it stands, with any signs in it.
        check(br#"{"a.b": "dotted", "a": {"b": "nested"}}"#, "a.b", Ok("dotted"));
        check(br#"{"a": {"b": "nested"}}"#, "a.b", Err("there is no field `a.b`; the row has `a`"));
        check(br#"{"text": null}"#, "text", Err("the field `text` is not a string"));
        check(br"{}", "text", Err("there is no field `text`"));
        check(br#"{"text": "\ud83d"}"#, "text", Err("not valid JSON"));
        let two = br#"{"text": "a"} {"text": "b"}"#;
        check(two, "text", Err("not valid JSON, column 15: trailing characters"));
        check(b"null\n", "text", Err("expected a JSON object"));
    }

    #[test]
    fn a_line_that_is_not_utf8_has_no_text() {
        assert_eq!(text(b"{\"text\": \"caf\xe9\"}", "text"), Ok(None));
        assert_eq!(text(b"{\"other\": \"\xff\"", "text"), Ok(None));
    }

    #[test]
    fn licence_and_source_come_from_the_row() {
        let fields = Fields { text: "text", licence: Some("l"), source: Some("s"), chat: None };
        let read = |line: &str| row(line.as_bytes().to_vec(), fields);
        let both = read(r#"{"text": "a", "l": "MIT", "s": "web"}"#).unwrap();
        assert_eq!((both.licence.as_deref(), both.source.as_deref()), (Some("MIT"), Some("web")));
        assert_eq!(read(r#"{"text": "a", "l": null, "s": null}"#).unwrap().licence, None);
        let error = read(r#"{"text": "a", "s": "web"}"#).unwrap_err();
        assert_eq!(error, "there is no field `l`; the row has `s`, `text`");
        let error = read(r#"{"text": "a", "l": "MIT", "s": 3}"#).unwrap_err();
        assert_eq!(error, "the field `s` is neither a string nor `null`");
        // One field may say several things.
        let fields = Fields { text: "a", licence: Some("a"), source: Some("a"), chat: None };
        let row = row(br#"{"a": "x"}"#.to_vec(), fields).unwrap();
        assert_eq!([row.text, row.licence, row.source], ["x", "x", "x"].map(|x| Some(x.to_owned())));
    }
}
