//! Checkpoints that are written tensor by tensor: names, types and shapes first, then the bytes, of which a tensor's at most lie in
//! memory. Knows no model and not where the bytes come from.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use safetensors::Dtype;
use serde::Serialize;

use super::{Artifact, ArtifactError, Checkpoint, WEIGHTS};
use crate::artifact::bundle::INDEX;

/// What transformers takes as a shard's size where nobody says otherwise, in bytes.
pub const LIMIT: u64 = 4_800_000_000;

/// A tensor that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Its full name.
    pub name: String,
    /// Element type, of whole bytes.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Number of files.
    pub shards: usize,
}

/// Writes all tensors of a checkpoint into `dir`: as `model.safetensors`, or, if that would have more than `limit` bytes, as
/// `model-0000i-of-0000n.safetensors` in the order of `specs` (a larger tensor gets a file of its own) with their index.
///
/// `fill` is called once for each tensor and puts its bytes, little-endian and row-major. Within a file wide elements come first, so the
/// calls follow the order of `specs` only from file to file.
pub fn write<E: From<ArtifactError>>(
    dir: &Path,
    specs: Vec<Spec>,
    limit: u64,
    fill: &mut dyn FnMut(&Spec, &mut Sink<'_>) -> Result<(), E>,
) -> Result<Written, E> {
    let groups = groups(specs, limit);
    let mut shards = Shards::new(dir, groups.len());
    for specs in groups {
        shards.write(specs, fill)?;
    }
    Ok(shards.finish()?)
}

/// The files of one checkpoint in the making, for those who know the tensors of one file at a time only.
pub struct Shards {
    dir: PathBuf,
    count: usize,
    written: usize,
    index: Index,
}

impl Shards {
    /// `count` files will be written into `dir`. A single one is named as such and has no index.
    pub fn new(dir: &Path, count: usize) -> Self {
        let index = Index { metadata: Total { total_size: 0 }, weight_map: BTreeMap::new() };
        Self { dir: dir.to_owned(), count, written: 0, index }
    }

    /// Writes the next file; `fill` as for [`write()`].
    pub fn write<E: From<ArtifactError>>(
        &mut self,
        specs: Vec<Spec>,
        fill: &mut dyn FnMut(&Spec, &mut Sink<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.written += 1;
        let file = match self.count {
            1 => WEIGHTS.to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", self.written),
        };
        self.index.metadata.total_size += specs.iter().map(Spec::bytes).sum::<u64>();
        self.index.weight_map.extend(specs.iter().map(|spec| (spec.name.clone(), file.clone())));
        write_file(&self.dir.join(file), specs, fill)
    }

    /// Writes the index of what are several files.
    pub fn finish(self) -> Result<Written, ArtifactError> {
        assert_eq!(self.written, self.count, "as many files as their names say");
        if self.count > 1 {
            let path = self.dir.join(INDEX);
            let mut json = serde_json::to_vec_pretty(&self.index).expect("names and numbers serialise");
            json.push(b'\n');
            fs::write(&path, json).map_err(ArtifactError::io(&path))?;
        }
        Ok(Written { bytes: self.index.metadata.total_size, shards: self.count })
    }
}

/// Takes a tensor's bytes.
pub struct Sink<'a> {
    path: &'a Path,
    out: BufWriter<File>,
    put: u64,
}

impl Sink<'_> {
    /// Appends bytes.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), ArtifactError> {
        self.put += bytes.len() as u64;
        self.out.write_all(bytes).map_err(ArtifactError::io(self.path))
    }
}

impl Spec {
    /// Bytes of the tensor.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.dtype.bitsize() as u64 / 8
    }
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

#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Metadata(BTreeMap<&'a str, &'a str>),
    Tensor { dtype: Dtype, shape: &'a [usize], data_offsets: [u64; 2] },
}

/// Cuts the list wherever the next tensor would go over the limit.
fn groups(specs: Vec<Spec>, limit: u64) -> Vec<Vec<Spec>> {
    let mut groups: Vec<Vec<Spec>> = vec![Vec::new()];
    let mut used = 0;
    for spec in specs {
        let bytes = spec.bytes();
        if used > 0 && used + bytes > limit {
            groups.push(Vec::new());
            used = 0;
        }
        used += bytes;
        groups.last_mut().expect("starts with one").push(spec);
    }
    groups
}

