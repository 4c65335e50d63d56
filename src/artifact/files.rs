//! Plain files: what a user's own command writes, and the wildcard that lets it read any artifact. Knows no format.

use std::{fs, path::Path};

use super::{Artifact, ArtifactError, Files};

/// The kind of an input that takes every artifact. No stage writes it.
pub const ANY: &str = "any";

/// Files as they are, by their name inside the artifact.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FileSet(pub Files);

impl Artifact for FileSet {
    const KIND: &'static str = "files";

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        copy(&self.0, dir)
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        Ok(Self(files.clone()))
    }
}

/// An artifact of whatever kind, seen as its files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Any(pub Files);

impl Artifact for Any {
    const KIND: &'static str = ANY;

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        copy(&self.0, dir)
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        Ok(Self(files.clone()))
    }
}

fn copy(files: &Files, dir: &Path) -> Result<(), ArtifactError> {
    for (name, from) in files {
        let to = dir.join(name);
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(ArtifactError::io(parent))?;
        }
        fs::copy(from, &to).map_err(ArtifactError::io(from))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_names_keep_their_folders() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("blob");
        fs::write(&from, "bytes").unwrap();
        let set = FileSet(Files::from([("a/b.txt".to_owned(), from)]));
        set.save(&dir.path().join("out")).unwrap();
        assert_eq!(fs::read(dir.path().join("out/a/b.txt")).unwrap(), b"bytes");
    }

    #[test]
    fn a_missing_file_is_named() {
        let set = Any(Files::from([("a".to_owned(), "/no/such/blob".into())]));
        let error = set.save(tempfile::tempdir().unwrap().path()).unwrap_err().to_string();
        assert!(error.starts_with("/no/such/blob: "), "{error}");
    }
}
