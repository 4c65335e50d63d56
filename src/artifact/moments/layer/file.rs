//! The file of a layer's sums. Knows their names and no meaning.

use std::{collections::HashMap, path::Path};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use super::LayerMoments;
use crate::artifact::{ArtifactError, checkpoint::mapped, moments::KIND};

impl LayerMoments {
    /// Writes the file of the layer.
    pub fn save(&self, path: &Path) -> Result<(), ArtifactError> {
        let failed =
            |e: safetensors::SafeTensorError| ArtifactError::io(path)(std::io::Error::other(e.to_string()));
        let mut own = self.clone();
        let mut bytes: Vec<(&str, Vec<u8>)> = Vec::new();
        for (name, sum) in own.sums() {
            bytes.push((name, sum.iter().flat_map(|x| x.to_le_bytes()).collect()));
            *sum = Vec::new(); // large, and not needed twice
        }
        let mut views = Vec::with_capacity(bytes.len());
        for (name, data) in &bytes {
            views.push((name, TensorView::new(Dtype::F64, vec![data.len() / 8], data).map_err(failed)?));
        }
        let about =
            About { attention: self.attention.clone(), weights: self.weights.clone(), tokens: self.tokens };
        let text = serde_json::to_string(&about).expect("plain data serialises");
        let metadata: HashMap<String, String> = [(ABOUT.to_owned(), text)].into();
        safetensors::serialize_to_file(views, Some(metadata), path).map_err(failed)
    }

    /// Reads the file of a layer, `name` in the artifact.
    pub fn load(path: &Path, name: &str) -> Result<Self, ArtifactError> {
        let (map, about) = open(path, name)?;
        let About { attention, weights, tokens } = about;
        let mut moments = Self { attention, weights, tokens, ..Self::default() };
        let tensors = SafeTensors::deserialize(&map).expect("opened a moment ago");
        for (sum, into) in moments.sums() {
            let element = |b: &[u8]| f64::from_le_bytes(b.try_into().expect("chunks of eight"));
            let view = tensors.tensor(sum).expect("checked when it was opened");
            *into = view.data().chunks_exact(8).map(element).collect();
        }
        Ok(moments)
    }

    /// Checks the header of a layer's file without reading the sums.
    pub(in crate::artifact::moments) fn check(path: &Path, name: &str) -> Result<(), ArtifactError> {
        open(path, name).map(drop)
    }
}

/// What the file says of itself.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    attention: String,
    weights: String,
    tokens: usize,
}

/// Its place in the file's metadata: one entry, because several have no order.
const ABOUT: &str = "about";

/// Maps a layer's file, and checks that every sum is there.
fn open(path: &Path, name: &str) -> Result<(Mmap, About), ArtifactError> {
    let malformed = |place: &str, why: String| ArtifactError::Malformed {
        kind: KIND,
        file: name.to_owned(),
        place: place.to_owned(),
        why,
    };
    let map = mapped(path)?;
    let tensors = SafeTensors::deserialize(&map).map_err(|e| malformed("header", e.to_string()))?;
    let (_, header) = SafeTensors::read_metadata(&map).map_err(|e| malformed("header", e.to_string()))?;
    let about = header.metadata().as_ref().and_then(|metadata| metadata.get(ABOUT));
    let about = about.ok_or_else(|| malformed("header", format!("`{ABOUT}` is missing")))?;
    let about = serde_json::from_str(about).map_err(|e| malformed("header", e.to_string()))?;
    for (sum, _) in LayerMoments::default().sums() {
        let view = tensors.tensor(sum).map_err(|e| malformed(&format!("`{sum}`"), e.to_string()))?;
        if view.dtype() != Dtype::F64 {
            return Err(malformed(&format!("`{sum}`"), format!("{:?}, not F64", view.dtype())));
        }
    }
    Ok((map, about))
}
