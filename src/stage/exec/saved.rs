//! Checkpoints of a command: a folder that it may leave files in, and the folder with those of an earlier attempt.

use std::{fs, path::PathBuf};

use super::{at, link, process::ProcessError};
use crate::engine::action::{Cx, Failure};

/// The exit code with which a command says that it saved what it had (`EX_TEMPFAIL`).
const SAVED: i32 = 75;

/// The folders of one attempt.
pub(super) struct Saved {
    dir: PathBuf,
    resume: Option<PathBuf>,
}

impl Saved {
    /// Makes the folder to save in, and shows what an earlier attempt saved.
    pub(super) fn prepare(cx: &Cx<'_>) -> Result<Self, Failure> {
        let dir = cx.scratch.join("checkpoint");
        fs::create_dir_all(&dir).map_err(at(&dir))?;
        let resume = match cx.checkpoints.latest().map_err(Failure::stage)? {
            None => None,
            Some(files) => {
                let folder = cx.scratch.join("resume");
                link(&files, &folder)?;
                Some(folder)
            }
        };
        Ok(Self { dir, resume })
    }

    /// The variables that tell the command.
    pub(super) fn env(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        [("MLA_CKPT_DIR", Some(&self.dir)), ("MLA_RESUME_FROM", self.resume.as_ref())]
            .into_iter()
            .filter_map(|(name, folder)| Some((name, folder?)))
    }

    /// Keeps what a command left that was stopped, or that says it saved.
    pub(super) fn publish(&self, cx: &Cx<'_>, error: &ProcessError) -> Result<(), Failure> {
        let saved = match error {
            ProcessError::Stopped => true,
            ProcessError::Ended { status, .. } => status.code() == Some(SAVED),
            ProcessError::Start { .. } | ProcessError::Log { .. } => false,
        };
        if saved && fs::read_dir(&self.dir).map_err(at(&self.dir))?.next().is_some() {
            cx.checkpoints.publish(&self.dir).map_err(Failure::stage)?;
        }
        Ok(())
    }
}
