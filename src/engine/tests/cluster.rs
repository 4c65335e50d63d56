//! Runs whose stages another process does, and runs that share what they make: with a cluster and a shared cache made of threads.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    thread::{self, sleep},
    time::Duration,
};

use super::*;
use crate::{
    engine::{
        action::Class,
        cluster::{Cluster, News},
        limits::Retry,
        shared::Shared,
        ticket::{Ticket, TicketError, Worked},
    },
    store::{Digest, Lookup, Record},
};

/// The names of the stages in each submission.
type Submitted = Arc<Mutex<Vec<Vec<String>>>>;

/// Does each ticket in a thread with a store of its own. The recipe of a stage is its name.
struct Threads {
    root: PathBuf,
    stages: Mutex<BTreeMap<String, Fake>>,
    news: Arc<Mutex<Vec<(Digest, News)>>>,
    submitted: Submitted,
    stop: Arc<Stop>,
    /// How many jobs are lost first, and to what.
    losing: Mutex<(u32, Option<Class>)>,
    /// Whether a stage is done before its submission returns, after which nobody knows its job any more.
    hasty: bool,
}

impl Threads {
    fn boxed(space: &Space, stages: &[Fake]) -> (Box<Self>, Submitted) {
        let submitted = Submitted::default();
        let named = stages.iter().map(|fake| (fake.clone().node().name, fake.clone())).collect();
        let threads = Self {
            root: space.dir.path().join("cache"),
            stages: Mutex::new(named),
            news: Arc::default(),
            submitted: submitted.clone(),
            stop: Arc::default(),
            losing: Mutex::default(),
            hasty: false,
        };
        (Box::new(threads), submitted)
    }
}

fn work(root: &std::path::Path, fake: Fake, key: Digest, stop: &Stop) -> Result<Worked, TicketError> {
    let store = Store::open(root).unwrap();
    let ticket = Ticket::load(&store, &key)?;
    let mut node = fake.node();
    node.reads.clone_from(&ticket.reads);
    node.seed = ticket.key.seed;
    let graph = Engine::alone(node);
    let options = Options::default();
    Engine { store: &store, graph: &graph, options: &options }.work(&ticket, &Silent, stop)
}

impl Cluster for Threads {
    fn submit(&self, tickets: &[Ticket]) -> Result<(), String> {
        if tickets.is_empty() {
            return Ok(());
        }
        self.submitted.lock().unwrap().push(tickets.iter().map(|ticket| ticket.stage.clone()).collect());
        let store = Store::open(&self.root).unwrap();
        for ticket in tickets {
            if ticket.stage == "refused" {
                return Err("the queue is closed".to_owned());
            }
            ticket.save(&store).unwrap();
            let fake = self.stages.lock().unwrap()[&ticket.recipe].clone();
            let (root, key, news, stop) =
                (self.root.clone(), ticket.key.digest(), self.news.clone(), self.stop.clone());
            self.news.lock().unwrap().push((key, News::Going("job 1 waits".to_owned())));
            let (left, class) = *self.losing.lock().unwrap();
            if left > 0 {
                self.losing.lock().unwrap().0 -= 1;
                self.news.lock().unwrap().push((key, News::Lost("the node is gone".to_owned(), class)));
                continue;
            }
            let hasty = self.hasty;
            let job = thread::spawn(move || {
                let why = match work(&root, fake, key, &stop) {
                    Ok(Worked::Done) if hasty => "ended without a result".to_owned(),
                    Ok(Worked::Done | Worked::Stopped { .. }) => return,
                    Ok(Worked::Failed(why)) => why,
                    Err(error) => error.to_string(),
                };
                news.lock().unwrap().push((key, News::Failed(why)));
            });
            if hasty {
                job.join().unwrap();
            }
        }
        Ok(())
    }

    fn news(&self) -> Vec<(Digest, News)> {
        std::mem::take(&mut self.news.lock().unwrap())
    }

