//! Checkpoints of keys that are not done yet: folders of files in `ckpt/<key>/`, newest last, each with a sealed listing.
//!
//! The listing is written after its files are durable, so a checkpoint is there whole or not at all.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    Store, blob,
    digest::Digest,
    disk,
    error::{Result, StoreError},
    record,
    tree::{Tree, TreeFile},
};

const KEPT: usize = 2; // the newest may be the one that a crash spoiled

impl Store {
    /// The files of the newest sound checkpoint of a key. Wrong ones go to `bad/`.
    pub fn latest_checkpoint(&self, key: &Digest) -> Result<Option<BTreeMap<String, PathBuf>>> {
        for number in self.checkpoints(key)?.into_iter().rev() {
            let (listing, files) = self.checkpoint_paths(key, number);
            let bytes = if listing.is_dir() { None } else { disk::read_if_present(&listing)? };
            let tree = bytes.and_then(|bytes| record::first_line::<Tree>(&bytes));
            match tree {
                Some(tree) if tree.check().is_ok() && is_sound(&tree, &files)? => {
                    return Ok(Some(
                        tree.files.into_iter().map(|f| (f.name.clone(), files.join(f.name))).collect(),
                    ));
                }
                _ => {
                    self.quarantine(&listing)?;
                    self.quarantine(&files)?;
                }
            }
        }
        Ok(None)
    }

    /// Moves the files of `dir` into the cache as the newest checkpoint of a key; `dir` is empty afterwards.
    pub fn publish_checkpoint(&self, key: &Digest, dir: &Path) -> Result<()> {
        let files = self.stage_checkpoint(dir)?;
        let mut found = Vec::new();
        blob::walk(&files, "", &mut found)?;
        let mut listed = Vec::with_capacity(found.len());
        for (name, path) in found {
            let (blob, size) = Digest::of_file(&path).map_err(StoreError::io("read", &path))?;
            disk::sync_file(&path)?;
            listed.push(TreeFile { name, blob, size });
        }
        disk::sync_dir(&files)?;
        let tree = Tree::new(listed);
        tree.check().map_err(|source| StoreError::Tree { port: "checkpoint".to_owned(), source })?;
        let sealed = self.lease().fresh("checkpoint");
        disk::write_durable(&sealed, &record::seal(&[&record::to_json(&tree)]))?;

        let home = self.checkpoint_home(key);
        disk::make_dir(&home)?;
        let number = self.claim_checkpoint(key, &files)?;
        disk::sync_dir(&home)?;
        let (listing, _) = self.checkpoint_paths(key, number);
        fs::rename(&sealed, &listing).map_err(StoreError::io("publish", &listing))?;
        disk::sync_dir(&home)?;
        disk::sync_dir(&self.root().join("ckpt"))?;
        tracing::debug!(%key, number, "checkpoint");
        self.prune_checkpoints(key)
    }

    /// Removes all checkpoints of a key: it is recorded, or starts afresh.
    pub(crate) fn forget_checkpoints(&self, key: &Digest) {
        // Renamed first, so that a crash leaves all of them or none; errors leave them for the next sweep.
        let aside = self.lease().fresh("forget");
        if fs::rename(self.checkpoint_home(key), &aside).is_ok() {
            drop(disk::remove(&aside));
        }
    }

