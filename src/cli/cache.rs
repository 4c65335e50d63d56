//! `cache`: what lies in the cache, and whether it is sound. What is shared is in `remote`.

mod gc;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    args::Format,
    error::CliError,
    exit::Exit,
    output,
    paint::{Colour, Palette, bytes, seconds},
    project,
    remote::Shared,
    table::{self, Cell},
};
use crate::store::{Record, Store, Verified};

/// Look at the cache, and share it
#[derive(Debug, Args)]
pub(super) struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List what was made, oldest first
    Ls(Place),
    /// Hash every byte and check every record; what is wrong is moved to `bad/` and made again by the next run
    Verify(Verify),
    Gc(gc::Gc),
    Pin(gc::Pin),
    Unpin(gc::Unpin),
    #[command(flatten)]
    Shared(Shared),
}

#[derive(Debug, Args)]
struct Verify {
    #[command(flatten)]
    place: Place,
    /// Hash only this part of the bytes, another one each time
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    subset: Option<f64>,
    /// Also remove records whose bytes are lost, so that nothing refers to what is not there
    #[arg(long)]
    repair: bool,
}

/// `5%` or `5`, as a share of 1.
fn percent(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').trim().parse::<f64>() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent / 100.0),
        _ => Err("expected a percentage above 0 and up to 100, such as `5%`".to_owned()),
    }
}

#[derive(Debug, Args)]
struct Place {
    /// The cache folder [default: the nearest `cache` folder of a project at or above this folder, else ./cache]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// How to tell the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

impl Place {
    fn open(&self) -> Result<Store, CliError> {
        let root = project::cache(self.cache.as_deref(), None);
        if !root.is_dir() {
            return Err(CliError::usage(format!("there is no cache `{}`", root.display()))
                .hint("name one with --cache"));
        }
        Ok(Store::open(&root)?)
    }
}

#[derive(Serialize)]
struct Listed {
    key: String,
    kind: String,
    seconds: f64,
    made: i64,
    bytes: u64,
    files: usize,
    why: Vec<String>,
}

impl Listed {
    fn new(record: Record) -> Self {
        Self {
            key: record.digest.to_string(),
            kind: record.kind,
            seconds: record.seconds,
            made: record.made,
            bytes: record.outputs.values().map(crate::store::Tree::bytes).sum(),
            files: record.outputs.values().map(|tree| tree.files.len()).sum(),
            why: record.why,
        }
    }
}

impl Command {
    pub(super) fn format(&self) -> Format {
        match &self.what {
            What::Ls(place) => place.format,
            What::Verify(verify) => verify.place.format,
            What::Gc(gc) => gc.place.format,
            What::Unpin(unpin) => unpin.place.format,
            What::Pin(_) => Format::Text,
            What::Shared(shared) => shared.format(),
        }
    }

    pub(super) fn run(&self) -> Result<Exit, CliError> {
        match &self.what {
            What::Shared(shared) => shared.run(),
            What::Ls(place) => {
                let records: Vec<Listed> = place.open()?.ls()?.into_iter().map(Listed::new).collect();
                match place.format {
                    Format::Json => output::json(&records)?,
                    Format::Text => output::text(&list(&records, output::palette()))?,
                }
                Ok(Exit::OK)
            }
            What::Gc(gc) => gc.run(),
            What::Pin(pin) => pin.run(),
            What::Unpin(unpin) => unpin.run(),
            What::Verify(Verify { place, subset, repair }) => {
                let verified = place.open()?.check(subset.unwrap_or(1.0), *repair)?;
                match place.format {
                    Format::Json => output::json(&verified)?,
                    Format::Text => output::text(&verdict(&verified, output::palette()))?,
                }
                Ok(if verified.is_sound() { Exit::OK } else { Exit::CACHE })
            }
        }
    }
}

fn list(records: &[Listed], palette: Palette) -> String {
    let mut rows = vec![
        ["kind", "key", "files", "size", "time", "why it ran"].map(Cell::new).into_iter().collect::<Vec<_>>(),
    ];
    for column in [2, 3, 4] {
        rows[0][column].right = true;
    }
    for record in records {
        rows.push(vec![
            Cell::new(&record.kind).colour(Colour::Strong),
            Cell::new(&record.key[..12]).colour(Colour::Faint),
            Cell::new(record.files.to_string()).right(),
            Cell::new(bytes(record.bytes)).right(),
            Cell::new(seconds(record.seconds)).right(),
            Cell::new(record.why.join("; ")),
        ]);
    }
    let total: u64 = records.iter().map(|record| record.bytes).sum();
    format!("{}\n  {} records, {}\n", table::render(&rows, palette), records.len(), bytes(total))
}

fn verdict(verified: &Verified, palette: Palette) -> String {
    let bad = |line: &String| format!("{}\n", palette.paint(Colour::Bad, line));
    let faults: Vec<String> = verified.damaged.iter().chain(&verified.incomplete).map(bad).collect();
    let word = if verified.is_sound() {
        palette.paint(Colour::Good, "sound")
    } else {
        palette.paint(Colour::Bad, "damaged; the next run makes again what is missing")
    };
    let Verified { blobs, records, .. } = verified;
    format!(
        "{}{word}: {blobs} blobs ({}) and {records} records are right\n",
        faults.concat(),
        bytes(verified.bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing() {
        let record = Listed {
            key: "0123456789abcdef".to_owned(),
            kind: "corpus".to_owned(),
            seconds: 1.5,
            made: 0,
            bytes: 2048,
            files: 3,
            why: vec!["never ran".to_owned()],
        };
        let expected = "  kind    key           files     size   time  why it ran
  corpus  0123456789ab      3  2.0 KiB  1.5 s  never ran

  1 records, 2.0 KiB
";
        assert_eq!(list(&[record], Palette(false)), expected);
    }

    #[test]
    fn verdicts() {
        let mut verified = Verified { blobs: 2, bytes: 10, records: 1, ..Verified::default() };
        assert_eq!(verdict(&verified, Palette(false)), "sound: 2 blobs (10 B) and 1 records are right\n");
        verified.damaged.push("blob 00 had other bytes".to_owned());
        let text = verdict(&verified, Palette(false));
        assert!(text.starts_with("blob 00 had other bytes\ndamaged; "), "{text}");
    }
}
