//! Action records: what one key produced. A record is written last, so its presence means that its blobs are on disk.
//!
//! A record is a line of JSON, a line with the key that was hashed, and a line with the checksum of both. Only `why` needs the
//! key, so a hit does not parse it. Knows nothing of what a key is made of.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Store, clock,
    digest::Digest,
    disk,
    error::{Result, StoreError},
    tree::Tree,
};

const CHECKSUM: &str = "mla-run 2026-11 record checksum v1";

/// What one key produced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The digest of the key; also the record's name.
    pub digest: Digest,
    /// The stage kind, for listings.
    pub kind: String,
    /// The artifacts by output port.
    pub outputs: BTreeMap<String, Tree>,
    /// How long the stage ran.
    pub seconds: f64,
    /// How much memory it took at most, in bytes, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory: Option<u64>,
    /// Why it ran, one sentence each.
    pub why: Vec<String>,
    /// When it was recorded: seconds since 1970.
    pub made: i64,
}

impl Record {
    /// Refuses a record whose listings cannot be right.
    pub(crate) fn check(&self) -> Result<()> {
        let mut outputs = self.outputs.iter();
        outputs.try_for_each(|(port, tree)| {
            tree.check().map_err(|source| StoreError::Tree { port: port.clone(), source })
        })
    }
}

/// What a stage gives to [`Slot::record`].
#[derive(Debug, Clone)]
pub struct Made {
    /// The stage kind.
    pub kind: String,
    /// The key that was hashed.
    pub key: serde_json::Value,
    /// The output ports; each has a folder of this name in [`Workdir::out`].
    pub ports: Vec<String>,
    /// How long it ran.
    pub seconds: f64,
    /// How much memory it took at most, in bytes, if that is known.
    pub peak_memory: Option<u64>,
    /// Why it ran.
    pub why: Vec<String>,
}

/// The answer to [`Store::lookup`].
pub enum Lookup {
    /// All bytes are there.
    Hit(Record),
    /// Not in the cache; the slot is the only way to put it there.
    Miss(Slot),
}

/// The right to record a key that the cache lacks.
pub struct Slot {
    store: Store,
    digest: Digest,
    /// What the cache lost, when it had the key before: `output `texts` was damaged …`.
    pub lost: Option<String>,
    replace: bool,
}

/// Private folders of one attempt; removed when dropped.
pub struct Workdir {
    /// One empty folder per output port.
    pub out: PathBuf,
    /// An empty folder for scratch files.
    pub scratch: PathBuf,
    root: PathBuf,
}

impl Drop for Workdir {
    fn drop(&mut self) {
        drop(disk::remove(&self.root)); // what stays is swept with the lease
    }
}

impl Store {
    /// Looks a key up. Wrong objects go to `bad/` and make it a miss.
    pub fn lookup(&self, digest: &Digest) -> Result<Lookup> {
        let lost = match self.load(digest)? {
            Loaded::Sound(record) => match self.first_flaw(&record)? {
                None => return Ok(Lookup::Hit(record)),
                Some(lost) => Some(lost),
            },
            Loaded::Absent => None,
            Loaded::Damaged => Some("its record was damaged in the cache and moved to bad/".to_owned()),
        };
        Ok(Lookup::Miss(Slot { store: self.clone(), digest: *digest, lost, replace: false }))
    }

    /// A slot that runs the key again and replaces what the cache has.
    pub fn refresh(&self, digest: &Digest) -> Result<Slot> {
        self.forget_checkpoints(digest);
        Ok(Slot { store: self.clone(), digest: *digest, lost: None, replace: true })
    }

    /// A slot as [`Store::refresh`] gives, for one more attempt that may go on from the checkpoints of the last.
    pub fn retry(&self, digest: &Digest) -> Slot {
        Slot { store: self.clone(), digest: *digest, lost: None, replace: true }
    }

