//! Faults of a manifest as text: the message, the lines at fault underlined, and what to do about it.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Element, Group, Level, Renderer, Snippet};
use serde::Serialize;

use crate::{
    manifest::{Fault, Source, Sources, Span},
    plan::{PlanError, Rejected},
};

/// All faults of a manifest and a last line with their number.
pub fn render(rejected: &Rejected, colour: bool) -> String {
    let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
    let mut text = String::new();
    for fault in &rejected.faults {
        text += &renderer.render(&groups(fault, &rejected.sources));
        text += "\n\n";
    }
    let count = match rejected.faults.len() {
        1 => "1 mistake".to_owned(),
        many => format!("{many} mistakes"),
    };
    let file = rejected.sources.files().first().map_or("the manifest", |source| source.name.as_str());
    let last = Level::ERROR.primary_title(format!("{count} in {file}; nothing was run"));
    text += &renderer.render(&[Group::with_title(last)]);
    text.push('\n');
    text
}

/// A fault as data, for `--format json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// What is wrong.
    pub message: String,
    /// The file, or `--set`, `--profile`.
    pub file: Option<String>,
    /// The line, from 1.
    pub line: Option<usize>,
    /// The column in characters, from 1.
    pub column: Option<usize>,
    /// The text at fault.
    pub text: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
}

/// All faults as data.
pub fn list(rejected: &Rejected) -> Vec<Diagnostic> {
    rejected.faults.iter().map(|fault| Diagnostic::new(fault, &rejected.sources)).collect()
}

impl Diagnostic {
    fn new(fault: &Fault<PlanError>, sources: &Sources) -> Self {
        let found = fault.place.as_ref().and_then(|place| sources.locate(place));
        let position = found.as_ref().map(|(source, local)| position(&source.text, local.start));
        Self {
            message: fault.error.to_string(),
            file: found.as_ref().map(|(source, _)| source.name.clone()),
            line: position.map(|(line, _)| line),
            column: position.map(|(_, column)| column),
            text: found
                .as_ref()
                .and_then(|(source, local)| source.text.get(local.clone()))
                .map(str::to_owned),
            hint: fault.hint.clone(),
        }
    }
}

/// Line and column of a byte, both from 1, the column in characters.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(at)];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

fn groups<'a>(fault: &'a Fault<PlanError>, sources: &'a Sources) -> Vec<Group<'a>> {
    let mut elements: Vec<Element<'a>> = Vec::new();
    let mut places: Vec<(&Span, AnnotationKind, Option<&str>)> = Vec::new();
    if let Some(place) = &fault.place {
        places.push((place, AnnotationKind::Primary, fault.label.as_deref()));
    }
    let related = fault.related.iter();
    places.extend(related.map(|(place, label)| (place, AnnotationKind::Context, Some(label.as_str()))));
    // One snippet for each text, in the order in which the places name them.
    let mut shown: Vec<(&Source, Vec<_>)> = Vec::new();
    for (place, kind, label) in places {
        let Some((source, local)) = sources.locate(place) else { continue };
        let annotation = kind.span(visible(&source.text, local)).label(label);
        match shown.iter_mut().find(|(other, _)| other.start == source.start) {
            Some((_, annotations)) => annotations.push(annotation),
            None => shown.push((source, vec![annotation])),
        }
    }
    for (source, annotations) in shown {
        let snippet = Snippet::source(source.text.as_str()).path(source.name.as_str());
        elements.push(snippet.annotations(annotations).into());
    }
    if let Some(hint) = &fault.hint {
        elements.push(Level::HELP.message(hint.as_str()).into());
    }
    let title = Level::ERROR.primary_title(fault.error.to_string());
    vec![Group::with_title(title).elements(elements)]
}

/// A span that can be underlined: within one line, and not empty.
fn visible(text: &str, span: Range<usize>) -> Range<usize> {
    let start = text.floor_char_boundary(span.start);
    let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
    let end = text.floor_char_boundary(span.end).clamp(start, line_end.max(start));
    if end > start || start == text.len() { start..end } else { start..text.ceil_char_boundary(start + 1) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{manifest::Options, plan::plan, stage::table::STAGES};

    fn rejected(text: &str) -> Rejected {
        let path = Path::new("m.toml");
        let (sources, faults) = Sources::read_with(path, &Options::default(), &|_| Ok(text.to_owned()));
        plan(path, sources, faults, STAGES).err().expect("the manifest has faults")
    }

    #[test]
    fn a_fault_as_data_has_its_place_in_characters() {
        let text = "[stage.corpus]\n'licence-é' = 1\nkind = 'é'\n";
        let found = list(&rejected("[pipeline]\nname = 'é', seed = 1"));
        assert_eq!((found[0].line, found[0].file.as_deref()), (Some(2), Some("m.toml")));
        let found = list(&rejected(text));
        assert!(
            found
                .iter()
                .any(|d| d.line == Some(3) && d.column == Some(8) && d.text.as_deref() == Some("'é'")),
            "{found:?}"
        );
    }

    #[test]
    fn positions_count_characters() {
        assert_eq!(position("é\nàb", 5), (2, 2));
        assert_eq!(position("", 0), (1, 1));
        assert_eq!(position("a\n", 2), (2, 1));
    }

    #[test]
    fn what_is_underlined_is_not_empty_and_in_one_line() {
        assert_eq!(visible("ab\ncd", 0..5), 0..2);
        assert_eq!(visible("ab\ncd", 1..1), 1..2);
        assert_eq!(visible("éb", 1..1), 0..2);
        assert_eq!(visible("ab", 2..2), 2..2);
    }

    #[test]
    fn colour_changes_no_word() {
        let rejected = rejected("[stage.corpsu]\n");
        let plain = render(&rejected, false);
        let styled = anstream::adapter::strip_str(&render(&rejected, true)).to_string();
        assert_eq!(plain, styled);
        assert!(plain.ends_with("error: 1 mistake in m.toml; nothing was run\n"), "{plain}");
    }
}
