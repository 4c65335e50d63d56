//! Why an attempt failed, in words, and whether another one may not.

use std::{any::Any, error::Error, time::Duration};

use super::action::{Class, Failure};
use crate::store::StoreError;

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttemptError {
    #[error("{}", chain(.0))]
    Failure(#[from] Failure),
    #[error("panicked: {0}")]
    Panic(String),
    #[error("{}", chain(.0))]
    Store(#[from] StoreError),
    #[error("file `{0}` changed while the stage read it; run again once it is settled")]
    ReadChanged(String),
    #[error("took longer than its timeout of {}", in_words(*.0))]
    Timeout(Duration),
    #[error("what it reads was lost: output of `{0}`")]
    InputLost(String),
    #[error("wrote `{0}` beside its outputs; only its declared outputs are kept")]
    Stray(String),
}

impl AttemptError {
    /// The class of the failure, if another attempt may not meet it.
    pub(crate) fn class(&self) -> Option<Class> {
        match self {
            Self::Failure(failure) => failure.class(),
            Self::Store(StoreError::Io { .. }) => Some(Class::Io),
            Self::Timeout(_) => Some(Class::Timeout),
            Self::Store(_) | Self::Panic(_) | Self::ReadChanged(_) | Self::InputLost(_) | Self::Stray(_) => {
                None
            }
        }
    }
}

fn in_words(limit: Duration) -> String {
    let seconds = limit.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, _) => format!("{} s", limit.as_secs_f64()),
        (0, minutes, 0) => format!("{minutes} min"),
        (0, minutes, rest) => format!("{minutes} min {rest} s"),
        (hours, 0, _) => format!("{hours} h"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

/// The words of a panic.
pub(crate) fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
