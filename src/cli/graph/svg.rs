//! The picture as SVG: boxes, curves, colours and a legend. Knows no pipeline, and not how places are found.

mod layout;

use std::fmt::Write;

use self::layout::{GAP, HEIGHT, Layout, MARGIN, Place, ROW, top};
use super::{Drawing, colour};
use crate::engine::state::Status;

/// The height of a line of the legend.
const LEGEND: f64 = 34.0;
/// What a word of the legend needs.
const WORD: f64 = 96.0;

/// The picture as one SVG file, readable on light and dark pages.
pub(super) fn svg(drawing: &Drawing) -> String {
    let layout = Layout::new(drawing);
    let counts = drawing.counts();
    let drawn = layout.places.iter().map(|place| place.centre + place.width / 2.0).fold(0.0, f64::max);
    let width = drawn.max(MARGIN + counts.len() as f64 * WORD - GAP) + MARGIN;
    let below = layout.rows.len().max(1) as f64 * ROW - (ROW - HEIGHT) + 2.0 * MARGIN;
    let height = below + if counts.is_empty() { 0.0 } else { LEGEND };
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\">\n{STYLE}{}",
        style(&counts)
    );
    for path in &layout.paths {
        let _infallible = writeln!(out, "<path d=\"{}\" marker-end=\"url(#tip)\"/>", layout.curve(path));
    }
    for place in &layout.places {
        if let Some(stage) = place.stage {
            let _infallible = out.write_str(&node(place, &drawing.nodes[stage]));
        }
    }
    out.push_str(&legend(&counts, below));
    out.push_str("</svg>\n");
    out
}

/// The colours of the statuses, the same on light and dark pages, so that the text on them is dark on both.
fn style(counts: &[(Status, usize)]) -> String {
    let mut out = String::new();
    for (status, _) in counts {
        let (class, fill, ink) = (status.as_str(), colour::fill(*status), colour::INK);
        let dashed = if *status == Status::Skipped { "; stroke-dasharray: 4 3" } else { "" };
        let _infallible = writeln!(
            out,
            "  .{class} rect {{ fill: {fill}; stroke: {ink}{dashed} }} .{class} text {{ fill: {ink} }}"
        );
    }
    if out.is_empty() { out } else { format!("<style>\n  .legend {{ text-anchor: start }}\n{out}</style>\n") }
}

/// A line with the colours that are there, their words and their counts.
fn legend(counts: &[(Status, usize)], y: f64) -> String {
    let mut out = String::new();
    for (i, (status, count)) in counts.iter().enumerate() {
        let (x, word) = (MARGIN + i as f64 * WORD, status.as_str());
        let _infallible = writeln!(
            out,
            "<g class=\"{word}\"><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"14\" height=\"14\" rx=\"3\"/></g>\
             <text class=\"legend\" x=\"{:.1}\" y=\"{:.1}\">{word} {count}</text>",
            x + 20.0,
            y + 11.5
        );
    }
    out
}

const STYLE: &str = "<style>
  text { font: 600 13px system-ui, sans-serif; text-anchor: middle; fill: #1c2733 }
  .kind { font-weight: 400; font-size: 11px; fill: #5b6b7c }
  rect { fill: #eef4fb; stroke: #7aa2cf; stroke-width: 1.2 }
  path { fill: none; stroke: #8c9bab; stroke-width: 1.4 }
  marker path { fill: #8c9bab; stroke: none }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4ecf4 } .kind { fill: #9fb0c2 } rect { fill: #1d2b3a; stroke: #4f7db0 } path { stroke: #6c7d8f }
    marker path { fill: #6c7d8f }
  }
</style>
<defs><marker id=\"tip\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\">\
<path d=\"M0 0L8 4L0 8z\"/></marker></defs>
";

fn node(place: &Place, node: &super::Node) -> String {
    let (x, y) = (place.centre - place.width / 2.0, top(place.row));
    let text = |dy: f64, class: &str, text: &str| {
        format!("<text x=\"{:.1}\" y=\"{:.1}\"{class}>{}</text>", place.centre, y + dy, escape(text))
    };
    let label = match node.below() {
        None => text(HEIGHT / 2.0 + 4.5, "", &node.name),
        Some(below) => text(19.0, "", &node.name) + &text(34.0, " class=\"kind\"", &below),
    };
    let width = place.width;
    let shape =
        format!("<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{HEIGHT}\" rx=\"8\"/>{label}");
    match node.status {
        None => shape + "\n",
        Some(status) => format!("<g class=\"{}\">{shape}</g>\n", status.as_str()),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests;
