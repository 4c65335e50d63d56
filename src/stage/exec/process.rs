//! One child process in its own process group: starts it, follows its log, ends it. Knows no stage parameters.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::engine::action::{Class, Failure, Progress, Stop};

/// How long a command may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// The end of a log that an error shows.
const TAIL_LINES: usize = 20;
const TAIL_BYTES: u64 = 16 * 1024;

/// What is told in place of a log that is empty.
const NO_LOG: &str = "; it wrote no log";

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProcessError {
    /// The program is not there or may not be run.
    #[error("cannot start `{program}`: {source}; is it installed, and on PATH?")]
    Start { program: String, source: io::Error },
    /// It ended with an error of its own.
    #[error("`{program}` {how}{log}")]
    Ended { program: String, status: ExitStatus, how: String, log: String },
    /// Its log cannot be written or read.
    #[error("{path}: {source}")]
    Log { path: PathBuf, source: io::Error },
    /// The run was stopped, and so was the command.
    #[error("stopped before the end")]
    Stopped,
}

/// Runs a command to its end with both output streams in `log`. On a stop, the whole group gets SIGTERM, then SIGKILL.
pub(super) fn run(
    mut command: Command,
    log: &Path,
    stop: &Stop,
    progress: &dyn Progress,
) -> Result<(), ProcessError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let log_error = |source| ProcessError::Log { path: log.to_owned(), source };
    let stdout = File::create(log).map_err(log_error)?;
    let stderr = stdout.try_clone().map_err(log_error)?;
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).process_group(0);
    let child = command.spawn().map_err(|source| ProcessError::Start { program: program.clone(), source })?;
    let mut group = Group { id: Pid::from_child(&child), child };
    let leader = group.id;
    let status = group.wait(stop, || {
        progress.memory(memory(leader.as_raw_nonzero().get().cast_unsigned()));
        if let Ok(Some(line)) = last_line(log) {
            progress.note(&line);
        }
    });
    // What the command left running in the background must not outlive the stage.
    group.signal(Signal::KILL);
    match status.map_err(log_error)? {
        None => Err(ProcessError::Stopped),
        Some(status) if status.success() => Ok(()),
        Some(status) => {
            let tail = tail(log).map_err(log_error)?;
            if tail == NO_LOG {
                // On a full disk a command fails without a word, because it could write none.
                fs::write(log, [b'\n'; 4096])
                    .and_then(|()| File::open(log)?.sync_all())
                    .map_err(log_error)?;
                fs::write(log, "").map_err(log_error)?;
            }
            Err(ProcessError::Ended { program, status, how: describe(status), log: tail })
        }
    }
}

/// The failure of a stage whose command did not do its work.
pub(super) fn failure(error: ProcessError) -> Failure {
    let class = match &error {
        ProcessError::Stopped => return Failure::Stopped,
        ProcessError::Ended { status, .. } if status.code().is_none() => Class::Killed,
        ProcessError::Ended { .. } => Class::Exit,
        ProcessError::Start { .. } => return Failure::stage(error),
        ProcessError::Log { .. } => Class::Io,
    };
    Failure::Passing(class, Box::new(error))
}

struct Group {
    id: Pid,
    child: Child,
}

impl Group {
    /// Waits with short sleeps, so that thousands of quick commands lose no time and long ones cost none.
    fn wait(&mut self, stop: &Stop, mut tick: impl FnMut()) -> io::Result<Option<ExitStatus>> {
        let (mut sleep, mut ticked) = (Duration::from_micros(200), Instant::now());
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if stop.is_raised() {
                return self.end().map(|()| None);
            }
            if ticked.elapsed() > Duration::from_millis(200) {
                ticked = Instant::now();
                tick();
            }
            thread::sleep(sleep);
            sleep = (sleep * 2).min(Duration::from_millis(20));
        }
    }

    fn end(&mut self) -> io::Result<()> {
        self.signal(Signal::TERM);
        let asked = Instant::now();
        while asked.elapsed() < GRACE {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.signal(Signal::KILL);
        self.child.wait().map(drop)
    }

    fn signal(&self, signal: Signal) {
        // The only failure is that nobody is left in the group.
        let _gone = kill_process_group(self.id, signal);
    }
}

