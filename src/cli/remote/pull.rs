//! `cache pull`: what others made, so that it need not run here.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use serde::Serialize;

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
    Lines, SharedArgs, say, trusted,
};
use crate::{
    engine::{chain, state::Status},
    manifest::Cache,
    store::{
        Digest, Store,
        remote::{Access, PublicKey, Remote},
    },
};

#[derive(Debug, Args)]
pub(in super::super) struct Pull {
    #[command(flatten)]
    pub(super) place: SharedArgs,
    /// A public key whose records are taken, besides those under `trust` of the manifest's `[cache]`. May be repeated
    #[arg(long, value_name = "HEX")]
    trust: Vec<PublicKey>,
    /// Take records of anybody when no key is trusted
    #[arg(long)]
    unsigned: bool,
    /// Pull all that the remote has instead of one pipeline's part
    #[arg(long)]
    all: bool,
}

impl Pull {
    pub(super) fn run(&self) -> Result<Exit, CliError> {
        let project = self.place.project()?;
        let cache = project.as_ref().map(|project| project.shared.clone()).unwrap_or_default();
        let remote = self.place.remote(&cache, self.access(&cache)?)?;
        remote.require_pull()?;
        let store = self.place.store(project.as_ref())?;
        let lines = Lines::new();
        let remote = remote.on_bytes(lines.counter());
        let mut hand = Hand { remote: &remote, store: &store, lines: &lines, found: Found::default() };
        match project.filter(|_| !self.all) {
            Some(project) => hand.pipeline(&project)?,
            None => hand.everything()?,
        }
        let mut found = hand.found;
        found.bytes = lines.total();
        match self.place.format {
            Format::Json => output::json(&found)?,
            Format::Text => output::text(&pull_summary(&found, output::palette()))?,
        }
        Ok(if found.refused.is_empty() { Exit::OK } else { Exit::CACHE })
    }

    fn access(&self, cache: &Cache) -> Result<Access, CliError> {
        let mut trust = trusted(cache)?;
        trust.extend(&self.trust);
        Ok(Access { trust, sign_with: None, unsigned: self.unsigned || cache.unsigned, read_only: true })
    }
}

/// What a pull found, by stage; without a pipeline by key.
#[derive(Debug, Default, Serialize)]
struct Found {
    /// In the local cache before.
    cached: usize,
    /// Brought here.
    pulled: Vec<String>,
    /// Not in the remote.
    absent: Vec<String>,
    /// In the remote, but not to be used: with what is wrong.
    refused: BTreeMap<String, String>,
    /// Bytes that came.
    bytes: u64,
}

/// Pulls one thing after the other and keeps the score.
struct Hand<'a> {
    remote: &'a Remote,
    store: &'a Store,
    lines: &'a Lines,
    found: Found,
}

impl Hand<'_> {
    /// Every stage whose key can be made and that is not here. What came may give the keys of the stages that read it.
    fn pipeline(&mut self, project: &Project) -> Result<(), CliError> {
        let mut asked: BTreeSet<Digest> = BTreeSet::new();
        loop {
            let mut plan = project.engine().plan()?;
            block_unreadable(project, &mut plan);
            if asked.is_empty() {
                self.found.cached = plan.stages.iter().filter(|stage| stage.record.is_some()).count();
            }
            let mut news = false;
            for stage in plan.stages.iter().filter(|stage| stage.status == Status::Run) {
                if let Some(key) = stage.key
                    && asked.insert(key)
                {
                    news |= self.pull(&stage.name, &key)?;
                }
            }
            if !news {
                return Ok(());
            }
        }
    }

    fn everything(&mut self) -> Result<(), CliError> {
        for key in self.remote.list()? {
            if self.store.record(&key)?.is_some() {
                self.found.cached += 1;
            } else {
                self.pull(&key.to_string(), &key)?;
            }
        }
        Ok(())
    }

    /// Pulls one key; whether it came. What is refused does not keep the rest from coming.
    fn pull(&mut self, name: &str, key: &Digest) -> Result<bool, CliError> {
        let before = self.lines.total();
        match self.remote.pull(self.store, key) {
            Ok(Some(_)) => {
                say(&format!("{name}: pulled, {}", bytes(self.lines.total() - before)));
                self.found.pulled.push(name.to_owned());
                Ok(true)
            }
            Ok(None) => {
                self.found.absent.push(name.to_owned());
                Ok(false)
            }
            Err(error) if error.is_refusal() => {
                let why = chain(&error);
                say(&format!("{name}: {why}"));
                self.found.refused.insert(name.to_owned(), why);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn pull_summary(found: &Found, palette: Palette) -> String {
    let refused = match found.refused.len() {
        0 => String::new(),
        n => format!("; {}", palette.paint(Colour::Bad, &format!("{n} refused"))),
    };
    format!(
        "{}: {} records ({}); {} were here, {} are not in the remote{refused}\n",
        palette.paint(Colour::Good, "pulled"),
        found.pulled.len(),
        bytes(found.bytes),
        found.cached,
        found.absent.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries() {
        let mut found = Found { cached: 1, pulled: vec!["a".into()], bytes: 10, ..Found::default() };
        let expected = "pulled: 1 records (10 B); 1 were here, 0 are not in the remote\n";
        assert_eq!(pull_summary(&found, Palette(false)), expected);
        found.refused.insert("b".into(), "no".into());
        assert!(pull_summary(&found, Palette(false)).ends_with("in the remote; 1 refused\n"));
    }
}
