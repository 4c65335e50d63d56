//! Claims: the right to run a key, held by one process at a time, so that processes that share a cache do not do work twice.
//!
//! A claim saves work and guards nothing: two processes that run one key anyway publish the same record, and the first stays.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
};

use super::{
    Store,
    digest::Digest,
    disk,
    error::{Result, StoreError},
    owner::{self, Owner},
};

/// The right to run a key; given back when dropped.
pub struct Claim {
    path: PathBuf,
    _lock: Arc<File>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // While it is still locked, so that nobody can lock a file that is about to go.
        drop(disk::remove(&self.path));
    }
}

/// The answer to [`Store::claim`].
pub enum Claimed {
    /// Nobody else runs the key.
    Mine(Claim),
    /// Somebody does; the name is there once they have written it.
    Theirs(Option<Owner>),
}

impl Store {
    /// Claims the right to run a key. Does not wait.
    pub fn claim(&self, key: &Digest) -> Result<Claimed> {
        let path = self.root().join("claim").join(key.to_string());
        let failed = || StoreError::io("claim", &path);
        loop {
            let mut options = OpenOptions::new();
            let opened = options.read(true).write(true).create(true).truncate(false).open(&path);
            let mut file = opened.map_err(failed())?;
            if let Err(owner) = owner::take(&mut file).map_err(failed())? {
                return Ok(Claimed::Theirs(owner));
            }
            // Its holder may have removed the file between our opening and our locking it.
            let inode = file.metadata().map_err(failed())?.ino();
            if fs::metadata(&path).is_ok_and(|now| now.ino() == inode) {
                let lock = Arc::new(file);
                self.lease().heart().beat_for(&lock);
                return Ok(Claimed::Mine(Claim { path, _lock: lock }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_key_is_claimed_once_and_free_again_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = [0, 1].map(|_| Store::open(dir.path()).unwrap());
        let key = Digest::of(b"key");
        let Claimed::Mine(claim) = first.claim(&key).unwrap() else { panic!("nobody else is there") };
        let Claimed::Theirs(owner) = second.claim(&key).unwrap() else { panic!("claimed twice") };
        assert_eq!(owner.map(|owner| owner.pid), Some(std::process::id()));
        assert!(matches!(second.claim(&Digest::of(b"other")).unwrap(), Claimed::Mine(_)));
        drop(claim);
        assert!(matches!(second.claim(&key).unwrap(), Claimed::Mine(_)));
        assert_eq!(fs::read_dir(dir.path().join("claim")).unwrap().count(), 0, "nothing stays behind");
    }

    #[test]
    fn many_threads_never_hold_one_key_together() {
        let dir = tempfile::tempdir().unwrap();
        let (held, taken) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let store = Store::open(dir.path()).unwrap();
                    for _ in 0..300 {
                        if let Claimed::Mine(_claim) = store.claim(&Digest::of(b"key")).unwrap() {
                            assert_eq!(held.fetch_add(1, Ordering::SeqCst), 0);
                            taken.fetch_add(1, Ordering::SeqCst);
                            assert_eq!(held.fetch_sub(1, Ordering::SeqCst), 1);
                        }
                    }
                });
            }
        });
        assert!(taken.load(Ordering::SeqCst) > 8);
    }
}
