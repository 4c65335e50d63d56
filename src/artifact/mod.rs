//! Typed values that cross the border between stages, and their files. Knows no stage and no store.

pub mod analysis;
pub mod bundle;
pub mod checkpoint;
pub mod clusters;
pub mod conversion;
pub mod drops;
pub mod embeddings;
pub mod encoder;
pub mod files;
pub mod gains;
pub mod moments;
pub mod parquet;
pub mod predictions;
pub mod scores;
pub mod splits;
#[cfg(test)]
pub(crate) mod testing;
pub mod texts;
pub mod tokenizer;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The files of one artifact: name inside the artifact → path of its immutable bytes.
pub type Files = BTreeMap<String, PathBuf>;

/// A value that one stage writes and others read.
pub trait Artifact: Sized {
    /// The kind's name, such as `texts`; an input of another kind is refused before anything runs.
    const KIND: &'static str;

    /// Writes its files into an existing, empty folder.
    fn save(&self, dir: &Path) -> Result<(), ArtifactError>;

    /// Reads it back from its files.
    fn load(files: &Files) -> Result<Self, ArtifactError>;
}

/// Why an artifact could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// A file that the kind must have is not there.
    #[error("artifact `{kind}` lacks its file `{file}`")]
    Missing {
        /// The artifact's kind.
        kind: &'static str,
        /// The file's name.
        file: String,
    },
    /// A file does not hold what it should.
    #[error("artifact `{kind}`, file `{file}`, {place}: {why}")]
    Malformed {
        /// The artifact's kind.
        kind: &'static str,
        /// The file's name.
        file: String,
        /// Where in the file: a line, a tensor.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

impl ArtifactError {
    /// Adds the path to an I/O error; for `map_err`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}

/// The path of a file that the artifact must have.
pub fn file<'a>(kind: &'static str, files: &'a Files, name: &str) -> Result<&'a Path, ArtifactError> {
    files
        .get(name)
        .map(PathBuf::as_path)
        .ok_or_else(|| ArtifactError::Missing { kind, file: name.to_owned() })
}

/// Reads a JSON file that the artifact must have; an error names the line.
pub fn read_json<T: for<'de> serde::Deserialize<'de>>(
    kind: &'static str,
    files: &Files,
    name: &str,
) -> Result<T, ArtifactError> {
    let path = file(kind, files, name)?;
    let text = std::fs::read(path).map_err(ArtifactError::io(path))?;
    serde_json::from_slice(&text).map_err(|e| ArtifactError::Malformed {
        kind,
        file: name.to_owned(),
        place: format!("line {}", e.line()),
        why: e.to_string(),
    })
}

#[cfg(test)]
mod tests;
