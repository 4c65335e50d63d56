//! `graph`: the pipeline as a picture. Knows stages as names with inputs.

mod colour;
mod svg;
mod text;

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;

use super::{
    args::{ManifestArgs, PlaceArgs, SelectArgs},
    error::CliError,
    exit::Exit,
    output,
    plan::block_unreadable,
    project::{self, Project},
};
use crate::{engine::state::Status, plan::Plan};

/// Draw a pipeline
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    manifest: ManifestArgs,
    /// How to draw it
    #[arg(long, value_enum, default_value_t = Format::Mermaid, value_name = "FORMAT")]
    format: Format,
    /// Colour each stage by what a run would do with it now, and write the word beside it
    #[arg(long)]
    status: bool,
    #[command(flatten, next_help_heading = "With --status")]
    place: PlaceArgs,
    #[command(flatten, next_help_heading = "With --status")]
    select: SelectArgs,
}

impl Command {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let plan = project::open(&self.manifest.pipeline, &self.manifest.change)?;
        let mut drawing = Drawing::of(&plan);
        if self.status {
            drawing.colour(&self.statuses()?);
        }
        output::text(&drawing.render(self.format))?;
        Ok(Exit::OK)
    }

    /// What a plan says of every stage.
    fn statuses(&self) -> Result<BTreeMap<String, Status>, CliError> {
        let ManifestArgs { pipeline, change } = &self.manifest;
        let project = Project::open(pipeline, change, &self.place, &self.select)?;
        let mut plan = project.engine().plan()?;
        block_unreadable(&project, &mut plan);
        Ok(plan.stages.into_iter().map(|stage| (stage.name, stage.status)).collect())
    }
}

/// The stages of a pipeline, producers before consumers.
#[derive(Debug, Clone, Default)]
pub(super) struct Drawing {
    nodes: Vec<Node>,
}

#[derive(Debug, Clone)]
struct Node {
    name: String,
    kind: String,
    inputs: Vec<Edge>,
    /// For a stage with shards, which is one box: the names of its parts.
    parts: Vec<String>,
    /// What a run would do with it, if that is to be shown.
    status: Option<Status>,
    /// How many of its parts that is true of, where it is not all.
    some: Option<usize>,
}

#[derive(Debug, Clone)]
struct Edge {
    /// The producer's index.
    from: usize,
    /// The consumer's port.
    port: String,
}

/// How to draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// Text that GitHub and many editors draw.
    Mermaid,
    /// Text for Graphviz.
    Dot,
    /// A picture, drawn here.
    Svg,
}

impl Drawing {
    fn of(plan: &Plan) -> Self {
        let mut nodes: Vec<Node> = Vec::new();
        // The box that each node of the plan is in, and the parts that wait for the node that merges them.
        let (mut boxes, mut parts): (Vec<Option<usize>>, Vec<&crate::plan::Node>) = (Vec::new(), Vec::new());
        for node in &plan.nodes {
            parts.push(node);
            if node.name != node.variant {
                boxes.push(None);
                continue;
            }
            let edges = parts.iter().flat_map(|part| &part.inputs);
            // Edges between the parts have no box at their start yet.
            let outside = edges.filter_map(|edge| Some((boxes[edge.node]?, edge.port.clone())));
            let outside: BTreeSet<(usize, String)> = outside.collect();
            let names = parts.drain(..).map(|part| part.name.clone());
            nodes.push(Node {
                name: node.name.clone(),
                kind: node.action.kind().to_owned(),
                inputs: outside.into_iter().map(|(from, port)| Edge { from, port }).collect(),
                parts: names.collect(),
                status: None,
                some: None,
            });
            boxes.push(Some(nodes.len() - 1));
        }
        Self { nodes }
    }

