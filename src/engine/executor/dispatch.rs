//! From the queues to the workers: a job is claimed, or left to the process that has claimed it.

use std::{sync::mpsc::Sender, thread};

use super::Session;
use crate::{
    engine::{
        event::Event,
        failure::chain,
        graph::NodeId,
        reason::sentence,
        state::{State, Status},
        worker::{Attempt, Job},
    },
    store::{Claim, Claimed, Owner},
};

impl<'a> Session<'a> {
    /// Starts as many queued jobs as there are free workers.
    pub(super) fn dispatch<'scope>(
        &mut self,
        scope: &'scope thread::Scope<'scope, '_>,
        done: &Sender<Attempt>,
    ) where
        'a: 'scope,
    {
        self.look_at_stop();
        if self.halted.is_none() {
            self.hand_over();
        }
        for pool in 0..self.pools.len() {
            while self.halted.is_none()
                && self.pools[pool].running < self.pools[pool].limit
                && let Some(job) = self.pools[pool].queue.pop_front()
            {
                match self.engine.store.claim(&job.miss.digest) {
                    Ok(Claimed::Mine(claim)) => {
                        self.pools[pool].running += 1;
                        self.start(scope, done, job, claim);
                    }
                    Ok(Claimed::Theirs(owner)) => self.leave(&job, owner.as_ref()),
                    Err(error) => {
                        let twins = self.in_work.remove(&job.miss.digest).unwrap_or_default();
                        self.elsewhere.extend(twins);
                        self.fail(self.engine.summary(job.id, Status::Failed, chain(&error)), job.id);
                    }
                }
            }
        }
    }

    fn start<'scope>(
        &mut self,
        scope: &'scope thread::Scope<'scope, '_>,
        done: &Sender<Attempt>,
        job: Job,
        claim: Claim,
    ) where
        'a: 'scope,
    {
        self.states.set(job.id, State::Running);
        let (engine, journal, stop, done) = (self.engine, self.journal, self.stop, done.clone());
        let node = engine.graph.node(job.id);
        let why = sentence(&job.miss.reasons);
        let (stage, kind, key) = (&node.name, node.action.kind(), job.miss.digest);
        journal.tell(&Event::StageStarted { stage, kind, key, why: &why });
        scope.spawn(move || {
            let attempt = engine.attempt(job, journal, stop);
            drop(claim);
            // The receiver lives until every attempt has reported.
            drop(done.send(attempt));
        });
    }

    /// Another process runs the key: it and the nodes of the same key are looked up again later.
    pub(super) fn leave(&mut self, job: &Job, owner: Option<&Owner>) {
        self.states.set(job.id, State::Ready);
        let twins = self.in_work.remove(&job.miss.digest).unwrap_or_default();
        let owner = owner.map_or_else(|| "another process".to_owned(), ToString::to_string);
        if self.told.insert(job.id) {
            self.journal.tell(&Event::StageWaits { stage: self.engine.name(job.id), owner: &owner });
        }
        self.elsewhere.push(job.id);
        self.elsewhere.extend::<Vec<NodeId>>(twins);
    }
}
