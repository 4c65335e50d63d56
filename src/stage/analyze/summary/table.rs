//! The table with a row for each layer, and a column for each figure that any layer has. Knows no judgement.

use std::fmt::Write;

use super::words::{mean, percent};
use crate::artifact::analysis::{Figures, Head, Layer};

/// A column: its head and its cells; `None` where a layer has none.
struct Column(String, fn(&Layer) -> Option<String>);

/// Markdown.
pub(super) fn write(figures: &Figures) -> String {
    let mut columns = columns(figures.protocol.far);
    columns.retain(|Column(_, cell)| figures.layers.iter().any(|layer| cell(layer).is_some()));
    let heads: Vec<&str> = columns.iter().map(|Column(head, _)| head.as_str()).collect();
    let mut text = format!("| {} |\n|{}\n", heads.join(" | "), "---|".repeat(columns.len()));
    for layer in &figures.layers {
        let cells = columns.iter().map(|Column(_, cell)| cell(layer).unwrap_or_else(|| "–".to_owned()));
        let _ = writeln!(text, "| {} |", cells.collect::<Vec<_>>().join(" | "));
    }
    text
}

fn columns(far: usize) -> Vec<Column> {
    vec![
        Column("layer".into(), |l| Some(l.layer.to_string())),
        Column("attention".into(), |l| Some(l.attention.clone())),
        Column("sink".into(), |l| {
            l.heads.iter().any(|h| h.sink_logit.is_some()).then(|| share(l, |h| h.sink_mass))
        }),
        Column("first token".into(), |l| Some(share(l, |h| h.first_token_mass))),
        Column(format!("{far} or more back"), |l| (l.attention != "sliding").then(|| share(l, |h| h.far))),
        Column("90 % within".into(), |l| Some(l.geometry.reach.to_string())),
        Column("first key".into(), |l| Some(format!("{:.1}×", l.geometry.first_key_ratio))),
        Column("still pairs".into(), |l| (!l.pairs.is_empty()).then(|| l.geometry.still_pairs.to_string())),
        Column("heads share".into(), |l| l.geometry.correlation.and(l.geometry.sharing).map(percent)),
        Column("rank K, V, both".into(), |l| {
            let ranks = l.spectra.as_ref().map(|s| [&s.keys, &s.values, &s.joint].map(|s| s.effective_rank));
            ranks.map(|[k, v, both]| format!("{k:.0}, {v:.0}, {both:.0}"))
        }),
        Column("busiest expert".into(), |l| {
            let routing = l.routing.as_ref()?;
            let most = routing.load.iter().copied().fold(0.0, f64::max);
            Some(format!("{:.1}×", most * routing.load.len() as f64))
        }),
        Column("dead experts".into(), |l| Some(l.routing.as_ref()?.dead.len().to_string())),
    ]
}

/// The mean over heads.
fn share(layer: &Layer, of: fn(&Head) -> f64) -> String {
    percent(mean(layer.heads.iter().map(of)))
}
