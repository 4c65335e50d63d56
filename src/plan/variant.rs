//! From one variant of a stage to its nodes: one, or the parts of a stage that is run in shards.

use std::{path::PathBuf, sync::Arc};

use super::{
    Edge, Node, PlanError,
    connect::Link,
    decode::{Stage, Variant},
    recipe,
};
use crate::{
    engine::{action::Action, limits::Limits},
    manifest::{Fault, Span},
    stage::{
        Read,
        shards::{self, Part},
    },
};

/// What all nodes of one variant have in common.
pub(super) struct Shared {
    stage: String,
    form: Form,
    reads: Result<Vec<Read>, Arc<Fault<PlanError>>>,
    seed: u64,
    salt: Option<String>,
    recipe: Option<String>,
    limits: Limits,
    place: Span,
}

enum Form {
    Whole(Arc<dyn Action>),
    Parts { divides: Option<&'static str>, parts: Vec<(Part, Arc<dyn Action>)> },
}

impl Shared {
    pub(super) fn new(stage: &Stage<'_, '_>, variant: Variant, folder: &dyn Fn(&Span) -> PathBuf) -> Self {
        let base = |parameter: &str| folder(&variant.places.find(parameter));
        let reads = variant.planned.reads(&base).map_err(|invalid| Arc::new(variant.places.invalid(invalid)));
        let form = match &stage.entry.shards {
            None => Form::Whole(Arc::from(variant.planned.into_action())),
            Some(of) => {
                let divided = variant.planned.divided().expect("kinds that do not divide were refused");
                let divides = divided.divides();
                let parts = Part::all(*of.get_ref(), divides.is_some());
                Form::Parts {
                    divides,
                    parts: parts.map(|part| (part, Arc::from(divided.part(part)))).collect(),
                }
            }
        };
        Self {
            stage: stage.entry.name.clone(),
            form,
            reads,
            seed: variant.seed,
            salt: stage.entry.salt.clone(),
            recipe: variant.recipe,
            limits: stage.limits.clone(),
            place: stage.entry.place.clone(),
        }
    }

    /// Adds the nodes of one row; returns the place of that which others read.
    pub(super) fn nodes(
        &self,
        name: &str,
        (producers, links): (&[usize], &[Link]),
        nodes: &mut Vec<Node>,
    ) -> usize {
        let edge = |(node, link): (&usize, &Link)| Edge {
            port: link.port.clone(),
            node: *node,
            output: link.output,
        };
        let edges: Vec<Edge> = producers.iter().zip(links).map(edge).collect();
        let first = nodes.len();
        match &self.form {
            Form::Whole(action) => nodes.push(self.node(name.to_owned(), action, edges)),
            Form::Parts { divides, parts } => {
                for (part, action) in parts {
                    let inputs = inputs(*part, *divides, first, &edges, action.outputs());
                    nodes.push(self.part(name, *part, action, inputs));
                }
            }
        }
        nodes.len() - 1
    }

    fn node(&self, name: String, action: &Arc<dyn Action>, inputs: Vec<Edge>) -> Node {
        Node {
            variant: name.clone(),
            name,
            stage: self.stage.clone(),
            action: action.clone(),
            inputs,
            reads: self.reads.clone(),
            seed: self.seed,
            salt: self.salt.clone(),
            recipe: self.recipe.clone(),
            limits: self.limits.clone(),
            place: self.place.clone(),
        }
    }

    fn part(&self, name: &str, part: Part, action: &Arc<dyn Action>, inputs: Vec<Edge>) -> Node {
        let mut node = self.node(part_name(name, part), action, inputs);
        name.clone_into(&mut node.variant);
        node.recipe = node.recipe.map(|recipe| recipe::of_part(&recipe, part));
        if !matches!(part, Part::Shard(_)) {
            // It reads no file of the user, and moves bytes only.
            node.reads = Ok(Vec::new());
            node.limits.resources.gpus = None;
        }
        node
    }
}

/// The inputs of a part, whose stage's first node is `first`.
fn inputs(
    part: Part,
    divides: Option<&'static str>,
    first: usize,
    edges: &[Edge],
    outputs: &'static [crate::engine::action::OutputPort],
) -> Vec<Edge> {
    let divided = |edge: &&Edge| Some(&*edge.port) == divides;
    match part {
        Part::Split(_) => edges.iter().filter(divided).cloned().collect(),
        Part::Shard(shard) => {
            let share = |edge: &Edge| {
                let mut edge = edge.clone();
                if divided(&&edge) {
                    (edge.node, edge.output) = (first, shards::ports(shard.of)[shard.index].name);
                }
                edge
            };
            edges.iter().map(share).collect()
        }
        Part::Merge(of) => {
            let first = first + usize::from(divides.is_some());
            let of_output = |output: &'static str| {
                (0..of).map(move |i| Edge { port: shards::merge_port(output, i), node: first + i, output })
            };
            outputs.iter().flat_map(|output| of_output(output.name)).collect()
        }
    }
}

/// `embed[shard=3]`, `embed[dim=64,split]`; what others read has the stage's own name.
fn part_name(name: &str, part: Part) -> String {
    let label = match part {
        Part::Split(_) => "split".to_owned(),
        Part::Shard(shard) => format!("shard={}", shard.index),
        Part::Merge(_) => return name.to_owned(),
    };
    match name.strip_suffix(']') {
        Some(axes) => format!("{axes},{label}]"),
        None => format!("{name}[{label}]"),
    }
}
