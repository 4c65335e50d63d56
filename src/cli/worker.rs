//! `worker`: runs one stage that a run on another host handed over. Slurm jobs start it; people need it only to see what is wrong.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command as Process,
    sync::Arc,
};

use clap::Args;

use super::{error::CliError, exit::Exit, output, progress::Terminal, project::device, signal};
use crate::{
    engine::{
        executor::Engine,
        graph::Node,
        options::Options,
        ticket::{Ticket, TicketError, Worked},
    },
    plan::recipe,
    stage::table::STAGES,
    store::{Digest, Store},
};

/// Run one stage that a run on another host handed over
#[derive(Debug, Args)]
pub(super) struct Command {
    /// The key of the stage, as the run's `--format json` tells it
    #[arg(long, value_name = "KEY", required_unless_present_any = ["list", "fingerprint"])]
    action: Option<Digest>,
    /// A file with one key a line, of which `--index` chooses one
    #[arg(long, value_name = "FILE", requires = "index", conflicts_with = "action")]
    list: Option<PathBuf>,
    /// Which line of `--list`, from 0
    #[arg(long, value_name = "N")]
    index: Option<usize>,
    /// The cache that all hosts see
    #[arg(long, value_name = "DIR", default_value = "cache")]
    cache: PathBuf,
    /// Print what identifies this host's device in keys, and do nothing else
    #[arg(long)]
    fingerprint: bool,
    /// The device, for `--fingerprint`
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
}

impl Command {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        if self.fingerprint {
            let (_, fingerprint) = device(&self.device)?;
            return output::text(&format!("{fingerprint}\n")).map(|()| Exit::OK);
        }
        let key = self.key()?;
        let store = Store::open(&self.cache)?;
        let ticket = Ticket::load(&store, &key).map_err(|error| refused(&error))?;
        let signals = signal::listen()?;
        let done = work(&store, &ticket, &signals);
        let why = match done {
            Ok(Worked::Done) => return Ok(Exit::OK),
            Ok(Worked::Stopped { saved }) => return stopped(saved, &signals, &store, &key),
            Ok(Worked::Failed(why)) => why,
            Err(error) => error.to_string(),
        };
        // The run that handed it over reads it, wherever it is.
        store.write_job(&key, "failed", why.as_bytes())?;
        Err(CliError::failed(why))
    }

    fn key(&self) -> Result<Digest, CliError> {
        let (Some(list), Some(index)) = (&self.list, self.index) else {
            return self.action.ok_or_else(|| CliError::usage("no key was given"));
        };
        let name = list.display();
        let text = fs::read_to_string(list)
            .map_err(|error| CliError::usage(format!("cannot read `{name}`: {error}")))?;
        let line = text.lines().nth(index).and_then(|line| line.parse().ok());
        line.ok_or_else(|| CliError::usage(format!("`{name}` has no key in line {}", index + 1)))
    }
}

fn refused(error: &TicketError) -> CliError {
    CliError::failed(error.to_string())
}

fn work(store: &Store, ticket: &Ticket, signals: &signal::Signals) -> Result<Worked, CliError> {
    let action = recipe::action(STAGES, &ticket.key.kind, &ticket.recipe).map_err(|why| {
        CliError::failed(format!("the job of `{}` cannot be used here: {why}", ticket.stage))
    })?;
    let (device, fingerprint) = device(&ticket.device)?;
    let graph = Engine::alone(Node {
        name: ticket.stage.clone(),
        action,
        inputs: std::collections::BTreeMap::new(),
        reads: ticket.reads.clone(),
        seed: ticket.key.seed,
        salt: ticket.key.salt.clone(),
        recipe: None,
        limits: ticket.limits(),
    });
    let hub = super::hub::open();
    let options = Options { device: device.to_string(), fingerprint, hub, ..Options::default() };
    let terminal = Arc::new(Terminal::new([ticket.stage.as_str()].into_iter()));
    signals.tell(&terminal);
    let engine = Engine { store, graph: &graph, options: &options };
    let worked = engine.work(ticket, &*terminal, &signals.stop).map_err(|error| refused(&error));
    terminal.end();
    worked
}

/// A job that was told to end. Before its time is up Slurm sends SIGUSR1, and then it is for us to come again; a job that gives way
/// to another gets SIGTERM and is queued again by Slurm.
fn stopped(saved: bool, signals: &signal::Signals, store: &Store, key: &Digest) -> Result<Exit, CliError> {
    if !signals.time_is_up() {
        return Ok(if saved { Exit::STOPPED } else { Exit::INTERRUPTED });
    }
    if !saved {
        let why = "the job's time was up before the stage was done, and it keeps no checkpoint; give it more: \
                   resources = { time = … }";
        store.write_job(key, "failed", why.as_bytes())?;
        return Err(CliError::failed(why));
    }
    #[expect(clippy::disallowed_methods, reason = "the job that this is, is told in the environment")]
    let var = |name: &str| std::env::var(name).ok();
    let task = match (var("SLURM_ARRAY_JOB_ID"), var("SLURM_ARRAY_TASK_ID"), var("SLURM_JOB_ID")) {
        (Some(job), Some(task), _) => Some(format!("{job}_{task}")),
        (_, _, job) => job,
    };
    if let Some(task) = task {
        // A job that gives way to another is queued again by Slurm itself, and then this is refused. If nobody does it, the run
        // that waits for the job sees that it is gone.
        drop(Process::new("scontrol").args(["requeue", &task]).output());
    }
    Ok(Exit::STOPPED)
}

/// Where this program lies, for jobs to start it.
pub(super) fn program() -> Result<PathBuf, CliError> {
    std::env::current_exe()
        .map_err(|error| CliError::failed(format!("cannot tell where this program lies: {error}")))
        .map(|path| fs::canonicalize(Path::new(&path)).unwrap_or(path))
}
