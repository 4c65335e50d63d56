//! A lease: one held file per process that uses the cache, and a private folder that others remove once the owner is dead.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    clock, disk,
    error::{Result, StoreError},
    owner::{self, Heart},
};

/// A live claim on `tmp/<name>/`.
pub(crate) struct Lease {
    file: PathBuf,
    tmp: PathBuf,
    next: AtomicU64,
    heart: Heart,
    _lock: Arc<File>,
}

impl Lease {
    /// Takes a lease. `root` holds `lease/` and `tmp/`.
    pub(crate) fn take(root: &Path) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{}-{count}", clock::run_id(), std::process::id());
        let file = root.join("lease").join(&name);
        // Locked under a hidden name first: a lease that others can see is always locked while its owner lives.
        let hidden = root.join("lease").join(format!(".{name}"));
        let opened = OpenOptions::new().read(true).write(true).create_new(true).open(&hidden);
        let mut lock = opened.map_err(StoreError::io("make the lease", &hidden))?;
        let _new_so_nobody_holds_it = owner::take(&mut lock).map_err(StoreError::io("lock", &hidden))?;
        fs::rename(&hidden, &file).map_err(StoreError::io("publish the lease", &file))?;
        let tmp = root.join("tmp").join(&name);
        disk::make_dir(&tmp)?;
        let (lock, heart) = (Arc::new(lock), Heart::default());
        heart.beat_for(&lock);
        Ok(Self { file, tmp, next: AtomicU64::new(0), heart, _lock: lock })
    }

    /// A path in the private folder that nobody used before.
    pub(crate) fn fresh(&self, what: &str) -> PathBuf {
        self.tmp.join(format!("{what}-{}", self.next.fetch_add(1, Ordering::Relaxed)))
    }

    /// What shows other hosts that this process lives.
    pub(crate) fn heart(&self) -> &Heart {
        &self.heart
    }

    /// The private folder.
    pub(crate) fn tmp(&self) -> &Path {
        &self.tmp
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Best effort: what stays is removed by the next process, because the lock is gone.
        drop(disk::remove(&self.tmp));
        drop(disk::remove(&self.file));
    }
}

/// Removes the leases and scratch folders of processes that ended.
pub(crate) fn sweep(root: &Path) -> Result<()> {
    const HALF_MADE_NS: i64 = 60_000_000_000;
    // Scratch is listed before leases are looked at: a folder seen here had its lease before it.
    let scratch = disk::list(&root.join("tmp"))?;
    for entry in disk::list(&root.join("lease"))? {
        let name = entry.file_name();
        // One that holds its owner's name was locked before that was written.
        let half_made =
            name.as_encoded_bytes().starts_with(b".") && entry.metadata().is_ok_and(|m| m.len() == 0);
        let age = |m: &fs::Metadata| {
            clock::now_ns() - std::os::unix::fs::MetadataExt::mtime(m).saturating_mul(1_000_000_000)
        };
        if half_made && entry.metadata().is_ok_and(|m| age(&m) < HALF_MADE_NS) {
            continue;
        }
        if is_dead(&entry.path()) {
            drop(disk::remove(&root.join("tmp").join(&name)));
            drop(disk::remove(&entry.path()));
        }
    }
    for entry in scratch {
        if !root.join("lease").join(entry.file_name()).exists() {
            drop(disk::remove(&entry.path()));
        }
    }
    Ok(())
}

/// Whether nobody holds a file. An error means that its owner lives or has just removed it.
pub(crate) fn is_dead(path: &Path) -> bool {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.is_ok_and(|mut file| matches!(owner::take(&mut file), Ok(Ok(()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for dir in ["lease", "tmp"] {
            fs::create_dir(root.path().join(dir)).unwrap();
        }
        root
    }

    #[test]
    fn scratch_of_the_living_stays_and_of_the_dead_goes() {
        let root = root();
        let alive = Lease::take(root.path()).unwrap();
        let file = alive.fresh("out");
        fs::write(&file, "x").unwrap();
        // A process that died left an unlocked lease and its folder; another one only a folder.
        fs::write(root.path().join("lease/dead"), "").unwrap();
        for dir in ["tmp/dead/out-0", "tmp/orphan"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        sweep(root.path()).unwrap();
        assert!(file.exists());
        for gone in ["tmp/dead", "tmp/orphan", "lease/dead"] {
            assert!(!root.path().join(gone).exists(), "{gone}");
        }
    }

    #[test]
    fn a_lease_that_is_being_made_has_a_minute() {
        let root = root();
        let lease = |name: &str| root.path().join("lease").join(name);
        let make = |name: &str, age: u64| {
            let file = File::create(lease(name)).unwrap();
            let old = std::time::Duration::from_secs(age);
            file.set_modified(
                std::time::UNIX_EPOCH + std::time::Duration::from_nanos(clock::now_ns() as u64) - old,
            )
            .unwrap();
            file
        };
        drop(make(".fresh", 0));
        drop(make(".old", 300));
        let locked = make(".old-and-locked", 300);
        locked.lock().unwrap();
        drop(make("old-and-seen", 0));
        sweep(root.path()).unwrap();
        let left: Vec<_> =
            [".fresh", ".old", ".old-and-locked", "old-and-seen"].map(|name| lease(name).exists()).into();
        assert_eq!(left, [true, false, true, false]);
    }

    #[test]
    fn a_sweep_goes_through_where_there_is_nothing_to_sweep() {
        let empty = tempfile::tempdir().unwrap();
        sweep(empty.path()).unwrap();
        assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_lease_cleans_up_after_itself() {
        let root = root();
        drop(Lease::take(root.path()).unwrap());
        assert_eq!(fs::read_dir(root.path().join("tmp")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(root.path().join("lease")).unwrap().count(), 0);
    }

    #[test]
    fn paths_are_never_handed_out_twice() {
        let root = root();
        let (a, b) = (Lease::take(root.path()).unwrap(), Lease::take(root.path()).unwrap());
        let mut paths = vec![a.fresh("out"), a.fresh("out"), b.fresh("out"), b.fresh("out")];
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), 4);
    }
}
