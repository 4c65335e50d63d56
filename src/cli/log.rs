//! What the engine and the store log, as lines above the progress on standard error. Off unless asked for. Knows no event.

use std::{
    io::{self, Write},
    sync::Arc,
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use super::{error::CliError, progress::Terminal};

/// Shows log lines that `filter` lets through, such as `debug` or `mla_run::store=debug`.
pub(super) fn start(filter: &str, terminal: Arc<Terminal>) -> Result<(), CliError> {
    let parsed = EnvFilter::try_new(filter).map_err(|error| {
        CliError::usage(format!("`--log {filter}`: {error}")).hint("give a level such as `debug`")
    })?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_ansi(false)
        .without_time()
        .with_writer(Lines(terminal))
        .finish();
    tracing::subscriber::set_global_default(subscriber)
        .map_err(|error| CliError::failed(format!("cannot start the log: {error}")))
}

/// Makes one writer a line.
struct Lines(Arc<Terminal>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { terminal: &self.0, bytes: Vec::new() }
    }
}

/// A log line, shown as a whole when it is done.
struct Line<'a> {
    terminal: &'a Terminal,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.terminal.log(String::from_utf8_lossy(&self.bytes).trim_end());
    }
}