/// The high-water marks of a process and its children together, in bytes; 0 where Linux does not tell.
fn memory(pid: u32) -> u64 {
    let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let status = read("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let own = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()).unwrap_or(0);
    let children = read(&format!("task/{pid}/children"));
    own * 1024 + children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(memory).sum::<u64>()
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

fn read_end(log: &Path) -> io::Result<String> {
    let mut file = File::open(log)?;
    let len = fs::metadata(log)?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn last_line(log: &Path) -> io::Result<Option<String>> {
    // A progress bar of the command's own returns to the start of the line.
    let text = read_end(log)?;
    let line = text.rsplit(['\n', '\r']).map(str::trim).find(|line| !line.is_empty());
    Ok(line.map(|line| line.chars().filter(|c| !c.is_control()).take(80).collect()))
}

fn tail(log: &Path) -> io::Result<String> {
    let text = read_end(log)?;
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if last.is_empty() {
        return Ok(NO_LOG.to_owned());
    }
    Ok(format!("; the last lines of its log:\n  {}", last.join("\n  ")))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::engine::action::Quiet;

    fn shell(script: &str, stop: &Stop) -> (Result<(), ProcessError>, String) {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(dir.path());
        let result = run(command, &log, stop, &Quiet);
        (result, fs::read_to_string(log).unwrap())
    }

    #[test]
    fn both_streams_reach_the_log() {
        let (result, log) = shell("echo one; echo two >&2", &Stop::default());
        result.unwrap();
        assert_eq!(log, "one\ntwo\n");
    }

    #[test]
    fn an_exit_code_comes_with_the_end_of_the_log() {
        let (result, _) = shell("seq 1 30; exit 3", &Stop::default());
        let error = result.unwrap_err().to_string();
        let (first, lines) = error.split_once('\n').unwrap();
        assert_eq!(first, "`sh` ended with exit code 3; the last lines of its log:");
        assert_eq!(
            lines.lines().map(str::trim).collect::<Vec<_>>(),
            (11..=30).map(|i| i.to_string()).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_signal_and_an_empty_log_are_told() {
        let (result, _) = shell("kill -9 $$", &Stop::default());
        assert_eq!(result.unwrap_err().to_string(), "`sh` was killed by signal 9; it wrote no log");
    }

    #[test]
    fn a_missing_program_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = run(Command::new("no-such-program"), &dir.path().join("log"), &Stop::default(), &Quiet);
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("cannot start `no-such-program`: "), "{error}");
    }

    #[test]
    fn a_stop_ends_the_whole_group() {
        let stop = Stop::default();
        stop.raise();
        let started = Instant::now();
        let (result, _) = shell("sleep 60 & sleep 60", &stop);
        assert!(matches!(result, Err(ProcessError::Stopped)));
        assert!(started.elapsed() < GRACE, "SIGTERM was enough");
    }

    #[test]
    fn nothing_is_left_in_the_background() {
        let (result, log) = shell("sleep 60 & echo $!", &Stop::default());
        result.unwrap();
        let child = Pid::from_raw(log.trim().parse().unwrap()).unwrap();
        let state =
            || fs::read_to_string(format!("/proc/{}/stat", child.as_raw_nonzero())).unwrap_or_default();
        let gone = || state().is_empty() || state().contains(") Z ");
        let deadline = Instant::now() + Duration::from_secs(5);
        while !gone() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        assert!(gone(), "{}", state());
    }

    #[test]
    fn the_last_line_of_the_log_is_the_note() {
        struct Notes(Mutex<Vec<String>>);
        impl Progress for Notes {
            fn phase(&self, _: &str, _: Option<u64>, _: &str) {}
            fn advance(&self, _: u64) {}
            fn note(&self, text: &str) {
                self.0.lock().unwrap().push(text.to_owned());
            }
            fn say(&self, _: &str) {}
        }
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes(Mutex::default());
        let mut command = Command::new("sh");
        command.args(["-c", "printf 'step 1\\rstep 2\\r'; sleep 0.8"]);
        run(command, &dir.path().join("log"), &Stop::default(), &notes).unwrap();
        assert_eq!(notes.0.into_inner().unwrap().first().map(String::as_str), Some("step 2"));
    }
}
