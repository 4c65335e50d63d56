//! The last key of every stage of a pipeline, so that `why` has something to compare with. Only for people: it can be deleted.
//!
//! One append-only file per pipeline, `run/latest/<pipeline>`: a digest and a name per line; the last line of a name counts.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::store::{self, Digest, Store};

pub(crate) struct Latest {
    keys: BTreeMap<String, Digest>,
    path: PathBuf,
    file: Option<File>,
}

impl Latest {
    /// Reads the keys of a pipeline.
    pub(crate) fn open(store: &Store, pipeline: &str) -> store::Result<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let named = !pipeline.is_empty() && pipeline.len() < 50 && pipeline.chars().all(plain);
        let file = if named { pipeline.to_owned() } else { Digest::of(pipeline.as_bytes()).to_string() };
        let path = store.run_dir("latest")?.join(file);
        let (keys, lines) = parse(&store::read_if_present(&path)?.unwrap_or_default());
        if lines > 2 * keys.len() + 100 {
            let fresh: String = keys.iter().map(|(name, digest)| line(name, digest)).collect();
            store.replace_file(&path, fresh.as_bytes())?;
        }
        Ok(Self { keys, path, file: None })
    }

    pub(crate) fn get(&self, stage: &str) -> Option<Digest> {
        self.keys.get(stage).copied()
    }

    /// Remembers the key that a stage has now.
    pub(crate) fn set(&mut self, stage: &str, digest: Digest) -> io::Result<()> {
        if self.keys.insert(stage.to_owned(), digest) == Some(digest) {
            return Ok(());
        }
        if self.file.is_none() {
            self.file = Some(OpenOptions::new().create(true).append(true).open(&self.path)?);
        }
        self.file.as_mut().map_or(Ok(()), |f| f.write_all(line(stage, &digest).as_bytes()))
    }
}

/// The keys in a file of this kind.
pub(crate) fn read(path: &Path) -> store::Result<BTreeMap<String, Digest>> {
    Ok(parse(&store::read_if_present(path)?.unwrap_or_default()).0)
}

/// The last key of each name, and the number of lines.
fn parse(bytes: &[u8]) -> (BTreeMap<String, Digest>, usize) {
    let text = String::from_utf8_lossy(bytes);
    let (mut keys, mut lines) = (BTreeMap::new(), 0);
    for line in text.lines() {
        lines += 1;
        let Some((digest, name)) = line.split_once(' ') else { continue };
        if let (Ok(digest), Ok(name)) = (digest.parse(), serde_json::from_str::<String>(name)) {
            keys.insert(name, digest);
        }
    }
    (keys, lines)
}

fn line(stage: &str, digest: &Digest) -> String {
    format!("{digest} {}\n", serde_json::Value::from(stage))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_key_of_a_name_counts_per_pipeline() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let digests: Vec<Digest> = (0..300_u32).map(|i| Digest::of(&i.to_le_bytes())).collect();
        for digest in &digests {
            let mut latest = Latest::open(&store, "full").unwrap();
            latest.set("a b\n\"c\"", *digest).unwrap();
            latest.set("other", digests[0]).unwrap();
        }
        let latest = Latest::open(&store, "full").unwrap();
        assert_eq!(latest.get("a b\n\"c\""), digests.last().copied());
        assert_eq!(latest.get("other"), Some(digests[0]));
        assert_eq!(latest.get("none"), None);
        assert_eq!(Latest::open(&store, "../full").unwrap().get("other"), None);
        let lines = std::fs::read_to_string(&latest.path).unwrap().lines().count();
        assert!(lines < 150, "old lines are dropped: {lines}");
    }
}
