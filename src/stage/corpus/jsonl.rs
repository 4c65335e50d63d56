//! Documents in a JSONL file: one object a line, the text in a named field. Knows no other format.

use std::path::{Path, PathBuf};

use serde_json::Value;

/// Why a JSONL file could not be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{}:{line}: {why}", path.display())]
pub(super) struct BadLine {
    path: PathBuf,
    line: usize,
    why: String,
}

/// The texts of the file's lines. Empty lines are skipped; any other fault of a line is an error that names it.
pub(super) fn texts(path: &Path, bytes: &[u8], field: &str) -> Result<Vec<String>, BadLine> {
    let mut texts = Vec::new();
    for (i, line) in bytes.split(|&b| b == b'\n').enumerate() {
        if !line.iter().all(u8::is_ascii_whitespace) {
            let text =
                text(line, field).map_err(|why| BadLine { path: path.to_owned(), line: i + 1, why })?;
            texts.push(text);
        }
    }
    Ok(texts)
}

fn text(line: &[u8], field: &str) -> Result<String, String> {
    let row: Value = serde_json::from_slice(line)
        .map_err(|e| format!("not valid JSON, column {}: {}", e.column(), first_words(&e)))?;
    let Value::Object(mut row) = row else {
        return Err("expected a JSON object".to_owned());
    };
    match row.remove(field) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("the field `{field}` is not a string")),
        None => {
            let fields: Vec<_> = row.keys().map(|k| format!("`{k}`")).collect();
            Err(format!("there is no field `{field}`; the row has {}", fields.join(", ")))
        }
    }
}

/// The error without its own ` at line 1 column n`, which would contradict the file's line.
fn first_words(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<String>, String> {
        texts(Path::new("rows.jsonl"), text.as_bytes(), "text").map_err(|e| e.to_string())
    }

    #[test]
    fn one_document_a_line_and_empty_lines_are_skipped() {
        let rows = "{\"text\": \"a\\nb\", \"n\": 1}\n\n  \r\n{\"text\": \"c\"}";
        assert_eq!(read(rows).unwrap(), ["a\nb", "c"]);
        assert_eq!(read("").unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_bad_line_is_named_with_its_file() {
        for (bad, message) in [
            ("{\"text\": ", "rows.jsonl:2: not valid JSON, column 9: EOF while parsing a value"),
            ("[1]", "rows.jsonl:2: expected a JSON object"),
            ("{\"text\": 3}", "rows.jsonl:2: the field `text` is not a string"),
            ("{\"body\": \"\"}", "rows.jsonl:2: there is no field `text`; the row has `body`"),
        ] {
            assert_eq!(read(&format!("{{\"text\": \"ok\"}}\n{bad}\n")).unwrap_err(), message);
        }
    }

    #[test]
    fn escapes_line_ends_and_fields_of_any_name() {
        let check = |bytes: &[u8], field: &str, expected: Result<&[&str], &str>| {
            let found = texts(Path::new("r"), bytes, field).map_err(|e| e.to_string());
            match expected {
                Ok(rows) => assert_eq!(found.unwrap(), rows),
                Err(start) => assert!(found.as_ref().is_err_and(|e| e.starts_with(start)), "{found:?}"),
            }
        };
        check(br#"{"text": "a\u00e9\ud83d\ude00\r\n"}"#, "text", Ok(&["a\u{e9}\u{1f600}\r\n"]));
        check(b"{\"text\": \"a\"}\r\n{\"text\": \"b\"}\r\n", "text", Ok(&["a", "b"]));
        check(b"{\"text\": \"\"}", "text", Ok(&[""]));
        // A field's name is taken as it stands, with any signs in it.
        check(br#"{"a.b": "dotted", "a": {"b": "nested"}}"#, "a.b", Ok(&["dotted"]));
        check(br#"{"a": {"b": "nested"}}"#, "a.b", Err("r:1: there is no field `a.b`; the row has `a`"));
        check(br#"{"text": null}"#, "text", Err("r:1: the field `text` is not a string"));
        check(br"{}", "text", Err("r:1: there is no field `text`"));
        check(b"{\"text\": \"\xff\"}", "text", Err("r:1: not valid JSON"));
        check(br#"{"text": "\ud83d"}"#, "text", Err("r:1: not valid JSON"));
        check(
            br#"{"text": "a"} {"text": "b"}"#,
            "text",
            Err("r:1: not valid JSON, column 15: trailing characters"),
        );
        check(b"\n\n{\"text\": \"a\"}\n\nnull\n", "text", Err("r:5: expected a JSON object"));
    }
}
