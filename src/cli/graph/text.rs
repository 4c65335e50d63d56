//! The picture as text for Mermaid and for Graphviz. Knows no layout: those programs make it.

use std::fmt::Write;

use super::{Drawing, colour};
use crate::engine::state::Status;

/// A flow chart of Mermaid.
pub(super) fn mermaid(drawing: &Drawing) -> String {
    // `#` begins an entity of Mermaid, and `<` one of HTML.
    let escape = |text: &str| {
        let text = text.replace('#', "#35;").replace('"', "#quot;");
        text.replace('<', "#lt;").replace('>', "#gt;")
    };
    let mut out = "flowchart TD\n".to_owned();
    for (i, node) in drawing.nodes.iter().enumerate() {
        let below = node.below().map_or_else(String::new, |text| format!("<br><small>{text}</small>"));
        let class = node.status.map_or_else(String::new, |status| format!(":::{}", status.as_str()));
        let _infallible = writeln!(out, "  n{i}[\"{}{below}\"]{class}", escape(&node.name));
    }
    for (i, node) in drawing.nodes.iter().enumerate() {
        for edge in &node.inputs {
            let _infallible = writeln!(out, "  n{} -->|\"{}\"| n{i}", edge.from, escape(&edge.port));
        }
    }
    for (status, _) in drawing.counts() {
        let dashed = if status == Status::Skipped { ",stroke-dasharray:4 3" } else { "" };
        let (fill, ink) = (colour::fill(status), colour::INK);
        let _infallible =
            writeln!(out, "  classDef {} fill:{fill},stroke:{ink},color:{ink}{dashed}", status.as_str());
    }
    out
}

/// A graph for Graphviz.
pub(super) fn dot(drawing: &Drawing) -> String {
    let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut out =
        "digraph pipeline {\n  node [shape=box, style=rounded, fontname=\"sans-serif\"];\n".to_owned();
    for node in &drawing.nodes {
        let label = node.below().map_or_else(|| node.name.clone(), |text| format!("{}\n{text}", node.name));
        let look = node.status.map_or_else(String::new, |status| {
            let dashed = if status == Status::Skipped { ",dashed" } else { "" };
            let (fill, ink) = (colour::fill(status), colour::INK);
            format!(", style=\"rounded,filled{dashed}\", fillcolor=\"{fill}\", fontcolor=\"{ink}\"")
        });
        let _infallible =
            writeln!(out, "  {} [label={}{look}];", quote(&node.name), quote(&label).replace('\n', "\\n"));
    }
    for node in &drawing.nodes {
        for edge in &node.inputs {
            let (from, to) = (quote(&drawing.nodes[edge.from].name), quote(&node.name));
            let _infallible = writeln!(out, "  {from} -> {to} [label={}];", quote(&edge.port));
        }
    }
    out.push_str("}\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::graph::tests::{coloured, diamond};

    #[test]
    fn mermaid_has_a_class_for_every_status_that_is_there() {
        let text = mermaid(&coloured());
        for part in [
            "  n0[\"corpus<br><small>cached</small>\"]:::cached\n",
            "  n1[\"embed[dim=64]<br><small>embed · run</small>\"]:::run\n",
            "  n3[\"select<br><small>blocked</small>\"]:::blocked\n",
            "  classDef cached fill:#56b4e9,stroke:#111111,color:#111111\n",
            "  classDef maybe fill:#f0e442,",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(text.matches("classDef").count(), 4);
        assert!(!mermaid(&diamond()).contains("class"), "{text}");
    }

    #[test]
    fn dot_fills_its_boxes() {
        let text = dot(&coloured());
        let expected = "  \"corpus\" [label=\"corpus\\ncached\", style=\"rounded,filled\", fillcolor=\"#56b4e9\", fontcolor=\"#111111\"];\n";
        assert!(text.contains(expected), "{text}");
        assert_eq!((text.matches("fillcolor").count(), dot(&diamond()).matches("fillcolor").count()), (4, 0));
    }

    #[test]
    fn what_is_skipped_is_dashed() {
        let mut drawing = coloured();
        drawing.nodes[3].status = Some(Status::Skipped);
        assert!(mermaid(&drawing).contains("color:#111111,stroke-dasharray:4 3\n"));
        assert!(dot(&drawing).contains("style=\"rounded,filled,dashed\", fillcolor=\"#d9d9d9\""));
    }
}
