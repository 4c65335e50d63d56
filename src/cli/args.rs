//! What is written on the command line. The doc comments are the help. Knows no meaning.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// The manifest and what changes it.
#[derive(Debug, Clone, Args)]
pub(super) struct ManifestArgs {
    /// The manifest
    #[arg(value_name = "PIPELINE.toml")]
    pub pipeline: PathBuf,
    #[command(flatten)]
    pub change: ChangeArgs,
}

/// What changes a manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
pub(super) struct ChangeArgs {
    /// Set a variable (`rank=96`) or a parameter (`svd.rank=96`); the value is TOML. May be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// Use the variables and parameters of a profile of the manifest
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
}

/// Where results are kept, and on what they are made.
#[derive(Debug, Clone, Args)]
pub(super) struct PlaceArgs {
    /// The cache folder [default: the nearest `cache` folder of a project at or above the manifest, else ./cache]
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
    /// The device for models: `auto`, `cpu`, `cuda:0`
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
}

/// Which stages are meant.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct SelectArgs {
    /// These stages alone; what they read must be in the cache
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub only: Vec<String>,
    /// These stages and all that they need
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub until: Vec<String>,
    /// These stages, all that need them, and what those lack
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub from: Vec<String>,
    /// Run these stages although they are cached; `all` is every stage
    #[arg(long, value_name = "STAGE|all", value_delimiter = ',')]
    pub force: Vec<String>,
}

/// How a result is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    Text,
    /// One JSON object on the last line of standard output, nothing else there
    Json,
}

/// What is asked of a whole pipeline.
#[derive(Debug, Clone, Args)]
pub(super) struct PipelineArgs {
    #[command(flatten)]
    pub manifest: ManifestArgs,
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(flatten)]
    pub select: SelectArgs,
    /// How to tell the result
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    pub format: Format,
}

/// What is asked about one stage.
#[derive(Debug, Clone, Args)]
pub(super) struct StageArgs {
    #[command(flatten)]
    pub change: ChangeArgs,
    #[command(flatten)]
    pub place: PlaceArgs,
}

/// Words of a command that names a stage: one of them may be the manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Words {
    /// The manifest, told by its ending.
    pub pipeline: Option<PathBuf>,
    /// The other words, in their order.
    pub rest: Vec<String>,
}

impl Words {
    /// Takes the word that ends in `.toml` out, wherever it stands.
    pub(super) fn new(words: &[String]) -> Self {
        let mut found = Self::default();
        for word in words {
            let manifest = std::path::Path::new(word).extension().is_some_and(|ext| ext == "toml");
            if manifest && found.pipeline.is_none() {
                found.pipeline = Some(word.into());
            } else {
                found.rest.push(word.clone());
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_may_stand_anywhere() {
        let words = |text: &str| Words::new(&text.split(' ').map(str::to_owned).collect::<Vec<_>>());
        let expected = |rest: &[&str]| Words {
            pipeline: Some("p/full.toml".into()),
            rest: rest.iter().map(|&word| word.to_owned()).collect(),
        };
        assert_eq!(words("svd p/full.toml"), expected(&["svd"]));
        assert_eq!(words("p/full.toml svd moments"), expected(&["svd", "moments"]));
        assert_eq!(words("svd").pipeline, None);
        assert_eq!(words("a.toml b.toml").rest, ["b.toml"], "the first is the manifest");
        assert_eq!(words("svd.tomlx .toml toml").pipeline, None);
    }
}
