//! The states of nodes during a run: one enum and one setter. Knows no keys and no store.

use super::graph::{Graph, NodeId};

/// Where a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// A producer is not done. Every node starts here, and comes back when what it read was lost while it ran.
    Waiting,
    /// All producers are `Cached` or `Ran`, so its key can be made. It stays so while another node of the same key runs, here or
    /// in another process, and is then looked up again. A node whose outputs were lost comes back here.
    Ready,
    /// Its key is not in the cache; it waits for a worker.
    Queued,
    /// A worker has it.
    Running,
    /// Nothing more happens to it.
    Done(Status),
}

/// How a node ended, or, in a plan, how it would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Its outputs were in the cache.
    Cached,
    /// It ran and its outputs are in the cache.
    Ran,
    /// It ended with an error, panicked or was stopped.
    Failed,
    /// It was not selected, or the run ended before its turn.
    Skipped,
    /// Something that it reads is not there.
    Blocked,
    /// In a plan: it will run.
    Run,
    /// In a plan: it runs unless its producers give the same bytes as before.
    Maybe,
}

impl Status {
    /// The word used in text, JSON and journals.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cached => "cached",
            Self::Ran => "ran",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Blocked => "blocked",
            Self::Run => "run",
            Self::Maybe => "maybe",
        }
    }

    /// Whether its outputs are in the cache.
    pub fn is_ok(self) -> bool {
        matches!(self, Self::Cached | Self::Ran)
    }
}

/// The states of all nodes of a graph.
pub(crate) struct States<'a> {
    graph: &'a Graph,
    nodes: Vec<State>,
    missing: Vec<usize>, // producers that are not done well, per node
}

impl<'a> States<'a> {
    pub(crate) fn new(graph: &'a Graph) -> Self {
        let missing = (0..graph.len()).map(|i| graph.producers(NodeId(i)).count()).collect();
        Self { graph, nodes: vec![State::Waiting; graph.len()], missing }
    }

    pub(crate) fn get(&self, id: NodeId) -> State {
        self.nodes[id.0]
    }

    /// The only way to move a node. Returns the readers that now have all they need.
    ///
    /// # Panics
    /// When the move breaks a state's precondition, which would be a bug of the executor.
    pub(crate) fn set(&mut self, id: NodeId, to: State) -> Vec<NodeId> {
        use State::{Done, Queued, Ready, Running, Waiting};
        let from = self.nodes[id.0];
        let fits = match from {
            Waiting if to == Ready => self.missing[id.0] == 0,
            Waiting => matches!(to, Done(Status::Blocked | Status::Skipped)),
            Ready => matches!(
                to,
                Ready | Waiting | Queued | Done(Status::Cached | Status::Failed | Status::Skipped)
            ),
            Queued => matches!(to, Ready | Running | Done(Status::Failed | Status::Skipped)),
            Running => matches!(to, Waiting | Queued | Done(Status::Cached | Status::Ran | Status::Failed)),
            Done(status) => status.is_ok() && to == Ready,
        };
        assert!(fits, "node {} cannot go from {from:?} to {to:?}", id.0);
        self.nodes[id.0] = to;
        if matches!(from, State::Done(_)) {
            for reader in self.graph.readers(id) {
                self.missing[reader.0] += 1;
            }
        }
        if !matches!(to, Done(status) if status.is_ok()) {
            return Vec::new();
        }
        let mut freed = Vec::new();
        for reader in self.graph.readers(id) {
            self.missing[reader.0] -= 1;
            if self.missing[reader.0] == 0 && self.nodes[reader.0] == Waiting {
                freed.push(reader);
            }
        }
        freed.sort_unstable();
        freed
    }

    /// Whether all that a node reads is there.
    pub(crate) fn has_all(&self, id: NodeId) -> bool {
        self.missing[id.0] == 0
    }

