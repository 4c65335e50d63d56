//! `graph`: the pipeline as a picture. Knows stages as names with inputs.

mod colour;
mod svg;
mod text;

use std::collections::BTreeMap;

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
    /// What a run would do with it, if that is to be shown.
    status: Option<Status>,
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
        let edges = |edges: &[crate::plan::Edge]| -> Vec<Edge> {
            edges.iter().map(|edge| Edge { from: edge.node, port: edge.port.clone() }).collect()
        };
        let nodes = plan.nodes.iter().map(|node| Node {
            name: node.name.clone(),
            kind: node.action.kind().to_owned(),
            inputs: edges(&node.inputs),
            status: None,
        });
        Self { nodes: nodes.collect() }
    }

    fn colour(&mut self, statuses: &BTreeMap<String, Status>) {
        for node in &mut self.nodes {
            node.status = statuses.get(&node.name).copied();
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
        let kind = Some(self.kind.as_str()).filter(|kind| *kind != self.name);
        let words: Vec<&str> = kind.into_iter().chain(self.status.map(Status::as_str)).collect();
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
            status: None,
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
