//! `cache gc`, `cache pin` and `cache unpin`: what the cache may forget, and what it may not.

use std::{str::FromStr, time::Duration};

use clap::Args;

use super::{Place, output};
use crate::{
    cli::{
        args::{Format, StageArgs},
        error::CliError,
        exit::Exit,
        paint::{bytes, seconds},
        stage::Found,
    },
    engine::roots,
    store::{Collected, Policy, Root},
};

/// Remove what no pipeline refers to any more
///
/// Kept are: pinned stages, the keys of lock files, what every stage of every pipeline is now, the last runs of each pipeline, and
/// what was made or used lately. Bytes that a running process may still read are deleted by a later `gc`.
#[derive(Debug, Args)]
pub(super) struct Gc {
    #[command(flatten)]
    pub place: Place,
    /// Remove only what was neither made nor used for this long
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = humantime::parse_duration)]
    older_than: Duration,
    /// Remove only until the cache fits into this, first what is cheap to make again for its size
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_size: Option<u64>,
    /// How many runs of each pipeline to keep with all they made
    #[arg(long, value_name = "N", default_value_t = 3)]
    keep_runs: usize,
    /// Go on although nothing is pinned, locked or part of a run, so that everything goes
    #[arg(long)]
    all: bool,
    /// Remove nothing, and tell what would be removed
    #[arg(long)]
    dry_run: bool,
}

fn size(text: &str) -> Result<u64, String> {
    bytesize::ByteSize::from_str(text).map(|size| size.as_u64())
}

impl Gc {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let store = self.place.open()?;
        let mut used = roots::in_use(&store, self.keep_runs)?;
        for (kind, _, root) in store.roots()? {
            for key in root.keys {
                used.keep.insert(key, if kind == "pin" { "pinned" } else { "in a lock file" }.to_owned());
            }
        }
        if used.keep.is_empty() && !self.all && !store.ls()?.is_empty() {
            let message = "nothing in this cache is pinned, locked or part of a run, so everything would go";
            return Err(CliError::usage(message).hint("use --all if that is meant"));
        }
        let policy = Policy {
            keep: used.keep,
            used: used.used,
            older_than: self.older_than,
            max_size: self.max_size,
            runs: used.old_runs,
            dry_run: self.dry_run,
        };
        let collected = store.gc(&policy)?;
        match self.place.format {
            Format::Json => output::json(&collected)?,
            Format::Text => output::text(&self.told(&collected))?,
        }
        Ok(Exit::OK)
    }

    fn told(&self, collected: &Collected) -> String {
        let Collected { records, seconds: took, blobs, waiting, others, .. } = collected;
        let verb = if self.dry_run { "would remove" } else { "removed" };
        let mut lines = vec![format!(
            "{verb} {}: {blobs} blobs, {records} records ({} to make again)",
            bytes(collected.bytes),
            seconds(*took as f64)
        )];
        if *others > 0 {
            lines.push(format!("{verb} {others} old checkpoints, wrong objects and journals"));
        }
        if *waiting > 0 {
            let size = bytes(collected.waiting_bytes);
            lines.push(format!(
                "{waiting} blobs ({size}) wait until the processes that may read them have ended"
            ));
        }
        let kept: Vec<String> =
            collected.kept.iter().map(|(why, count)| format!("  {count} {why}")).collect();
        if !kept.is_empty() {
            lines.push(format!("kept records:\n{}", kept.join("\n")));
        }
        let over = self.max_size.is_some_and(|size| collected.left_bytes > size);
        let left = bytes(collected.left_bytes);
        lines.push(if over {
            format!("{left} are left, more than asked for: the rest is kept for the reasons above")
        } else {
            format!("{left} are left")
        });
        lines.join("\n") + "\n"
    }
}

/// Keep a stage's result whatever `gc` is asked
#[derive(Debug, Args)]
pub(super) struct Pin {
    /// The stage, and the manifest unless the last one run is meant
    #[arg(value_names = ["STAGE", "PIPELINE.toml"], num_args = 1..=2, required = true)]
    words: Vec<String>,
    /// The pin's name [default: the stage's]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    stage: StageArgs,
}

impl Pin {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let (found, _) = Found::open(&self.words, 0, &self.stage)?;
        let key = found.record()?.digest;
        let name = self.name.as_deref().unwrap_or(&found.stage.name).replace('/', "_");
        if name.is_empty() || name.starts_with('.') {
            return Err(CliError::usage(format!("`{name}` cannot be a pin's name")));
        }
        found.store.put_root("pin", &name, &Root::new(format!("stage {}", found.stage.name), vec![key]))?;
        output::text(&format!(
            "pinned {} as {name}; `mla-run cache unpin {name}` lets it go\n",
            key.short()
        ))?;
        Ok(Exit::OK)
    }
}

/// Let a pinned result go
#[derive(Debug, Args)]
pub(super) struct Unpin {
    /// The pin's name
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    pub place: Place,
}

impl Unpin {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let store = self.place.open()?;
        if !self.name.contains('/') && store.remove_root("pin", &self.name)? {
            return Ok(Exit::OK);
        }
        let pins: Vec<String> =
            store.roots()?.into_iter().filter(|(kind, ..)| kind == "pin").map(|(_, name, _)| name).collect();
        let hint = crate::manifest::near::suggest(&self.name, "pins", pins.iter().map(String::as_str));
        Err(CliError::usage(format!("there is no pin `{}`", self.name)).hint(hint))
    }
}
