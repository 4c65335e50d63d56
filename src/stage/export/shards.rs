//! Safetensors shards and their index: which tensor goes where, and the bytes. Knows no model.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use safetensors::Dtype;
use serde::Serialize;

use crate::artifact::{bundle::INDEX, checkpoint::Checkpoint};

/// Why shards could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}")]
pub(super) struct ShardError {
    path: PathBuf,
    source: io::Error,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Written {
    /// Bytes of all tensors.
    pub(super) bytes: u64,
    /// Number of files.
    pub(super) shards: usize,
}

/// Writes all tensors as `model-0000i-of-0000n.safetensors` of at most `limit` bytes each (a larger tensor gets its own file) and
/// the index. Layers stay in their order, so that a loader reads each file once.
pub(super) fn write(
    checkpoint: &Checkpoint,
    limit: u64,
    dir: &Path,
    advance: &mut dyn FnMut(u64),
) -> Result<Written, ShardError> {
    let mut names: Vec<&str> = checkpoint.names().collect();
    names.sort_by_cached_key(|name| natural(name));
    let size = |name: &str| checkpoint.raw(name).map_or(0, |raw| raw.bytes.len() as u64);
    let shards = fill(&names, limit, size);
    let mut index = Index { metadata: Total { total_size: 0 }, weight_map: BTreeMap::new() };
    for (i, names) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        let path = dir.join(&file);
        shard(checkpoint, names, &path, advance).map_err(|source| ShardError { path, source })?;
        index.metadata.total_size += names.iter().map(|name| size(name)).sum::<u64>();
        index.weight_map.extend(names.iter().map(|name| ((*name).to_owned(), file.clone())));
    }
    let path = dir.join(INDEX);
    let mut json = serde_json::to_vec_pretty(&index).expect("names and numbers serialise");
    json.push(b'\n');
    fs::write(&path, json).map_err(|source| ShardError { path, source })?;
    Ok(Written { bytes: index.metadata.total_size, shards: shards.len() })
}

#[derive(Serialize)]
struct Index {
    metadata: Total,
    weight_map: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Total {
    total_size: u64,
}

/// Cuts the list wherever the next tensor would go over the limit.
fn fill<'a>(names: &[&'a str], limit: u64, size: impl Fn(&str) -> u64) -> Vec<Vec<&'a str>> {
    let mut shards: Vec<Vec<&str>> = vec![Vec::new()];
    let mut used = 0;
    for name in names {
        if used > 0 && used + size(name) > limit {
            shards.push(Vec::new());
            used = 0;
        }
        used += size(name);
        shards.last_mut().expect("starts with one").push(name);
    }
    shards
}

/// A sort key that puts `layers.2` before `layers.10`.
fn natural(name: &str) -> Vec<(Option<u64>, String)> {
    name.split('.').map(|part| (part.parse().ok(), part.to_owned())).collect()
}

#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Metadata(BTreeMap<&'a str, &'a str>),
    Tensor { dtype: Dtype, shape: &'a [usize], data_offsets: [usize; 2] },
}

/// One file. Wide elements come first, so that every tensor is aligned to its element.
fn shard(
    checkpoint: &Checkpoint,
    names: &[&str],
    path: &Path,
    advance: &mut dyn FnMut(u64),
) -> io::Result<()> {
    let raw = |name: &str| checkpoint.raw(name).expect("listed by the checkpoint itself");
    let mut names = names.to_vec();
    names.sort_by_cached_key(|name| (Reverse(raw(name).dtype), natural(name)));
    let mut header = BTreeMap::from([("__metadata__", Entry::Metadata([("format", "pt")].into()))]);
    let mut at = 0;
    for name in &names {
        let raw = raw(name);
        let data_offsets = [at, at + raw.bytes.len()];
        at = data_offsets[1];
        header.insert(name, Entry::Tensor { dtype: raw.dtype, shape: raw.shape, data_offsets });
    }
    let mut json = serde_json::to_vec(&header)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut out = BufWriter::new(File::create(path)?);
    out.write_all(&(json.len() as u64).to_le_bytes())?;
    out.write_all(&json)?;
    for name in names {
        out.write_all(raw(name).bytes)?;
        advance(raw(name).bytes.len() as u64);
    }
    out.flush()
}

#[cfg(test)]
mod tests;
