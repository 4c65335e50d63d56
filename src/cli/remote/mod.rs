//! `cache push`, `cache pull`, `cache key`: the cache that is shared with other machines.

mod pull;
mod push;

use std::{
    collections::BTreeMap,
    io::Write,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use clap::{Args, Subcommand};

use self::{pull::Pull, push::Push};
use super::{
    args::{ChangeArgs, Format, PlaceArgs, SelectArgs},
    error::CliError,
    exit::Exit,
    output,
    paint::bytes,
    project::{self, Project},
};
use crate::{
    manifest::Cache,
    store::{
        Store,
        remote::{Access, Moved, PublicKey, Remote, RemoteError, SecretKey, Tuning},
    },
};

#[derive(Debug, Subcommand)]
pub(super) enum Shared {
    /// Put what a pipeline made into the shared cache, for others to pull
    Push(Push),
    /// Bring what others made of a pipeline from the shared cache, so that it need not run here
    Pull(Pull),
    /// Make or show the keys that sign what is pushed
    Key {
        #[command(subcommand)]
        what: Key,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Key {
    /// Write a new secret key, and print the public key that others put under `trust`
    New {
        /// Where to write it; a file that is there stays
        file: PathBuf,
    },
    /// Print the public key of a secret key
    Show {
        /// The file with the secret key
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
struct SharedArgs {
    /// The manifest
    #[arg(value_name = "PIPELINE.toml", required_unless_present = "all")]
    pipeline: Option<PathBuf>,
    #[command(flatten)]
    change: ChangeArgs,
    #[command(flatten)]
    place: PlaceArgs,
    /// The shared cache: `s3://BUCKET/PREFIX`, `gs://…`, `az://…`, `https://…`, `file:///FOLDER` [default: `remote` of the
    /// manifest's `[cache]`]
    #[arg(long, value_name = "URL")]
    remote: Option<String>,
    /// How to tell the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
}

impl Shared {
    pub(super) fn format(&self) -> Format {
        match self {
            Self::Push(push) => push.place.format,
            Self::Pull(pull) => pull.place.format,
            Self::Key { .. } => Format::Text,
        }
    }

    pub(super) fn run(&self) -> Result<Exit, CliError> {
        match self {
            Self::Push(push) => push.run(),
            Self::Pull(pull) => pull.run(),
            Self::Key { what: Key::New { file } } => {
                let key = SecretKey::generate().map_err(RemoteError::from)?;
                key.write_new(file).map_err(RemoteError::from)?;
                output::text(&format!("{}\n", key.public())).map(|()| Exit::OK)
            }
            Self::Key { what: Key::Show { file } } => {
                let key = SecretKey::read(file).map_err(RemoteError::from)?;
                output::text(&format!("{}\n", key.public())).map(|()| Exit::OK)
            }
        }
    }
}

impl SharedArgs {
    fn project(&self) -> Result<Option<Project>, CliError> {
        let open = |path: &PathBuf| Project::open(path, &self.change, &self.place, &SelectArgs::default());
        self.pipeline.as_ref().map(open).transpose()
    }

    /// The local cache: the project's, or the one that is found without a manifest.
    fn store(&self, project: Option<&Project>) -> Result<Store, CliError> {
        match project {
            Some(project) => Ok(project.store.clone()),
            None => Ok(Store::open(&project::cache(self.place.cache.as_deref(), None))?),
        }
    }

    fn remote(&self, cache: &Cache, access: Access) -> Result<Remote, CliError> {
        let url = self.remote.as_ref().or(cache.remote.as_ref()).ok_or_else(|| {
            CliError::usage("no shared cache is named")
                .hint("give one with --remote URL, or write `remote = \"URL\"` under [cache] in the manifest")
        })?;
        Ok(Remote::open(url, &settings(), access, Tuning::default())?)
    }
}

/// The shared cache of a manifest, to take from and to put into; `None` when it names none.
pub(super) fn of(cache: &Cache) -> Result<Option<Remote>, CliError> {
    let Some(url) = &cache.remote else { return Ok(None) };
    let access = Access {
        trust: trusted(cache)?,
        sign_with: cache.sign_with.as_deref().map(SecretKey::read).transpose().map_err(RemoteError::from)?,
        unsigned: cache.unsigned,
        read_only: cache.read_only,
    };
    Ok(Some(Remote::open(url, &settings(), access, Tuning::default())?))
}

/// The keys under `trust`.
fn trusted(cache: &Cache) -> Result<Vec<PublicKey>, CliError> {
    let known = |hex: &String| {
        hex.parse().map_err(|error| CliError::usage(format!("`{hex}` under `trust`: {error}")))
    };
    cache.trust.iter().map(known).collect()
}

/// What the environment says about services: endpoints, regions, credentials.
fn settings() -> BTreeMap<String, String> {
    let known = |name: &str| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|prefix| name.starts_with(prefix));
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).filter(|(name, _)| known(name)).collect()
}

/// Lines on standard error while things move.
struct Lines {
    moved: Arc<AtomicU64>,
}

impl Lines {
    const STEP: u64 = 256 << 20;

    fn new() -> Self {
        Self { moved: Arc::default() }
    }

    /// Counts what moves, and tells of every quarter of a GiB that somebody lives.
    fn counter(&self) -> impl Fn(Moved) + Send + Sync + 'static {
        let count = self.moved.clone();
        move |moved| {
            let (Moved::Up(more) | Moved::Down(more)) = moved;
            let before = count.fetch_add(more, Ordering::Relaxed);
            if before / Self::STEP != (before + more) / Self::STEP {
                say(&format!("{} so far", bytes(before + more)));
            }
        }
    }

    fn total(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }
}

/// Says a line on standard error.
fn say(line: &str) {
    // Nobody is left to hear that the line did not arrive.
    let _gone = writeln!(anstream::stderr().lock(), "{line}");
}
