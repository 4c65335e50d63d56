//! The residual stream of every batch between two layers: in memory, or in a file where memory is short. Knows no model.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use candle_core::{Device, Tensor};

/// The residual streams [t, hidden] of all batches. The bytes are the same wherever they lie.
pub(crate) struct Hidden {
    width: usize,
    /// Rows of each batch.
    rows: Vec<usize>,
    place: Place,
}

enum Place {
    Memory(Vec<Option<Tensor>>),
    File { file: File, path: PathBuf },
}

/// Bytes of an element.
const ELEMENT: usize = size_of::<f32>();
/// Elements that pass through memory at a time.
const CHUNK: usize = 1 << 20;

/// Why a residual stream could not be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HiddenError {
    /// The file of hidden states.
    #[error("hidden states in {0}: {1}")]
    Io(PathBuf, #[source] io::Error),
    /// Two passes do not fit each other.
    #[error("hidden states of {found} bytes, expected {expected}")]
    Size { expected: u64, found: u64 },
    /// A tensor operation failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Hidden {
    /// Streams of so many rows each, `width` wide, in memory.
    pub(crate) fn in_memory(rows: Vec<usize>, width: usize) -> Self {
        let place = Place::Memory(vec![None; rows.len()]);
        Self { width, rows, place }
    }

    /// The same in a new file at `path`, which goes when this does.
    pub(crate) fn in_file(rows: Vec<usize>, width: usize, path: PathBuf) -> Result<Self, HiddenError> {
        let opened = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = opened.map_err(|e| HiddenError::Io(path.clone(), e))?;
        let hidden = Self { width, rows, place: Place::File { file, path } };
        if let Place::File { file, path } = &hidden.place {
            file.set_len(hidden.bytes()).map_err(|e| HiddenError::Io(path.clone(), e))?;
        }
        Ok(hidden)
    }

    /// More streams, `width` wide, in memory if these are, or else in a new file at `path`.
    pub(crate) fn beside(&self, rows: Vec<usize>, width: usize, path: PathBuf) -> Result<Self, HiddenError> {
        match self.place {
            Place::Memory(_) => Ok(Self::in_memory(rows, width)),
            Place::File { .. } => Self::in_file(rows, width, path),
        }
    }

    /// Takes the stream of batch `i` out.
    ///
    /// # Panics
    /// In memory, if it was taken before.
    pub(crate) fn take(&mut self, i: usize) -> Result<Tensor, HiddenError> {
        match &mut self.place {
            Place::Memory(all) => Ok(all[i].take().expect("a stream is put back before it is taken again")),
            Place::File { .. } => self.rows(i, 0, self.rows[i]),
        }
    }

    /// Some rows of the stream of batch `i` [n, hidden], from `from` on.
    ///
    /// # Panics
    /// In memory, if it was taken.
    pub(crate) fn rows(&self, i: usize, from: usize, n: usize) -> Result<Tensor, HiddenError> {
        match &self.place {
            Place::Memory(all) => {
                let all = all[i].as_ref().expect("a stream is put back before it is read");
                Ok(all.narrow(0, from, n)?.contiguous()?)
            }
            Place::File { file, path } => {
                let mut at = self.offset(i) + (from * self.width * ELEMENT) as u64;
                let mut values = vec![0f32; n * self.width];
                for part in values.chunks_mut(CHUNK) {
                    let mut bytes = vec![0u8; part.len() * ELEMENT];
                    file.read_exact_at(&mut bytes, at).map_err(|e| HiddenError::Io(path.clone(), e))?;
                    for (value, bytes) in part.iter_mut().zip(bytes.chunks_exact(ELEMENT)) {
                        *value = f32::from_le_bytes(bytes.try_into().expect("four bytes"));
                    }
                    at += bytes.len() as u64;
                }
                Ok(Tensor::from_vec(values, (n, self.width), &Device::Cpu)?)
            }
        }
    }

    /// The stream of batch `i`, which stays.
    ///
    /// # Panics
    /// In memory, if it was taken.
    pub(crate) fn whole(&self, i: usize) -> Result<Tensor, HiddenError> {
        self.rows(i, 0, self.rows[i])
    }

    /// Puts the stream of batch `i` back.
    ///
    /// # Panics
    /// If it has another shape.
    pub(crate) fn put(&mut self, i: usize, x: Tensor) -> Result<(), HiddenError> {
        assert_eq!(x.dims(), [self.rows[i], self.width], "a layer keeps the shape of its stream");
        let at = self.offset(i);
        match &mut self.place {
            Place::Memory(all) => all[i] = Some(x),
            Place::File { file, path } => {
                let mut at = at;
                for_each_chunk(&x, |bytes| {
                    let written = file.write_all_at(bytes, at);
                    at += bytes.len() as u64;
                    written.map_err(|e| HiddenError::Io(path.clone(), e))
                })?;
            }
        }
        Ok(())
    }

    /// Writes all streams to a file of their own, zeros for those that were never put.
    pub(crate) fn save(&mut self, path: &Path) -> Result<(), HiddenError> {
        let failed = |e| HiddenError::Io(path.to_owned(), e);
        let mut file = io::BufWriter::new(File::create(path).map_err(failed)?);
        for i in 0..self.rows.len() {
            if let Place::Memory(all) = &self.place
                && all[i].is_none()
            {
                let zeros = vec![0; self.rows[i] * self.width * ELEMENT];
                file.write_all(&zeros).map_err(failed)?;
                continue;
            }
            let x = self.take(i)?;
            for_each_chunk(&x, |bytes| file.write_all(bytes).map_err(failed))?;
            if let Place::Memory(all) = &mut self.place {
                all[i] = Some(x);
            }
        }
        file.flush().map_err(failed)
    }

    /// Fills all streams from a file that [`Self::save`] wrote.
    pub(crate) fn restore(&mut self, path: &Path) -> Result<(), HiddenError> {
        let failed = |e| HiddenError::Io(path.to_owned(), e);
        let file = File::open(path).map_err(failed)?;
        let (expected, found) = (self.bytes(), file.metadata().map_err(failed)?.len());
        if expected != found {
            return Err(HiddenError::Size { expected, found });
        }
        let mut file = io::BufReader::new(file);
        for i in 0..self.rows.len() {
            let mut bytes = vec![0u8; self.rows[i] * self.width * ELEMENT];
            file.read_exact(&mut bytes).map_err(failed)?;
            let values =
                bytes.chunks_exact(ELEMENT).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")));
            let x = Tensor::from_vec(values.collect::<Vec<f32>>(), (self.rows[i], self.width), &Device::Cpu)?;
            self.put(i, x)?;
        }
        Ok(())
    }

    /// Bytes of all streams.
    pub(super) fn bytes(&self) -> u64 {
        self.offset(self.rows.len())
    }

    fn offset(&self, i: usize) -> u64 {
        (self.rows[..i].iter().sum::<usize>() * self.width * ELEMENT) as u64
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if let Place::File { path, .. } = &self.place {
            drop(std::fs::remove_file(path)); // the scratch folder goes anyway
        }
    }
}

