//! Embeddings: one grid vector per document, in the order of the ids. Knows no embedder.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::Path,
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use super::{Artifact, ArtifactError, Files, file};

/// How the vectors were made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// The embedder's name, such as `lexical`.
    pub model: String,
    /// Coordinates per vector.
    pub dim: usize,
    /// Grid units per unit of length.
    pub scale: u32,
    /// Whether the mean of the corpus was subtracted.
    pub centred: bool,
}

/// Grid vectors of documents.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Embeddings {
    /// How they were made.
    pub about: About,
    /// Document ids, ascending.
    pub ids: Vec<String>,
    /// Row-major, `ids.len() × dim`.
    pub vectors: Vec<i16>,
    /// How many windows of the embedder each document fills; more than one is more than it sees at once. Empty where the embedder
    /// sees whole documents.
    pub windows: Vec<u32>,
}

const ABOUT: &str = "embeddings.json";
const IDS: &str = "ids.txt";
const VECTORS: &str = "vectors.safetensors";
const WINDOWS: &str = "windows.txt";

impl Artifact for Embeddings {
    const KIND: &'static str = "embeddings";

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        let path = dir.join(ABOUT);
        let out = File::create(&path).map_err(ArtifactError::io(&path))?;
        serde_json::to_writer_pretty(out, &self.about).map_err(|e| ArtifactError::io(&path)(e.into()))?;
        let path = dir.join(IDS);
        let mut out = BufWriter::new(File::create(&path).map_err(ArtifactError::io(&path))?);
        for id in &self.ids {
            writeln!(out, "{id}").map_err(ArtifactError::io(&path))?;
        }
        out.flush().map_err(ArtifactError::io(&path))?;
        if !self.windows.is_empty() {
            let path = dir.join(WINDOWS);
            let lines: String = self.windows.iter().flat_map(|n| [n.to_string(), "\n".to_owned()]).collect();
            std::fs::write(&path, lines).map_err(ArtifactError::io(&path))?;
        }
        save_grid(&dir.join(VECTORS), self.about.dim, &self.vectors)
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        let path = file(Self::KIND, files, ABOUT)?;
        let bytes = std::fs::read(path).map_err(ArtifactError::io(path))?;
        let about: About = serde_json::from_slice(&bytes)
            .map_err(|e| malformed(Self::KIND, ABOUT, &format!("line {}", e.line()), &e.to_string()))?;
        let path = file(Self::KIND, files, IDS)?;
        let text = std::fs::read_to_string(path).map_err(ArtifactError::io(path))?;
        let ids: Vec<String> = text.lines().map(str::to_owned).collect();
        if let Some(at) = ids.windows(2).position(|pair| pair[0] >= pair[1]) {
            return Err(malformed(Self::KIND, IDS, &format!("line {}", at + 2), "ids are not ascending"));
        }
        let vectors = load_grid(Self::KIND, files, VECTORS, [ids.len(), about.dim])?;
        let windows = match files.get(WINDOWS) {
            None => Vec::new(),
            Some(path) => load_windows(path, ids.len())?,
        };
        Ok(Self { about, ids, vectors, windows })
    }
}

fn load_windows(path: &Path, rows: usize) -> Result<Vec<u32>, ArtifactError> {
    let text = std::fs::read_to_string(path).map_err(ArtifactError::io(path))?;
    let fault = |place: String, why: &str| malformed(Embeddings::KIND, WINDOWS, &place, why);
    let number =
        |(i, line): (usize, &str)| line.parse().map_err(|_| fault(format!("line {}", i + 1), "not a number"));
    let windows = text.lines().enumerate().map(number).collect::<Result<Vec<u32>, _>>()?;
    if windows.len() == rows {
        Ok(windows)
    } else {
        Err(fault("its end".to_owned(), "not one line per document"))
    }
}

