//! Signals: the first asks running stages to save what they have and end; the second ends the program. Nothing in the cache can be
//! harmed. Clusters send SIGTERM or SIGUSR1 some time before they take a machine away.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use super::{error::CliError, exit::Exit, progress::Terminal};
use crate::engine::action::Stop;

/// What signals do to this process.
pub(super) struct Signals {
    pub(super) stop: Arc<Stop>,
    terminal: Arc<OnceLock<Arc<Terminal>>>,
    time_is_up: Arc<AtomicBool>,
}

impl Signals {
    /// Where to say that stages are ending.
    pub(super) fn tell(&self, terminal: &Arc<Terminal>) {
        drop(self.terminal.set(terminal.clone())); // the first one stays, and there is one
    }

    /// Whether it was SIGUSR1 that stopped us.
    pub(super) fn time_is_up(&self) -> bool {
        self.time_is_up.load(Ordering::SeqCst)
    }
}

/// Starts to listen.
pub(super) fn listen() -> Result<Signals, CliError> {
    let signals = Signals { stop: Arc::default(), terminal: Arc::default(), time_is_up: Arc::default() };
    let (stop, terminal, up) = (signals.stop.clone(), signals.terminal.clone(), signals.time_is_up.clone());
    let mut heard = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM, SIGUSR1])
        .map_err(|error| CliError::failed(format!("cannot handle signals: {error}")))?;
    std::thread::spawn(move || {
        for signal in heard.forever() {
            if stop.is_raised() {
                // A cluster that takes a machine away sends one kind after the other, and means the same.
                if signal == SIGINT || signal == SIGHUP {
                    terminal.get().inspect(|terminal| terminal.clear());
                    #[expect(clippy::exit, reason = "the user asked twice")]
                    std::process::exit(Exit::INTERRUPTED.code().into());
                }
                continue;
            }
            up.store(signal == SIGUSR1, Ordering::SeqCst);
            stop.raise();
            if let Some(terminal) = terminal.get() {
                terminal
                    .remark("stopping: running stages end at their next safe point; Ctrl-C to end at once");
            }
        }
    });
    Ok(signals)
}
