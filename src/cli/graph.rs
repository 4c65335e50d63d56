//! `graph`: the pipeline as a picture. Knows stages as names with inputs.

mod svg;

use std::fmt::Write;

use clap::Args;

use super::{args::ManifestArgs, error::CliError, exit::Exit, output, project};
use crate::plan::Plan;

/// Draw a pipeline
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(flatten)]
    manifest: ManifestArgs,
    /// How to draw it
    #[arg(long, value_enum, default_value_t = Format::Mermaid, value_name = "FORMAT")]
    format: Format,
}

impl Command {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let plan = project::open(&self.manifest.pipeline, &self.manifest.change)?;
        output::text(&Drawing::of(&plan).render(self.format))?;
        Ok(Exit::OK)
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
        });
        Self { nodes: nodes.collect() }
    }

    fn render(&self, format: Format) -> String {
        match format {
            Format::Mermaid => self.mermaid(),
            Format::Dot => self.dot(),
            Format::Svg => svg::svg(self),
        }
    }

    fn mermaid(&self) -> String {
        // `#` begins an entity of Mermaid, and `<` one of HTML.
        let escape = |text: &str| {
            let text = text.replace('#', "#35;").replace('"', "#quot;");
            text.replace('<', "#lt;").replace('>', "#gt;")
        };
        let mut out = "flowchart TD\n".to_owned();
        for (i, node) in self.nodes.iter().enumerate() {
            let kind = if node.kind == node.name {
                String::new()
            } else {
                format!("<br><small>{}</small>", node.kind)
            };
            let _infallible = writeln!(out, "  n{i}[\"{}{kind}\"]", escape(&node.name));
        }
        for (i, node) in self.nodes.iter().enumerate() {
            for edge in &node.inputs {
                let _infallible = writeln!(out, "  n{} -->|\"{}\"| n{i}", edge.from, escape(&edge.port));
            }
        }
        out
    }

    fn dot(&self) -> String {
        let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        let mut out =
            "digraph pipeline {\n  node [shape=box, style=rounded, fontname=\"sans-serif\"];\n".to_owned();
        for node in &self.nodes {
            let label = if node.kind == node.name {
                node.name.clone()
            } else {
                format!("{}\n{}", node.name, node.kind)
            };
            let _infallible =
                writeln!(out, "  {} [label={}];", quote(&node.name), quote(&label).replace('\n', "\\n"));
        }
        for node in &self.nodes {
            for edge in &node.inputs {
                let (from, to) = (quote(&self.nodes[edge.from].name), quote(&node.name));
                let _infallible = writeln!(out, "  {from} -> {to} [label={}];", quote(&edge.port));
            }
        }
        out.push_str("}\n");
        out
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
        };
        let nodes = vec![
            node("corpus", "corpus", &[]),
            node("embed[dim=64]", "embed", &[(0, "texts")]),
            node("other", "embed", &[(0, "texts")]),
            node("select", "select", &[(0, "texts"), (1, "left"), (2, "right")]),
        ];
        Drawing { nodes }
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
