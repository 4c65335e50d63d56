//! Predictions: what was kept of a model's next-token distributions for documents, found by the documents' tokens. Knows no model.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Artifact, ArtifactError, Files, file, read_json,
    texts::{read_jsonl, write_jsonl},
};

/// What all documents have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct About {
    /// What the entries of a token are.
    pub entries: Entries,
    /// Tokens that the model knows.
    pub vocab_size: usize,
}

/// What the entries of a token are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entries {
    /// Its most probable successors, with their probabilities.
    TopK,
    /// Successors that were drawn, with their shares of the draws.
    Draws,
}

/// What was kept for one document.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Document {
    /// Entries of each token; the last token, which nothing follows, has none.
    pub lengths: Vec<u32>,
    /// Entropy of each token's whole distribution, in nats.
    pub entropies: Vec<f32>,
    /// Token ids, the entries of one token after those of the other.
    pub ids: Vec<u32>,
    /// Probabilities or shares of `ids`.
    pub weights: Vec<f32>,
}

/// Documents that stay on disk until they are asked for.
#[derive(Debug)]
pub struct Predictions {
    /// What they have in common.
    pub about: About,
    index: BTreeMap<String, Place>,
    path: PathBuf,
}

/// Where a document lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    /// [`id`] of its tokens.
    document: String,
    at: u64,
    tokens: usize,
    entries: usize,
}

const KIND: &str = "predictions";
const ABOUT: &str = "predictions.json";
const INDEX: &str = "documents.jsonl";
const DATA: &str = "predictions.bin";

/// BLAKE3 of token ids, each as four bytes, little-endian.
pub fn digest(tokens: &[u32]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    for token in tokens {
        hasher.update(&token.to_le_bytes());
    }
    hasher.finalize()
}

/// [`digest`] in hexadecimal digits.
pub fn id(tokens: &[u32]) -> String {
    digest(tokens).to_hex().to_string()
}

impl Predictions {
    /// Number of documents.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Whether there is a document with this [`id`].
    pub fn has(&self, id: &str) -> bool {
        self.index.contains_key(id)
    }

    /// What was kept for the document with this [`id`], if it is there.
    pub fn document(&self, id: &str) -> Result<Option<Document>, ArtifactError> {
        let Some(place) = self.index.get(id) else { return Ok(None) };
        let read = || {
            let mut data = File::open(&self.path)?;
            data.seek(SeekFrom::Start(place.at))?;
            let mut bytes = vec![0; place.bytes()];
            data.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(ArtifactError::io(&self.path))?;
        let words: Vec<u32> = bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)).collect();
        let (lengths, rest) = words.split_at(place.tokens);
        let (entropies, rest) = rest.split_at(place.tokens);
        let (ids, weights) = rest.split_at(place.entries);
        let floats = |words: &[u32]| words.iter().map(|&word| f32::from_bits(word)).collect();
        let whole = lengths.iter().map(|&n| n as usize).sum::<usize>() == place.entries;
        if !whole || ids.iter().any(|&id| id as usize >= self.about.vocab_size) {
            return Err(malformed(DATA, format!("byte {}", place.at), "a document's entries do not add up"));
        }
        Ok(Some(Document {
            lengths: lengths.to_vec(),
            entropies: floats(entropies),
            ids: ids.to_vec(),
            weights: floats(weights),
        }))
    }
}

impl Place {
    fn bytes(&self) -> usize {
        2 * (self.tokens + self.entries) * size_of::<u32>()
    }
}

fn malformed(file: &str, place: String, why: &str) -> ArtifactError {
    ArtifactError::Malformed { kind: KIND, file: file.to_owned(), place, why: why.to_owned() }
}

impl Artifact for Predictions {
    const KIND: &'static str = KIND;

    fn save(&self, dir: &Path) -> Result<(), ArtifactError> {
        let mut writer = Writer::create(dir, self.about)?;
        writer.append(self)?;
        writer.finish()
    }

    fn load(files: &Files) -> Result<Self, ArtifactError> {
        let about = read_json(KIND, files, ABOUT)?;
        let path = file(KIND, files, DATA)?.to_owned();
        let size = fs::metadata(&path).map_err(ArtifactError::io(&path))?.len();
        let places: Vec<Place> = read_jsonl(KIND, files, INDEX)?;
        if let Some(line) = places.iter().position(|place| place.at + place.bytes() as u64 > size) {
            return Err(malformed(INDEX, format!("line {}", line + 1), "the document lies behind the data"));
        }
        let index = places.into_iter().map(|place| (place.document.clone(), place)).collect();
        Ok(Self { about, index, path })
    }
}

/// Writes documents one after the other.
pub struct Writer {
    dir: PathBuf,
    about: About,
    data: BufWriter<File>,
    at: u64,
    places: Vec<Place>,
}

impl Writer {
    /// Begins in an existing, empty folder.
    pub fn create(dir: &Path, about: About) -> Result<Self, ArtifactError> {
        let path = dir.join(DATA);
        let data = BufWriter::new(File::create(&path).map_err(ArtifactError::io(&path))?);
        Ok(Self { dir: dir.to_owned(), about, data, at: 0, places: Vec::new() })
    }

