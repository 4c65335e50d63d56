//! Checkpoints: a model in Hugging Face layout (config, tokenizer, safetensors). Knows names and bytes, no architecture.

pub mod shards;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    ops::Range,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use half::{bf16, f16};
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

use super::{Artifact, ArtifactError, Files, file, read_json};

/// A checkpoint whose tensors stay on disk, memory-mapped, until they are asked for.
pub struct Checkpoint {
    /// `config.json` as written.
    pub config: Value,
    files: Files,
    regions: Vec<Region>,
    tensors: BTreeMap<String, Place>,
}

/// Bytes that tensors lie in.
#[derive(Clone)]
enum Region {
    /// A file.
    Map(Arc<Mmap>),
    /// A tensor that was put over one of a file.
    Memory(Bytes),
}

impl Region {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Map(map) => map,
            Self::Memory(bytes) => bytes,
        }
    }
}

/// Lets [`Bytes`] keep a map: whoever holds some of its bytes keeps it.
struct Owner(Arc<Mmap>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Where a tensor lies.
#[derive(Debug, Clone)]
struct Place {
    region: usize,
    bytes: Range<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
}

/// A tensor's raw bytes with their meaning.
#[derive(Debug, Clone, Copy)]
pub struct Raw<'a> {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// Little-endian, dense, row-major.
    pub bytes: &'a [u8],
}

const WEIGHTS: &str = "model.safetensors";

impl Checkpoint {
    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor's bytes, or `None` when the checkpoint has no such tensor.
    pub fn raw(&self, name: &str) -> Option<Raw<'_>> {
        let place = self.tensors.get(name)?;
        Some(Raw {
            dtype: place.dtype,
            shape: &place.shape,
            bytes: &self.regions[place.region].bytes()[place.bytes.clone()],
        })
    }

    /// The same bytes, which may outlive the checkpoint and are still those of the file.
    pub fn shared(&self, name: &str) -> Option<Bytes> {
        let place = self.tensors.get(name)?;
        let whole = match &self.regions[place.region] {
            Region::Map(map) => Bytes::from_owner(Owner(map.clone())),
            Region::Memory(bytes) => bytes.clone(),
        };
        Some(whole.slice(place.bytes.clone()))
    }

    /// Gives the memory back in which tensors with this beginning of their names lie. They are read from the file again when they are
    /// asked for. Without it a model that goes by layer after layer fills the memory with pages of its file.
    pub fn release(&self, prefix: &str) {
        let places = self.tensors.range(prefix.to_owned()..).take_while(|(name, _)| name.starts_with(prefix));
        for (_, place) in places {
            let Region::Map(map) = &self.regions[place.region] else { continue };
            #[expect(unsafe_code, reason = "advice on a memory map")]
            // SAFETY: the map is of a file and read-only, so pages that are taken away come back with the same bytes.
            let advised = unsafe {
                let (from, n) = (place.bytes.start, place.bytes.len());
                map.unchecked_advise_range(UncheckedAdvice::DontNeed, from, n)
            };
            // The bytes are right either way.
            if let Err(error) = advised {
                tracing::debug!(%error, "a part of the model stays in memory");
            }
        }
    }

    /// Whether all tensors whose names begin so are the same in `other`, to the bit.
    pub fn is_same_below(&self, prefix: &str, other: &Self) -> bool {
        let names = |of: &Self| -> Vec<String> {
            let below = of.names().filter(|name| name.starts_with(prefix));
            below.map(str::to_owned).collect()
        };
        let same = |name: &String| match (self.raw(name), other.raw(name)) {
            (Some(a), Some(b)) => (a.dtype, a.shape, a.bytes) == (b.dtype, b.shape, b.bytes),
            _ => false,
        };
        let found = names(self);
        found == names(other) && found.iter().all(same)
    }

    /// The same files with another `config.json`, without the tensors that `gone` names, and with `tensors` over what is left.
    #[must_use]
    pub fn overlaid(
        &self,
        config: Value,
        gone: impl Fn(&str) -> bool,
        tensors: BTreeMap<String, Owned>,
    ) -> Self {
        let (mut places, mut regions) = (self.tensors.clone(), self.regions.clone());
        places.retain(|name, _| !gone(name));
        for (name, Owned { dtype, shape, bytes }) in tensors {
            let place = Place { region: regions.len(), bytes: 0..bytes.len(), dtype, shape };
            places.insert(name, place);
            regions.push(Region::Memory(bytes.into()));
        }
        Self { config, files: self.files.clone(), regions, tensors: places }
    }

    /// The path of a file such as `tokenizer.json`.
    pub fn file(&self, name: &str) -> Result<&Path, ArtifactError> {
        file(Self::KIND, &self.files, name)
    }

    /// The files that are neither weights nor `config.json`: tokenizer, generation config, licences.
    pub fn side_files(&self) -> impl Iterator<Item = (&str, &Path)> {
        let side = |name: &str| !name.contains(".safetensors") && name != "config.json";
        self.files
            .iter()
            .filter(move |(name, _)| side(name))
            .map(|(name, path)| (name.as_str(), path.as_path()))
    }

    fn add(&mut self, name: &str, path: &Path) -> Result<(), ArtifactError> {
        let map = mapped(path)?;
        let malformed = |why: String| ArtifactError::Malformed {
            kind: Self::KIND,
            file: name.to_owned(),
            place: "header".to_owned(),
            why,
        };
        let parsed = SafeTensors::deserialize(&map).map_err(|e| malformed(e.to_string()))?;
        let start = map.as_ptr() as usize;
        for (tensor, view) in parsed.iter() {
            let from = view.data().as_ptr() as usize - start;
            let place = Place {
                region: self.regions.len(),
                bytes: from..from + view.data().len(),
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
            };
            if self.tensors.insert(tensor.to_owned(), place).is_some() {
                return Err(malformed(format!("tensor `{tensor}` is in another shard too")));
            }
        }
        self.regions.push(Region::Map(Arc::new(map)));
        Ok(())
    }
}