    fn cancel(&self) {
        self.stop.raise();
    }
}

/// The node, marked as one that a cluster can run.
fn there(mut node: Node) -> Node {
    node.recipe = Some(node.name.clone());
    node
}

fn fan(space: &Space) -> (Vec<Fake>, Vec<Node>) {
    let fakes: Vec<Fake> = ["a", "b", "c", "d"].map(|name| space.fake(name)).into();
    let reading = |i: usize, producers: &[usize]| there(fakes[i].clone().reading(producers));
    let nodes = vec![there(fakes[0].clone().node()), reading(1, &[0]), reading(2, &[0]), reading(3, &[1, 2])];
    (fakes, nodes)
}

#[test]
fn a_cluster_runs_what_is_ready_together_and_the_results_are_those_of_a_run_here() {
    let (here, away) = (Space::new(), Space::new());
    let expected = here.run(fan(&here).1);
    let (fakes, nodes) = fan(&away);
    let (cluster, submitted) = Threads::boxed(&away, &fakes);
    let options = Options { cluster: Some(cluster), ..Options::default() };
    let summary = away.run_with(nodes, &options);
    assert_eq!(line(&summary), "a:ran b:ran c:ran d:ran");
    assert_eq!(text(&summary, "d"), text(&expected, "d"));
    assert_eq!(*submitted.lock().unwrap(), [vec!["a"], vec!["b", "c"], vec!["d"]]);
    let b = stage(&summary, "b");
    assert_eq!(b.record.as_ref().unwrap().why, ["never run"], "the host that ran it knows why");
    assert_eq!(away.log.take(), ["a", "b", "c", "d"]);
    let (_, nodes) = fan(&away);
    assert_eq!(line(&away.run(nodes)), "a:cached b:cached c:cached d:cached");
}

#[test]
fn a_job_that_was_lost_is_handed_over_again_as_often_as_the_stage_says() {
    for (times, class, expected, jobs) in [
        (2, Some(Class::Killed), "a:ran", 3),
        (1, Some(Class::Killed), "a:failed", 2),
        (2, Some(Class::Memory), "a:failed", 1),
        (2, None, "a:failed", 1),
    ] {
        let space = Space::new();
        let fake = space.fake("a");
        let (mut cluster, submitted) = Threads::boxed(&space, std::slice::from_ref(&fake));
        cluster.losing = Mutex::new((2, class));
        let options = Options { cluster: Some(cluster), ..Options::default() };
        let mut node = there(fake.node());
        let backoff = Duration::from_millis(1);
        node.limits.retry = Retry { times, backoff, on: [Class::Killed].into() };
        let summary = space.run_with(vec![node], &options);
        assert_eq!((line(&summary).as_str(), submitted.lock().unwrap().len()), (expected, jobs), "{class:?}");
        if expected == "a:failed" {
            assert_eq!(stage(&summary, "a").why, "the node is gone");
        }
    }
}

