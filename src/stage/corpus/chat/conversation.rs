//! A conversation out of a row: the shapes that data sets have, brought into one. Knows no format of the text.

use minijinja::{Value, value::ValueKind};

use super::{
    Fault,
    parts::{elements, field, fields},
    python,
};
use crate::stage::corpus::normalise::canonical_text;

/// What is said, in its order.
#[derive(Debug, PartialEq)]
pub(super) struct Conversation {
    /// The system or developer message; empty where there is none.
    pub(super) instructions: String,
    pub(super) messages: Vec<Message>,
    /// The functions as the row has them, each an object.
    pub(super) tools: Vec<Value>,
}

/// One message; all texts are canonical.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    User(String),
    Answer {
        thinking: Option<String>,
        content: String,
    },
    /// A call with what was thought or said before it.
    Call {
        analysis: Option<String>,
        call: Call,
    },
    /// What the function of the last call gave.
    Result(Value),
}

/// The call of a function.
#[derive(Debug, PartialEq)]
pub(super) struct Call {
    pub(super) name: String,
    /// How the arguments are written; usually not given, which is JSON.
    pub(super) content_type: Option<String>,
    pub(super) arguments: Value,
}

impl Conversation {
    /// The conversation of two fields, each with its name.
    pub(super) fn parse(messages: (&str, Value), tools: Option<(&str, Value)>) -> Result<Self, Fault> {
        let mut rows = list(messages)?.into_iter().enumerate().peekable();
        if rows.peek().is_none() {
            return Err(Fault::Unfit("empty"));
        }
        let tools = tools.map(list).transpose()?.unwrap_or_default();
        let tools = tools.iter().map(canonical).collect();
        let mut conversation = Self { instructions: String::new(), messages: Vec::new(), tools };
        let mut called = false;
        for (i, value) in rows {
            let row = Row { place: i + 1, value };
            match row.role()? {
                Role::Instructions if i == 0 => conversation.instructions = row.content()?,
                Role::Instructions => return Err(Fault::Unfit("system-message-not-first")),
                Role::User => conversation.messages.push(Message::User(row.content()?)),
                Role::Assistant => {
                    let message = row.assistant()?;
                    called = matches!(message, Message::Call { .. });
                    conversation.messages.push(message);
                }
                Role::Call => {
                    let call = row.call(&json(&row.content()?).map_err(|why| row.fault(&why))?)?;
                    conversation.messages.push(Message::Call { analysis: None, call });
                    called = true;
                }
                Role::Tool if called => conversation.messages.push(Message::Result(row.result()?)),
                Role::Tool => return Err(Fault::Unfit("tool-without-call")),
            }
        }
        Ok(conversation)
    }
}

enum Role {
    Instructions,
    User,
    Assistant,
    Call,
    Tool,
}

/// A message as it came, with its place from 1.
struct Row {
    place: usize,
    value: Value,
}

impl Row {
    fn fault(&self, why: &str) -> Fault {
        Fault::Malformed(format!("message {}: {why}", self.place))
    }

    /// A field that is there and not `null`.
    fn get(&self, name: &str) -> Option<Value> {
        get(&self.value, name)
    }

    fn role(&self) -> Result<Role, Fault> {
        if self.value.kind() != ValueKind::Map {
            return Err(self.fault("not an object"));
        }
        let role = self.get("role").or_else(|| self.get("from"));
        let Some(role) = role else { return Err(self.fault("there is no `role` and no `from`")) };
        match role.as_str() {
            Some("system" | "developer") => Ok(Role::Instructions),
            Some("user" | "human") => Ok(Role::User),
            Some("assistant" | "gpt") => Ok(Role::Assistant),
            Some("function_call") => Ok(Role::Call),
            Some("tool" | "observation") => Ok(Role::Tool),
            _ => Err(self.fault(&format!(
                "{} is no role; write `system`, `developer`, `user`, `assistant` or `tool`",
                python::json(&role)
            ))),
        }
    }

    /// The body, whatever its type.
    fn body(&self) -> Result<Value, Fault> {
        let body = self.get("content").or_else(|| self.get("value"));
        body.ok_or_else(|| self.fault("there is no `content` and no `value`"))
    }

    fn content(&self) -> Result<String, Fault> {
        self.body()?.as_str().map(text).ok_or_else(|| self.fault("the content is not a string"))
    }

    fn result(&self) -> Result<Value, Fault> {
        Ok(canonical(&self.body()?))
    }

    /// A field that is a string where it is there.
    fn optional(&self, name: &str) -> Result<Option<String>, Fault> {
        let wrong = || self.fault(&format!("`{name}` is not a string"));
        self.get(name).map(|value| value.as_str().map(text).ok_or_else(wrong)).transpose()
    }

