//! Bundles: a folder that is ready for a model hub. Knows the files that make it loadable, no format.

use std::path::Path;

use super::{
    Artifact, ArtifactError, Files,
    files::{Any, FileSet},
};

/// The files of a published model, by their name inside the folder.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bundle(pub Files);

/// Lists the shard of every tensor.
pub const INDEX: &str = "model.safetensors.index.json";

impl Artifact for Bundle {
    const KIND: &'static str = "bundle";

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        FileSet(self.0.clone()).save(dir)
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        for name in ["config.json", "README.md", INDEX] {
            super::file(Self::KIND, files, name)?;
        }
        Any::load(files).map(|any| Self(any.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_without_its_index_is_refused() {
        let mut files: Files =
            ["config.json", "README.md", INDEX].map(|name| (name.to_owned(), name.into())).into();
        assert_eq!(Bundle::load(&files).unwrap().0, files);
        files.remove(INDEX);
        let error = Bundle::load(&files).unwrap_err().to_string();
        assert_eq!(error, "artifact `bundle` lacks its file `model.safetensors.index.json`");
    }
}
