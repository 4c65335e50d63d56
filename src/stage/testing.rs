//! A bench for stage tests: runs one stage in a temporary folder, with the inputs that the test gives. Knows no engine.

use std::{
    collections::BTreeMap,
    fs, io,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tempfile::TempDir;

use crate::{
    artifact::{
        Artifact, Files,
        checkpoint::files_in,
        texts::{Text, Texts},
    },
    engine::action::{Checkpoints, Cx, Failure, NoCheckpoints, OutputPort, Progress, Quiet, Stop},
    stage::{
        Read, Stage,
        shards::{self, Shard, Sharded},
    },
};

/// Documents with these texts, in their order.
pub(crate) fn texts<T: AsRef<str>>(of: &[T]) -> Texts {
    let text = |(i, text): (usize, &T)| Text {
        id: format!("{i:064}"),
        source: "test".into(),
        licence: String::new(),
        text: text.as_ref().to_owned(),
        special_tokens: false,
        marks: vec![],
    };
    Texts(of.iter().enumerate().map(text).collect())
}

/// Inputs and outputs of one stage under test.
pub(crate) struct Bench {
    dir: TempDir,
    /// Folders that inputs lie in.
    kept: Vec<TempDir>,
    inputs: BTreeMap<String, Files>,
    reads: Files,
    seed: u64,
    memory: Option<u64>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, kept: Vec::new(), inputs: BTreeMap::new(), reads: Files::new(), seed: 0, memory: None }
    }

    /// Gives the artifact at an input port.
    pub(crate) fn input(mut self, port: &str, artifact: &impl Artifact) -> Self {
        let dir = self.dir.path().join("inputs").join(port);
        std::fs::create_dir_all(&dir).unwrap();
        artifact.save(&dir).unwrap();
        self.inputs.insert(port.to_owned(), listing(&dir));
        self
    }

    /// Gives the files that the stage declared.
    pub(crate) fn reads(mut self, reads: Vec<Read>) -> Self {
        self.reads = reads.into_iter().map(|read| (read.name, read.path)).collect();
        self
    }

    /// Sets the seed.
    pub(crate) fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the main memory that the stage should keep within.
    pub(crate) fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Runs the stage on the CPU.
    pub(crate) fn run<S: Stage>(&self, stage: &S) -> Result<(), Failure> {
        self.run_with(stage, &Quiet, &NoCheckpoints, &Stop::default())
    }

    /// Runs the stage with handles of the test's own.
    pub(crate) fn run_with<S: Stage>(
        &self,
        stage: &S,
        progress: &dyn Progress,
        checkpoints: &dyn Checkpoints,
        stop: &Stop,
    ) -> Result<(), Failure> {
        self.run_as(S::OUTPUTS, (progress, checkpoints, stop), |cx| stage.run(cx))
    }

    /// Runs a part of a stage that writes these outputs.
    pub(crate) fn run_in(
        &self,
        outputs: &[OutputPort],
        run: impl FnOnce(&Cx<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        self.run_as(outputs, (&Quiet, &NoCheckpoints, &Stop::default()), run)
    }

    /// Runs a stage in shards; the bench that comes back holds what the merge wrote.
    pub(crate) fn run_shards<S: Sharded>(self, stage: &S, of: usize) -> Result<Self, Failure> {
        let mut merging = Self::new().seed(self.seed);
        if let Some(split) = S::SPLIT {
            self.run_in(shards::ports(of), |cx| (split.run)(split.port, of, cx))?;
        }
        for index in 0..of {
            let mut bench = Self::new().seed(self.seed);
            (bench.inputs, bench.reads) = (self.inputs.clone(), self.reads.clone());
            if let Some(split) = S::SPLIT {
                bench.inputs.insert(split.port.to_owned(), self.files(shards::ports(of)[index].name));
            }
            bench.run_in(S::OUTPUTS, |cx| stage.run_shard(Shard { index, of }, cx))?;
            for output in S::OUTPUTS {
                merging.inputs.insert(shards::merge_port(output.name, index), bench.files(output.name));
            }
            merging.kept.push(bench.dir);
        }
        merging.run_in(S::OUTPUTS, |cx| stage.merge(of, cx))?;
        Ok(merging)
    }

    fn run_as(
        &self,
        outputs: &[OutputPort],
        (progress, checkpoints, stop): (&dyn Progress, &dyn Checkpoints, &Stop),
        run: impl FnOnce(&Cx<'_>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        for port in outputs {
            std::fs::create_dir_all(self.out().join(port.name)).unwrap();
        }
        let scratch = self.dir.path().join("scratch");
        std::fs::create_dir_all(&scratch).unwrap();
        run(&Cx {
            inputs: self.inputs.clone(),
            reads: self.reads.clone(),
            out: self.out(),
            scratch,
            log: self.dir.path().join("log"),
            seed: self.seed,
            device: "cpu".to_owned(),
            memory: self.memory,
            progress,
            checkpoints,
            stop,
        })
    }

    /// The files of an output port.
    pub(crate) fn files(&self, port: &str) -> Files {
        listing(&self.out().join(port))
    }

    /// The artifact at an output port.
    pub(crate) fn load<T: Artifact>(&self, port: &str) -> T {
        T::load(&self.files(port)).unwrap()
    }

    /// The bytes of every file of every output port.
    pub(crate) fn bytes(&self) -> BTreeMap<String, Vec<u8>> {
        let mut all = BTreeMap::new();
        for port in std::fs::read_dir(self.out()).unwrap() {
            let port = port.unwrap().file_name().into_string().unwrap();
            for (name, path) in self.files(&port) {
                all.insert(format!("{port}/{name}"), std::fs::read(path).unwrap());
            }
        }
        all
    }

    fn out(&self) -> std::path::PathBuf {
        self.dir.path().join("out")
    }
}

