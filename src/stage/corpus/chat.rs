//! Conversations as documents: the messages of a row as one text in the Harmony format. Knows no file.

mod conversation;
mod harmony;
mod parts;
mod python;
mod special;
mod tools;

use minijinja::Value;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{conversation::Conversation, parts::field};
use crate::stage::Invalid;

/// What a row holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A text.
    #[default]
    Text,
    /// A conversation, which becomes a text in GPT-OSS's Harmony format.
    Chat,
}

/// How a conversation becomes a text: as the chat template published with GPT-OSS renders it without a generation prompt. The
/// thinking of a turn stays only where no answer follows, and an answer at the end closes with `<|return|>`.
///
/// Messages are `{ role, content }` with `system`, `developer`, `user`, `assistant` or `tool` and, where they have them, `thinking` or
/// `reasoning_content`, and `tool_calls`; or `{ from, value }` with `system`, `human`, `gpt`, `tool`, `function_call` or `observation`.
/// `null` is as good as nothing. A list may also be JSON in a string, and so may the arguments of a call.
///
/// Rules about length, language, quality, duplicates and evaluation data look at what was said, not at the frame around it. A
/// conversation that cannot be shown is dropped: `empty`, `special-token-in-message` (a message names a special token, which would end
/// it early), `system-message-not-first`, `parallel-tool-calls`, `tool-without-call`, `content-and-thinking` (of one call) or
/// `tool-schema` (a function that the template refuses).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Chat {
    /// The field or column that holds the list of messages. Default: `messages`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<String>,
    /// The field or column that holds the functions that may be called, each with its JSON schema. Default: `tools`, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<String>,
    /// The day that the system message calls the current one, as `2025-08-05`, which is the default: the day GPT-OSS came out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date: Option<String>,
    /// The effort that the system message asks for. Default: `medium`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_effort: Option<Effort>,
}

/// How much the model is to think.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Effort {
    /// Little.
    Low,
    /// As GPT-OSS does when it is not told.
    #[default]
    Medium,
    /// Much.
    High,
}

/// A conversation without parameters.
pub(super) static DEFAULT: Chat = Chat { messages: None, tools: None, date: None, reasoning_effort: None };

const DATE: &str = "2025-08-05";

/// A conversation as a text in which the names of special tokens are those tokens.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rendered {
    /// The whole.
    pub(super) text: String,
    /// The bodies of its messages, a line feed between them.
    pub(super) said: String,
}

/// Why a row does not become a text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It is no conversation: what is wrong, as a fragment.
    Malformed(String),
    /// It is one, and cannot be shown: the reason of the drop.
    Unfit(&'static str),
}

impl Chat {
    /// The field of the messages.
    pub(super) fn messages(&self) -> &str {
        self.messages.as_deref().unwrap_or("messages")
    }

    /// The field of the functions, and whether it must be there.
    pub(super) fn tools(&self) -> (&str, bool) {
        (self.tools.as_deref().unwrap_or("tools"), self.tools.is_some())
    }

    pub(super) fn check(&self, param: &str) -> Result<(), Invalid> {
        let is_date = |date: &str| {
            let parts: Vec<&str> = date.split('-').collect();
            parts.iter().map(|part| part.len()).eq([4, 2, 2])
                && parts.iter().all(|part| part.bytes().all(|b| b.is_ascii_digit()))
                && (1..=12).contains(&parts[1].parse().unwrap_or(0))
                && (1..=31).contains(&parts[2].parse().unwrap_or(0))
        };
        match &self.date {
            Some(date) if !is_date(date) => {
                Err(Invalid::new(format!("{param}.date"), format!("`{date}` is not a date"))
                    .hint(format!("write it as `{DATE}`")))
            }
            _ => Ok(()),
        }
    }

    /// The conversation of a row, which is an object.
    pub(super) fn render(&self, row: &Value) -> Result<Rendered, Fault> {
        let missing = |name: &str| Fault::Malformed(missing(row, name));
        let messages = field(row, self.messages()).ok_or_else(|| missing(self.messages()))?;
        let (name, needed) = self.tools();
        let tools = field(row, name);
        if needed && tools.is_none() {
            return Err(missing(name));
        }
        let tools = tools.filter(|tools| !tools.is_none()).map(|tools| (name, tools));
        let conversation = Conversation::parse((self.messages(), messages), tools)?;
        let date = self.date.as_deref().unwrap_or(DATE);
        let effort = self.reasoning_effort.unwrap_or_default();
        harmony::render(&conversation, date, effort)
    }
}

/// What to say of a row without a field.
pub(super) fn missing(row: &Value, field: &str) -> String {
    let names = row.try_iter().into_iter().flatten().map(|name| format!("`{name}`"));
    let mut names: Vec<String> = names.collect();
    names.sort();
    format!("there is no field `{field}`; the row has {}", names.join(", "))
}

#[cfg(test)]
mod tests;
