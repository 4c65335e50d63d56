//! Repositories of a hub that stages read: what a stage asks for, and what that is at one commit. Knows no network.

use std::{collections::BTreeMap, error::Error};

use serde::{Deserialize, Serialize};

use super::action::{Class, Failure, Files, Progress, Stop};

/// Files of a repository that a stage reads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Repo {
    /// What stands before their names among the stage's files, such as `sources.0/`; may be empty.
    pub prefix: String,
    /// What the repository holds.
    pub kind: RepoKind,
    /// `owner/name`.
    pub id: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// Globs of the files; `*` does not cross `/`, `**` does.
    pub files: Vec<String>,
}

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RepoKind {
    /// A model.
    Model,
    /// A dataset.
    Dataset,
}

impl std::fmt::Display for RepoKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
        })
    }
}

/// The files of a [`Repo`] at one commit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// See [`Repo::prefix`].
    pub prefix: String,
    /// What the repository holds.
    pub kind: RepoKind,
    /// `owner/name`.
    pub id: String,
    /// The commit: 40 hexadecimal digits.
    pub commit: String,
    /// The files that the globs take, in the order of their paths.
    pub files: Vec<RepoFile>,
}

/// A file of a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepoFile {
    /// Its path in the repository.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its object id in git: the SHA-1 of a header and its bytes or, of a large file, of the pointer that names its SHA-256.
    pub oid: String,
    /// Whether git holds a pointer in its place.
    pub lfs: bool,
}

impl Pinned {
    /// What enters a key: the files by the stage's name for them, with their object ids. Neither the repository nor the commit does.
    pub(crate) fn contents(&self) -> impl Iterator<Item = (String, String)> {
        self.files.iter().map(|file| (self.prefix.clone() + &file.path, file.oid.clone()))
    }
}

/// Who brings the files of repositories.
pub trait Hub: Send + Sync {
    /// Finds the commit that a revision is now, and the files that the globs take there.
    fn pin(&self, repo: &Repo) -> Result<Pinned, HubFailure>;
    /// Brings the files here that are not, checks all, and gives their places by their paths in the repository.
    fn fetch(
        &self,
        pinned: &Pinned,
        progress: &dyn Progress,
        stop: &Stop,
    ) -> Result<BTreeMap<String, std::path::PathBuf>, HubFailure>;
}

/// Why the hub gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum HubFailure {
    /// Asking again would not help.
    #[error(transparent)]
    Final(Box<dyn Error + Send + Sync>),
    /// The network or the service failed; another attempt may not.
    #[error(transparent)]
    Passing(Box<dyn Error + Send + Sync>),
    /// A stop was asked for.
    #[error("stopped before the end")]
    Stopped,
}

impl From<HubFailure> for Failure {
    fn from(failure: HubFailure) -> Self {
        match failure {
            HubFailure::Final(error) => Self::Stage(error),
            HubFailure::Passing(error) => Self::Passing(Class::Io, error),
            HubFailure::Stopped => Self::Stopped,
        }
    }
}

/// No hub: every question fails.
pub struct NoHub;

impl NoHub {
    fn refuse<T>(id: &str) -> Result<T, HubFailure> {
        let why = format!(
            "`{id}` is on a hub, and this mla-run was built without the feature `hub`; give a folder in its place"
        );
        Err(HubFailure::Final(why.into()))
    }
}

impl Hub for NoHub {
    fn pin(&self, repo: &Repo) -> Result<Pinned, HubFailure> {
        Self::refuse(&repo.id)
    }
    fn fetch(&self, pinned: &Pinned, _: &dyn Progress, _: &Stop) -> Result<Files, HubFailure> {
        Self::refuse(&pinned.id)
    }
}
