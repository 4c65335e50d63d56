//! Stages that read a hub: their keys hold what the files are, not where; the hub is asked when a key is made, and for files only by
//! a stage that runs.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use super::*;
use crate::engine::{
    action::{Class, Files, Progress},
    hub::{Hub, HubFailure, Pinned, Repo, RepoFile, RepoKind},
    limits::Retry,
    ticket::{Ticket, Worked},
};

/// A hub with one file, which a test may change.
#[derive(Clone)]
struct OneFile {
    path: PathBuf,
    text: Arc<Mutex<String>>,
    asked: Asked,
    gone: Arc<AtomicBool>,
    /// The next fetch fails.
    breaks: Arc<AtomicBool>,
}

type Asked = Arc<Mutex<Vec<&'static str>>>;

impl OneFile {
    fn new(space: &Space, text: &str) -> Self {
        let text = Arc::new(Mutex::new(text.to_owned()));
        Self {
            path: space.dir.path().join("of-hub"),
            text,
            asked: Asked::default(),
            gone: Arc::default(),
            breaks: Arc::default(),
        }
    }

    fn is(&self, text: &str) {
        text.clone_into(&mut self.text.lock().unwrap());
    }

    fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    fn options(&self) -> Options {
        Options { hub: Arc::new(self.clone()), ..Options::default() }
    }
}

impl Hub for OneFile {
    fn pin(&self, repo: &Repo) -> Result<Pinned, HubFailure> {
        self.asked.lock().unwrap().push("pin");
        if self.gone.load(Ordering::Relaxed) {
            return Err(HubFailure::Passing("the hub is gone".into()));
        }
        let oid = crate::store::Digest::of(self.text.lock().unwrap().as_bytes()).to_string();
        let file = RepoFile { path: "a.txt".into(), bytes: 1, oid, lfs: false };
        let (prefix, id) = (repo.prefix.clone(), repo.id.clone());
        Ok(Pinned { prefix, kind: repo.kind, id, commit: "0".repeat(40), files: vec![file] })
    }

    fn fetch(&self, pinned: &Pinned, _: &dyn Progress, _: &Stop) -> Result<Files, HubFailure> {
        self.asked.lock().unwrap().push("fetch");
        if self.breaks.swap(false, Ordering::Relaxed) {
            return Err(HubFailure::Passing("the hub is gone".into()));
        }
        fs::write(&self.path, &*self.text.lock().unwrap()).unwrap();
        Ok(BTreeMap::from([(pinned.files[0].path.clone(), self.path.clone())]))
    }
}

fn repo(id: &str, revision: &str) -> Repo {
    let (id, revision) = (id.to_owned(), revision.to_owned());
    Repo { prefix: "data/".into(), kind: RepoKind::Dataset, id, revision, files: vec!["*".into()] }
}

fn reader(space: &Space, id: &str, revision: &str) -> Vec<Node> {
    vec![space.fake("a").repo(repo(id, revision)).node()]
}

#[test]
fn the_files_of_a_hub_are_in_the_key_and_their_place_is_not() {
    let space = Space::new();
    let hub = OneFile::new(&space, "one");
    let run = |id, revision| space.run_with(reader(&space, id, revision), &hub.options());
    let first = run("o/n", "main");
    assert_eq!((line(&first), hub.asked()), ("a:ran".to_owned(), vec!["pin", "fetch"]));
    assert!(text(&first, "a").contains("data/a.txt: one"));
    assert_eq!((line(&run("other/name", "v2")), hub.asked()), ("a:cached".to_owned(), vec!["pin"]));

    hub.is("two");
    let plan = space.plan(reader(&space, "o/n", "main"), &hub.options());
    assert_eq!(stage(&plan, "a").why, "file `data/a.txt` of the hub has other content");
    assert_eq!(line(&run("o/n", "main")), "a:ran");
    hub.is("one");
    assert_eq!(line(&run("o/n", "main")), "a:cached");
}

#[test]
fn a_hub_that_cannot_be_asked_fails_the_stage_alone() {
    let space = Space::new();
    let hub = OneFile::new(&space, "one");
    hub.gone.store(true, Ordering::Relaxed);
    let options = Options { keep_going: true, ..hub.options() };
    let nodes = || {
        let mut nodes = reader(&space, "o/n", "main");
        nodes.push(space.fake("b").node());
        nodes.push(space.fake("c").reading(&[0]));
        nodes
    };
    let plan = space.plan(nodes(), &options);
    assert_eq!(line(&plan), "a:blocked b:run c:blocked");
    let ran = space.run_with(nodes(), &options);
    assert_eq!(line(&ran), "a:failed b:ran c:blocked");
    assert_eq!(stage(&ran, "a").why, "the hub is gone");
}

#[test]
fn a_fetch_that_failed_may_be_tried_again() {
    let space = Space::new();
    let hub = OneFile::new(&space, "one");
    hub.breaks.store(true, Ordering::Relaxed);
    let fake = space.fake("a").repo(repo("o/n", "main"));
    let mut node = fake.node();
    node.limits.retry = Retry { times: 1, backoff: std::time::Duration::ZERO, on: [Class::Io].into() };
    let ran = space.run_with(vec![node], &hub.options());
    assert_eq!((line(&ran), hub.asked()), ("a:ran".to_owned(), vec!["pin", "fetch", "fetch"]));
}

/// The host that works may have no network, and a branch may have moved meanwhile.
#[test]
fn a_ticket_carries_what_was_pinned() {
    let space = Space::new();
    let hub = OneFile::new(&space, "one");
    let (store, graph) = (space.store(), Graph::new(reader(&space, "o/n", "main")).unwrap());
    let options = hub.options();
    let engine = Engine { store: &store, graph: &graph, options: &options };
    let latest = crate::engine::latest::Latest::open(&store, "p").unwrap();
    let run = crate::engine::options::Mode::Run;
    let resolved = engine.resolve((crate::engine::graph::NodeId(0), run), &[None], &latest).unwrap();
    let crate::engine::resolve::Resolved::Miss(miss) = resolved else { panic!("nothing was run yet") };
    let ticket = Ticket::new(graph.node(crate::engine::graph::NodeId(0)), &miss, "cpu");
    ticket.save(&store).unwrap();
    assert_eq!(hub.asked(), ["pin"]);

    let ticket = Ticket::load(&store, &miss.digest).unwrap();
    let graph = Engine::alone(space.fake("a").repo(repo("o/n", "main")).node());
    let engine = Engine { store: &store, graph: &graph, options: &options };
    let worked = engine.work(&ticket, &Silent, &Stop::default()).unwrap();
    assert_eq!((worked, hub.asked()), (Worked::Done, vec!["fetch"]));
}