/// Maps a file of an artifact into memory.
pub(super) fn mapped(path: &Path) -> Result<Mmap, ArtifactError> {
    let file = File::open(path).map_err(ArtifactError::io(path))?;
    #[expect(unsafe_code, reason = "multi-gigabyte weights are mapped, not read")]
    // SAFETY: artifacts are immutable once published; the store never writes to a blob again.
    let map = unsafe { Mmap::map(&file) };
    map.map_err(ArtifactError::io(path))
}

impl Artifact for Checkpoint {
    const KIND: &'static str = "checkpoint";

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        for (name, path) in &self.files {
            fs::copy(path, dir.join(name)).map_err(ArtifactError::io(path))?;
        }
        Ok(())
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        let config = read_json(Self::KIND, files, "config.json")?;
        let mut checkpoint =
            Self { config, files: files.clone(), regions: Vec::new(), tensors: BTreeMap::new() };
        for (name, path) in files.iter().filter(|(name, _)| name.ends_with(".safetensors")) {
            checkpoint.add(name, path)?;
        }
        if checkpoint.regions.is_empty() {
            return Err(ArtifactError::Missing { kind: Self::KIND, file: WEIGHTS.to_owned() });
        }
        Ok(checkpoint)
    }
}

impl Raw<'_> {
    /// Row `i` of a matrix; `None` where there is none.
    #[must_use]
    pub fn row(&self, i: usize) -> Option<Self> {
        let [rows, width] = self.shape else { return None };
        let size = self.bytes.len() / (*rows).max(1);
        (i < *rows).then(|| Self {
            shape: std::slice::from_ref(width),
            bytes: &self.bytes[i * size..][..size],
            ..*self
        })
    }

    /// Whether the elements are of a type that [`Self::to_f32`] takes.
    pub fn is_float(&self) -> bool {
        matches!(self.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16)
    }

    /// The values as `f32`; exact for F32, BF16 and F16, `None` for other element types.
    pub fn to_f32(self) -> Option<Vec<f32>> {
        let halves = || self.bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        match self.dtype {
            Dtype::F32 => Some(
                self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            ),
            Dtype::BF16 => Some(halves().map(|bits| bf16::from_bits(bits).to_f32()).collect()),
            Dtype::F16 => Some(halves().map(|bits| f16::from_bits(bits).to_f32()).collect()),
            _ => None,
        }
    }
}