    /// The record of a key, without looking at its blobs.
    pub fn record(&self, digest: &Digest) -> Result<Option<Record>> {
        Ok(match self.load(digest)? {
            Loaded::Sound(record) => Some(record),
            Loaded::Absent | Loaded::Damaged => None,
        })
    }

    /// Takes a record and its bytes over from another cache.
    pub fn import(&self, from: &Self, record: &Record) -> Result<()> {
        let Some(key) = from.key(&record.digest)? else { return Ok(()) };
        let _no_clean_up = self.publishing()?;
        for file in record.outputs.values().flat_map(|tree| &tree.files) {
            if self.check_blob(&file.blob, file.size)?.is_ok() {
                continue;
            }
            self.make_shard("blob", &file.blob)?;
            let (old, new) = (from.blob_path(&file.blob), self.blob_path(&file.blob));
            // Not a hard link: that changes the stamp under which the other cache knows its blob.
            let tmp = self.lease().fresh("import");
            disk::clone_or_copy(&old, &tmp).map_err(StoreError::io("copy", &old))?;
            disk::protect(&tmp)?;
            fs::rename(&tmp, &new).map_err(StoreError::io("publish", &new))?;
            if let Err(flaw) = self.check_blob(&file.blob, file.size)? {
                return Err(StoreError::Import { path: old, flaw });
            }
        }
        self.publish_record(record, &key, true)
    }

    /// The key that was hashed for a record, as JSON.
    pub fn key(&self, digest: &Digest) -> Result<Option<serde_json::Value>> {
        let bytes = disk::read_if_present(&self.record_path(digest))?;
        let key =
            |bytes: &Vec<u8>| serde_json::from_slice(unseal(bytes)?.split(|&b| b == b'\n').nth(1)?).ok();
        Ok(bytes.as_ref().and_then(key))
    }

    fn load(&self, digest: &Digest) -> Result<Loaded> {
        let path = self.record_path(digest);
        if fs::symlink_metadata(&path).is_ok_and(|meta| !meta.is_file()) {
            return self.quarantine(&path).map(|()| Loaded::Damaged);
        }
        let Some(bytes) = disk::read_if_present(&path)? else { return Ok(Loaded::Absent) };
        match first_line::<Record>(&bytes) {
            Some(record) if record.digest == *digest && record.check().is_ok() => Ok(Loaded::Sound(record)),
            _ => self.quarantine(&path).map(|()| Loaded::Damaged),
        }
    }

    /// Whether all bytes of an artifact are there; wrong ones go to `bad/`.
    pub fn has(&self, tree: &Tree) -> Result<bool> {
        let mut whole = true;
        for file in &tree.files {
            whole &= self.check_blob(&file.blob, file.size)?.is_ok();
        }
        Ok(whole)
    }

    fn first_flaw(&self, record: &Record) -> Result<Option<String>> {
        let mut first = None;
        for (port, tree) in &record.outputs {
            for file in &tree.files {
                // All are checked, so that one run finds all that must be rebuilt.
                if let Err(flaw) = self.check_blob(&file.blob, file.size)? {
                    first.get_or_insert(format!("output `{port}` {flaw}"));
                }
            }
        }
        Ok(first)
    }

    pub(super) fn record_path(&self, digest: &Digest) -> PathBuf {
        self.sharded("act", digest)
    }

    pub(crate) fn publish_record(
        &self,
        record: &Record,
        key: &serde_json::Value,
        replace: bool,
    ) -> Result<()> {
        self.publish_sealed(&record.digest, &seal(&[&to_json(record), &to_json(key)]), replace)
    }

    /// Publishes a sealed record whose blobs are durable.
    pub(super) fn publish_sealed(&self, digest: &Digest, sealed: &[u8], replace: bool) -> Result<()> {
        let path = self.record_path(digest);
        self.make_shard("act", digest)?;
        let tmp = self.lease().fresh("record");
        disk::write_durable(&tmp, sealed)?;
        if replace {
            fs::rename(&tmp, &path).map_err(StoreError::io("publish", &path))?;
        } else {
            create_once(&tmp, &path).map_err(StoreError::io("publish", &path))?;
        }
        disk::sync_dir(&self.shard("act", digest))
    }
}