    fn colour(&mut self, statuses: &BTreeMap<String, Status>) {
        const WORST_FIRST: [Status; 5] =
            [Status::Blocked, Status::Run, Status::Maybe, Status::Skipped, Status::Cached];
        for node in &mut self.nodes {
            let of_parts: Vec<Status> =
                node.parts.iter().filter_map(|part| statuses.get(part).copied()).collect();
            let count = |status: Status| of_parts.iter().filter(|&&other| other == status).count();
            node.status = WORST_FIRST.into_iter().find(|&status| count(status) > 0);
            node.some = node.status.map(count).filter(|&some| some < of_parts.len());
        }
    }

    /// How many stages have each of the statuses that are shown.
    fn counts(&self) -> Vec<(Status, usize)> {
        let count = |status: &Status| self.nodes.iter().filter(|node| node.status == Some(*status)).count();
        colour::SHOWN.into_iter().map(|status| (status, count(&status))).filter(|(_, n)| *n > 0).collect()
    }

    fn render(&self, format: Format) -> String {
        match format {
            Format::Mermaid => text::mermaid(self),
            Format::Dot => text::dot(self),
            Format::Svg => svg::svg(self),
        }
    }
}

impl Node {
    /// What stands below the name: the kind where that is another word, and the status.
    fn below(&self) -> Option<String> {
        let kind = Some(self.kind.clone()).filter(|kind| *kind != self.name);
        let shards = self.parts.iter().filter(|part| part.contains("shard=")).count();
        let shards = (shards > 0).then(|| format!("{shards} shards"));
        let status = self.status.map(|status| match self.some {
            Some(some) => format!("{} {some} of {}", status.as_str(), self.parts.len()),
            None => status.as_str().to_owned(),
        });
        let words: Vec<String> = [kind, shards, status].into_iter().flatten().collect();
        (!words.is_empty()).then(|| words.join(" · "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// corpus → embed → select and corpus → embed2 → select and corpus → select.
    pub(in crate::cli) fn diamond() -> Drawing {
        let node = |name: &str, kind: &str, inputs: &[(usize, &str)]| Node {
            name: name.to_owned(),
            kind: kind.to_owned(),
            inputs: inputs.iter().map(|&(from, port)| Edge { from, port: port.to_owned() }).collect(),
            parts: vec![name.to_owned()],
            status: None,
            some: None,
        };
        let nodes = vec![
            node("corpus", "corpus", &[]),
            node("embed[dim=64]", "embed", &[(0, "texts")]),
            node("other", "embed", &[(0, "texts")]),
            node("select", "select", &[(0, "texts"), (1, "left"), (2, "right")]),
        ];
        Drawing { nodes }
    }

    /// The same with a status for each stage.
    pub(in crate::cli) fn coloured() -> Drawing {
        let mut drawing = diamond();
        let statuses = [Status::Cached, Status::Run, Status::Maybe, Status::Blocked];
        for (node, status) in drawing.nodes.iter_mut().zip(statuses) {
            node.status = Some(status);
        }
        drawing
    }

    #[test]
    fn a_stage_that_no_plan_knows_has_no_colour() {
        let mut drawing = diamond();
        drawing.colour(&[("corpus".to_owned(), Status::Run), ("gone".to_owned(), Status::Maybe)].into());
        assert_eq!(drawing.counts(), [(Status::Run, 1)]);
        let below: Vec<Option<String>> = coloured().nodes.iter().map(Node::below).collect();
        let words = |text: &str| Some(text.to_owned());
        assert_eq!(below, [words("cached"), words("embed · run"), words("embed · maybe"), words("blocked")]);
        assert_eq!((diamond().nodes[0].below(), diamond().nodes[1].below()), (None, words("embed")));
    }

    #[test]
    fn a_stage_with_shards_is_one_box() {
        let text = "
            [stage.a]\nkind = 'exec'\nargv = ['x']\noutputs = ['x']
            [stage.b]\nkind = 'exec'\nargv = ['{shard}']\ninputs = { a = 'a' }\noutputs = ['x']\nshards = 3
            [stage.c]\nkind = 'exec'\nargv = ['x']\ninputs = { b = 'b' }\noutputs = ['x']";
        let path = std::path::Path::new("p.toml");
        let (sources, faults) =
            crate::manifest::Sources::read_with(path, &crate::manifest::Options::default(), &|_| {
                Ok(text.to_owned())
            });
        let plan = crate::plan::plan(path, sources, faults, crate::stage::table::STAGES).unwrap();
        let mut drawing = Drawing::of(&plan);
        let lines = drawing.render(Format::Mermaid);
        assert!(lines.contains("  n1[\"b<br><small>exec · 3 shards</small>\"]\n"), "{lines}");
        assert!(lines.contains("  n0 -->|\"inputs.a\"| n1\n  n1 -->|\"inputs.b\"| n2\n"), "{lines}");
        let cached = ["a", "b[shard=0]", "b[shard=2]"].map(|name| (name.to_owned(), Status::Cached));
        let run = [("b[shard=1]".to_owned(), Status::Run), ("b".to_owned(), Status::Maybe)];
        drawing.colour(&cached.into_iter().chain(run).collect());
        assert_eq!(drawing.nodes[1].below().unwrap(), "exec · 3 shards · run 1 of 4");
    }

    #[test]
    fn mermaid_text() {
        let expected = "flowchart TD
  n0[\"corpus\"]
  n1[\"embed[dim=64]<br><small>embed</small>\"]
  n2[\"other<br><small>embed</small>\"]
  n3[\"select\"]
  n0 -->|\"texts\"| n1
  n0 -->|\"texts\"| n2
  n0 -->|\"texts\"| n3
  n1 -->|\"left\"| n3
  n2 -->|\"right\"| n3
";
        assert_eq!(diamond().render(Format::Mermaid), expected);
    }

    /// Names that mean something to each of the formats, as a value of a matrix may.
    fn odd() -> Drawing {
        let mut drawing = diamond();
        drawing.nodes.truncate(2);
        drawing.nodes[0].name = "a[x=\"<b> & #9829; \\n é\"]".to_owned();
        drawing.nodes[1].inputs[0].port = "in.\"p\"".to_owned();
        drawing
    }

    #[test]
    fn odd_names_are_text_in_every_format() {
        let expected = "flowchart TD
  n0[\"a[x=#quot;#lt;b#gt; & #35;9829; \\n é#quot;]<br><small>corpus</small>\"]
  n1[\"embed[dim=64]<br><small>embed</small>\"]
  n0 -->|\"in.#quot;p#quot;\"| n1
";
        assert_eq!(odd().render(Format::Mermaid), expected);
        let expected = "digraph pipeline {
  node [shape=box, style=rounded, fontname=\"sans-serif\"];
  \"a[x=\\\"<b> & #9829; \\\\n é\\\"]\" [label=\"a[x=\\\"<b> & #9829; \\\\n é\\\"]\\ncorpus\"];
  \"embed[dim=64]\" [label=\"embed[dim=64]\\nembed\"];
  \"a[x=\\\"<b> & #9829; \\\\n é\\\"]\" -> \"embed[dim=64]\" [label=\"in.\\\"p\\\"\"];
}
";
        assert_eq!(odd().render(Format::Dot), expected);
        let svg = odd().render(Format::Svg);
        assert!(svg.contains(">a[x=&quot;&lt;b&gt; &amp; #9829; \\n é&quot;]</text>"), "{svg}");
    }

    #[test]
    fn an_empty_pipeline_is_an_empty_picture() {
        let empty = Drawing::default();
        assert_eq!(empty.render(Format::Mermaid), "flowchart TD\n");
        assert!(empty.render(Format::Dot).ends_with("];\n}\n"));
        let svg = empty.render(Format::Svg);
        assert!(svg.contains("width=\"20\" height=\"84\"") && !svg.contains("<rect"), "{svg}");
    }

    #[test]
    fn dot_text() {
        let text = diamond().render(Format::Dot);
        assert!(text.contains("  \"embed[dim=64]\" [label=\"embed[dim=64]\\nembed\"];\n"), "{text}");
        assert!(text.contains("  \"corpus\" -> \"select\" [label=\"texts\"];\n"), "{text}");
    }
}
