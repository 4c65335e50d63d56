//! Blobs: immutable files named by the BLAKE3 digest of their bytes. Knows nothing of what they hold.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::{
    Store,
    digest::Digest,
    disk,
    error::{Result, StoreError},
    stamp::Stamp,
    tree::TreeFile,
};

/// What is wrong with an object of the cache.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// It is not there.
    #[error("is gone from the cache")]
    Missing,
    /// It is there with other bytes; it was moved to `bad/`.
    #[error("was damaged in the cache and moved to bad/")]
    Damaged,
}

impl Store {
    /// Where a blob's bytes are.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.sharded("blob", digest)
    }

    /// Gives a blob's file another name outside the cache, on the same file system.
    pub fn link_blob(&self, file: &TreeFile, to: &Path) -> Result<()> {
        let from = self.blob_path(&file.blob);
        if let Err(flaw) = self.check_blob(&file.blob, file.size)? {
            return Err(StoreError::Import { path: from, flaw });
        }
        fs::hard_link(&from, to).map_err(StoreError::io("link to the cache", to))?;
        // A link changes the stamp and not the bytes, which were checked just now.
        let meta = fs::symlink_metadata(&from).map_err(StoreError::io("read", &from))?;
        self.stamps().remember(&[(Stamp::of(&meta), file.blob)]);
        Ok(())
    }

    /// Checks that a blob is there with the right size and bytes; wrong ones go to `bad/`.
    ///
    /// Bytes are hashed only when nobody hashed this very version of the file before.
    pub(crate) fn check_blob(&self, digest: &Digest, size: u64) -> Result<Result<(), Flaw>> {
        let path = self.blob_path(digest);
        let stamp = match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() && meta.len() == size => Stamp::of(&meta),
            Ok(_) => return self.quarantine(&path).map(|()| Err(Flaw::Damaged)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Err(Flaw::Missing)),
            Err(e) => return Err(StoreError::io("read", path)(e)),
        };
        match self.stamps().get(&stamp) {
            Some(known) if known == *digest => Ok(Ok(())),
            _ => self.rehash_blob(digest, stamp),
        }
    }

    /// Hashes a blob's bytes whatever its stamp says.
    pub(crate) fn rehash_blob(&self, digest: &Digest, stamp: Stamp) -> Result<Result<(), Flaw>> {
        let path = self.blob_path(digest);
        let (found, _) = Digest::of_file(&path).map_err(StoreError::io("read", &path))?;
        if found != *digest {
            return self.quarantine(&path).map(|()| Err(Flaw::Damaged));
        }
        self.stamps().remember(&[(stamp, found)]);
        Ok(Ok(()))
    }

    /// Moves a wrong object out of the way, so that a right one can take its name.
    pub(crate) fn quarantine(&self, path: &Path) -> Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let unique = self.lease().fresh(&name);
        let lease = self.lease().tmp().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let file = unique.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bad = self.root().join("bad").join(format!("{file}-{lease}"));
        tracing::warn!(object = %path.display(), moved = %bad.display(), "wrong object");
        match fs::rename(path, &bad) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(StoreError::io("move to bad/", path)(e)),
            _ => Ok(()), // another process may have been first
        }
    }

    /// Hashes the files below a private folder and makes those durable that the cache lacks. This is what takes long.
    pub(crate) fn prepare_dir(&self, dir: &Path) -> Result<Vec<(TreeFile, PathBuf)>> {
        use rayon::prelude::*;
        let mut found = Vec::new();
        walk(dir, "", &mut found)?;
        let prepare = |(name, path): (String, PathBuf)| {
            let (blob, size) = Digest::of_file(&path).map_err(StoreError::io("read", &path))?;
            if self.check_blob(&blob, size)?.is_err() {
                disk::protect(&path)?;
            }
            Ok((TreeFile { name, blob, size }, path))
        };
        found.into_par_iter().map(prepare).collect()
    }

    /// Publishes prepared files as blobs: all bytes are durable when it returns. The caller holds [`Store::publishing`].
    pub(super) fn put_hashed(&self, hashed: &[(TreeFile, PathBuf)]) -> Result<()> {
        let mut shards = BTreeSet::new();
        let mut stamps = Vec::new();
        for (file, path) in hashed {
            if let Some(stamp) = self.put_blob(file, path)? {
                stamps.push((stamp, file.blob));
                shards.insert(self.shard("blob", &file.blob));
            }
        }
        for shard in &shards {
            disk::sync_dir(shard)?;
        }
        self.stamps().remember(&stamps);
        Ok(())
    }

    /// Both at once.
    #[cfg(test)]
    pub(crate) fn put_dir(&self, dir: &Path) -> Result<Vec<TreeFile>> {
        let files = self.prepare_dir(dir)?;
        self.put_hashed(&files)?;
        Ok(files.into_iter().map(|(file, _)| file).collect())
    }

    /// Moves one file into `blob/`, unless it is there already; `Some` when it moved.
    fn put_blob(&self, file: &TreeFile, from: &Path) -> Result<Option<Stamp>> {
        if self.check_blob(&file.blob, file.size)?.is_ok() {
            return Ok(None);
        }
        let to = self.blob_path(&file.blob);
        self.make_shard("blob", &file.blob)?;
        let meta = fs::symlink_metadata(from).map_err(StoreError::io("read", from))?;
        if meta.permissions().mode() & 0o777 != 0o444 {
            disk::protect(from)?; // it was there when the file was prepared
        }
        fs::rename(from, &to).map_err(StoreError::io("publish", &to))?;
        let meta = fs::symlink_metadata(&to).map_err(StoreError::io("read", &to))?;
        Ok(Some(Stamp::of(&meta)))
    }
}

