//! Fake actions for tests, with a log of what ran.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex},
};

use serde_json::json;

use super::{
    action::{Action, Cx, Failure, Numerics, OutputPort, Pool, Repo},
    graph::{Node, NodeId, Source},
    limits::Limits,
};

/// The parameters' names of what ran, in order of start.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// What ran since the last call, sorted.
    pub(crate) fn take(&self) -> Vec<String> {
        let mut ran = std::mem::take(&mut *self.0.lock().unwrap());
        ran.sort();
        ran
    }
}

type Behaviour = Arc<dyn Fn(&Cx<'_>) -> Result<(), Failure> + Send + Sync>;

/// A stage whose output `out/data` is a function of its parameters, inputs and files.
#[derive(Clone)]
pub(crate) struct Fake {
    name: String,
    params: serde_json::Value,
    version: u32,
    pool: Pool,
    numerics: Numerics,
    log: Log,
    before: Behaviour,
    repos: Vec<Repo>,
    constant: bool,
}

impl Fake {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            params: json!({ "is": name }),
            version: 1,
            pool: Pool::Cpu,
            numerics: Numerics::Bitwise,
            log: Log::default(),
            before: Arc::new(|_| Ok(())),
            repos: Vec::new(),
            constant: false,
        }
    }

    pub(crate) fn param(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.params[name] = value.into();
        self
    }

    pub(crate) fn version(self, version: u32) -> Self {
        Self { version, ..self }
    }

    pub(crate) fn pool(self, pool: Pool) -> Self {
        Self { pool, ..self }
    }

    pub(crate) fn numerics(self, numerics: Numerics) -> Self {
        Self { numerics, ..self }
    }

    pub(crate) fn log(self, log: &Log) -> Self {
        Self { log: log.clone(), ..self }
    }

    /// Reads a repository of the hub.
    pub(crate) fn repo(mut self, repo: Repo) -> Self {
        self.repos.push(repo);
        self
    }

    /// Writes the same bytes whatever it reads.
    pub(crate) fn constant(self) -> Self {
        Self { constant: true, ..self }
    }

    /// Does this first.
    pub(crate) fn first(
        self,
        before: impl Fn(&Cx<'_>) -> Result<(), Failure> + Send + Sync + 'static,
    ) -> Self {
        Self { before: Arc::new(before), ..self }
    }

    /// Fails with these words.
    pub(crate) fn fails(self, words: &'static str) -> Self {
        self.first(move |_| Err(Failure::stage(words)))
    }

    /// A node that reads nothing yet.
    pub(crate) fn node(self) -> Node {
        Node {
            name: self.name.clone(),
            action: Box::new(self),
            inputs: BTreeMap::new(),
            reads: Vec::new(),
            seed: 0,
            salt: None,
            recipe: None,
            limits: Limits::default(),
        }
    }

    /// A node that reads these nodes at ports `in0`, `in1` and so on.
    pub(crate) fn reading(self, producers: &[usize]) -> Node {
        let mut node = self.node();
        for (port, &producer) in producers.iter().enumerate() {
            node.inputs.insert(format!("in{port}"), Source { node: NodeId(producer), port: "out".into() });
        }
        node
    }
}

impl Action for Fake {
    fn kind(&self) -> &'static str {
        "fake"
    }
    fn code(&self) -> BTreeMap<String, String> {
        [("fake.rs".to_owned(), self.version.to_string())].into()
    }
    fn pool(&self) -> Pool {
        self.pool
    }
    fn numerics(&self) -> Numerics {
        self.numerics
    }
    fn params(&self) -> serde_json::Value {
        self.params.clone()
    }
    fn repos(&self) -> Vec<Repo> {
        self.repos.clone()
    }
    fn outputs(&self) -> &'static [OutputPort] {
        &[OutputPort { name: "out", kind: "text" }]
    }
    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        self.log.0.lock().unwrap().push(self.params["is"].as_str().unwrap_or_default().to_owned());
        (self.before)(cx)?;
        let mut text = self.params["is"].to_string();
        if !self.constant {
            text = format!("{} v{} seed {}\n", self.params, self.version, cx.seed);
            for (port, files) in &cx.inputs {
                for (name, path) in files {
                    let bytes = fs::read_to_string(path).map_err(Failure::stage)?;
                    text.extend([port, "/", name, ": ", &bytes, "\n"]);
                }
            }
            for (name, path) in &cx.reads {
                let bytes = fs::read_to_string(path).map_err(Failure::stage)?;
                text.extend([name, ": ", &bytes, "\n"]);
            }
        }
        fs::write(cx.output("out").join("data"), text).map_err(Failure::stage)
    }
}