enum Loaded {
    Sound(Record),
    Absent,
    Damaged,
}

/// Gives `tmp` the name `path`, unless that name is taken.
fn create_once(tmp: &Path, path: &Path) -> io::Result<()> {
    match fs::hard_link(tmp, path) {
        Ok(()) => fs::remove_file(tmp),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(_) => fs::rename(tmp, path), // a file system without hard links
    }
}

impl Slot {
    /// Makes the private folders of an attempt.
    pub fn workdir(&self, ports: &[&str]) -> Result<Workdir> {
        let root = self.store.lease().fresh("work");
        let dirs = Workdir { out: root.join("out"), scratch: root.join("scratch"), root };
        disk::make_dir(&dirs.out)?;
        disk::make_dir(&dirs.scratch)?;
        for port in ports {
            disk::make_dir(&dirs.out.join(port))?;
        }
        Ok(dirs)
    }

    /// Publishes the outputs and then the record: the commit point.
    ///
    /// When another process recorded the key meanwhile, its record stays and is returned.
    pub fn record(self, made: Made, work: &Workdir) -> Result<Record> {
        let mut prepared = Vec::new();
        for port in made.ports {
            let files = self.store.prepare_dir(&work.out.join(&port))?;
            if files.is_empty() {
                return Err(StoreError::EmptyOutput { port });
            }
            let tree = Tree::new(files.iter().map(|(file, _)| file.clone()).collect());
            tree.check().map_err(|source| StoreError::Tree { port: port.clone(), source })?;
            prepared.push((port, tree, files));
        }
        let _no_clean_up = self.store.publishing()?;
        let mut outputs = BTreeMap::new();
        for (port, tree, files) in prepared {
            self.store.put_hashed(&files)?;
            outputs.insert(port, tree);
        }
        let record = Record {
            digest: self.digest,
            kind: made.kind,
            outputs,
            seconds: made.seconds,
            peak_memory: made.peak_memory,
            why: made.why,
            made: clock::now_ns() / 1_000_000_000,
        };
        // A record that names lost blobs is in the way; one that another process made meanwhile is not.
        let in_the_way = |slot: &Self| match slot.store.lookup(&slot.digest)? {
            Lookup::Hit(_) => Ok::<_, StoreError>(false),
            Lookup::Miss(now) => Ok(now.lost.is_some()),
        };
        let replace = self.replace || in_the_way(&self)?;
        self.store.publish_record(&record, &made.key, replace)?;
        self.store.forget_checkpoints(&self.digest);
        match self.store.load(&self.digest)? {
            Loaded::Sound(kept) => Ok(kept),
            Loaded::Absent | Loaded::Damaged => Ok(record),
        }
    }

    /// The digest of the key.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }
}

/// One line of JSON.
pub(crate) fn to_json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("records are plain data with string keys")
}

/// Lines, and a last one with their checksum.
pub(crate) fn seal(lines: &[&[u8]]) -> Vec<u8> {
    let mut bytes = lines.join(&b'\n');
    let sum = Digest::derive(CHECKSUM, &bytes);
    bytes.extend_from_slice(format!("\n{sum}\n").as_bytes());
    bytes
}

/// The lines before the checksum, if it fits.
pub(super) fn unseal(bytes: &[u8]) -> Option<&[u8]> {
    let body = bytes.strip_suffix(b"\n")?;
    let (lines, sum) = body.split_at_checked(body.len().checked_sub(64)?)?;
    let lines = lines.strip_suffix(b"\n")?;
    let sum: Digest = std::str::from_utf8(sum).ok()?.parse().ok()?;
    (Digest::derive(CHECKSUM, lines) == sum).then_some(lines)
}

/// The value in the first line, if the checksum fits and the JSON is what it should be.
pub(crate) fn first_line<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(unseal(bytes)?.split(|&b| b == b'\n').next()?).ok()
}
