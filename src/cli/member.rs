//! `member`: one of several processes that share the parts of a training step. The stage starts it; people need it only to see what is wrong.

use std::{io, path::PathBuf};

use clap::Args;

use super::{error::CliError, exit::Exit, signal};
use crate::stage::distill::member;

/// Compute parts of training steps for another process
#[derive(Debug, Args)]
pub(super) struct Command {
    /// The file that the other process wrote
    setup: PathBuf,
}

impl Command {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        // A stop is the other process's affair: it ends this one by closing its input.
        let _caught = signal::listen()?;
        let (tasks, answers) = (io::stdin().lock(), io::stdout().lock());
        match member::work(&self.setup, tasks, answers) {
            Ok(()) => Ok(Exit::OK),
            Err(error) => {
                tracing::error!("{error}");
                Ok(Exit::FAILED)
            }
        }
    }
}