#[test]
fn what_a_stage_says_there_is_told_here() {
    let space = Space::new();
    let fake = space.fake("a").first(|cx| {
        cx.progress.phase("reading", Some(4), "docs");
        cx.progress.say("halfway");
        cx.progress.say("at the end");
        Ok(())
    });
    let (cluster, _) = Threads::boxed(&space, std::slice::from_ref(&fake));
    let options = Options { cluster: Some(cluster), ..Options::default() };
    let summary = space.run_with(vec![there(fake.node())], &options);
    assert_eq!(line(&summary), "a:ran");
    let journal = space.dir.path().join("cache/run").join(&summary.run).join("events.jsonl");
    let journal = std::fs::read_to_string(journal).unwrap();
    for part in
        [r#""what":"reading","total":4,"unit":"docs""#, r#""text":"halfway""#, r#""text":"at the end""#]
    {
        assert_eq!(journal.matches(part).count(), 1, "{part} in {journal}");
    }
}

#[test]
fn what_is_done_before_its_submission_returns_is_seen() {
    let space = Space::new();
    for force in [Force::None, Force::All] {
        let fake = space.fake("a");
        let (mut cluster, _) = Threads::boxed(&space, std::slice::from_ref(&fake));
        cluster.hasty = true;
        let options = Options { cluster: Some(cluster), force, ..Options::default() };
        assert_eq!(line(&space.run_with(vec![there(fake.node())], &options)), "a:ran");
        assert_eq!(space.log.take(), ["a"]);
    }
}

#[test]
fn a_stage_that_fails_there_fails_here_with_its_words() {
    let space = Space::new();
    let fake = space.fake("a").fails("no such layer");
    let (cluster, _) = Threads::boxed(&space, std::slice::from_ref(&fake));
    let options = Options { cluster: Some(cluster), ..Options::default() };
    let summary = space.run_with(vec![there(fake.node()), space.fake("b").reading(&[0])], &options);
    assert_eq!(line(&summary), "a:failed b:blocked");
    assert_eq!(stage(&summary, "a").why, "no such layer");
}

#[test]
fn what_a_cluster_does_not_take_fails_and_what_it_cannot_run_runs_here() {
    let space = Space::new();
    let (cluster, submitted) = Threads::boxed(&space, &[]);
    let options = Options { cluster: Some(cluster), keep_going: true, ..Options::default() };
    let nodes = vec![there(space.fake("refused").node()), space.fake("here").node()];
    let summary = space.run_with(nodes, &options);
    assert_eq!(line(&summary), "refused:failed here:ran");
    assert_eq!(stage(&summary, "refused").why, "the queue is closed");
    assert_eq!(submitted.lock().unwrap().len(), 1);
}

#[test]
fn a_stopped_run_takes_its_jobs_back() {
    let space = Space::new();
    let waits = space.fake("a").first(|cx| {
        while !cx.stop.is_raised() {
            sleep(Duration::from_millis(2));
        }
        cx.check_stop()
    });
    let (cluster, submitted) = Threads::boxed(&space, std::slice::from_ref(&waits));
    let options = Options { cluster: Some(cluster), ..Options::default() };
    let stop = Stop::default();
    let summary = thread::scope(|scope| {
        let run = scope.spawn(|| space.try_run(vec![there(waits.node())], &options, &stop).unwrap());
        while submitted.lock().unwrap().is_empty() {
            sleep(Duration::from_millis(2));
        }
        stop.raise();
        run.join().unwrap()
    });
    assert_eq!(line(&summary), "a:failed");
    assert!(stage(&summary, "a").why.contains("cancelled"), "{}", stage(&summary, "a").why);
}

#[test]
fn a_forced_stage_is_done_once_there_is_a_new_record() {
    let space = Space::new();
    let (fakes, nodes) = fan(&space);
    space.run(nodes);
    space.log.take();
    let slow = |fake: &Fake| {
        fake.clone().first(|_| {
            sleep(Duration::from_millis(50));
            Ok(())
        })
    };
    let fakes: Vec<Fake> = fakes.iter().map(slow).collect();
    let (cluster, _) = Threads::boxed(&space, &fakes);
    let force = Force::Stages(["a".to_owned()].into());
    let options = Options { cluster: Some(cluster), force, ..Options::default() };
    let summary = space.run_with(fan(&space).1, &options);
    assert_eq!(line(&summary), "a:ran b:cached c:cached d:cached");
    assert_eq!(space.log.take(), ["a"]);
}

#[test]
fn a_ticket_is_refused_where_anything_is_different() {
    let space = Space::new();
    let file = space.file("doc", "one");
    let fake = space.fake("a");
    let node = |fake: &Fake| {
        let mut node = there(fake.clone().node());
        node.reads.push(("doc".to_owned(), file.clone()));
        node
    };
    let (cluster, _) = Threads::boxed(&space, &[fake.clone().param("rank", 2)]);
    let options = Options { cluster: Some(cluster), ..Options::default() };
    let summary = space.run_with(vec![node(&fake)], &options);
    let why = &stage(&summary, "a").why;
    assert!(why.contains("another key") && why.contains("parameter `rank` is new"), "{why}");

    let key = stage(&summary, "a").key.unwrap();
    fs::write(&file, "two").unwrap();
    let error = work(&space.dir.path().join("cache"), fake, key, &Stop::default()).unwrap_err().to_string();
    assert!(error.contains("file `doc` has other content"), "{error}");
    fs::write(space.dir.path().join(format!("cache/job/{key}.json")), "{}").unwrap();
    assert!(matches!(Ticket::load(&space.store(), &key), Err(TicketError::Damaged)));
    assert!(matches!(Ticket::load(&space.store(), &Digest::of(b"none")), Err(TicketError::None)));
}

/// A shared cache that is another folder.
struct Folder {
    here: Store,
    shared: Store,
    broken: bool,
}

impl Shared for Folder {
    fn fetch(&self, key: &Digest) -> Result<bool, String> {
        if self.broken {
            return Err("no route".to_owned());
        }
        let Ok(Lookup::Hit(record)) = self.shared.lookup(key) else { return Ok(false) };
        self.here.import(&self.shared, &record).map(|()| true).map_err(|error| error.to_string())
    }
    fn publish(&self, record: &Record) -> Result<(), String> {
        if self.broken {
            return Err("no route".to_owned());
        }
        self.shared.import(&self.here, record).map_err(|error| error.to_string())
    }
}

fn sharing(space: &Space, shared: &std::path::Path, broken: bool) -> Options {
    let folder = Folder { here: space.store(), shared: Store::open(shared).unwrap(), broken };
    Options { shared: Some(Box::new(folder)), ..Options::default() }
}

#[test]
fn what_one_machine_made_the_next_one_takes() {
    let shared = tempfile::tempdir().unwrap();
    let (one, two) = (Space::new(), Space::new());
    let first = one.run_with(one.chain(1), &sharing(&one, shared.path(), false));
    let second = two.run_with(two.chain(1), &sharing(&two, shared.path(), false));
    assert_eq!(line(&second), "a:cached b:cached c:cached");
    assert_eq!(stage(&second, "c").why, "taken from the shared cache");
    assert_eq!(text(&second, "c"), text(&first, "c"));
    assert!(two.log.take().is_empty());
    let forced = Options { force: Force::All, ..sharing(&two, shared.path(), false) };
    assert_eq!(line(&two.run_with(two.chain(1), &forced)), "a:ran b:ran c:ran", "force means here");
}

#[test]
fn a_gate_lets_through_what_can_be_taken() {
    let shared = tempfile::tempdir().unwrap();
    let (one, two) = (Space::new(), Space::new());
    one.run_with(one.chain(1), &sharing(&one, shared.path(), false));
    let closed = |_: &str, _: &Digest| Err("nothing runs".to_owned());
    let options = Options { gate: Some(Box::new(closed)), ..sharing(&two, shared.path(), false) };
    assert_eq!(line(&two.run_with(two.chain(1), &options)), "a:cached b:cached c:cached");
    let other = two.run_with(two.chain(2), &options);
    assert_eq!(line(&other), "a:cached b:failed c:blocked");
}

#[test]
fn a_shared_cache_that_cannot_be_reached_stops_nothing() {
    let shared = tempfile::tempdir().unwrap();
    let space = Space::new();
    let summary = space.run_with(space.chain(1), &sharing(&space, shared.path(), true));
    assert_eq!(line(&summary), "a:ran b:ran c:ran");
    let journal = space.dir.path().join("cache/run").join(&summary.run).join("events.jsonl");
    let journal = fs::read_to_string(journal).unwrap();
    assert!(journal.contains("not taken from the shared cache: no route"), "{journal}");
    assert!(journal.contains("not put into the shared cache: no route"), "{journal}");
}
