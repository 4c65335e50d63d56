//! The graph of actions: nodes joined by "reads the output of". Knows no manifest and no store.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    path::PathBuf,
};

use petgraph::{
    Direction,
    algo::tarjan_scc,
    graph::{DiGraph, NodeIndex},
};

use super::{action::Action, limits::Limits};

/// A node's place in the list given to [`Graph::new`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub usize);

/// A stage of one pipeline, ready to run.
pub struct Node {
    /// The stage's name; never part of its key.
    pub name: String,
    /// What runs.
    pub action: Box<dyn Action>,
    /// Where each input comes from, by port.
    pub inputs: BTreeMap<String, Source>,
    /// The user's files that it reads: logical name and path.
    pub reads: Vec<(String, PathBuf)>,
    /// The stage's seed.
    pub seed: u64,
    /// Set by the user to disown earlier results.
    pub salt: Option<String>,
    /// What the planner needs to make the action again on another host; kept when a cluster may run it.
    pub recipe: Option<String>,
    /// What it may use and how often it is tried; never part of its key.
    pub limits: Limits,
}

/// An output of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The node that makes it.
    pub node: NodeId,
    /// Its output port.
    pub port: String,
}

/// Why nodes do not form a graph that can run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// Stages that wait for each other.
    #[error("these stages wait for each other: {}", .0.join(" -> "))]
    Cycle(Vec<String>),
    /// Two stages of one name.
    #[error("there are two stages named `{0}`")]
    Duplicate(String),
    /// An input of an output that its producer lacks.
    #[error("stage `{stage}` reads output `{port}` of `{producer}`, which has no such output")]
    NoSuchOutput {
        /// The reading stage.
        stage: String,
        /// The stage that should make it.
        producer: String,
        /// The missing output.
        port: String,
    },
}

/// Nodes in an order in which each comes after what it reads.
pub struct Graph {
    nodes: Vec<Node>,
    edges: DiGraph<(), ()>,
    order: Vec<NodeId>,
}

impl Graph {
    /// Joins the nodes. A [`Source`] names its producer by its place in `nodes`.
    ///
    /// # Panics
    /// When a source's place is beyond the list: whoever made the nodes also made the places.
    pub fn new(nodes: Vec<Node>) -> Result<Self, GraphError> {
        let mut names = BTreeSet::new();
        if let Some(twice) = nodes.iter().find(|n| !names.insert(&n.name)) {
            return Err(GraphError::Duplicate(twice.name.clone()));
        }
        let mut edges = DiGraph::with_capacity(nodes.len(), nodes.len());
        for _ in &nodes {
            edges.add_node(());
        }
        for (i, node) in nodes.iter().enumerate() {
            for source in node.inputs.values() {
                let producer = &nodes[source.node.0];
                if !producer.action.outputs().iter().any(|o| o.name == source.port) {
                    return Err(GraphError::NoSuchOutput {
                        stage: node.name.clone(),
                        producer: producer.name.clone(),
                        port: source.port.clone(),
                    });
                }
                edges.update_edge(NodeIndex::new(source.node.0), NodeIndex::new(i), ());
            }
        }
        let order = order(&edges).ok_or_else(|| GraphError::Cycle(cycle(&edges, &nodes)))?;
        Ok(Self { nodes, edges, order })
    }

    /// The node with an id.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// The number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is no node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// All nodes, each after what it reads; otherwise in the order given.
    pub fn order(&self) -> &[NodeId] {
        &self.order
    }

    /// The node of a name.
    pub fn find(&self, name: &str) -> Option<NodeId> {
        self.nodes.iter().position(|n| n.name == name).map(NodeId)
    }

    /// The nodes that read an output of this one.
    pub fn readers(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        self.neighbours(id, Direction::Outgoing)
    }

    /// The nodes whose outputs this one reads.
    pub fn producers(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        self.neighbours(id, Direction::Incoming)
    }

    fn neighbours(&self, id: NodeId, direction: Direction) -> impl Iterator<Item = NodeId> {
        self.edges.neighbors_directed(NodeIndex::new(id.0), direction).map(|n| NodeId(n.index()))
    }

    /// The given nodes and all that they need, however far up.
    pub fn with_ancestors(&self, of: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        self.reach(of, Direction::Incoming)
    }

    /// The given nodes and all that need them, however far down.
    pub fn with_descendants(&self, of: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
        self.reach(of, Direction::Outgoing)
    }

    fn reach(&self, of: &BTreeSet<NodeId>, direction: Direction) -> BTreeSet<NodeId> {
        let mut found = of.clone();
        let mut open: Vec<NodeId> = of.iter().copied().collect();
        while let Some(id) = open.pop() {
            open.extend(self.neighbours(id, direction).filter(|n| found.insert(*n)));
        }
        found
    }
}