/// The plain files below `dir`, with names relative to it.
pub(crate) fn walk(dir: &Path, prefix: &str, found: &mut Vec<(String, PathBuf)>) -> Result<()> {
    for entry in disk::list(dir)? {
        let path = entry.path();
        let name = entry.file_name().into_string().map_err(|_| StoreError::Name { path: path.clone() })?;
        let kind = entry.file_type().map_err(StoreError::io("read", &path))?;
        if kind.is_dir() {
            walk(&path, &format!("{prefix}{name}/"), found)?;
        } else if kind.is_file() {
            found.push((format!("{prefix}{name}"), path));
        } else {
            return Err(StoreError::NotAFile { path });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Spoil = fn(&Path);

    fn put(store: &Store, bytes: &[u8]) -> TreeFile {
        let dir = store.lease().fresh("put");
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::write(dir.join("sub/f"), bytes).unwrap();
        store.put_dir(&dir).unwrap().remove(0)
    }

    fn overwrite(path: &Path, bytes: &[u8]) {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_blob_is_named_by_its_bytes_and_read_only() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let file = put(&store, b"hello");
        assert_eq!((file.name.as_str(), file.size), ("sub/f", 5));
        let path = store.blob_path(&file.blob);
        assert_eq!(fs::read(&path).unwrap(), b"hello");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o444);
        assert_eq!(store.check_blob(&file.blob, 5).unwrap(), Ok(()));
        assert_eq!(put(&store, b"hello"), file, "a second put keeps the first");
    }

    #[test]
    fn wrong_bytes_are_never_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let bytes = vec![7; 5000];
        let damage: [(&str, Spoil); 4] = [
            ("truncated", |p| overwrite(p, &[7; 4999])),
            ("zeroed", |p| overwrite(p, &[0; 5000])),
            ("emptied", |p| overwrite(p, &[])),
            ("replaced by a link", |p| {
                fs::remove_file(p).unwrap();
                std::os::unix::fs::symlink("/dev/null", p).unwrap();
            }),
        ];
        for (count, (what, spoil)) in damage.into_iter().enumerate() {
            let file = put(&store, &bytes);
            spoil(&store.blob_path(&file.blob));
            assert_eq!(store.check_blob(&file.blob, 5000).unwrap(), Err(Flaw::Damaged), "{what}");
            assert_eq!(store.check_blob(&file.blob, 5000).unwrap(), Err(Flaw::Missing), "{what}");
            assert_eq!(fs::read_dir(dir.path().join("bad")).unwrap().count(), count + 1, "{what}");
        }
    }

    #[test]
    fn a_wrong_blob_is_replaced_by_a_right_one() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let file = put(&store, b"right");
        overwrite(&store.blob_path(&file.blob), b"wrong");
        assert_eq!(put(&store, b"right"), file);
        assert_eq!(fs::read(store.blob_path(&file.blob)).unwrap(), b"right");
    }

    #[test]
    fn links_in_outputs_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let out = store.lease().fresh("out");
        fs::create_dir(&out).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", out.join("link")).unwrap();
        let message = store.put_dir(&out).unwrap_err().to_string();
        assert!(message.contains("link is not a plain file"), "{message}");
    }
}