/// The bytes of `x`, some at a time.
fn for_each_chunk(
    x: &Tensor,
    mut f: impl FnMut(&[u8]) -> Result<(), HiddenError>,
) -> Result<(), HiddenError> {
    let values = crate::kernel::host(x)?;
    for part in values.chunks(CHUNK) {
        let bytes: Vec<u8> = part.iter().flat_map(|x| x.to_le_bytes()).collect();
        f(&bytes)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::testing::{flat, noise};

    fn stream(seed: u64, rows: usize, width: usize) -> Tensor {
        Tensor::from_vec(noise(seed, rows * width, 1.0), (rows, width), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_stream_comes_back_with_every_bit_from_memory_and_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let (rows, width) = (vec![3, 700, 1], 1600); // more than a chunk
        let path = dir.path().join("hidden");
        for mut hidden in [
            Hidden::in_memory(rows.clone(), width),
            Hidden::in_file(rows.clone(), width, path.clone()).unwrap(),
        ] {
            let put: Vec<Tensor> = rows.iter().zip(1..).map(|(&n, seed)| stream(seed, n, width)).collect();
            for i in [2, 0, 1] {
                hidden.put(i, put[i].clone()).unwrap();
            }
            hidden.save(&dir.path().join("saved")).unwrap();
            assert_eq!(flat(&hidden.whole(1).unwrap()), flat(&put[1]));
            assert_eq!(flat(&hidden.rows(1, 600, 99).unwrap()), flat(&put[1])[600 * width..699 * width]);
            for i in [1, 0, 2] {
                assert_eq!(flat(&hidden.take(i).unwrap()), flat(&put[i]));
            }
            let mut part = Hidden::in_memory(rows.clone(), width);
            part.put(1, put[1].clone()).unwrap();
            part.save(&dir.path().join("part")).unwrap();
            part.restore(&dir.path().join("part")).unwrap();
            assert!(flat(&part.take(0).unwrap()).iter().all(|x| x.to_bits() == 0));
            assert_eq!(flat(&part.take(1).unwrap()), flat(&put[1]));
            let mut again = Hidden::in_memory(rows.clone(), width);
            again.restore(&dir.path().join("saved")).unwrap();
            assert!((0..3).all(|i| flat(&again.take(i).unwrap()) == flat(&put[i])));
        }
        assert!(!path.exists(), "the file goes with its owner");
    }

    #[test]
    fn other_streams_lie_where_the_first_ones_do() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
        let x = stream(1, 3, 5);
        for in_file in [false, true] {
            let hidden = if in_file {
                Hidden::in_file(vec![1], 2, first.clone()).unwrap()
            } else {
                Hidden::in_memory(vec![1], 2)
            };
            let mut beside = hidden.beside(vec![2, 3], 5, second.clone()).unwrap();
            beside.put(1, x.clone()).unwrap();
            assert_eq!((first.exists(), second.exists()), (in_file, in_file));
            assert_eq!(flat(&beside.take(1).unwrap()), flat(&x));
        }
    }

    #[test]
    fn a_file_of_another_pass_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("saved");
        std::fs::write(&path, [0; 20]).unwrap();
        let error = Hidden::in_memory(vec![2, 1], 2).restore(&path).unwrap_err().to_string();
        assert_eq!(error, "hidden states of 20 bytes, expected 24");
    }

    #[test]
    #[should_panic(expected = "keeps the shape")]
    fn another_shape_is_a_mistake() {
        drop(Hidden::in_memory(vec![2], 4).put(0, stream(1, 4, 2)));
    }
}
