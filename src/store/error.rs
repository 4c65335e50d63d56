//! What can go wrong with the cache, and what the user can do about it.

use std::{io, path::PathBuf};

use super::{blob::Flaw, tree::TreeFlaw};

/// An error of the cache.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refused.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried, as a verb: `read`, `publish`.
        doing: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// The folder is a cache of another version, or none at all.
    #[error(
        "{} says `{found}` but this version reads `{expected}`; use another folder with --cache",
        path.display()
    )]
    Format {
        /// The `FORMAT` file.
        path: PathBuf,
        /// Its first line.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A stage wrote something that is not a plain file.
    #[error("output {} is not a plain file; write the bytes themselves instead of a link or a device", path.display())]
    NotAFile {
        /// The offending path.
        path: PathBuf,
    },
    /// A file's name cannot be kept on every system.
    #[error("output file name {} is not valid UTF-8", path.display())]
    Name {
        /// The offending path.
        path: PathBuf,
    },
    /// An object of another cache that is not what it should be.
    #[error("{} {flaw}", path.display())]
    Import {
        /// The object.
        path: PathBuf,
        /// What is wrong with it.
        flaw: Flaw,
    },
    /// A file that says what a clean-up must keep cannot be read.
    #[error("{} does not say what to keep in a way that this version reads; remove it if it is damaged", path.display())]
    BadRoot {
        /// The file.
        path: PathBuf,
    },
    /// An output's files cannot be kept under their names on every system.
    #[error("output `{port}` cannot be kept")]
    Tree {
        /// The output port.
        port: String,
        /// What is wrong with the names.
        source: TreeFlaw,
    },
    /// A stage returned without writing an output.
    #[error("nothing was written to output `{port}`")]
    EmptyOutput {
        /// The output port.
        port: String,
    },
}

impl StoreError {
    /// For `map_err`: names the operation and the path.
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}

/// A result of the cache.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;
