//! `cache push`: what was made here, for others.

use std::path::PathBuf;

use clap::Args;

use super::{
    super::{
        args::Format,
        error::CliError,
        exit::Exit,
        output,
        paint::{Colour, Palette, bytes},
        plan::block_unreadable,
        project::Project,
    },
    Lines, SharedArgs, say,
};
use crate::{
    manifest::Cache,
    store::{
        Record, Store,
        remote::{Access, Pushed, RemoteError, SecretKey},
    },
};

#[derive(Debug, Args)]
pub(in super::super) struct Push {
    #[command(flatten)]
    pub(super) place: SharedArgs,
    /// The file with the key that signs what is pushed [default: `sign-with` of the manifest's `[cache]`]
    #[arg(long, value_name = "FILE")]
    sign_with: Option<PathBuf>,
    /// Push records as they are when there is no key to sign them
    #[arg(long)]
    unsigned: bool,
    /// Push the whole local cache instead of one pipeline's part
    #[arg(long)]
    all: bool,
    /// Push also in place of what is there, which others refuse
    #[arg(long)]
    replace: bool,
}

impl Push {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let project = self.place.project()?;
        let cache = project.as_ref().map(|project| project.shared.clone()).unwrap_or_default();
        let remote = self.place.remote(&cache, self.access(&cache)?)?;
        remote.require_push()?;
        let store = self.place.store(project.as_ref())?;
        let lines = Lines::new();
        let remote = remote.on_bytes(lines.counter());
        let mut all = Pushed::default();
        for (name, record) in self.records(project.as_ref(), &store)? {
            let pushed =
                if self.replace { remote.replace(&store, &record) } else { remote.push(&store, &record) }?;
            say(&format!("{name}: {}", told(&pushed)));
            all += pushed;
        }
        match self.place.format {
            Format::Json => output::json(&all)?,
            Format::Text => output::text(&push_summary(&all, output::palette()))?,
        }
        Ok(Exit::OK)
    }

    fn access(&self, cache: &Cache) -> Result<Access, CliError> {
        let file = self.sign_with.as_deref().or(cache.sign_with.as_deref());
        let sign_with = file.map(SecretKey::read).transpose().map_err(RemoteError::from)?;
        let unsigned = self.unsigned || cache.unsigned;
        Ok(Access { trust: Vec::new(), sign_with, unsigned, read_only: cache.read_only })
    }

    /// What to push, with the names to tell of it: the pipeline's stages that are cached, producers first.
    fn records(&self, project: Option<&Project>, store: &Store) -> Result<Vec<(String, Record)>, CliError> {
        let Some(project) = project.filter(|_| !self.all) else {
            let name = |record: Record| (format!("{} {}", record.kind, record.digest.short()), record);
            return Ok(store.ls()?.into_iter().map(name).collect());
        };
        let mut plan = project.engine().plan()?;
        block_unreadable(project, &mut plan);
        let cached = plan.stages.into_iter().filter_map(|s| Some((s.name, (*s.record?).clone())));
        Ok(cached.collect())
    }
}

fn told(pushed: &Pushed) -> String {
    match (pushed.records, pushed.blobs) {
        (0, 0) => "was there".to_owned(),
        _ => format!("pushed, {}", bytes(pushed.bytes)),
    }
}

fn push_summary(all: &Pushed, palette: Palette) -> String {
    let Pushed { records, records_there, blobs, bytes: size, blobs_there, bytes_there } = *all;
    format!(
        "{}: {records} records and {blobs} blobs ({}); {records_there} records and {blobs_there} blobs ({}) were there\n",
        palette.paint(Colour::Good, "pushed"),
        bytes(size),
        bytes(bytes_there)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries() {
        let pushed = Pushed { records: 2, blobs: 3, bytes: 2048, records_there: 1, ..Pushed::default() };
        let expected = "pushed: 2 records and 3 blobs (2.0 KiB); 1 records and 0 blobs (0 B) were there\n";
        assert_eq!(push_summary(&pushed, Palette(false)), expected);
        assert_eq!(told(&pushed), "pushed, 2.0 KiB");
        assert_eq!(told(&Pushed { blobs_there: 4, records_there: 1, ..Pushed::default() }), "was there");
    }
}