    /// Adds what was kept for the document with these tokens.
    pub fn push(&mut self, tokens: &[u32], kept: &Document) -> Result<(), ArtifactError> {
        let place =
            Place { document: id(tokens), at: self.at, tokens: tokens.len(), entries: kept.ids.len() };
        let floats = |floats: &[f32]| floats.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        for words in [&kept.lengths, &floats(&kept.entropies), &kept.ids, &floats(&kept.weights)] {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            self.data.write_all(&bytes).map_err(ArtifactError::io(&self.dir))?;
        }
        self.at += place.bytes() as u64;
        self.places.push(place);
        Ok(())
    }

    /// Adds all documents of others, in their order.
    pub fn append(&mut self, others: &Predictions) -> Result<(), ArtifactError> {
        let mut data = File::open(&others.path).map_err(ArtifactError::io(&others.path))?;
        let bytes = io::copy(&mut data, &mut self.data).map_err(ArtifactError::io(&others.path))?;
        let mut places: Vec<&Place> = others.index.values().collect();
        places.sort_by_key(|place| place.at);
        self.places.extend(places.into_iter().map(|place| Place { at: self.at + place.at, ..place.clone() }));
        self.at += bytes;
        Ok(())
    }

    /// Writes what is still in memory, and where everything lies.
    pub fn finish(mut self) -> Result<(), ArtifactError> {
        self.data.flush().map_err(ArtifactError::io(&self.dir))?;
        write_jsonl(&self.dir.join(INDEX), &self.places)?;
        let path = self.dir.join(ABOUT);
        let text = serde_json::to_vec_pretty(&self.about).expect("plain data");
        fs::write(&path, text).map_err(ArtifactError::io(&path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::checkpoint::files_in;

    const ABOUT_TOP: About = About { entries: Entries::TopK, vocab_size: 50 };

    fn document(n: u32) -> Document {
        let lengths: Vec<u32> = (0..n).map(|i| if i + 1 == n { 0 } else { 1 + i % 2 }).collect();
        let entries = lengths.iter().sum();
        Document {
            entropies: (0..n).map(|i| i as f32 / 3.0).collect(),
            ids: (0..entries).map(|i| i * 7 % 50).collect(),
            weights: (0..entries).map(|i| 1.0 / (i + 1) as f32).collect(),
            lengths,
        }
    }

    fn tokens(n: u32) -> Vec<u32> {
        (n..2 * n).collect()
    }

    fn written(dir: &Path) -> Files {
        let mut writer = Writer::create(dir, ABOUT_TOP).unwrap();
        for n in [4, 1, 9] {
            writer.push(&tokens(n), &document(n)).unwrap();
        }
        writer.finish().unwrap();
        files_in(dir).unwrap()
    }

    #[test]
    fn documents_are_found_by_their_tokens() {
        let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let predictions = Predictions::load(&written(dir.path())).unwrap();
        predictions.save(copy.path()).unwrap();
        for predictions in [predictions, Predictions::load(&files_in(copy.path()).unwrap()).unwrap()] {
            assert_eq!((predictions.about, predictions.len(), predictions.is_empty()), (ABOUT_TOP, 3, false));
            for n in [1, 4, 9] {
                assert!(predictions.has(&id(&tokens(n))));
                assert_eq!(predictions.document(&id(&tokens(n))).unwrap().unwrap(), document(n));
            }
            assert_eq!(predictions.document(&id(&[1, 2])).unwrap(), None);
        }
    }

    #[test]
    fn parts_one_after_the_other_are_the_whole() {
        let dirs = [(); 4].map(|()| tempfile::tempdir().unwrap());
        let part = |dir: &Path, lengths: &[u32]| {
            let mut writer = Writer::create(dir, ABOUT_TOP).unwrap();
            for &n in lengths {
                writer.push(&tokens(n), &document(n)).unwrap();
            }
            writer.finish().unwrap();
            Predictions::load(&files_in(dir).unwrap()).unwrap()
        };
        let parts = [part(dirs[0].path(), &[4]), part(dirs[1].path(), &[]), part(dirs[2].path(), &[1, 9])];
        let mut writer = Writer::create(dirs[3].path(), ABOUT_TOP).unwrap();
        for part in &parts {
            writer.append(part).unwrap();
        }
        writer.finish().unwrap();
        let whole = tempfile::tempdir().unwrap();
        let read =
            |files: &Files| -> Vec<Vec<u8>> { files.values().map(|path| fs::read(path).unwrap()).collect() };
        assert_eq!(read(&files_in(dirs[3].path()).unwrap()), read(&written(whole.path())));
    }

    #[test]
    fn an_id_is_that_of_the_bytes() {
        assert_eq!(id(&[1, 0x0203]), blake3::hash(&[1, 0, 0, 0, 3, 2, 0, 0]).to_hex().as_str());
    }

    #[test]
    fn damage_is_told_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let files = written(dir.path());
        let data = fs::read(&files[DATA]).unwrap();
        fs::write(&files[DATA], &data[..data.len() - 1]).unwrap();
        let error = Predictions::load(&files).unwrap_err().to_string();
        assert!(error.contains("documents.jsonl`, line 3"), "{error}");
        let mut other = data;
        other[0] = 99;
        fs::write(&files[DATA], other).unwrap();
        let error = Predictions::load(&files).unwrap().document(&id(&tokens(4))).unwrap_err().to_string();
        assert!(error.contains("byte 0: a document's entries do not add up"), "{error}");
        let error = Predictions::load(&Files::new()).unwrap_err().to_string();
        assert!(error.contains("predictions.json"), "{error}");
    }
}
