//! The dataset folder: Parquet and JSONL per split, and the card. Knows no selection.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifact::{ArtifactError, parquet, splits::Chosen, texts::write_jsonl};

/// Another shape of the JSONL rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Compat {
    /// `{"text", "meta": {"type", "model"}}`, as the original toolkit writes.
    Original,
}

/// A row of the original toolkit, its keys in this order.
#[derive(Debug, Serialize)]
struct Original<'a> {
    text: &'a str,
    meta: Meta<'a>,
}

#[derive(Debug, Serialize)]
struct Meta<'a> {
    r#type: &'a str,
    model: &'a str,
}

/// The files of one split: `data/NAME-00000-of-00001.parquet` and `NAME.jsonl`. With `original` the JSONL has the old shape, of
/// this type and embedding model.
pub(super) fn save(
    dataset: &Path,
    name: &str,
    rows: &[Chosen],
    original: Option<(&str, &str)>,
) -> Result<(), ArtifactError> {
    let data = dataset.join("data");
    std::fs::create_dir_all(&data).map_err(ArtifactError::io(&data))?;
    parquet::write(&data.join(format!("{name}-00000-of-00001.parquet")), rows)?;
    let jsonl = dataset.join(format!("{name}.jsonl"));
    let Some((kind, model)) = original else { return write_jsonl(&jsonl, rows) };
    let old = rows.iter().map(|row| Original { text: &row.text, meta: Meta { r#type: kind, model } });
    write_jsonl(&jsonl, &old.collect::<Vec<_>>())
}

/// Writes text files.
pub(super) fn save_texts(dir: &Path, files: &[(&str, &str)]) -> Result<(), ArtifactError> {
    for (name, content) in files {
        let path = dir.join(name);
        std::fs::write(&path, content).map_err(ArtifactError::io(&path))?;
    }
    Ok(())
}
