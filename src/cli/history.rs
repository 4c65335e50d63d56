//! `history`: the runs of a cache, newest first. Knows what their folders tell, and no stage.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::{
    args::{ChangeArgs, Format},
    error::CliError,
    exit::Exit,
    output,
    paint::{Colour, Palette, seconds},
    project,
    runs::{Name, Run, Runs, UNFINISHED},
    table::{self, Cell},
};
use crate::manifest::near;

/// List the runs of a cache, newest first
///
/// A run that still goes on or was killed is `unfinished`.
#[derive(Debug, Args)]
pub(super) struct Command {
    /// Only runs of this pipeline: its name, or its manifest
    #[arg(value_name = "NAME|PIPELINE.toml")]
    pipeline: Option<String>,
    /// The cache folder [default: the nearest `cache` folder of a project at or above the manifest or this folder, else ./cache]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// List so many runs at most
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    /// How to tell the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// One run, as it is told.
#[derive(Debug, Serialize)]
struct Row {
    run: String,
    pipeline: String,
    started: String,
    status: String,
    seconds: f64,
    stages: usize,
    ran: usize,
    cached: usize,
    failed: Vec<String>,
    running: Vec<String>,
}

impl Row {
    fn new(name: &Name, run: Run) -> Self {
        let list = |status: &str| run.with(status).into_iter().map(str::to_owned).collect::<Vec<_>>();
        Self {
            run: name.id.clone(),
            started: name.started.clone(),
            stages: run.stages.len(),
            ran: run.with("ran").len(),
            cached: run.with("cached").len(),
            failed: list("failed"),
            running: list("running"),
            pipeline: run.pipeline,
            status: run.status,
            seconds: run.seconds,
        }
    }
}

impl Command {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let manifest = self.pipeline.as_deref().map(Path::new);
        let manifest = manifest.filter(|path| path.extension().is_some_and(|ext| ext == "toml"));
        let runs = Runs::of(&project::cache(self.cache.as_deref(), manifest))?;
        let wanted = match manifest {
            Some(path) => Some(project::open(path, &ChangeArgs::default())?.name),
            None => self.pipeline.clone(),
        };
        let rows = rows(&runs, wanted.as_deref(), self.limit);
        if rows.is_empty() && self.limit > 0 && manifest.is_none() {
            known(&runs, wanted.as_deref())?;
        }
        match self.format {
            Format::Json => output::json(&rows)?,
            Format::Text => output::text(&text(&rows, output::palette()))?,
        }
        Ok(Exit::OK)
    }
}

/// The newest runs, of one pipeline or of all. Reads no more summaries than it needs.
fn rows(runs: &Runs, pipeline: Option<&str>, limit: usize) -> Vec<Row> {
    let all = runs.names().iter().map(|name| Row::new(name, runs.read(name)));
    all.filter(|row| pipeline.is_none_or(|wanted| row.pipeline == wanted)).take(limit).collect()
}

/// A name that no run has is a mistake rather than an empty list.
fn known(runs: &Runs, wanted: Option<&str>) -> Result<(), CliError> {
    let Some(wanted) = wanted else { return Ok(()) };
    let mut known: Vec<String> = runs.names().iter().map(|name| runs.read(name).pipeline).collect();
    known.retain(|name| !name.is_empty());
    known.sort();
    known.dedup();
    let hint = near::suggest(wanted, "pipelines", known.iter().map(String::as_str));
    Err(CliError::usage(format!("no run is of a pipeline `{wanted}`")).hint(hint))
}

fn text(rows: &[Row], palette: Palette) -> String {
    let mut table = vec![
        ["run", "pipeline", "started (UTC)", "status", "time", "ran", "cached", "failed", ""]
            .map(Cell::new)
            .into_iter()
            .collect::<Vec<_>>(),
    ];
    for cell in &mut table[0][4..8] {
        cell.right = true;
    }
    for row in rows {
        let colour = match row.status.as_str() {
            "ok" => Colour::Good,
            UNFINISHED => Colour::Warning,
            _ => Colour::Bad,
        };
        let number = |n: usize| Cell::new(if n == 0 { String::new() } else { n.to_string() }).right();
        table.push(vec![
            Cell::new(&row.run).colour(Colour::Strong),
            Cell::new(&row.pipeline),
            Cell::new(row.started.replace('T', " ").trim_end_matches('Z')).colour(Colour::Faint),
            Cell::new(&row.status).colour(colour),
            Cell::new(seconds(row.seconds)).right(),
            number(row.ran),
            number(row.cached),
            number(row.failed.len()),
            Cell::new(remark(row)),
        ]);
    }
    match rows.len() {
        0 => "  no runs\n".to_owned(),
        _ => table::render(&table, palette),
    }
}

/// What failed, or how far a run is that did not end.
fn remark(row: &Row) -> String {
    let list = |names: &[String]| near::list(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let parts = [("failed: ", &row.failed), ("in ", &row.running)];
    let parts = parts.into_iter().filter(|(_, names)| !names.is_empty());
    parts.map(|(word, names)| format!("{word}{}", list(names))).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(status: &str, failed: &[&str], running: &[&str]) -> Row {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Row {
            run: "20261123-152518-aaaaaa".to_owned(),
            pipeline: "full".to_owned(),
            started: "2026-11-23T15:25:18Z".to_owned(),
            status: status.to_owned(),
            seconds: 12.34,
            stages: 11,
            ran: 2,
            cached: 0,
            failed: names(failed),
            running: names(running),
        }
    }

    #[test]
    fn a_listing() {
        let rows = [
            row("ok", &[], &[]),
            row("failed", &["svd", "distill"], &[]),
            Row { pipeline: String::new(), ..row(UNFINISHED, &["a"], &["b"]) },
        ];
        let expected = "  run                     pipeline  started (UTC)        status        time  ran  cached  failed
  20261123-152518-aaaaaa  full      2026-11-23 15:25:18  ok          12.3 s    2
  20261123-152518-aaaaaa  full      2026-11-23 15:25:18  failed      12.3 s    2               2  failed: `svd`, `distill`
  20261123-152518-aaaaaa            2026-11-23 15:25:18  unfinished  12.3 s    2               1  failed: `a`; in `b`
";
        assert_eq!(text(&rows, Palette(false)), expected);
        assert_eq!(text(&[], Palette(false)), "  no runs\n");
    }

    #[test]
    fn every_status_has_its_colour() {
        for (status, code) in [("ok", "32"), ("failed", "31;1"), (UNFINISHED, "33"), ("odd", "31;1")] {
            let text = text(&[row(status, &[], &[])], Palette(true));
            assert!(text.contains(&format!("\x1b[{code}m{status}")), "{text:?}");
        }
    }
}
