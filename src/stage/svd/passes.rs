//! What the forward passes of a conversion have measured, so that an interrupted one measures nothing twice. Knows no model.

use std::{
    cell::{Cell, RefCell},
    fs, io,
    path::PathBuf,
};

use crate::{
    engine::action::{Cx, Failure},
    stage::streamed::{
        hidden::Hidden,
        resume::{self, Resume},
    },
};

/// The passes of one conversion, which come in the same order in every run of it.
pub(super) struct Passes {
    /// What is kept between runs.
    dir: PathBuf,
    /// What each finished pass measured.
    done: RefCell<Vec<Vec<f64>>>,
    /// The pass that comes next.
    next: Cell<usize>,
    /// Whether the layers of the pass behind the finished ones were kept in part.
    part: Cell<bool>,
}

/// The file of what was measured, as bits of f64.
const FILE: &str = "passes.json";

impl Passes {
    /// Goes on where an interrupted run ended.
    pub(super) fn open(cx: &Cx<'_>) -> Result<Self, Failure> {
        let dir = cx.scratch.join("passes");
        fs::create_dir_all(&dir).map_err(Failure::stage)?;
        let (mut done, mut part) = (Vec::new(), false);
        let kept = cx.checkpoints.latest().map_err(Failure::stage)?;
        if let Some((path, files)) = kept.as_ref().and_then(|files| Some((files.get(FILE)?, files))) {
            resume::own_files(files, &dir).map_err(Failure::stage)?;
            let bits: Vec<Vec<u64>> = fs::read(path)
                .and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::other))
                .map_err(Failure::stage)?;
            done = bits.into_iter().map(|pass| pass.into_iter().map(f64::from_bits).collect()).collect();
            part = true;
            cx.progress.say(&format!("going on behind {} passes that were measured", done.len()));
        }
        let passes = Self { dir, done: done.into(), next: 0.into(), part: part.into() };
        passes.write().map_err(Failure::stage)?;
        Ok(passes)
    }

    /// What the next pass measures: as it was kept by an earlier run, or by `run`, and then it is kept.
    pub(super) fn measure(
        &self,
        cx: &Cx<'_>,
        run: impl FnOnce() -> Result<Vec<f64>, Failure>,
    ) -> Result<Vec<f64>, Failure> {
        let next = self.next.replace(self.next.get() + 1);
        if let Some(measured) = self.done.borrow().get(next) {
            return Ok(measured.clone());
        }
        let measured = run()?;
        self.done.borrow_mut().push(measured.clone());
        self.write().map_err(Failure::stage)?;
        // What is published is moved away.
        let dir = tempfile::tempdir_in(&cx.scratch).map_err(Failure::stage)?;
        resume::copy_all(&self.dir, dir.path()).map_err(Failure::stage)?;
        cx.checkpoints.publish(dir.path()).map_err(Failure::stage)?;
        Ok(measured)
    }

    /// Begins a pass that was not finished; returns the layer to go on with, and fills `hidden` if that is not the first.
    pub(super) fn begin<'a>(
        &self,
        cx: &'a Cx<'a>,
        hidden: &mut Hidden,
    ) -> Result<(Resume<'a>, usize), Failure> {
        if self.part.replace(false) { Resume::begin(cx, hidden, &self.dir) } else { Ok((Resume::new(cx), 0)) }
    }

    /// A file that is kept with the passes.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Keeps the streams before `layer`.
    pub(super) fn keep(
        &self,
        resume: &mut Resume<'_>,
        layer: usize,
        hidden: &mut Hidden,
    ) -> Result<(), Failure> {
        resume.keep(layer, hidden, &self.dir)
    }

    fn write(&self) -> io::Result<()> {
        let done = self.done.borrow();
        let bits: Vec<Vec<u64>> =
            done.iter().map(|pass| pass.iter().map(|x| x.to_bits()).collect()).collect();
        fs::write(self.dir.join(FILE), serde_json::to_vec(&bits).expect("numbers are JSON"))
    }
}