/// One file. Wide elements come first, so that every tensor is aligned to its element.
fn write_file<E: From<ArtifactError>>(
    path: &Path,
    mut specs: Vec<Spec>,
    fill: &mut dyn FnMut(&Spec, &mut Sink<'_>) -> Result<(), E>,
) -> Result<(), E> {
    specs.sort_by_key(|spec| Reverse(spec.dtype.bitsize()));
    let out = BufWriter::with_capacity(1 << 20, File::create(path).map_err(ArtifactError::io(path))?);
    let mut sink = Sink { path, out, put: 0 };
    let header = header(&specs);
    sink.put(&(header.len() as u64).to_le_bytes())?;
    sink.put(&header)?;
    for spec in &specs {
        let from = sink.put;
        fill(spec, &mut sink)?;
        let (put, wanted) = (sink.put - from, spec.bytes());
        if put != wanted {
            let why = format!("{put} bytes were put where its shape {:?} has {wanted}", spec.shape);
            return Err(malformed(path, &spec.name, why).into());
        }
    }
    Ok(sink.out.flush().map_err(ArtifactError::io(path))?)
}

fn header(specs: &[Spec]) -> Vec<u8> {
    let mut entries = BTreeMap::from([("__metadata__", Entry::Metadata([("format", "pt")].into()))]);
    let mut at = 0;
    for spec in specs {
        let data_offsets = [at, at + spec.bytes()];
        at = data_offsets[1];
        let entry = Entry::Tensor { dtype: spec.dtype, shape: &spec.shape, data_offsets };
        let before = entries.insert(&spec.name, entry);
        assert!(before.is_none(), "`{}` is written twice", spec.name);
    }
    let mut json = serde_json::to_vec(&entries).expect("names and numbers serialise");
    json.resize(json.len().next_multiple_of(8), b' ');
    json
}

fn malformed(path: &Path, tensor: &str, why: String) -> ArtifactError {
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    ArtifactError::Malformed { kind: Checkpoint::KIND, file, place: format!("tensor `{tensor}`"), why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::checkpoint::{Owned, files_in};

    fn tensors() -> BTreeMap<String, Owned> {
        BTreeMap::from([
            ("codes".to_owned(), Owned::u8(&[3], vec![7, 8, 255])),
            ("half".to_owned(), Owned::bf16(&[2, 2], &[1.0, -2.0, 0.5, 3.0])),
            ("wide".to_owned(), Owned::f32(&[1, 2], &[0.1, f32::MIN_POSITIVE])),
            ("zero".to_owned(), Owned::f32(&[0, 4], &[])),
        ])
    }

    fn specs() -> Vec<Spec> {
        let spec = |(name, t): (String, Owned)| Spec { name, dtype: t.dtype, shape: t.shape };
        tensors().into_iter().map(spec).collect()
    }

    fn put(spec: &Spec, sink: &mut Sink<'_>) -> Result<(), ArtifactError> {
        // In pieces, as a tensor that is computed comes.
        tensors()[&spec.name].bytes.chunks(3).try_for_each(|piece| sink.put(piece))
    }

    fn written(limit: u64) -> (tempfile::TempDir, Written) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), "{}").unwrap();
        let written = write(dir.path(), specs(), limit, &mut put).unwrap();
        (dir, written)
    }

    #[test]
    fn what_is_written_is_read_back_whatever_the_size_of_a_shard() {
        for (limit, shards) in [(LIMIT, 1), (19, 1), (18, 2), (11, 2), (10, 3), (1, 4)] {
            let (dir, written) = written(limit);
            assert_eq!(written, Written { bytes: 19, shards }, "{limit}");
            let checkpoint = Checkpoint::load(&files_in(dir.path()).unwrap()).unwrap();
            assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["codes", "half", "wide", "zero"]);
            for (name, wanted) in tensors() {
                let raw = checkpoint.raw(&name).unwrap();
                assert_eq!((raw.dtype, raw.shape, raw.bytes), (wanted.dtype, &*wanted.shape, &*wanted.bytes));
            }
        }
    }

    #[test]
    fn one_file_has_no_index_and_that_of_many_names_the_file_of_each() {
        let files = |dir: &tempfile::TempDir| files_in(dir.path()).unwrap().into_keys().collect::<Vec<_>>();
        assert_eq!(files(&written(LIMIT).0), ["config.json", "model.safetensors"]);
        let (dir, _) = written(11);
        let [one, two] = [1, 2].map(|i| format!("model-{i:05}-of-00002.safetensors"));
        assert_eq!(files(&dir), ["config.json", &one, &two, INDEX]);
        let index: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.path().join(INDEX)).unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], 19);
        let map = serde_json::json!({"codes": one, "half": one, "wide": two, "zero": two});
        assert_eq!(index["weight_map"], map);
    }

    #[test]
    fn every_tensor_is_aligned_to_its_element() {
        let (dir, _) = written(LIMIT);
        let bytes = fs::read(dir.path().join(WEIGHTS)).unwrap();
        let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (name, view) in parsed.iter() {
            let at = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            assert!(at.is_multiple_of(view.dtype().bitsize() / 8), "{name} at {at}");
        }
    }

    #[test]
    fn a_tensor_of_another_size_than_announced_and_a_full_disk_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let error = write(dir.path(), specs(), LIMIT, &mut |spec, sink| {
            put(spec, sink)?;
            if spec.name == "half" { sink.put(&[0]) } else { Ok(()) }
        });
        let error = error.unwrap_err().to_string();
        let place = "file `model.safetensors`, tensor `half`: ";
        assert!(error.contains(&format!("{place}9 bytes were put where its shape [2, 2] has 8")), "{error}");
        let error = write(&dir.path().join("no"), specs(), LIMIT, &mut put).unwrap_err().to_string();
        assert!(error.contains("no/model.safetensors: No such file"), "{error}");
    }
}
