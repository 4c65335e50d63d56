//! `stages`: the reference of every stage kind, from the doc comments of its parameters.

use std::fmt::Write;

use clap::Args;

use super::{
    CliError,
    args::Format,
    exit::Exit,
    output,
    paint::Palette,
    table::{self, Cell},
};
use crate::{
    manifest::near::suggest,
    plan::manual::{Manual, manual},
    stage::table::STAGES,
};

/// List the stage kinds, or show the manual of one
#[derive(Debug, Args)]
pub(super) struct Command {
    /// A stage kind; without it, all kinds are listed
    kind: Option<String>,
    /// How to tell the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

impl Command {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let kinds = STAGES.iter().filter(|row| self.kind.as_ref().is_none_or(|kind| kind == row.kind));
        let manuals: Vec<Manual> = kinds.map(manual).collect();
        match (&self.kind, &manuals[..]) {
            (_, []) => {
                let kind = self.kind.as_deref().unwrap_or_default();
                let hint = suggest(kind, "kinds", STAGES.iter().map(|row| row.kind));
                return Err(CliError::usage(format!("there is no stage kind `{kind}`")).hint(hint));
            }
            _ if self.format == Format::Json => output::json(&manuals)?,
            (Some(_), [one, ..]) => output::text(&reference(one))?,
            (None, all) => output::text(&list(all, output::palette()))?,
        }
        Ok(Exit::OK)
    }
}

fn list(manuals: &[Manual], palette: Palette) -> String {
    let mut rows = vec![vec![Cell::new("kind"), Cell::new("writes"), Cell::new("what it does")]];
    for manual in manuals {
        let writes: Vec<&str> = manual.outputs.iter().map(|(name, _)| *name).collect();
        let summary = manual.doc.split("\n\n").next().unwrap_or_default().replace('\n', " ");
        let sentence = summary.split_once(". ").map_or(summary.as_str(), |(first, _)| first);
        rows.push(vec![
            Cell::new(manual.kind).colour(super::paint::Colour::Strong),
            Cell::new(writes.join(", ")),
            Cell::new(sentence.trim_end_matches('.')),
        ]);
    }
    table::render(&rows, palette) + "\n`mla-run stages KIND` shows the parameters of one.\n"
}

fn reference(manual: &Manual) -> String {
    let mut out = format!("{}\n\n", manual.kind);
    for line in manual.doc.lines() {
        let _infallible = writeln!(out, "{}", format!("  {line}").trim_end());
    }
    let outputs: Vec<String> = manual.outputs.iter().map(|(name, kind)| format!("{name} ({kind})")).collect();
    let _infallible = write!(out, "\nWrites: {}\n\nParameters:\n", outputs.join(", "));
    for parameter in &manual.parameters {
        let default = match (&parameter.default, parameter.required) {
            (_, true) => "required".to_owned(),
            (Some(default), _) => format!("default: {default}"),
            (None, _) => "optional".to_owned(),
        };
        let _infallible = writeln!(out, "\n  {} — {}, {default}", parameter.name, parameter.ty);
        for line in parameter.doc.lines() {
            let _infallible = writeln!(out, "{}", format!("      {line}").trim_end());
        }
    }
    out += "\nKeys of every stage:\n\n";
    let rows: Vec<Vec<Cell>> =
        manual.keys.iter().map(|(name, doc)| vec![Cell::new(name), Cell::new(doc)]).collect();
    out + &table::render(&rows, Palette(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: &str) -> Manual {
        manual(STAGES.iter().find(|row| row.kind == kind).unwrap())
    }

    #[test]
    fn every_kind_and_every_parameter_is_described() {
        for manual in STAGES.iter().map(manual) {
            assert!(!manual.doc.is_empty(), "{} lacks a doc comment", manual.kind);
            for parameter in &manual.parameters {
                assert!(!parameter.doc.is_empty(), "{}.{} lacks a doc comment", manual.kind, parameter.name);
            }
        }
    }

    #[test]
    fn the_reference_of_exec() {
        let text = reference(&of("exec"));
        assert!(text.starts_with("exec\n\n  Runs your own command"), "{text}");
        assert!(text.contains("\nWrites: out (files)\n"), "{text}");
        assert!(text.contains("\n  argv — list of string, required\n      The program"), "{text}");
        assert!(text.contains("\n  shards     Runs the stage in so many shards"), "{text}");
        assert!(!reference(&of("corpus")).contains("  shards "));
        assert!(text.contains("\n  allow-empty — boolean, default: false\n"), "{text}");
    }

    #[test]
    fn the_list_has_one_line_a_kind() {
        let text = list(&[of("exec")], Palette(false));
        let line = text.lines().nth(1).unwrap();
        assert!(line.starts_with("  exec  out     Runs your own command on declared files"), "{text}");
    }
}
