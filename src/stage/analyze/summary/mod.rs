//! The analysis in words, on one page: a verdict on each topic, a row for each layer, what stands out. Every judgement states its
//! threshold. Knows no way to measure.

mod attention;
mod experts;
mod keys;
mod table;
mod words;

use std::fmt::Write;

use crate::artifact::analysis::Figures;

/// What there is to say about one topic.
struct Topic {
    /// Its name.
    name: &'static str,
    /// One sentence or two, also when nothing is unusual.
    verdict: String,
    /// What is unusual, by kind over all layers.
    details: Vec<String>,
}

/// Writes the page. A topic that the model does not have is not on it.
pub(super) fn write(figures: &Figures) -> String {
    let protocol = &figures.protocol;
    let mut text = format!(
        "# Analysis\n\nMeasured on {} tokens in {} sequences of at most {} tokens, f32 forward pass, f64 sums. Thresholds stand in brackets; \
         every figure is in `analysis.json`.\n\n## In short\n\n",
        protocol.tokens, protocol.sequences, protocol.max_length
    );
    let topics = [attention::topics(figures), keys::topics(figures), experts::topics(figures)];
    let topics: Vec<Topic> = topics.into_iter().flatten().collect();
    for Topic { name, verdict, .. } in &topics {
        let _ = writeln!(text, "- **{name}**: {verdict}.");
    }
    text += "\n## Layer by layer\n\n";
    text += &table::write(figures);
    text += "\n## What stands out\n\n";
    let details: Vec<&String> = topics.iter().flat_map(|topic| &topic.details).collect();
    for detail in &details {
        let _ = writeln!(text, "- {detail}.");
    }
    if details.is_empty() {
        text += "Nothing passes a threshold.\n";
    }
    text
}

#[cfg(test)]
mod tests;