    fn assistant(&self) -> Result<Message, Fault> {
        let thinking = match self.optional("thinking")? {
            Some(thinking) => Some(thinking),
            None => self.optional("reasoning_content")?,
        };
        let calls = match self.get("tool_calls") {
            None => Vec::new(),
            Some(calls) => elements(&calls).ok_or_else(|| self.fault("`tool_calls` is not a list"))?,
        };
        let call = match &calls[..] {
            [] => return Ok(Message::Answer { thinking, content: self.content()? }),
            [call] => self.call(call)?,
            // The format has one recipient a message, and a result does not say of which call it is.
            _ => return Err(Fault::Unfit("parallel-tool-calls")),
        };
        let said = |text: Option<String>| text.filter(|text| !text.is_empty());
        match (said(self.optional("content")?), said(thinking)) {
            (Some(_), Some(_)) => Err(Fault::Unfit("content-and-thinking")),
            (content, thinking) => Ok(Message::Call { analysis: content.or(thinking), call }),
        }
    }

    fn call(&self, call: &Value) -> Result<Call, Fault> {
        let call = get(call, "function").unwrap_or_else(|| call.clone());
        let string = |name: &str| get(&call, name).and_then(|value| value.as_str().map(text));
        let name = string("name").ok_or_else(|| self.fault("the call has no `name`"))?;
        let arguments = get(&call, "arguments").ok_or_else(|| self.fault("the call has no `arguments`"))?;
        let arguments = match arguments.as_str() {
            Some(string) => json(string).map_err(|why| self.fault(&format!("the arguments: {why}")))?,
            None => arguments,
        };
        Ok(Call { name, content_type: string("content_type"), arguments: canonical(&arguments) })
    }
}

fn get(value: &Value, name: &str) -> Option<Value> {
    field(value, name).filter(|value| !value.is_none())
}

/// The elements of a field that holds a list, or one as JSON in a string.
fn list((name, value): (&str, Value)) -> Result<Vec<Value>, Fault> {
    let wrong = |why: &str| Fault::Malformed(format!("the field `{name}` {why}"));
    let value = match value.as_str() {
        Some(string) => json(string).map_err(|why| wrong(&format!("is a string: {why}")))?,
        None => value,
    };
    elements(&value).ok_or_else(|| wrong("is not a list"))
}

fn json(string: &str) -> Result<Value, String> {
    serde_json::from_str(string).map_err(|e| format!("not valid JSON, {e}"))
}

fn text(string: &str) -> String {
    canonical_text(string.to_owned())
}