    /// Removes checkpoints older than their key's record: the process that recorded it died before it could.
    ///
    /// Newer ones belong to a forced run that is not done.
    pub(crate) fn sweep_checkpoints(&self) -> Result<()> {
        let modified = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified());
        for entry in disk::list(&self.root().join("ckpt"))? {
            let Some(key) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let times = (modified(&entry.path()), modified(&self.sharded("act", &key)));
            if let (Ok(checkpoint), Ok(record)) = times
                && checkpoint <= record
            {
                self.forget_checkpoints(&key);
            }
        }
        Ok(())
    }

    /// Takes the files out of the stage's hands: a rename, or a copy when they lie on another file system.
    fn stage_checkpoint(&self, dir: &Path) -> Result<PathBuf> {
        let staged = self.lease().fresh("checkpoint");
        if fs::rename(dir, &staged).is_err() {
            let mut found = Vec::new();
            blob::walk(dir, "", &mut found)?;
            for (name, path) in found {
                let to = staged.join(name);
                disk::make_dir(to.parent().unwrap_or(&staged))?;
                fs::copy(&path, &to).map_err(StoreError::io("copy", &path))?;
            }
            disk::remove(dir).map_err(StoreError::io("empty", dir))?;
        }
        disk::make_dir(dir)?;
        Ok(staged)
    }

    /// Gives the staged folder the next free number; another process may take numbers of the same key.
    fn claim_checkpoint(&self, key: &Digest, staged: &Path) -> Result<u64> {
        let mut number = self.checkpoints(key)?.last().map_or(0, |n| n + 1);
        loop {
            let (_, files) = self.checkpoint_paths(key, number);
            match fs::rename(staged, &files) {
                Ok(()) => return Ok(number),
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                    ) =>
                {
                    number += 1;
                }
                Err(e) => return Err(StoreError::io("publish", files)(e)),
            }
        }
    }

    fn prune_checkpoints(&self, key: &Digest) -> Result<()> {
        let numbers = self.checkpoints(key)?;
        for number in &numbers[..numbers.len().saturating_sub(KEPT)] {
            let (listing, files) = self.checkpoint_paths(key, *number);
            // The listing goes first: a folder without one is not a checkpoint.
            for path in [listing, files] {
                disk::remove(&path).map_err(StoreError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    /// The numbers of the listed checkpoints, oldest first.
    fn checkpoints(&self, key: &Digest) -> Result<Vec<u64>> {
        let entries = disk::list(&self.checkpoint_home(key))?;
        let number = |e: &fs::DirEntry| e.file_name().to_str()?.strip_suffix(".json")?.parse().ok();
        let mut numbers: Vec<u64> = entries.iter().filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn checkpoint_home(&self, key: &Digest) -> PathBuf {
        self.root().join("ckpt").join(key.to_string())
    }

    fn checkpoint_paths(&self, key: &Digest, number: u64) -> (PathBuf, PathBuf) {
        let home = self.checkpoint_home(key);
        (home.join(format!("{number}.json")), home.join(format!("{number}.files")))
    }
}

/// Checkpoints are read once per run, so their bytes are always hashed.
fn is_sound(tree: &Tree, files: &Path) -> Result<bool> {
    for file in &tree.files {
        let path = files.join(&file.name);
        if path.is_dir() {
            return Ok(false);
        }
        match Digest::of_file(&path) {
            Ok((digest, _)) if digest == file.blob => {}
            Ok(_) => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(StoreError::io("read", path)(e)),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Spoil = fn(&Path);

    fn publish(store: &Store, key: &Digest, text: &str) {
        let dir = store.lease().fresh("stage");
        fs::create_dir_all(dir.join("sub")).unwrap();
        fs::write(dir.join("step"), text).unwrap();
        fs::write(dir.join("sub/state"), [1; 100]).unwrap();
        store.publish_checkpoint(key, &dir).unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "the folder can be used again");
    }

    fn latest(store: &Store, key: &Digest) -> Option<String> {
        let files = store.latest_checkpoint(key).unwrap()?;
        assert_eq!(files.keys().collect::<Vec<_>>(), ["step", "sub/state"]);
        Some(fs::read_to_string(&files["step"]).unwrap())
    }

    #[test]
    fn newest_first_and_only_of_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let key = Digest::of(b"key");
        assert_eq!(latest(&store, &key), None);
        for step in ["one", "two", "three"] {
            publish(&store, &key, step);
            assert_eq!(latest(&store, &key).as_deref(), Some(step));
        }
        assert_eq!(latest(&store, &Digest::of(b"other")), None);
        assert_eq!(store.checkpoints(&key).unwrap().len(), KEPT);
        store.forget_checkpoints(&key);
        assert_eq!(latest(&store, &key), None);
    }

    #[test]
    fn several_processes_may_publish_for_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (Store::open(dir.path()).unwrap(), Store::open(dir.path()).unwrap());
        let key = Digest::of(b"key");
        for step in 0..6 {
            publish(if step % 2 == 0 { &one } else { &two }, &key, &step.to_string());
            assert_eq!(latest(&one, &key), latest(&two, &key));
        }
        assert_eq!(one.checkpoints(&key).unwrap(), [4, 5]);
    }

    #[test]
    fn a_number_that_is_taken_by_a_half_made_one_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let key = Digest::of(b"key");
        publish(&store, &key, "one");
        // A process died after it took a number and before it wrote the listing.
        fs::create_dir(store.checkpoint_home(&key).join("1.files")).unwrap();
        fs::write(store.checkpoint_home(&key).join("1.files/step"), "half").unwrap();
        for name in ["notes.txt", "x.json", "-1.json", "7.files.json"] {
            fs::write(store.checkpoint_home(&key).join(name), "not ours").unwrap();
        }
        assert_eq!(latest(&store, &key).as_deref(), Some("one"));
        publish(&store, &key, "two");
        assert_eq!(store.checkpoints(&key).unwrap(), [0, 2]);
        assert_eq!(latest(&store, &key).as_deref(), Some("two"));
    }

    #[test]
    fn an_empty_checkpoint_and_files_that_nobody_listed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let key = Digest::of(b"key");
        let empty = store.lease().fresh("stage");
        fs::create_dir(&empty).unwrap();
        store.publish_checkpoint(&key, &empty).unwrap();
        assert_eq!(store.latest_checkpoint(&key).unwrap(), Some(BTreeMap::new()));
        publish(&store, &key, "one");
        fs::write(store.checkpoint_home(&key).join("1.files/stray"), "").unwrap();
        assert_eq!(latest(&store, &key).as_deref(), Some("one"), "a file that was not listed is not shown");
    }

    #[test]
    fn a_checkpoint_with_a_folder_in_place_of_a_file_falls_back() {
        for spoiled in ["1.files/step", "1.json"] {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path()).unwrap();
            let key = Digest::of(b"key");
            publish(&store, &key, "one");
            publish(&store, &key, "two");
            let path = store.checkpoint_home(&key).join(spoiled);
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
            assert_eq!(latest(&store, &key).as_deref(), Some("one"), "{spoiled}");
        }
    }

    #[test]
    fn a_damaged_checkpoint_falls_back_to_the_one_before() {
        let damage: [(&str, Spoil); 4] = [
            ("file zeroed", |home| fs::write(home.join("1.files/step"), "xxx").unwrap()),
            ("file missing", |home| fs::remove_file(home.join("1.files/step")).unwrap()),
            ("listing cut", |home| fs::write(home.join("1.json"), "{").unwrap()),
            ("listing missing", |home| fs::remove_file(home.join("1.json")).unwrap()),
        ];
        for (what, spoil) in damage {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(dir.path()).unwrap();
            let key = Digest::of(b"key");
            publish(&store, &key, "one");
            publish(&store, &key, "two");
            spoil(&store.checkpoint_home(&key));
            assert_eq!(latest(&store, &key).as_deref(), Some("one"), "{what}");
            publish(&store, &key, "again");
            assert_eq!(latest(&store, &key).as_deref(), Some("again"), "{what}");
        }
    }
}
