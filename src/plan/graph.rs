//! From a plan to the graph that the engine runs.

use std::{collections::BTreeMap, sync::Arc};

use super::{Node, Plan};
use crate::engine::{
    action::{Action, Cx, Failure, Forecast, Made, Numerics, OutputPort, Pool, Repo},
    graph::{self, Graph, NodeId, Source},
};

impl Plan {
    /// The plan as the engine's graph; node `i` of the plan has the id `NodeId(i)`. A node whose files cannot be read
    /// ([`Node::reads`]) has none here and must not be run.
    pub fn graph(&self) -> Graph {
        let nodes = self.nodes.iter().map(Node::for_engine).collect();
        Graph::new(nodes)
            .expect("names are unique, ports were checked and cycles refused when the plan was made")
    }
}

impl Node {
    fn for_engine(&self) -> graph::Node {
        let source = |edge: &super::Edge| Source { node: NodeId(edge.node), port: edge.output.to_owned() };
        let reads = self.reads.as_deref().unwrap_or_default();
        graph::Node {
            name: self.name.clone(),
            action: Box::new(Shared(self.action.clone())),
            inputs: self.inputs.iter().map(|edge| (edge.port.clone(), source(edge))).collect(),
            reads: reads.iter().map(|read| (read.name.clone(), read.path.clone())).collect(),
            seed: self.seed,
            salt: self.salt.clone(),
            recipe: self.recipe.clone(),
            limits: self.limits.clone(),
        }
    }
}

/// One action behind several nodes: variants that differ only in what they read.
struct Shared(Arc<dyn Action>);

impl Action for Shared {
    fn kind(&self) -> &'static str {
        self.0.kind()
    }
    fn code(&self) -> BTreeMap<String, String> {
        self.0.code()
    }
    fn pool(&self) -> Pool {
        self.0.pool()
    }
    fn numerics(&self) -> Numerics {
        self.0.numerics()
    }
    fn params(&self) -> serde_json::Value {
        self.0.params()
    }
    fn repos(&self) -> Vec<Repo> {
        self.0.repos()
    }
    fn outputs(&self) -> &'static [OutputPort] {
        self.0.outputs()
    }
    fn forecast(&self, inputs: Made<'_>) -> Option<Forecast> {
        self.0.forecast(inputs)
    }
    fn run(&self, cx: &Cx<'_>) -> Result<(), Failure> {
        self.0.run(cx)
    }
}
