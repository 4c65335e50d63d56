//! A pass that is interrupted goes on behind the last layer that was kept: hidden states and the stage's own files. Knows no model.

use std::{fs, io, path::Path};

use super::hidden::Hidden;
use crate::{
    artifact::Files,
    engine::action::{Cx, Failure, Stopwatch},
};

/// The residual streams behind a layer.
const HIDDEN: &str = "hidden.f32";
/// The first layer that is not done.
const NEXT: &str = "next";
/// What is smaller is kept behind every layer.
const SMALL: u64 = 64 << 20;
/// Seconds between two checkpoints of what is larger.
const PAUSE: f64 = 120.0;

/// Keeps and finds the state between two layers.
pub(crate) struct Resume<'a> {
    cx: &'a Cx<'a>,
    since: Stopwatch,
}

impl<'a> Resume<'a> {
    /// A pass of which nothing was kept.
    pub(crate) fn new(cx: &'a Cx<'a>) -> Self {
        Self { cx, since: Stopwatch::start() }
    }

    /// The layer that an interrupted run would go on with.
    pub(crate) fn next(cx: &Cx<'_>) -> Result<Option<usize>, Failure> {
        let files = cx.checkpoints.latest().map_err(Failure::stage)?;
        files.map_or(Ok(None), |files| next(&files))
    }

    /// Restores what an interrupted run left: fills `hidden`, copies the stage's files into `own`, and returns the layer to go on with.
    /// Without such a thing it is layer 0, and nothing is touched.
    pub(crate) fn begin(cx: &'a Cx<'a>, hidden: &mut Hidden, own: &Path) -> Result<(Self, usize), Failure> {
        let resume = Self::new(cx);
        let Some(next) = resume.restore(hidden, own)? else { return Ok((resume, 0)) };
        cx.progress.say(&format!("going on with layer {next}"));
        Ok((resume, next))
    }

    /// The same, but tells nobody.
    pub(crate) fn restore(&self, hidden: &mut Hidden, own: &Path) -> Result<Option<usize>, Failure> {
        let Some(files) = self.cx.checkpoints.latest().map_err(Failure::stage)? else { return Ok(None) };
        let (Some(next), Some(states)) = (next(&files)?, files.get(HIDDEN)) else { return Ok(None) };
        hidden.restore(states).map_err(Failure::stage)?;
        own_files(&files, own).map_err(Failure::stage)?;
        Ok(Some(next))
    }

    /// Keeps the state before layer `next`, unless that was done a short time ago and is large.
    pub(crate) fn keep(&mut self, next: usize, hidden: &mut Hidden, own: &Path) -> Result<(), Failure> {
        let files =
            fs::read_dir(own).and_then(Iterator::collect::<io::Result<Vec<_>>>).map_err(Failure::stage)?;
        let mut bytes = hidden.bytes();
        for file in files {
            bytes += file.metadata().map_err(Failure::stage)?.len();
        }
        if bytes > SMALL && self.since.seconds() < PAUSE {
            return Ok(());
        }
        let dir = tempfile::tempdir_in(&self.cx.scratch).map_err(Failure::stage)?;
        hidden.save(&dir.path().join(HIDDEN)).map_err(Failure::stage)?;
        copy_all(own, dir.path()).map_err(Failure::stage)?;
        fs::write(dir.path().join(NEXT), next.to_string()).map_err(Failure::stage)?;
        self.cx.checkpoints.publish(dir.path()).map_err(Failure::stage)?;
        self.since = Stopwatch::start();
        Ok(())
    }
}

fn next(files: &Files) -> Result<Option<usize>, Failure> {
    let parse = |text: String| text.trim().parse().map_err(io::Error::other);
    files.get(NEXT).map(|path| fs::read_to_string(path).and_then(parse)).transpose().map_err(Failure::stage)
}

/// Copies the stage's own files of a checkpoint into `own`.
pub(crate) fn own_files(files: &Files, own: &Path) -> io::Result<()> {
    for (name, path) in files.iter().filter(|(name, _)| ![HIDDEN, NEXT].contains(&name.as_str())) {
        fs::copy(path, own.join(name))?;
    }
    Ok(())
}

/// Copies the files of a folder into another one.
pub(crate) fn copy_all(from: &Path, to: &Path) -> io::Result<()> {
    for file in fs::read_dir(from)? {
        let file = file?;
        fs::copy(file.path(), to.join(file.file_name()))?;
    }
    Ok(())
}
