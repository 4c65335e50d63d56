//! The Harmony format, as the chat template published with GPT-OSS renders it for training. Knows no shape of rows.

use super::{
    Effort, Fault, Rendered,
    conversation::{Call, Conversation, Message},
    python, special, tools,
};

/// The conversation as a text; a special token's name in a message is a fault, since it would be taken for the token.
pub(super) fn render(conversation: &Conversation, date: &str, effort: Effort) -> Result<Rendered, Fault> {
    let mut out = Writer::default();
    out.system(date, effort, !conversation.tools.is_empty());
    out.developer(conversation)?;
    let mut called = "";
    let messages = &conversation.messages;
    for (i, message) in messages.iter().enumerate() {
        let answered = messages[i + 1..].iter().any(|later| matches!(later, Message::Answer { .. }));
        match message {
            Message::User(text) => out.message("user", text, "<|end|>"),
            Message::Call { analysis, call } => {
                if let Some(analysis) = analysis.as_ref().filter(|_| !answered) {
                    out.channel("analysis", analysis, "<|end|>");
                }
                out.call(call);
                called = &call.name;
            }
            Message::Result(value) => out.result(called, &python::json(value)),
            Message::Answer { thinking, content } if i + 1 == messages.len() => {
                if let Some(thinking) = thinking {
                    out.channel("analysis", thinking, "<|end|>");
                }
                out.channel("final", content, "<|return|>");
            }
            Message::Answer { content, .. } => out.channel("final", content, "<|end|>"),
        }
    }
    out.finish()
}

/// The text so far, what was said in it, and how many special tokens were meant.
#[derive(Default)]
struct Writer {
    text: String,
    said: String,
    tokens: usize,
}

impl Writer {
    fn token(&mut self, name: &str) {
        self.text.push_str(name);
        self.tokens += 1;
    }

    /// Opens a message; what follows is its body.
    fn open(&mut self, author: &str, channel: Option<&str>, kind: &str) {
        self.token("<|start|>");
        self.text.push_str(author);
        if let Some(channel) = channel {
            self.token("<|channel|>");
            self.text.push_str(channel);
        }
        self.text.push_str(kind);
        self.token("<|message|>");
    }

    /// A part of the text that somebody said.
    fn say(&mut self, body: &str) {
        self.text.push_str(body);
        if !self.said.is_empty() {
            self.said.push('\n');
        }
        self.said.push_str(body);
    }

    fn message(&mut self, author: &str, body: &str, end: &str) {
        self.open(author, None, "");
        self.say(body);
        self.token(end);
    }

    fn channel(&mut self, channel: &str, body: &str, end: &str) {
        self.open("assistant", Some(channel), "");
        self.say(body);
        self.token(end);
    }

    /// The template writes the recipient before the channel and the type without `<|constrain|>`.
    fn call(&mut self, call: &Call) {
        let kind = format!(" {}", call.content_type.as_deref().unwrap_or("json"));
        self.open(&format!("assistant to=functions.{}", call.name), Some("commentary"), &kind);
        self.say(&python::json(&call.arguments));
        self.token("<|call|>");
    }

    fn result(&mut self, name: &str, body: &str) {
        self.open(&format!("functions.{name} to=assistant"), Some("commentary"), "");
        self.say(body);
        self.token("<|end|>");
    }

    fn system(&mut self, date: &str, effort: Effort, tools: bool) {
        let effort = match effort {
            Effort::Low => "low",
            Effort::Medium => "medium",
            Effort::High => "high",
        };
        self.open("system", None, "");
        self.text.push_str(
            "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n",
        );
        self.text.push_str("Current date: ");
        self.text.push_str(date);
        self.text.push_str("\n\nReasoning: ");
        self.text.push_str(effort);
        self.text.push_str(
            "\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message.",
        );
        if tools {
            self.text.push_str("\nCalls to these tools must go to the commentary channel: 'functions'.");
        }
        self.token("<|end|>");
    }

    fn developer(&mut self, conversation: &Conversation) -> Result<(), Fault> {
        let Conversation { instructions, tools, .. } = conversation;
        if instructions.is_empty() && tools.is_empty() {
            return Ok(());
        }
        self.open("developer", None, "");
        if !instructions.is_empty() {
            self.text.push_str("# Instructions\n\n");
            self.text.push_str(instructions);
            // Also where no tools follow.
            self.text.push_str("\n\n");
        }
        if !tools.is_empty() {
            self.text.push_str("# Tools\n\n");
            self.text.push_str(&tools::namespace("functions", tools)?);
        }
        self.token("<|end|>");
        Ok(())
    }

    fn finish(self) -> Result<Rendered, Fault> {
        if special::count(&self.text) == self.tokens {
            Ok(Rendered { text: self.text, said: self.said })
        } else {
            Err(Fault::Unfit("special-token-in-message"))
        }
    }
}
