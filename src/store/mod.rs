//! Bytes on disk, keyed by content. Knows no stage and no graph, and imports nothing of ours.
//!
//! ```text
//! FORMAT            one line; another one is refused
//! blob/aa/<62 hex>  immutable files, read-only, named by the BLAKE3 of their bytes (`b3sum` checks them)
//! act/aa/<62 hex>   records: key digest → outputs; JSON and a line with its checksum
//! ckpt/<key>/       checkpoints of keys that are not recorded yet
//! view/<tree>/      links that show blobs under their own names; can be deleted
//! lease/ tmp/       one locked file and one private folder per live process
//! claim/            one locked file per key that some process runs now
//! bad/              wrong objects, moved out of the way; never read
//! root/             names of keys that a clean-up must keep
//! gc/               the lock of clean-ups and publishers, and the blobs that will go
//! job/              stages that were handed over to other hosts
//! run/              journals, and the last key of every stage, for `why`
//! stamps            which version of which file was hashed; can be deleted
//! ```
//!
//! There is no database: all that matters is immutable files and renames. To publish, a stage's files are hashed, flushed,
//! made read-only and renamed into `blob/`; the folders are flushed; the record is written last, flushed, and linked into
//! `act/` once. A crash before that leaves at most blobs that nobody names. A *hit* means that the record's checksum fits and
//! that every blob is there with its size and a stamp (device, inode, size, times) under which its bytes were hashed before;
//! other stamps cost one full hash. A wrong object goes to `bad/`, its record becomes a miss, and its producer runs again.
//! Only a [`Slot`], which only a miss gives, can record; [`remote`] brings what others recorded. Several processes may work at
//! once: a key is claimed before it runs, and the first record of a key stays.

mod blob;
mod checkpoint;
mod claim;
mod clock;
mod digest;
mod disk;
mod error;
mod gc;
mod lease;
mod owner;
pub(crate) mod record;
pub mod remote;
mod root;
mod stamp;
mod tree;
mod verify;
mod view;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use blob::Flaw;
pub use claim::{Claim, Claimed};
pub(crate) use clock::{run_id, utc};
pub use digest::{Digest, NotADigest};
pub(crate) use disk::{clone_or_copy, read_if_present};
pub use error::{Result, StoreError};
pub use gc::{Collected, Policy};
pub use owner::Owner;
pub use record::{Lookup, Made, Record, Slot, Workdir};
pub use root::Root;
pub use stamp::Stamp;
pub use tree::{Tree, TreeFile, TreeFlaw};
pub use verify::Verified;

const FORMAT: &str = "mla-run cache 1";

/// A cache folder, open in this process. Clones share one lease.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    root: PathBuf,
    stamps: stamp::StampLog,
    lease: lease::Lease,
}

impl Store {
    /// Opens a cache, makes it if there is none, and removes what dead processes left in it.
    pub fn open(root: &Path) -> Result<Self> {
        check_format(root)?;
        for dir in ["blob", "act", "ckpt", "view", "lease", "claim", "gc", "tmp", "bad", "root", "run"] {
            disk::make_dir(&root.join(dir))?;
        }
        let root = fs::canonicalize(root).map_err(StoreError::io("open", root))?;
        lease::sweep(&root)?;
        let lease = lease::Lease::take(&root)?;
        write_format(&root, &lease)?;
        let stamps = stamp::StampLog::open(root.join("stamps"), lease.tmp())?;
        let store = Self(Arc::new(Inner { root, stamps, lease }));
        store.sweep_checkpoints()?;
        Ok(store)
    }

    /// The cache's folder, absolute.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// The digest of a file of the user, from its stamp where that is known.
    pub fn digest_file(&self, path: &Path) -> Result<(Digest, Stamp)> {
        self.stamps().digest(path)
    }

    /// The folder of a run's journal; made if absent.
    pub fn run_dir(&self, run: &str) -> Result<PathBuf> {
        let dir = self.root().join("run").join(run);
        disk::make_dir(&dir)?;
        Ok(dir)
    }

    /// Writes a small file so that readers see the old one or the new one, never a part.
    pub(crate) fn replace_file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let tmp = self.lease().fresh("file");
        let write = || fs::File::create(&tmp)?.write_all(bytes);
        write().map_err(StoreError::io("write", &tmp))?;
        fs::rename(&tmp, path).map_err(StoreError::io("replace", path))
    }

    fn stamps(&self) -> &stamp::StampLog {
        &self.0.stamps
    }

    fn lease(&self) -> &lease::Lease {
        &self.0.lease
    }

    fn shard(&self, kind: &str, digest: &Digest) -> PathBuf {
        self.root().join(kind).join(&digest.to_string()[..2])
    }

    fn sharded(&self, kind: &str, digest: &Digest) -> PathBuf {
        let hex = digest.to_string();
        let mut path = String::with_capacity(kind.len() + 66);
        for part in [kind, "/", &hex[..2], "/", &hex[2..]] {
            path.push_str(part);
        }
        self.root().join(path)
    }

    /// Makes a shard folder durable before the first object in it is.
    fn make_shard(&self, kind: &str, digest: &Digest) -> Result<()> {
        let shard = self.shard(kind, digest);
        if !shard.is_dir() {
            disk::make_dir(&shard)?;
            disk::sync_dir(&self.root().join(kind))?;
        }
        Ok(())
    }
}

/// Refuses a cache of another version before anything in it is touched.
fn check_format(root: &Path) -> Result<()> {
    let path = root.join("FORMAT");
    let Some(bytes) = disk::read_if_present(&path)? else { return Ok(()) };
    if bytes.strip_suffix(b"\n") == Some(FORMAT.as_bytes()) {
        return Ok(());
    }
    let found = String::from_utf8_lossy(&bytes).lines().next().unwrap_or_default().to_owned();
    Err(StoreError::Format { path, found, expected: FORMAT })
}

fn write_format(root: &Path, lease: &lease::Lease) -> Result<()> {
    let path = root.join("FORMAT");
    if path.exists() {
        return Ok(());
    }
    let tmp = lease.fresh("format");
    disk::write_durable(&tmp, format!("{FORMAT}\n").as_bytes())?;
    fs::rename(&tmp, &path).map_err(StoreError::io("write", &path))?;
    disk::sync_dir(root)
}

#[cfg(test)]
mod tests;
