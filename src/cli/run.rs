//! `run`: makes what is missing.

use std::{num::NonZeroUsize, path::PathBuf, sync::Arc};

use clap::Args;

use super::{
    args::{Format, PipelineArgs},
    error::CliError,
    exit::Exit,
    log, output,
    progress::Terminal,
    project::Project,
    stage::remember,
    summary,
    trace::Trace,
};
use crate::engine::{
    action::Stop,
    event::Reporter,
    summary::{RunStatus, RunSummary},
};

/// Run a pipeline: make what is missing, in the right order
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    pub args: PipelineArgs,
    /// After a failure, run what does not depend on it
    #[arg(long)]
    keep_going: bool,
    /// How many CPU stages run at once [default: one per core]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Write the run's timeline as a Chrome trace, for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE.json")]
    trace: Option<PathBuf>,
    /// Show what the engine and the store log: a level such as `debug`, or `mla_run::store=debug`
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

impl Command {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let PipelineArgs { manifest, place, select, format } = &self.args;
        let mut project = Project::open(&manifest.pipeline, &manifest.change, place, select)?;
        project.require_reads()?;
        project.options.keep_going = self.keep_going;
        project.options.jobs = self.jobs.map_or(project.options.jobs, NonZeroUsize::get);
        remember(&project.store, &manifest.pipeline, &manifest.change)?;

        let names = project.graph.order().iter().map(|&id| project.graph.node(id).name.as_str());
        let terminal = Arc::new(Terminal::new(names));
        if let Some(filter) = &self.log {
            log::start(filter, terminal.clone())?;
        }
        let (count, device) = (project.graph.len(), &project.options.device);
        let plural = if count == 1 { "stage" } else { "stages" };
        let place = format!("{count} {plural} on {device}, cache {}", project.store.root().display());
        terminal.heading(&project.options.pipeline, &place);
        let stop = Arc::new(Stop::default());
        stop_on_signal(&stop, &terminal)?;

        let trace = Trace::new(&*terminal);
        let reporter: &dyn Reporter = if self.trace.is_some() { &trace } else { &*terminal };
        let summary = project.engine().run(reporter, &stop)?;
        terminal.end();
        self.trace.as_deref().map_or(Ok(()), |path| trace.save(path))?;
        match format {
            Format::Json => output::json(&summary)?,
            Format::Text => output::text(&summary::render(&summary, output::palette()))?,
        }
        Ok(exit(&summary))
    }
}

fn exit(summary: &RunSummary) -> Exit {
    match (summary.status, summary.interrupted, summary.checkpointed) {
        (RunStatus::Ok, _, _) => Exit::OK,
        (RunStatus::Failed, true, true) => Exit::STOPPED,
        (RunStatus::Failed, true, false) => Exit::INTERRUPTED,
        (RunStatus::Failed, false, _) => Exit::FAILED,
    }
}

/// The first SIGINT or SIGTERM asks running stages to end; the second ends the program. Nothing in the cache can be harmed.
fn stop_on_signal(stop: &Arc<Stop>, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let (stop, terminal) = (stop.clone(), terminal.clone());
    let handler = move || {
        if stop.is_raised() {
            terminal.clear();
            #[expect(clippy::exit, reason = "the user asked twice")]
            std::process::exit(Exit::INTERRUPTED.code().into());
        }
        stop.raise();
        terminal.remark("stopping: running stages end at their next safe point; once more to end at once");
    };
    ctrlc::set_handler(handler).map_err(|error| CliError::failed(format!("cannot handle signals: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        let check = |status, interrupted, checkpointed, expected| {
            let summary = RunSummary {
                run: String::new(),
                status,
                seconds: 0.0,
                stages: Vec::new(),
                interrupted,
                checkpointed,
            };
            assert_eq!(exit(&summary), expected);
        };
        check(RunStatus::Ok, false, false, Exit::OK);
        check(RunStatus::Ok, true, false, Exit::OK);
        check(RunStatus::Failed, false, false, Exit::FAILED);
        check(RunStatus::Failed, true, false, Exit::INTERRUPTED);
        check(RunStatus::Failed, true, true, Exit::STOPPED);
    }
}
