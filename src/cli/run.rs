//! `run`: makes what is missing.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use clap::Args;

use super::{
    args::{Format, PipelineArgs},
    elsewhere,
    error::CliError,
    exit::Exit,
    lock::{self, Lock, Strictness},
    log, output,
    progress::Terminal,
    project::Project,
    signal,
    stage::remember,
    summary,
    trace::Trace,
};
use crate::{
    engine::{
        event::Reporter,
        summary::{RunStatus, RunSummary},
    },
    store::{Digest, Root, Store},
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
    #[command(flatten)]
    lock: LockArgs,
    /// Run all stages here, although the manifest names a cluster
    #[arg(long)]
    local: bool,
    /// Neither ask the shared cache that the manifest names nor tell it anything
    #[arg(long)]
    no_remote: bool,
    /// Write the run's timeline as a Chrome trace, for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE.json")]
    trace: Option<PathBuf>,
    /// Show what the engine and the store log: a level such as `debug`, or `mla_run::store=debug`
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

/// What the run has to do with the lock file.
#[derive(Debug, Args)]
struct LockArgs {
    /// Hold the run to the lock file beside the manifest: other keys or other bytes end it with exit code 4
    #[arg(long)]
    locked: bool,
    /// As `--locked`, and nothing runs: everything must be in the cache
    #[arg(long)]
    frozen: bool,
    /// Leave the lock file beside the manifest alone
    #[arg(long)]
    no_lock: bool,
}

impl Command {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let PipelineArgs { manifest, place, select, format } = &self.args;
        let mut project = Project::open(&manifest.pipeline, &manifest.change, place, select)?;
        project.require_reads()?;
        project.options.keep_going = self.keep_going;
        project.options.jobs = self.jobs.map_or(project.options.jobs, NonZeroUsize::get);
        let held = self.held(&mut project)?;
        if !self.no_remote {
            elsewhere::use_shared(&mut project)?;
        }
        if !self.local {
            elsewhere::use_cluster(&mut project)?;
        }
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
        let signals = signal::listen()?;
        signals.tell(&terminal);

        let trace = Trace::new(&*terminal);
        let reporter: &dyn Reporter = if self.trace.is_some() { &trace } else { &*terminal };
        let summary = project.engine().run(reporter, &signals.stop)?;
        terminal.end();
        self.trace.as_deref().map_or(Ok(()), |path| trace.save(path))?;
        match format {
            Format::Json => output::json(&summary)?,
            Format::Text => output::text(&summary::render(&summary, output::palette()))?,
        }
        self.settle(held, &summary, (&project.store, &terminal))
    }

    /// The lock file that the run is held to.
    fn held(&self, project: &mut Project) -> Result<Option<Held>, CliError> {
        let strictness = match (self.lock.locked, self.lock.frozen) {
            (false, false) => return Ok(None),
            (_, true) => Strictness::Frozen,
            (true, false) => Strictness::Locked,
        };
        let lock = Lock::read(&lock::path(&self.args.manifest.pipeline))?;
        let refused = Arc::new(AtomicBool::new(false));
        project.options.gate = Some(lock.gate(strictness, refused.clone()));
        Ok(Some(Held { lock, refused }))
    }

    /// Compares what was made with the lock file, or writes it, and says how the run ended.
    fn settle(
        &self,
        held: Option<Held>,
        summary: &RunSummary,
        (store, terminal): (&Store, &Terminal),
    ) -> Result<Exit, CliError> {
        let path = lock::path(&self.args.manifest.pipeline);
        if let Some(Held { lock, refused }) = held {
            let differences = lock.differences(summary);
            if !differences.is_empty() {
                terminal.remark(&format!("against {}:\n{}", path.display(), differences.trim_end()));
            }
            let broken = refused.load(Ordering::Relaxed) || !differences.is_empty();
            return Ok(if broken { Exit::LOCKED } else { exit(summary) });
        }
        let PipelineArgs { manifest, select, .. } = &self.args;
        let whole = [&select.only, &select.until, &select.from].iter().all(|names| names.is_empty());
        let plain = manifest.change.set.is_empty() && manifest.change.profile.is_none();
        if !self.lock.no_lock && whole && plain && summary.status == RunStatus::Ok {
            match Lock::of(summary).write(&path) {
                Ok(()) => keep(store, &path, summary)?,
                // The results are safe; a manifest in a folder that cannot be written to is no failure.
                Err(error) => {
                    terminal.remark(&format!("cannot write the lock file {}: {error}", path.display()));
                }
            }
        }
        Ok(exit(summary))
    }
}

/// Tells clean-ups of the cache to keep what the lock file names, for as long as the file is there.
fn keep(store: &Store, lock: &Path, summary: &RunSummary) -> Result<(), CliError> {
    let lock = std::path::absolute(lock).unwrap_or_else(|_| lock.to_owned());
    let keys = summary.stages.iter().filter_map(|stage| stage.key).collect();
    let name = Digest::of(lock.as_os_str().as_encoded_bytes()).short();
    let root = Root::new(lock.display().to_string(), keys).while_there(lock);
    Ok(store.put_root("lock", &name, &root)?)
}

/// The lock file of a run, and whether it kept a stage from running.
struct Held {
    lock: Lock,
    refused: Arc<AtomicBool>,
}

fn exit(summary: &RunSummary) -> Exit {
    match (summary.status, summary.interrupted, summary.checkpointed) {
        (RunStatus::Ok, _, _) => Exit::OK,
        (RunStatus::Failed, true, true) => Exit::STOPPED,
        (RunStatus::Failed, true, false) => Exit::INTERRUPTED,
        (RunStatus::Failed, false, _) => Exit::FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes() {
        let check = |status, interrupted, checkpointed, expected| {
            let summary = RunSummary {
                run: String::new(),
                pipeline: String::new(),
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
