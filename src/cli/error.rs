//! Why a command could not do what it was asked, and the exit code of that.

use std::io::Write;

use serde_json::{Value, json};

use super::{
    diagnostic,
    exit::Exit,
    paint::{Colour, Palette},
};
use crate::{engine::options::EngineError, plan::Rejected, store::StoreError};

/// An error that ends the program.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// The command line asks for something that does not exist or does not fit.
    #[error("{message}")]
    Usage { message: String, hint: Option<String> },
    /// The manifest has mistakes.
    #[error("the manifest has mistakes")]
    Manifest(Box<Rejected>),
    /// The cache cannot be used.
    #[error("the cache cannot be used: {0}")]
    Cache(#[from] StoreError),
    /// The work failed.
    #[error("{0}")]
    Failed(String),
}

impl CliError {
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: None }
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    /// Says what to do about a wrong command line.
    pub(super) fn hint(self, text: impl Into<String>) -> Self {
        match self {
            Self::Usage { message, .. } => Self::Usage { message, hint: Some(text.into()) },
            other => other,
        }
    }

    /// Says on standard error what is wrong.
    pub(super) fn print(&self) {
        let mut err = anstream::stderr().lock();
        let palette = Palette::of(&std::io::stderr());
        let text = match self {
            Self::Manifest(rejected) => diagnostic::render(rejected, palette.0),
            error => {
                let hint = match error {
                    Self::Usage { hint: Some(hint), .. } => {
                        format!("\n{} {hint}", palette.paint(Colour::Accent, "help:"))
                    }
                    _ => String::new(),
                };
                format!("{} {error}{hint}\n", palette.paint(Colour::Bad, "error:"))
            }
        };
        // Nobody is left to hear that the message did not arrive.
        let _gone = err.write_all(text.as_bytes());
    }

    /// What is wrong as data, for `--format json`: the message, the exit code, and a manifest's mistakes with their places.
    pub(super) fn data(&self) -> Value {
        let mistakes = match self {
            Self::Manifest(rejected) => diagnostic::list(rejected),
            _ => Vec::new(),
        };
        json!({ "status": "error", "error": self.to_string(), "exit": self.exit().code(), "mistakes": mistakes })
    }

    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Usage { .. } => Exit::USAGE,
            Self::Manifest(_) => Exit::MANIFEST,
            Self::Cache(_) => Exit::CACHE,
            Self::Failed(_) => Exit::FAILED,
        }
    }
}

impl From<EngineError> for CliError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Store(error) => Self::Cache(error),
            error @ EngineError::UnknownStage(_) => Self::usage(error.to_string()),
        }
    }
}

impl From<Rejected> for CliError {
    fn from(rejected: Rejected) -> Self {
        Self::Manifest(Box::new(rejected))
    }
}
