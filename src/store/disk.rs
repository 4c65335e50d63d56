//! Small file-system steps that survive a power cut. Knows nothing of the cache's layout.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use super::error::{Result, StoreError};

/// Makes renames and new names inside `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|f| f.sync_all()).map_err(StoreError::io("flush the folder", dir))
}

/// Makes a file's bytes durable.
pub(crate) fn sync_file(path: &Path) -> Result<()> {
    File::open(path).and_then(|f| f.sync_all()).map_err(StoreError::io("flush", path))
}

/// Makes a file read-only and its bytes durable.
pub(crate) fn protect(path: &Path) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(0o444)).map_err(StoreError::io("protect", path))?;
    sync_file(path)
}

/// A new file with the bytes of another one: sharing its blocks where the file system can, else copied. Not yet durable.
pub(crate) fn clone_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    let (mut source, mut target) = (File::open(from)?, File::create_new(to)?);
    if rustix::fs::ioctl_ficlone(&target, &source).is_err() {
        io::copy(&mut source, &mut target)?;
    }
    Ok(())
}

/// Writes a file and makes its bytes durable; its name becomes durable with the next [`sync_dir`].
pub(crate) fn write_durable(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(StoreError::io("write", path))
}

/// Makes a folder and its parents.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(StoreError::io("make the folder", path))
}

/// Removes a file or a folder with all it holds; an absent one is fine.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let gone = |e: io::Error| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) };
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).or_else(gone),
        Ok(_) => fs::remove_file(path).or_else(gone),
        Err(e) => gone(e),
    }
}

/// `None` for a file that is not there.
pub(crate) fn read_if_present(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StoreError::io("read", path)(e)),
    }
}

/// The entries of a folder, sorted by name; none when it is not there.
pub(crate) fn list(dir: &Path) -> Result<Vec<fs::DirEntry>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(StoreError::io("list", dir)(e)),
    };
    let mut entries: Vec<_> = entries.collect::<io::Result<_>>().map_err(StoreError::io("list", dir))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    Ok(entries)
}
