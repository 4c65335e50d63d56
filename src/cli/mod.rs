//! The only place that prints, reads the environment or knows a terminal. One command a file.

mod args;
mod cache;
mod check;
mod checkout;
mod completions;
pub mod diagnostic;
mod diff;
mod elsewhere;
mod error;
pub mod exit;
mod forecast;
mod graph;
mod history;
mod hub;
mod lock;
mod log;
mod member;
mod output;
mod paint;
mod plan;
mod progress;
mod project;
mod remote;
mod run;
mod runs;
mod schema;
mod show;
mod signal;
mod stage;
mod stages;
mod summary;
mod table;
mod trace;
mod verify;
mod why;
mod worker;

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::{Parser, Subcommand};

use self::{args::Format, error::CliError, exit::Exit};

/// Convert attention to Multi-Head Latent Attention, from one TOML file
///
/// `mla-run PIPELINE.toml` is `mla-run run PIPELINE.toml`.
#[derive(Debug, Parser)]
#[command(name = "mla-run", version, max_term_width = 110, after_help = exit::HELP)]
#[command(override_usage = "mla-run <PIPELINE.toml> [OPTIONS]\n       mla-run <COMMAND>")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Command),
    Plan(plan::Command),
    Why(why::Command),
    Check(check::Command),
    /// Print the JSON Schema of manifests, for editors
    Schema,
    Graph(graph::Command),
    History(history::Command),
    Diff(diff::Command),
    Show(show::Command),
    Checkout(checkout::Command),
    Verify(verify::Command),
    Stages(stages::Command),
    Cache(cache::Command),
    Worker(worker::Command),
    #[command(hide = true)]
    Member(member::Command),
    Completions(completions::Command),
}

impl Cli {
    fn format(&self) -> Format {
        match &self.command {
            Command::Run(command) => command.args.format,
            Command::Plan(command) => command.args.format,
            Command::Why(command) => command.format,
            Command::Check(command) => command.format,
            Command::Stages(command) => command.format,
            Command::Cache(command) => command.format(),
            Command::Verify(command) => command.format,
            Command::History(command) => command.format,
            Command::Diff(command) => command.format,
            Command::Schema
            | Command::Graph(_)
            | Command::Show(_)
            | Command::Checkout(_)
            | Command::Worker(_)
            | Command::Member(_)
            | Command::Completions(_) => Format::Text,
        }
    }

    fn dispatch(self) -> Result<Exit, CliError> {
        match self.command {
            Command::Run(command) => command.run(),
            Command::Plan(command) => command.run(),
            Command::Why(command) => command.run(),
            Command::Check(command) => command.run(),
            Command::Schema => schema::run(),
            Command::Graph(command) => command.run(),
            Command::History(command) => command.run(),
            Command::Diff(command) => command.run(),
            Command::Show(command) => command.run(),
            Command::Checkout(command) => command.run(),
            Command::Verify(command) => command.run(),
            Command::Stages(command) => command.run(),
            Command::Cache(command) => command.run(),
            Command::Worker(command) => command.run(),
            Command::Member(command) => command.run(),
            Command::Completions(command) => command.run(),
        }
    }
}

/// Puts `run` before a bare manifest or its options.
fn with_command(mut words: Vec<OsString>) -> Vec<OsString> {
    let bare = words.get(1).and_then(|word| word.to_str()).is_some_and(|word| {
        let own = ["-h", "--help", "-V", "--version"].contains(&word);
        let manifest = Path::new(word).extension().is_some_and(|ext| ext == "toml");
        manifest || (word.starts_with('-') && !own)
    });
    if bare {
        words.insert(1, "run".into());
    }
    words
}

/// The whole program: reads the command line, does it, and says how it went.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(with_command(std::env::args_os().collect())) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; clap knows which stream each belongs to.
            let _gone = error.print();
            return if error.use_stderr() { Exit::USAGE.into() } else { Exit::OK.into() };
        }
    };
    let format = cli.format();
    match cli.dispatch() {
        Ok(exit) => exit.into(),
        Err(error) => {
            error.print();
            if format == Format::Json {
                // A reader that is gone has the exit code.
                let _gone = output::json(&error.data());
            }
            error.exit().into()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_bare_pipeline_is_a_run() {
        let check = |words: &str, expected: &str| {
            let words = words.split(' ').map(OsString::from).collect();
            let found: Vec<String> =
                with_command(words).into_iter().map(|w| w.into_string().unwrap()).collect();
            assert_eq!(found.join(" "), expected);
        };
        check("mla-run p.toml --set a=1", "mla-run run p.toml --set a=1");
        check("mla-run --keep-going p.toml", "mla-run run --keep-going p.toml");
        check("mla-run plan p.toml", "mla-run plan p.toml");
        check("mla-run --help", "mla-run --help");
        check("mla-run rnu", "mla-run rnu");
        check("mla-run", "mla-run");
    }
}