/// Kahn's algorithm, taking the earliest given node first. `None` when there is a cycle.
fn order(edges: &DiGraph<(), ()>) -> Option<Vec<NodeId>> {
    let mut missing: Vec<usize> =
        edges.node_indices().map(|n| edges.neighbors_directed(n, Direction::Incoming).count()).collect();
    let free = (0..missing.len()).filter(|&i| missing[i] == 0).map(Reverse);
    let mut free: BinaryHeap<Reverse<usize>> = free.collect();
    let mut order = Vec::with_capacity(missing.len());
    while let Some(Reverse(i)) = free.pop() {
        order.push(NodeId(i));
        for reader in edges.neighbors(NodeIndex::new(i)) {
            missing[reader.index()] -= 1;
            if missing[reader.index()] == 0 {
                free.push(Reverse(reader.index()));
            }
        }
    }
    (order.len() == missing.len()).then_some(order)
}

/// The names along one cycle, first name repeated at the end.
fn cycle(edges: &DiGraph<(), ()>, nodes: &[Node]) -> Vec<String> {
    let mut knots: Vec<BTreeSet<NodeIndex>> = tarjan_scc(edges)
        .into_iter()
        .map(BTreeSet::from_iter)
        .filter(|knot| knot.iter().any(|&n| knot.len() > 1 || edges.contains_edge(n, n)))
        .collect();
    knots.sort();
    let Some(knot) = knots.first() else { return Vec::new() };
    // Every node of a knot has a successor in it, so walking must come back to a node seen before.
    let mut path: Vec<NodeIndex> = knot.first().copied().into_iter().collect();
    while let Some(next) = path.last().and_then(|&n| edges.neighbors(n).filter(|m| knot.contains(m)).min()) {
        if let Some(start) = path.iter().position(|&n| n == next) {
            path.push(next);
            return path[start..].iter().map(|n| nodes[n.index()].name.clone()).collect();
        }
        path.push(next);
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::fake::Fake;

    fn graph(spec: &[(&str, &[usize])]) -> Result<Graph, GraphError> {
        let node = |(name, reads): &(&str, &[usize])| {
            reads.iter().fold(Fake::new(name).node(), |mut node, &i| {
                node.inputs.insert(format!("in{i}"), Source { node: NodeId(i), port: "out".into() });
                node
            })
        };
        Graph::new(spec.iter().map(node).collect())
    }

    #[test]
    fn order_follows_edges_and_otherwise_the_list() {
        let graph = graph(&[("d", &[2]), ("b", &[]), ("c", &[1]), ("a", &[])]).unwrap();
        assert_eq!(graph.order(), [1, 2, 0, 3].map(NodeId));
        let set = |ids: &[usize]| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        assert_eq!(graph.with_ancestors(&set(&[2])), set(&[1, 2]));
        assert_eq!(graph.with_descendants(&set(&[2])), set(&[0, 2]));
        assert_eq!(graph.find("c"), Some(NodeId(2)));
    }

    proptest::proptest! {
        #[test]
        fn every_node_comes_after_its_producers_and_neighbours_know_each_other(
            edges in proptest::collection::btree_set((0..8_usize, 0..8_usize), 0..16)
        ) {
            // Every edge from a smaller to a larger number of a fixed shuffle, so that there is no circle.
            let place = |i: usize| (i * 3 + 5) % 8;
            let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
            let reads: Vec<Vec<usize>> = (0..8)
                .map(|i| edges.iter().filter(|(a, b)| *b == i && place(*a) < place(i)).map(|(a, _)| *a).collect())
                .collect();
            let spec: Vec<(&str, &[usize])> = names.iter().zip(&reads).map(|(name, reads)| (*name, &reads[..])).collect();
            let graph = graph(&spec).unwrap();
            let at = |id: NodeId| graph.order().iter().position(|other| *other == id).unwrap();
            for (i, reads) in reads.iter().enumerate() {
                let id = NodeId(i);
                let producers: BTreeSet<NodeId> = graph.producers(id).collect();
                proptest::prop_assert_eq!(&producers, &reads.iter().copied().map(NodeId).collect());
                for producer in producers {
                    proptest::prop_assert!(at(producer) < at(id));
                    proptest::prop_assert!(graph.readers(producer).any(|reader| reader == id));
                    proptest::prop_assert!(graph.with_ancestors(&[id].into()).contains(&producer));
                    proptest::prop_assert!(graph.with_descendants(&[producer].into()).contains(&id));
                }
            }
        }
    }

    #[test]
    fn a_cycle_is_named_without_bystanders() {
        let error =
            graph(&[("before", &[]), ("a", &[0, 3]), ("b", &[1]), ("c", &[2]), ("after", &[3])]).err();
        assert_eq!(error.unwrap().to_string(), "these stages wait for each other: a -> b -> c -> a");
        let error = graph(&[("self", &[0])]).err();
        assert_eq!(error, Some(GraphError::Cycle(vec!["self".into(), "self".into()])));
    }

    #[test]
    fn names_and_ports_are_checked() {
        assert_eq!(graph(&[("a", &[]), ("a", &[])]).err(), Some(GraphError::Duplicate("a".into())));
        let mut reader = Fake::new("reader").node();
        reader.inputs.insert("x".into(), Source { node: NodeId(1), port: "nope".into() });
        let error = Graph::new(vec![reader, Fake::new("maker").node()]).err().unwrap();
        assert_eq!(
            error.to_string(),
            "stage `reader` reads output `nope` of `maker`, which has no such output"
        );
    }
}
