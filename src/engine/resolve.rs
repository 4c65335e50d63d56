//! From a ready node to its key, and from the key to *hit* or *miss*. Runs nothing.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use super::{
    action::Numerics,
    executor::Engine,
    graph::NodeId,
    hub::{HubFailure, Pinned},
    key::{self, Key},
    latest::Latest,
    options::Mode,
    reason::{self, Reason},
    summary::{self, OutputSummary},
};
use crate::store::{self, Digest, Lookup, Record, Slot, Stamp, Tree};

/// Records of finished nodes, by place in the graph.
pub(crate) type Records = [Option<Arc<Record>>];

/// A user's file as it was when the key was made.
pub(crate) struct ReadFile {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) digest: Digest,
    pub(crate) stamp: Stamp,
}

/// What the cache says about a ready node.
pub(crate) enum Resolved {
    /// Its outputs are there.
    Hit { digest: Digest, record: Arc<Record>, outputs: BTreeMap<String, OutputSummary> },
    /// It must run.
    Miss(Box<Miss>),
}

/// All that a run of a node needs.
pub(crate) struct Miss {
    pub(crate) key: Key,
    pub(crate) digest: Digest,
    /// `None` when the node is forced: the slot is made when it starts.
    pub(crate) slot: Option<Slot>,
    pub(crate) inputs: BTreeMap<String, Tree>,
    pub(crate) reads: Vec<ReadFile>,
    pub(crate) repos: Vec<Pinned>,
    pub(crate) reasons: Vec<Reason>,
}

/// Why a node has no key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    #[error(transparent)]
    Store(#[from] store::StoreError),
    #[error(transparent)]
    Hub(#[from] HubFailure),
    #[error("the record of `{producer}` has no output `{port}`; run it again with --force {producer}")]
    NoOutput { producer: String, port: String },
}

impl Engine<'_> {
    /// Makes the key of a node whose producers are done, and looks it up. Only nodes that may run can be forced.
    pub(crate) fn resolve(
        &self,
        (id, mode): (NodeId, Mode),
        records: &Records,
        latest: &Latest,
    ) -> Result<Resolved, ResolveError> {
        let inputs = self.inputs(id, records)?;
        let (reads, repos) = (self.reads(id)?, self.repos(id)?);
        let digests = inputs.iter().map(|(port, tree)| (port.clone(), tree.digest)).collect();
        let key = self.key(id, digests, (&reads, &repos));
        let digest = key.digest();
        let name = &self.graph.node(id).name;
        if mode == Mode::Run && self.options.forces(name) {
            let reasons = vec![Reason::Forced];
            return Ok(Resolved::Miss(Box::new(Miss {
                key,
                digest,
                slot: None,
                inputs,
                reads,
                repos,
                reasons,
            })));
        }
        let slot = match self.store.lookup(&digest)? {
            Lookup::Hit(record) => {
                tracing::debug!(stage = name, key = %digest, "hit");
                let outputs = summary::outputs(self.store, &record)?;
                return Ok(Resolved::Hit { digest, record: Arc::new(record), outputs });
            }
            Lookup::Miss(slot) => slot,
        };
        let reasons = match &slot.lost {
            Some(what) => vec![Reason::Lost(what.clone())],
            None => self.reasons(name, &key, latest)?,
        };
        tracing::debug!(stage = name, key = %digest, "miss");
        Ok(Resolved::Miss(Box::new(Miss { key, digest, slot: Some(slot), inputs, reads, repos, reasons })))
    }

    /// The difference between a key and the last one of the stage of this name.
    pub(crate) fn reasons(&self, name: &str, new: &Key, latest: &Latest) -> store::Result<Vec<Reason>> {
        let Some(last) = latest.get(name) else { return Ok(vec![Reason::NeverRun]) };
        let Some(old) = self.store.key(&last)? else { return Ok(vec![Reason::RecordGone]) };
        let Some(old) = Key::from_json(&old) else { return Ok(vec![Reason::Format]) };
        let reasons = reason::diff(&old, &new.as_stored());
        Ok(if reasons.is_empty() { vec![Reason::RecordGone] } else { reasons })
    }

    /// The key of a node with these inputs, files and repositories.
    pub(crate) fn key(
        &self,
        id: NodeId,
        inputs: BTreeMap<String, Digest>,
        (reads, repos): (&[ReadFile], &[Pinned]),
    ) -> Key {
        let node = self.graph.node(id);
        let numerics = node.action.numerics();
        Key {
            format: key::FORMAT,
            kind: node.action.kind().to_owned(),
            code: node.action.code(),
            params: node.action.params(),
            inputs,
            reads: reads.iter().map(|r| (r.name.clone(), r.digest)).collect(),
            remote: repos.iter().flat_map(Pinned::contents).collect(),
            seed: node.seed,
            salt: node.salt.clone(),
            numerics: numerics.as_str().to_owned(),
            fingerprint: match numerics {
                Numerics::Bitwise => None,
                Numerics::PerDevice => Some(self.options.fingerprint.clone()),
            },
        }
    }

    fn inputs(&self, id: NodeId, records: &Records) -> Result<BTreeMap<String, Tree>, ResolveError> {
        let input = |(port, source): (&String, &super::graph::Source)| {
            let record = records[source.node.0].as_ref();
            match record.and_then(|r| r.outputs.get(&source.port)) {
                Some(tree) => Ok((port.clone(), tree.clone())),
                None => Err(ResolveError::NoOutput {
                    producer: self.graph.node(source.node).name.clone(),
                    port: source.port.clone(),
                }),
            }
        };
        self.graph.node(id).inputs.iter().map(input).collect()
    }

    /// The repositories of a node, at the commits that their revisions are now.
    pub(crate) fn repos(&self, id: NodeId) -> Result<Vec<Pinned>, HubFailure> {
        self.graph.node(id).action.repos().iter().map(|repo| self.options.hub.pin(repo)).collect()
    }

    /// The user's files of a node, hashed unless their stamps are known.
    pub(crate) fn reads(&self, id: NodeId) -> store::Result<Vec<ReadFile>> {
        let read = |(name, path): &(String, PathBuf)| {
            let (digest, stamp) = self.store.digest_file(path)?;
            Ok(ReadFile { name: name.clone(), path: path.clone(), digest, stamp })
        };
        self.graph.node(id).reads.iter().map(read).collect()
    }
}
