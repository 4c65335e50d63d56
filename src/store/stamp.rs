//! Stamps: what `stat` says about a file whose bytes were hashed, so that an unchanged file is not hashed again.
//!
//! One append-only file of checksummed rows, shared by blobs and by the user's files. It only saves time: a row that is lost,
//! torn or absent costs a hash, never a wrong answer.

use std::{
    collections::HashMap,
    fs::{File, Metadata, OpenOptions},
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock},
};

use super::{
    clock,
    digest::Digest,
    disk,
    error::{Result, StoreError},
};

/// What `stat` says about one version of a file. The change time cannot be set by programs, so equal stamps mean equal bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    dev: u64,
    ino: u64,
    /// Size in bytes.
    pub size: u64,
    mtime_ns: i64,
    ctime_ns: i64,
}

impl Stamp {
    /// The stamp of a file's metadata.
    pub fn of(meta: &Metadata) -> Self {
        let ns = |s: i64, ns: i64| s.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            dev: meta.dev(),
            ino: meta.ino(),
            size: meta.len(),
            mtime_ns: ns(meta.mtime(), meta.mtime_nsec()),
            ctime_ns: ns(meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Whether the file changed so recently that another change could leave the same stamp.
    fn is_racy(&self, now_ns: i64) -> bool {
        const COARSEST_FILE_TIME_NS: i64 = 2_000_000_000;
        self.mtime_ns.max(self.ctime_ns) > now_ns - COARSEST_FILE_TIME_NS
    }
}

const ROW: usize = 80; // stamp 40, digest 32, checksum 8

/// The rows of one cache.
pub(crate) struct StampLog {
    path: PathBuf,
    rows: RwLock<HashMap<Stamp, Digest>>,
    file: Mutex<Option<File>>,
}

impl StampLog {
    /// Reads the rows; a damaged tail is cut off.
    pub(crate) fn open(path: PathBuf, tmp: &Path) -> Result<Self> {
        let bytes = disk::read_if_present(&path)?.unwrap_or_default();
        let mut rows = HashMap::with_capacity(bytes.len() / ROW);
        let mut sound = Vec::new();
        let mut damaged = !bytes.len().is_multiple_of(ROW);
        for (at, row) in bytes.chunks_exact(ROW).enumerate() {
            if let Some((stamp, digest)) = decode(row) {
                rows.insert(stamp, digest);
                if damaged {
                    sound.extend_from_slice(row);
                }
            } else if !damaged {
                damaged = true;
                sound.extend_from_slice(&bytes[..at * ROW]);
            }
        }
        if damaged {
            let fresh = tmp.join("stamps");
            disk::write_durable(&fresh, &sound)?;
            std::fs::rename(&fresh, &path).map_err(StoreError::io("replace", &path))?;
        }
        Ok(Self { path, rows: RwLock::new(rows), file: Mutex::new(None) })
    }

    /// The digest of the bytes of a file with this stamp, if they were hashed before.
    pub(crate) fn get(&self, stamp: &Stamp) -> Option<Digest> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner).get(stamp).copied()
    }

    /// Remembers stamps of files in the cache, which nobody writes to any more.
    pub(crate) fn remember(&self, rows: &[(Stamp, Digest)]) {
        if rows.is_empty() {
            return;
        }
        let bytes: Vec<u8> = rows.iter().flat_map(|(stamp, digest)| encode(stamp, digest)).collect();
        self.rows.write().unwrap_or_else(PoisonError::into_inner).extend(rows.iter().copied());
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut append = || {
            if file.is_none() {
                *file = Some(OpenOptions::new().create(true).append(true).open(&self.path)?);
            }
            // One call, so that rows of several processes do not interleave.
            file.as_mut().map_or(Ok(()), |f| f.write_all(&bytes))
        };
        // A row that is not kept costs a hash later; a full disk shows itself where it matters.
        if let Err(error) = append() {
            tracing::warn!("cannot append to {}: {error}", self.path.display());
        }
    }