    /// The nodes that have all they need from the start.
    pub(crate) fn roots(&self) -> Vec<NodeId> {
        let free = |id: &NodeId| self.missing[id.0] == 0 && self.get(*id) == State::Waiting;
        self.graph.order().iter().copied().filter(free).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fake::Fake;

    fn diamond() -> Graph {
        let nodes = vec![
            Fake::new("top").node(),
            Fake::new("left").reading(&[0]),
            Fake::new("right").reading(&[0]),
            Fake::new("bottom").reading(&[1, 2]),
        ];
        Graph::new(nodes).unwrap()
    }

    fn finish(states: &mut States<'_>, id: usize) -> Vec<NodeId> {
        states.set(NodeId(id), State::Ready);
        states.set(NodeId(id), State::Done(Status::Cached))
    }

    #[test]
    fn readers_are_freed_once_all_producers_are_done() {
        let graph = diamond();
        let mut states = States::new(&graph);
        assert_eq!(states.roots(), [NodeId(0)]);
        assert_eq!(finish(&mut states, 0), [NodeId(1), NodeId(2)]);
        assert_eq!(finish(&mut states, 2), []);
        assert_eq!(finish(&mut states, 1), [NodeId(3)]);
    }

    #[test]
    fn a_node_that_failed_frees_nobody() {
        let graph = diamond();
        let mut states = States::new(&graph);
        for to in [State::Ready, State::Queued, State::Running] {
            states.set(NodeId(0), to);
        }
        assert_eq!(states.set(NodeId(0), State::Done(Status::Failed)), []);
    }

    #[test]
    fn a_node_whose_outputs_were_lost_holds_its_readers_up_again() {
        let graph = diamond();
        let mut states = States::new(&graph);
        finish(&mut states, 0);
        finish(&mut states, 1);
        states.set(NodeId(0), State::Ready);
        assert_eq!([1, 2, 3].map(|id| states.has_all(NodeId(id))), [false, false, false]);
        assert_eq!(states.set(NodeId(0), State::Done(Status::Cached)), [NodeId(2)], "1 is done already");
        assert_eq!(finish(&mut states, 2), [NodeId(3)]);
    }

    #[test]
    fn only_the_moves_of_a_run_are_possible() {
        use State::{Done, Queued, Ready, Running, Waiting};
        let all = [
            Waiting,
            Ready,
            Queued,
            Running,
            Done(Status::Cached),
            Done(Status::Ran),
            Done(Status::Failed),
            Done(Status::Skipped),
            Done(Status::Blocked),
            Done(Status::Run),
            Done(Status::Maybe),
        ];
        // From each state, the moves of a node that has all it needs.
        let moves: [(&[State], &[State]); 5] = [
            (&[], &[Ready, Done(Status::Skipped), Done(Status::Blocked)]),
            (
                &[Ready],
                &[Waiting, Ready, Queued, Done(Status::Cached), Done(Status::Failed), Done(Status::Skipped)],
            ),
            (&[Ready, Queued], &[Ready, Running, Done(Status::Failed), Done(Status::Skipped)]),
            (
                &[Ready, Queued, Running],
                &[Waiting, Queued, Done(Status::Cached), Done(Status::Ran), Done(Status::Failed)],
            ),
            (&[Ready, Queued, Running, Done(Status::Ran)], &[Ready]),
        ];
        let graph = diamond();
        for (way, allowed) in moves {
            for to in all {
                let mut states = States::new(&graph);
                for &step in way {
                    states.set(NodeId(0), step);
                }
                let moved =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| states.set(NodeId(0), to)));
                assert_eq!(moved.is_ok(), allowed.contains(&to), "after {way:?} to {to:?}");
            }
        }
    }

    #[test]
    fn what_is_left_out_frees_nobody_and_is_no_root() {
        let graph = diamond();
        let mut states = States::new(&graph);
        assert_eq!(states.set(NodeId(1), State::Done(Status::Skipped)), []);
        assert_eq!(finish(&mut states, 0), [NodeId(2)], "only the one that still waits");
        assert_eq!(finish(&mut states, 2), [], "the end lacks its left side");
        assert_eq!(states.roots(), []);
    }

    #[test]
    #[should_panic(expected = "cannot go from Waiting to Ready")]
    fn a_node_is_not_ready_before_its_producers() {
        let graph = diamond();
        States::new(&graph).set(NodeId(3), State::Ready);
    }

    #[test]
    #[should_panic(expected = "cannot go from Done(Cached) to Queued")]
    fn nothing_happens_to_a_node_that_is_done() {
        let graph = diamond();
        let mut states = States::new(&graph);
        finish(&mut states, 0);
        states.set(NodeId(0), State::Queued);
    }
}