/// The value with all its strings in canonical form, keys too. Done before the text is put together: composition across its seams
/// would join a sign to a special token.
fn canonical(value: &Value) -> Value {
    match value.kind() {
        ValueKind::String => value.as_str().map_or_else(Value::default, |string| text(string).into()),
        ValueKind::Seq => elements(value).unwrap_or_default().iter().map(canonical).collect(),
        ValueKind::Map => {
            let pairs = fields(value).into_iter().flatten();
            Value::from_pairs(pairs.map(|(key, value)| (canonical(&key), canonical(&value))))
        }
        _ => value.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(messages: &str, tools: Option<&str>) -> Result<Conversation, Fault> {
        let value = |json: &str| serde_json::from_str::<Value>(json).unwrap();
        Conversation::parse(("m", value(messages)), tools.map(|tools| ("t", value(tools))))
    }

    fn call(name: &str, arguments: &str) -> Call {
        Call { name: name.into(), content_type: None, arguments: serde_json::from_str(arguments).unwrap() }
    }

    #[test]
    fn a_row_that_is_no_conversation_says_what_is_wrong() {
        for (messages, why) in [
            ("3", "the field `m` is not a list"),
            ("null", "the field `m` is not a list"),
            ("{}", "the field `m` is not a list"),
            ("\"Hi\"", "the field `m` is a string: not valid JSON, expected value at line 1 column 1"),
            ("[3]", "message 1: not an object"),
            (r#"[{"content": "a"}]"#, "message 1: there is no `role` and no `from`"),
            (
                r#"[{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}]"#,
                "message 2: \"bot\" is no role; write `system`, `developer`, `user`, `assistant` or `tool`",
            ),
            (
                r#"[{"role": 3, "content": "a"}]"#,
                "message 1: 3 is no role; write `system`, `developer`, `user`, `assistant` or `tool`",
            ),
            (r#"[{"role": "user"}]"#, "message 1: there is no `content` and no `value`"),
            (r#"[{"role": "user", "content": null}]"#, "message 1: there is no `content` and no `value`"),
            (
                r#"[{"role": "user", "content": [{"type": "text", "text": "a"}]}]"#,
                "message 1: the content is not a string",
            ),
            (
                r#"[{"role": "assistant", "tool_calls": []}]"#,
                "message 1: there is no `content` and no `value`",
            ),
            (r#"[{"role": "assistant", "tool_calls": {}}]"#, "message 1: `tool_calls` is not a list"),
            (
                r#"[{"role": "assistant", "content": "a", "thinking": 3}]"#,
                "message 1: `thinking` is not a string",
            ),
            (
                r#"[{"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}]"#,
                "message 1: the call has no `name`",
            ),
            (
                r#"[{"role": "assistant", "tool_calls": [{"name": "f"}]}]"#,
                "message 1: the call has no `arguments`",
            ),
            (
                r#"[{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]"#,
                "message 1: the arguments: not valid JSON, EOF while parsing an object at line 1 column 1",
            ),
            (
                r#"[{"from": "function_call", "value": "f()"}]"#,
                "message 1: not valid JSON, expected ident at line 1 column 2",
            ),
        ] {
            assert_eq!(parse(messages, None), Err(Fault::Malformed(why.into())), "{messages}");
        }
        let tools = parse(r#"[{"role": "user", "content": "a"}]"#, Some("{}"));
        assert_eq!(tools, Err(Fault::Malformed("the field `t` is not a list".into())));
    }

    #[test]
    fn what_the_format_cannot_show_is_not_fit() {
        let calls = r#"[{"name": "f", "arguments": {}}]"#;
        for (messages, reason) in [
            ("[]".to_owned(), "empty"),
            ("\"[]\"".to_owned(), "empty"),
            (
                r#"[{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}]"#.to_owned(),
                "system-message-not-first",
            ),
            (r#"[{"role": "tool", "content": "a"}]"#.to_owned(), "tool-without-call"),
            (
                format!(
                    r#"[{{"role": "assistant", "tool_calls": {calls}}}, {{"role": "assistant", "content": "a"}}, {{"role": "tool", "content": "a"}}]"#
                ),
                "tool-without-call",
            ),
            (
                r#"[{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]}]"#.to_owned(),
                "parallel-tool-calls",
            ),
            (
                format!(r#"[{{"role": "assistant", "tool_calls": {calls}, "content": "a", "thinking": "b"}}]"#),
                "content-and-thinking",
            ),
        ] {
            assert_eq!(parse(&messages, None), Err(Fault::Unfit(reason)), "{messages}");
        }
    }

    #[test]
    fn every_string_is_canonical_and_keeps_its_place() {
        let rows = r#"[
            {"role": "system", "content": "cafe\u0301"},
            {"role": "user", "content": "a\r\nb"},
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{\"b\": \"x\\r\\n\", \"e\u0301\": [\"\\r\"]}"}]},
            {"role": "tool", "content": {"b": "\r\n", "a": 1}}
        ]"#;
        let found = parse(rows, Some(r#"[{"e\u0301": "\ufeffa"}]"#)).unwrap();
        assert_eq!(found.instructions, "caf\u{e9}");
        assert_eq!(
            found.messages,
            [
                Message::User("a\nb".into()),
                Message::Call { analysis: None, call: call("f", "{\"b\": \"x\\n\", \"\u{e9}\": [\"\\n\"]}") },
                Message::Result(serde_json::from_str(r#"{"b": "\n", "a": 1}"#).unwrap()),
            ]
        );
        let Message::Result(result) = &found.messages[2] else { unreachable!() };
        assert_eq!(python::json(result), r#"{"b": "\n", "a": 1}"#, "keys keep their order");
        assert_eq!(python::json(&found.tools[0]), "{\"\u{e9}\": \"a\"}");
    }

    #[test]
    fn thinking_has_two_names() {
        let thinking = |fields: &str| {
            let row = format!(r#"[{{"role": "assistant", "content": "c", {fields}}}]"#);
            let Message::Answer { thinking, .. } = parse(&row, None).unwrap().messages.remove(0) else {
                unreachable!()
            };
            thinking
        };
        assert_eq!(thinking(r#""thinking": "a", "reasoning_content": "b""#).as_deref(), Some("a"));
        assert_eq!(thinking(r#""thinking": null, "reasoning_content": "b""#).as_deref(), Some("b"));
        assert_eq!(thinking(r#""thinking": """#).as_deref(), Some(""));
        assert_eq!(thinking(r#""name": "x""#), None);
    }
}