/// Every file below a folder, by its name with `/` between the parts.
fn listing(dir: &Path) -> Files {
    let name = |path: &Path| path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
    let entries = walkdir::WalkDir::new(dir).into_iter().map(|entry| entry.unwrap());
    let files = entries.filter(|entry| entry.file_type().is_file());
    files.map(|entry| (name(entry.path()), entry.into_path())).collect()
}

/// Keeps the newest checkpoint in a folder, and asks for a stop once `last` were kept.
pub(crate) struct Kept<'a> {
    dir: &'a Path,
    last: usize,
    count: AtomicUsize,
    pub(crate) stop: Stop,
}

impl<'a> Kept<'a> {
    pub(crate) fn new(dir: &'a Path, last: usize) -> Self {
        Self { dir, last, count: 0.into(), stop: Stop::default() }
    }

    /// How many were kept.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

impl Checkpoints for Kept<'_> {
    fn latest(&self) -> io::Result<Option<Files>> {
        let files = files_in(self.dir).map_err(io::Error::other)?;
        Ok((!files.is_empty()).then_some(files))
    }

    fn publish(&self, dir: &Path) -> io::Result<()> {
        for path in files_in(self.dir).map_err(io::Error::other)?.into_values() {
            fs::remove_file(path)?;
        }
        for (name, path) in files_in(dir).map_err(io::Error::other)? {
            fs::rename(path, self.dir.join(name))?;
        }
        if self.count.fetch_add(1, Ordering::SeqCst) + 1 == self.last {
            self.stop.raise();
        }
        Ok(())
    }
}

/// Remembers what was said.
#[derive(Default)]
pub(crate) struct Says(pub(crate) Mutex<Vec<String>>);

impl Progress for Says {
    fn phase(&self, _: &str, _: Option<u64>, _: &str) {}
    fn advance(&self, _: u64) {}
    fn note(&self, _: &str) {}
    fn say(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}
