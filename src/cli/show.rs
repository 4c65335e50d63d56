//! `show`: what a stage wrote, and where it lies.

use std::{fmt::Write, fs, io::Read, path::Path};

use clap::Args;

use super::{
    args::StageArgs,
    error::CliError,
    exit::Exit,
    output,
    paint::{Colour, bytes, seconds},
    stage::Found,
    table::{self, Cell},
};
use crate::manifest::near::suggest;

/// How much of a text is shown.
const SHOWN_LINES: usize = 40;
const SHOWN_BYTES: u64 = 64 * 1024;

/// Show what a stage wrote
#[derive(Debug, Args)]
pub(super) struct Command {
    /// The stage, one of its outputs if only that is meant, and the manifest unless the last one run is meant
    #[arg(value_names = ["STAGE", "PORT", "PIPELINE.toml"], num_args = 1..=3, required = true)]
    words: Vec<String>,
    /// Print nothing but the path of the output, for scripts
    #[arg(long)]
    path: bool,
    #[command(flatten)]
    stage: StageArgs,
}

impl Command {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let (found, rest) = Found::open(&self.words, 1, &self.stage)?;
        let record = found.record()?;
        let port = rest.first();
        if let Some(port) = port.filter(|port| !record.outputs.contains_key(*port)) {
            let hint = suggest(port, "outputs", record.outputs.keys().map(String::as_str));
            return Err(CliError::usage(format!("`{}` has no output `{port}`", found.stage.name)).hint(hint));
        }
        let chosen = record.outputs.iter().filter(|(name, _)| port.is_none_or(|port| port == *name));
        let mut text = String::new();
        if !self.path && port.is_none() {
            let why = record.why.join("; ");
            let key = &record.digest.to_string()[..12];
            let _infallible = writeln!(
                text,
                "{} ({}), key {key}, took {}: {why}\n",
                found.stage.name,
                record.kind,
                seconds(record.seconds)
            );
        }
        for (name, tree) in chosen {
            let view = found.store.view(tree)?;
            if self.path {
                let _infallible = writeln!(text, "{}", view.display());
                continue;
            }
            let _infallible = writeln!(text, "{name}: {} in {}", bytes(tree.bytes()), view.display());
            let mut rows = vec![["file", "size", "blob"].map(Cell::new).into_iter().collect::<Vec<_>>()];
            for file in &tree.files {
                let blob = Cell::new(&file.blob.to_string()[..12]).colour(Colour::Faint);
                rows.push(vec![Cell::new(&file.name), Cell::new(bytes(file.size)).right(), blob]);
            }
            text += &table::render(&rows, output::palette());
            if port.is_some() && tree.files.len() == 1 {
                text += &preview(&view).unwrap_or_default();
            }
        }
        output::text(&text)?;
        Ok(Exit::OK)
    }
}

/// The first lines of a text, or nothing if it is none.
fn preview(path: &Path) -> Option<String> {
    let mut start = Vec::new();
    fs::File::open(path).ok()?.take(SHOWN_BYTES).read_to_end(&mut start).ok()?;
    let cut = start.len() as u64 == SHOWN_BYTES;
    let text = match std::str::from_utf8(&start) {
        Ok(text) => text,
        // The cut may have split a letter.
        Err(error) if cut && error.error_len().is_none() => {
            std::str::from_utf8(&start[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    if text.contains('\0') {
        return None;
    }
    let mut out = String::from("\n");
    for line in text.lines().take(SHOWN_LINES) {
        out.extend(line.chars().filter(|c| !c.is_control() || *c == '\t').take(300));
        out.push('\n');
    }
    if cut || text.lines().count() > SHOWN_LINES {
        out.push_str("…\n");
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn previews() {
        let dir = tempfile::tempdir().unwrap();
        let check = |bytes: &[u8]| {
            let path = dir.path().join("x");
            fs::write(&path, bytes).unwrap();
            preview(&path)
        };
        assert_eq!(check(b"a\x1b[31m\nb").as_deref(), Some("\na[31m\nb\n"));
        assert_eq!(check(b"\xff\xfe"), None);
        assert_eq!(check(b"a\0b"), None);
        let long = check("é".repeat(70_000).as_bytes()).unwrap();
        assert!(long.ends_with("é\n…\n") && long.len() < 700, "{}", long.len());
        assert_eq!(check("x\n".repeat(100).as_bytes()).unwrap().lines().count(), SHOWN_LINES + 2);
        assert!(!check("x\n".repeat(SHOWN_LINES).as_bytes()).unwrap().contains('…'), "all is shown");
        assert!(check("x\n".repeat(SHOWN_LINES + 1).as_bytes()).unwrap().ends_with("x\n…\n"));
        assert_eq!(check(b"").as_deref(), Some("\n"));
        assert_eq!(check(b"a\tb\r\n\n c").as_deref(), Some("\na\tb\n\n c\n"));
        let size = SHOWN_BYTES as usize;
        assert_eq!(
            check(&[b"y".repeat(size - 1), vec![0xff]].concat()),
            None,
            "a wrong byte is no split letter"
        );
        assert!(check("x".repeat(size - 1).as_bytes()).unwrap().lines().nth(1).unwrap().len() == 300);
        assert_eq!(preview(&dir.path().join("gone")), None);
        assert_eq!(preview(dir.path()), None);
    }
}
