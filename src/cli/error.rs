//! Why a command could not do what it was asked, and the exit code of that.

use std::io::Write;

use serde_json::{Value, json};

use super::{
    diagnostic,
    exit::Exit,
    paint::{Colour, Palette},
};
use crate::{
    engine::{chain, options::EngineError},
    plan::Rejected,
    store::{StoreError, remote::RemoteError},
};

/// An error that ends the program.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// The command line asks for something that does not exist or does not fit.
    #[error("{message}")]
    Usage { message: String, hint: Option<String> },
    /// `--locked` or `--frozen` cannot be kept.
    #[error("{message}")]
    Locked { message: String, hint: Option<String> },
    /// The manifest has mistakes.
    #[error("the manifest has mistakes")]
    Manifest(Box<Rejected>),
    /// The cache cannot be used.
    #[error("the cache cannot be used: {}", chain(.0))]
    Cache(#[from] StoreError),
    /// The shared cache cannot be used.
    #[error("{}", chain(&**.0))]
    Remote(Box<RemoteError>),
    /// The work failed.
    #[error("{0}")]
    Failed(String),
}

impl CliError {
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: None }
    }

    pub(super) fn locked(message: impl Into<String>) -> Self {
        Self::Locked { message: message.into(), hint: None }
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }

    /// Says what to do about it.
    pub(super) fn hint(self, text: impl Into<String>) -> Self {
        match self {
            Self::Usage { message, .. } => Self::Usage { message, hint: Some(text.into()) },
            Self::Locked { message, .. } => Self::Locked { message, hint: Some(text.into()) },
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
                    Self::Usage { hint: Some(hint), .. } | Self::Locked { hint: Some(hint), .. } => {
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
            Self::Locked { .. } => Exit::LOCKED,
            Self::Manifest(_) => Exit::MANIFEST,
            Self::Remote(error) if error.is_usage() => Exit::USAGE,
            Self::Cache(_) | Self::Remote(_) => Exit::CACHE,
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

impl From<RemoteError> for CliError {
    fn from(error: RemoteError) -> Self {
        Self::Remote(Box::new(error))
    }
}

impl From<Rejected> for CliError {
    fn from(rejected: Rejected) -> Self {
        Self::Manifest(Box::new(rejected))
    }
}

#[cfg(test)]
mod tests {
    use std::{io, path::Path};

    use super::*;
    use crate::{
        manifest::{Options, Sources},
        plan::plan,
        stage::table::STAGES,
    };

    fn rejected(text: &str) -> Rejected {
        let path = Path::new("m.toml");
        let (sources, faults) = Sources::read_with(path, &Options::default(), &|_| Ok(text.to_owned()));
        plan(path, sources, faults, STAGES).err().expect("the manifest has faults")
    }

    fn unreadable() -> StoreError {
        StoreError::Io {
            doing: "read",
            path: "cache/x".into(),
            source: io::ErrorKind::PermissionDenied.into(),
        }
    }

    #[test]
    fn every_error_has_its_words_and_its_exit_code() {
        for (error, words, exit) in [
            (CliError::usage("no such thing").hint("try another"), "no such thing", Exit::USAGE),
            (CliError::failed("it broke").hint("not for this one"), "it broke", Exit::FAILED),
            (rejected("[stage.a]").into(), "the manifest has mistakes", Exit::MANIFEST),
            (
                unreadable().into(),
                "the cache cannot be used: cannot read cache/x: permission denied",
                Exit::CACHE,
            ),
            (
                EngineError::Store(unreadable()).into(),
                "the cache cannot be used: cannot read cache/x: permission denied",
                Exit::CACHE,
            ),
            (EngineError::UnknownStage("x".into()).into(), "there is no stage named `x`", Exit::USAGE),
        ] {
            assert_eq!((error.to_string().as_str(), error.exit()), (words, exit));
        }
    }

    #[test]
    fn an_error_as_data_has_the_same_words_and_the_mistakes_of_a_manifest() {
        let data = CliError::usage("no such thing").hint("try another").data();
        assert_eq!(data, json!({ "status": "error", "error": "no such thing", "exit": 2, "mistakes": [] }));
        let data = CliError::from(rejected("[stage.a]\nseed = -1\nkind = 'exce'")).data();
        let lines: Vec<&Value> = data["mistakes"].as_array().unwrap().iter().map(|m| &m["line"]).collect();
        assert_eq!((&data["exit"], lines), (&json!(3), vec![&json!(2), &json!(3)]));
        let keys: Vec<&String> = data["mistakes"][0].as_object().unwrap().keys().collect();
        assert_eq!(keys.len(), 6, "{keys:?}");
    }
}