    /// The digest of a file that belongs to the user, and the stamp it had.
    pub(crate) fn digest(&self, path: &Path) -> Result<(Digest, Stamp)> {
        let stat = || std::fs::metadata(path).map_err(StoreError::io("read", path));
        let stamp = Stamp::of(&stat()?);
        if let Some(digest) = self.get(&stamp) {
            return Ok((digest, stamp));
        }
        let now = clock::now_ns();
        let (digest, _) = Digest::of_file(path).map_err(StoreError::io("read", path))?;
        if Stamp::of(&stat()?) == stamp && !stamp.is_racy(now) {
            self.remember(&[(stamp, digest)]);
        }
        Ok((digest, stamp))
    }
}

fn encode(stamp: &Stamp, digest: &Digest) -> [u8; ROW] {
    let mut row = [0; ROW];
    let fields = [stamp.dev, stamp.ino, stamp.size, stamp.mtime_ns as u64, stamp.ctime_ns as u64];
    for (slot, field) in row.chunks_exact_mut(8).zip(fields) {
        slot.copy_from_slice(&field.to_le_bytes());
    }
    row[40..72].copy_from_slice(digest.as_bytes());
    let sum = checksum(&row[..72]);
    row[72..].copy_from_slice(&sum);
    row
}

fn decode(row: &[u8]) -> Option<(Stamp, Digest)> {
    if checksum(&row[..72]) != row[72..] {
        return None;
    }
    let field = |i: usize| row[i * 8..(i + 1) * 8].try_into().map(u64::from_le_bytes).ok();
    let digest = row[40..72].try_into().ok()?;
    let (mtime_ns, ctime_ns) = (field(3)? as i64, field(4)? as i64);
    let stamp = Stamp { dev: field(0)?, ino: field(1)?, size: field(2)?, mtime_ns, ctime_ns };
    Some((stamp, Digest::from_bytes(digest)))
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(i: u64) -> (Stamp, Digest) {
        let stamp = Stamp { dev: 1, ino: i, size: i, mtime_ns: -1, ctime_ns: 7 };
        (stamp, Digest::of(&i.to_le_bytes()))
    }

    fn log(dir: &Path) -> StampLog {
        StampLog::open(dir.join("log"), dir).unwrap()
    }

    #[test]
    fn rows_outlive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path()).remember(&[row(1), row(2)]);
        log(dir.path()).remember(&[row(3)]);
        let log = log(dir.path());
        for i in 1..=3 {
            assert_eq!(log.get(&row(i).0), Some(row(i).1));
        }
        assert_eq!(log.get(&Stamp { ctime_ns: 8, ..row(1).0 }), None);
    }

    #[test]
    fn a_torn_tail_and_a_flipped_bit_lose_only_their_row() {
        let dir = tempfile::tempdir().unwrap();
        log(dir.path()).remember(&[row(1), row(2), row(3)]);
        let path = dir.path().join("log");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[ROW + 3] ^= 1;
        bytes.extend_from_slice(&[9; 13]);
        std::fs::write(&path, &bytes).unwrap();
        let damaged = log(dir.path());
        assert_eq!([1, 2, 3].map(|i| damaged.get(&row(i).0).is_some()), [true, false, true]);
        damaged.remember(&[row(4)]);
        let repaired = log(dir.path());
        assert_eq!([1, 2, 3, 4].map(|i| repaired.get(&row(i).0).is_some()), [true, false, true, true]);
    }

    #[test]
    fn a_file_that_just_changed_is_hashed_again() {
        let dir = tempfile::tempdir().unwrap();
        let (log, path) = (log(dir.path()), dir.path().join("f"));
        std::fs::write(&path, "a").unwrap();
        let (digest, stamp) = log.digest(&path).unwrap();
        assert_eq!(digest, Digest::of(b"a"));
        assert_eq!(log.get(&stamp), None, "too fresh to trust");
        assert!(!stamp.is_racy(clock::now_ns() + 3_000_000_000));
    }

    #[test]
    fn an_old_file_is_hashed_once() {
        let log = StampLog::open("/dev/null".into(), Path::new("/nonexistent")).unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("LICENSE");
        let (digest, stamp) = log.digest(&path).unwrap();
        assert_eq!(log.get(&stamp), Some(digest));
    }
}
