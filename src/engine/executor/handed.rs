//! Stages that a cluster runs: handed over when they are ready, and found in the cache when they are done.

use std::time::{Duration, Instant};

use super::Session;
use crate::{
    engine::{
        action::Class,
        cluster::News,
        event::Event,
        failure::chain,
        graph::NodeId,
        reason::sentence,
        relay::Heard,
        resolve::Miss,
        state::{State, Status},
        summary,
        ticket::Ticket,
        worker::{Attempt, Job},
    },
    store::{Claim, Claimed, Digest, Lookup, Record},
};

/// A stage that a cluster runs.
pub(super) struct Handed {
    id: NodeId,
    miss: Miss,
    since: Instant,
    /// What the cache had of it before; a forced stage is done once it has something else.
    before: Option<Record>,
    /// The right to hand it over, so that of several runs one does.
    _claim: Claim,
    heard: Heard,
}

impl Session<'_> {
    /// Hands over what has become ready since the last time.
    pub(super) fn hand_over(&mut self) {
        let now = Instant::now();
        let due = self.again.extract_if(.., |(when, _)| *when <= now).map(|(_, job)| job);
        self.outbox.extend(due);
        let jobs = std::mem::take(&mut self.outbox);
        let Some(cluster) = self.engine.options.cluster.as_deref().filter(|_| !jobs.is_empty()) else {
            return;
        };
        let (mut tickets, mut handed) = (Vec::new(), Vec::new());
        for job in jobs {
            if self.engine.fetches(job.id, &job.miss.digest) {
                self.leave(&job, None); // the next look finds it
                continue;
            }
            let key = Digest::derive("mla-run 2026-11 hand over v1", job.miss.digest.as_bytes());
            match self.engine.store.claim(&key) {
                Ok(Claimed::Theirs(owner)) => self.leave(&job, owner.as_ref()),
                Err(error) => self.refuse(&job, chain(&error)),
                Ok(Claimed::Mine(claim)) => {
                    let node = self.engine.graph.node(job.id);
                    let ticket = Ticket::new(node, &job.miss, &self.engine.options.device);
                    // Before it is handed over: a quick job has recorded it by the time that it is.
                    let before =
                        ticket.forced.then(|| self.engine.store.record(&job.miss.digest).ok()?).flatten();
                    tickets.push(ticket);
                    handed.push((job, before, claim));
                }
            }
        }
        let refused = cluster.submit(&tickets).err();
        for (job, before, claim) in handed {
            if let Some(why) = &refused {
                self.refuse(&job, why.clone());
                continue;
            }
            self.states.set(job.id, State::Running);
            let node = self.engine.graph.node(job.id);
            let why = sentence(&job.miss.reasons);
            let (stage, kind, key) = (&*node.name, node.action.kind(), job.miss.digest);
            self.journal.tell(&Event::StageStarted { stage, kind, key, why: &why });
            let Job { id, miss } = job;
            self.handed.insert(
                key,
                Handed { id, miss, since: Instant::now(), before, _claim: claim, heard: Heard::default() },
            );
        }
    }

    fn refuse(&mut self, job: &Job, why: String) {
        let twins = self.in_work.remove(&job.miss.digest).unwrap_or_default();
        self.elsewhere.extend(twins);
        let mut stage = self.engine.summary(job.id, Status::Failed, why);
        stage.key = Some(job.miss.digest);
        self.fail(stage, job.id);
    }

    /// Looks what of it is done; returns the nodes that become ready by it.
    pub(super) fn collect(&mut self) -> Vec<NodeId> {
        let Some(cluster) = self.engine.options.cluster.as_deref().filter(|_| !self.handed.is_empty()) else {
            return Vec::new();
        };
        let mut ready = self.collect_recorded();
        self.listen();
        for (key, news) in cluster.news() {
            let Some(handed) = self.handed.get(&key) else { continue };
            let (why, class) = match news {
                News::Going(text) => {
                    self.journal.tell(&Event::Note { stage: self.engine.name(handed.id), text: &text });
                    continue;
                }
                News::Failed(why) => (why, None),
                News::Lost(why, class) => (why, class),
            };
            // The record may have come between the two looks.
            ready.extend(self.collect_recorded());
            if let Some(handed) = self.handed.remove(&key) {
                ready.extend(self.give_up_or_try_again(handed, why, class));
            }
        }
        ready
    }

    /// A job that was lost is handed over again as often as the stage's `retry` says.
    fn give_up_or_try_again(&mut self, handed: Handed, why: String, class: Option<Class>) -> Vec<NodeId> {
        let lost = self.lost_jobs.entry(handed.miss.digest).or_default();
        *lost += 1;
        let node = self.engine.graph.node(handed.id);
        let Some(pause) = node.limits.retry.pause(*lost, class).filter(|_| !self.stop.is_raised()) else {
            return self.settle(self.attempt_of(handed, Err(why)));
        };
        let (stage, attempt) = (&*node.name, *lost);
        self.journal.tell(&Event::StageRetries { stage, attempt, pause: pause.as_secs_f64(), why: &why });
        self.states.set(handed.id, State::Queued);
        self.again.push((Instant::now() + pause, Job { id: handed.id, miss: handed.miss }));
        Vec::new()
    }

    fn collect_recorded(&mut self) -> Vec<NodeId> {
        let mut done = Vec::new();
        for (key, handed) in &self.handed {
            match self.engine.store.lookup(key) {
                Ok(Lookup::Hit(record)) if handed.before.as_ref() != Some(&record) => {
                    done.push((*key, record));
                }
                // A cache that cannot be read now may be readable later; the cluster's news end the wait otherwise.
                Ok(Lookup::Hit(_) | Lookup::Miss(_)) | Err(_) => {}
            }
        }
        let mut ready = Vec::new();
        for (key, record) in done {
            if let Some(mut handed) = self.handed.remove(&key) {
                // The last lines may have come since.
                let stage = self.engine.name(handed.id);
                handed.heard.listen(self.engine.store, &key, stage, &mut |event| self.journal.tell(event));
                self.engine.publish(handed.id, &record, self.journal);
                ready.extend(self.settle(self.attempt_of(handed, Ok(record))));
            }
        }
        ready
    }

    /// Tells how far the stages are. Of many each is asked more rarely, since hosts share the disk.
    fn listen(&mut self) {
        let pause = Duration::from_secs(2).max(Duration::from_secs(self.handed.len() as u64 / 50));
        if self.listened.is_some_and(|last| last.elapsed() < pause) {
            return;
        }
        self.listened = Some(Instant::now());
        for (key, handed) in &mut self.handed {
            let stage = self.engine.name(handed.id);
            handed.heard.listen(self.engine.store, key, stage, &mut |event| self.journal.tell(event));
        }
    }

    /// Takes back what the cluster has not done: the run was stopped.
    pub(super) fn take_back(&mut self) {
        if let Some(cluster) = self.engine.options.cluster.as_deref().filter(|_| !self.handed.is_empty()) {
            cluster.cancel();
        }
        for (_, job) in std::mem::take(&mut self.again) {
            self.refuse(&job, "its job was lost, and the run was stopped".to_owned());
        }
        for (_, handed) in std::mem::take(&mut self.handed) {
            let attempt =
                self.attempt_of(handed, Err("its job was cancelled, because the run was stopped".to_owned()));
            self.settle(attempt);
        }
    }

    /// What the cluster did, in the form of what a worker does here.
    fn attempt_of(&self, handed: Handed, result: Result<Record, String>) -> Attempt {
        let Handed { id, miss, since, .. } = handed;
        let seconds = result.as_ref().map_or(since.elapsed().as_secs_f64(), |record| record.seconds);
        let peak_memory = result.as_ref().ok().and_then(|record| record.peak_memory);
        let lost = if result.is_err() { self.engine.lost_inputs(id, &miss) } else { Vec::new() };
        let result = result.and_then(|record| {
            let outputs = summary::outputs(self.engine.store, &record).map_err(|error| chain(&error))?;
            Ok((record.into(), outputs))
        });
        Attempt {
            id,
            digest: miss.digest,
            seconds,
            count: 1,
            peak_memory,
            log: None,
            reasons: miss.reasons,
            result,
            found: None,
            lost,
            checkpointed: false,
        }
    }
}