/// Writes a row-major i16 matrix of `dim` columns as the tensor `vectors`.
pub(super) fn save_grid(path: &Path, dim: usize, rows: &[i16]) -> Result<(), ArtifactError> {
    let little: Vec<u8> = rows.iter().flat_map(|v| v.to_le_bytes()).collect();
    let shape = vec![rows.len().checked_div(dim).unwrap_or(0), dim];
    let view = TensorView::new(Dtype::I16, shape, &little)
        .and_then(|view| safetensors::serialize([("vectors", view)], None))
        .map_err(|e| ArtifactError::io(path)(std::io::Error::other(e)))?;
    std::fs::write(path, view).map_err(ArtifactError::io(path))
}

/// Reads what [`save_grid`] wrote, if it has this shape.
pub(super) fn load_grid(
    kind: &'static str,
    files: &Files,
    name: &str,
    shape: [usize; 2],
) -> Result<Vec<i16>, ArtifactError> {
    let path = file(kind, files, name)?;
    let bytes = std::fs::read(path).map_err(ArtifactError::io(path))?;
    let fault = |why: &str| malformed(kind, name, "tensor `vectors`", why);
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| fault(&e.to_string()))?;
    let tensor = tensors.tensor("vectors").map_err(|e| fault(&e.to_string()))?;
    if tensor.dtype() != Dtype::I16 || tensor.shape() != shape {
        return Err(fault(&format!(
            "expected I16 {shape:?}, found {:?} {:?}",
            tensor.dtype(),
            tensor.shape()
        )));
    }
    Ok(tensor.data().as_chunks().0.iter().map(|&pair| i16::from_le_bytes(pair)).collect())
}

fn malformed(kind: &'static str, file: &str, place: &str, why: &str) -> ArtifactError {
    ArtifactError::Malformed { kind, file: file.to_owned(), place: place.to_owned(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(embeddings: &Embeddings) -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        embeddings.save(dir.path()).unwrap();
        let files = [ABOUT, IDS, VECTORS].map(|f| (f.to_owned(), dir.path().join(f))).into();
        (dir, files)
    }

    fn example() -> Embeddings {
        let about = About { model: "lexical".into(), dim: 3, scale: 4000, centred: true };
        let vectors = vec![1, -2, i16::MAX, i16::MIN, 0, 5];
        Embeddings { about, ids: vec!["aa".into(), "bb".into()], vectors, windows: vec![] }
    }

    #[test]
    fn round_trip() {
        let (_dir, files) = saved(&example());
        assert_eq!(Embeddings::load(&files).unwrap(), example());
        let (_dir, files) = saved(&Embeddings::default());
        assert_eq!(Embeddings::load(&files).unwrap(), Embeddings::default());
    }

    #[test]
    fn windows_are_one_a_document() {
        let with = Embeddings { windows: vec![1, 40], ..example() };
        let (dir, mut files) = saved(&with);
        files.insert(WINDOWS.to_owned(), dir.path().join(WINDOWS));
        assert_eq!(Embeddings::load(&files).unwrap(), with);
        for (text, why) in [("1\n", "its end: not one line per document"), ("1\nx\n", "line 2: not a number")]
        {
            std::fs::write(dir.path().join(WINDOWS), text).unwrap();
            let error = Embeddings::load(&files).unwrap_err().to_string();
            assert!(error.ends_with(why), "{error}");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let mut one_id = example();
        one_id.ids.pop();
        let (_dir, files) = saved(&one_id);
        let error = Embeddings::load(&files).unwrap_err().to_string();
        assert!(error.ends_with("tensor `vectors`: expected I16 [1, 3], found I16 [2, 3]"), "{error}");

        let mut unsorted = example();
        unsorted.ids.reverse();
        let (_dir, files) = saved(&unsorted);
        let error = Embeddings::load(&files).unwrap_err().to_string();
        assert!(error.ends_with("file `ids.txt`, line 2: ids are not ascending"), "{error}");
    }
}
