//! Whether a model can be used: its files, its tensors' names and shapes, its vocabulary, its values. Everything that is wrong is told in one
//! error. Knows no conversion.

use std::collections::BTreeMap;

use serde::{Deserialize, de::IgnoredAny};

use super::{SourceError, TOKENIZER, say_unread};
use crate::{
    artifact::{Artifact, ArtifactError, Files, checkpoint::Checkpoint, read_json},
    engine::action::{Cx, Failure},
    model::{Audit, Config, ModelError},
};

const INDEX: &str = "model.safetensors.index.json";

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Whether every file is there that the index of shards names, where there is one.
pub(super) fn index(files: &Files) -> Result<(), Failure> {
    if !files.contains_key(INDEX) {
        return Ok(());
    }
    let index: Index = read_json(Checkpoint::KIND, files, INDEX).map_err(Failure::stage)?;
    let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, file) in index.weight_map.iter().filter(|(_, file)| !files.contains_key(*file)) {
        missing.entry(file).or_default().push(tensor);
    }
    let line = |(file, tensors): (&str, Vec<&str>)| {
        format!(
            "`{file}` is not there; by {INDEX} it holds {} tensors, such as `{}`",
            tensors.len(),
            tensors[0]
        )
    };
    let problems: Vec<String> = missing.into_iter().map(line).collect();
    if problems.is_empty() { Ok(()) } else { Err(Failure::stage(SourceError::Files(problems))) }
}

/// Checks a model in Hugging Face layout. Names, shapes and element types come first and cost nothing; the values are read once they fit.
pub(super) fn whole(files: &Files, cx: &Cx<'_>) -> Result<(), Failure> {
    let checkpoint = Checkpoint::load(files).map_err(Failure::stage)?;
    let config = Config::parse(&checkpoint.config).map_err(Failure::stage)?;
    let audit = Audit::of(&checkpoint, &config);
    let mut problems = audit.problems.clone();
    problems.extend(vocabulary(files, config.vocab_size).map_err(Failure::stage)?);
    if !problems.is_empty() {
        return Err(Failure::stage(ModelError::Tensors(problems)));
    }
    say_unread(audit.unread.iter().map(String::as_str), cx);
    let total = audit.read(&checkpoint).map(|(_, bytes)| bytes).sum();
    cx.progress.phase("checking", Some(total), "bytes");
    for (name, bytes) in audit.read(&checkpoint) {
        cx.check_stop()?;
        problems.extend(audit.check_values(&checkpoint, name));
        checkpoint.release(name);
        cx.progress.advance(bytes);
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::stage(SourceError::Values(problems))) }
}

/// As much of a `tokenizer.json` as says which ids there are.
#[derive(Deserialize)]
struct Tokenizer {
    #[serde(default)]
    added_tokens: Vec<Added>,
    model: Option<Model>,
}

#[derive(Deserialize)]
struct Added {
    id: usize,
}

#[derive(Deserialize)]
struct Model {
    vocab: Option<Vocab>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Vocab {
    Ids(BTreeMap<String, usize>),
    Listed(Vec<IgnoredAny>),
}

/// A problem if the tokenizer has ids that the embedding has no rows for.
fn vocabulary(files: &Files, rows: usize) -> Result<Option<String>, ArtifactError> {
    if !files.contains_key(TOKENIZER) {
        return Ok(None);
    }
    let tokenizer: Tokenizer = read_json(Checkpoint::KIND, files, TOKENIZER)?;
    let ids = match tokenizer.model.and_then(|model| model.vocab) {
        Some(Vocab::Ids(ids)) => ids.into_values().max(),
        Some(Vocab::Listed(tokens)) => tokens.len().checked_sub(1),
        None => None,
    };
    let largest = tokenizer.added_tokens.into_iter().map(|token| token.id).chain(ids).max();
    let problem = |id: usize| {
        format!(
            "`{TOKENIZER}` has ids up to {id}, and the embedding has {rows} rows; is this the model's own tokenizer?"
        )
    };
    Ok(largest.filter(|&id| id >= rows).map(problem))
}
