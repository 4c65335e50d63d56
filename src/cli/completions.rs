//! `completions`: words for a shell to complete.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, error::CliError, exit::Exit, output};

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub(super) struct Command {
    /// The shell
    shell: Shell,
}

impl Command {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "mla-run", &mut script);
        output::bytes(&script)?;
        Ok(Exit::OK)
    }
}