/// A checkpoint being made.
#[derive(Debug, Default)]
pub struct Draft {
    /// `config.json`.
    pub config: Value,
    /// Tensors by name.
    pub tensors: BTreeMap<String, Owned>,
    /// Other files by name.
    pub side_files: BTreeMap<String, Vec<u8>>,
}

/// A tensor's bytes, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Little-endian, dense, row-major.
    pub bytes: Vec<u8>,
}

impl Owned {
    /// `f32` values stored as F32.
    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        Self {
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }
    }

    /// `f32` values rounded to BF16, to nearest even.
    pub fn bf16(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
        Self { dtype: Dtype::BF16, shape: shape.to_vec(), bytes }
    }

    /// `f32` values rounded to F16, to nearest even.
    pub fn f16(shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
        Self { dtype: Dtype::F16, shape: shape.to_vec(), bytes }
    }

    /// Raw bytes (MXFP4 blocks and scales).
    pub fn u8(shape: &[usize], bytes: Vec<u8>) -> Self {
        Self { dtype: Dtype::U8, shape: shape.to_vec(), bytes }
    }
}

impl Draft {
    /// A copy of everything in `checkpoint`, for changing some of it.
    pub fn copy_of(checkpoint: &Checkpoint) -> Result<Self, ArtifactError> {
        let owned = |name: &str| {
            let raw = checkpoint.raw(name).expect("listed by the checkpoint itself");
            Owned { dtype: raw.dtype, shape: raw.shape.to_vec(), bytes: raw.bytes.to_vec() }
        };
        let tensors = checkpoint.names().map(|name| (name.to_owned(), owned(name))).collect();
        let read = |(name, path): (&str, &Path)| {
            Ok((name.to_owned(), fs::read(path).map_err(ArtifactError::io(path))?))
        };
        let side_files = checkpoint.side_files().map(read).collect::<Result<_, ArtifactError>>()?;
        Ok(Self { config: checkpoint.config.clone(), tensors, side_files })
    }

    /// Writes it into an existing, empty folder as one shard.
    pub fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        save_shard(&dir.join(WEIGHTS), &self.tensors)?;
        let mut config = serde_json::to_vec_pretty(&self.config).expect("a JSON value serialises");
        config.push(b'\n');
        let write = |name: &str, bytes: &[u8]| {
            fs::write(dir.join(name), bytes).map_err(ArtifactError::io(&dir.join(name)))
        };
        write("config.json", &config)?;
        self.side_files.iter().try_for_each(|(name, bytes)| write(name, bytes))
    }
}

/// Writes tensors as one file of a checkpoint.
pub fn save_shard(path: &Path, tensors: &BTreeMap<String, Owned>) -> Result<(), ArtifactError> {
    let failed =
        |e: safetensors::SafeTensorError| ArtifactError::io(path)(std::io::Error::other(e.to_string()));
    let mut views = Vec::with_capacity(tensors.len());
    for (name, t) in tensors {
        views.push((name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).map_err(failed)?));
    }
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    safetensors::serialize_to_file(views, metadata, path).map_err(failed)
}

/// The files of a folder, sub-folders left out: the form in which a folder enters [`Artifact::load`].
pub fn files_in(dir: &Path) -> Result<Files, ArtifactError> {
    let entries = fs::read_dir(dir).map_err(ArtifactError::io(dir))?;
    let mut files = Files::new();
    for entry in entries {
        let path = entry.map_err(ArtifactError::io(dir))?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name().and_then(|n| n.to_str())) {
            files.insert(name.to_owned(), path);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
