//! Roots: files that name the keys a clean-up must keep, whoever else has forgotten them.
//!
//! ```text
//! root/pin/<name>    what a person pinned
//! root/lock/<hash>   the keys of a lock file; void once that file is gone
//! ```

use std::{fs, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    Store,
    digest::Digest,
    disk,
    error::{Result, StoreError},
    owner::Owner,
};

/// Keys to keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// What it is, for people: `stage svd of full.toml`.
    pub what: String,
    /// The host that made it.
    pub host: String,
    /// A file of that host without which the root is void.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The keys.
    pub keys: Vec<Digest>,
}

impl Root {
    /// A root of this host.
    pub fn new(what: impl Into<String>, keys: Vec<Digest>) -> Self {
        Self { what: what.into(), host: Owner::this().host, file: None, keys }
    }

    /// The same, void once a file is gone.
    #[must_use]
    pub fn while_there(mut self, file: PathBuf) -> Self {
        self.file = Some(file);
        self
    }

    fn is_void(&self) -> bool {
        self.host == Owner::this().host && self.file.as_ref().is_some_and(|file| !file.exists())
    }
}

impl Store {
    /// Writes or replaces a root. `kind` is `pin` or `lock`.
    pub fn put_root(&self, kind: &str, name: &str, root: &Root) -> Result<()> {
        let dir = self.root().join("root").join(kind);
        disk::make_dir(&dir)?;
        let (path, bytes) = (dir.join(name), serde_json::to_vec_pretty(root).expect("a root is plain data"));
        if disk::read_if_present(&path)?.as_ref() == Some(&bytes) {
            return Ok(());
        }
        let tmp = self.lease().fresh("root");
        disk::write_durable(&tmp, &bytes)?;
        fs::rename(&tmp, &path).map_err(StoreError::io("write", &path))?;
        disk::sync_dir(&dir)
    }

    /// Removes a root; `false` when there was none.
    pub fn remove_root(&self, kind: &str, name: &str) -> Result<bool> {
        let path = self.root().join("root").join(kind).join(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(StoreError::io("remove", path)(e)),
        }
    }

    /// All roots by kind and name, void ones left out. A root that cannot be read is an error: to pass over it would delete what
    /// it keeps.
    pub fn roots(&self) -> Result<Vec<(String, String, Root)>> {
        let mut found = Vec::new();
        for kind in disk::list(&self.root().join("root"))? {
            for entry in disk::list(&kind.path())? {
                let name = [&kind, &entry].map(|entry| entry.file_name().to_string_lossy().into_owned());
                let bytes = disk::read_if_present(&entry.path())?.unwrap_or_default();
                let root: Root =
                    serde_json::from_slice(&bytes).map_err(|_| StoreError::BadRoot { path: entry.path() })?;
                let [kind, name] = name;
                if !root.is_void() {
                    found.push((kind, name, root));
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_are_kept_until_they_are_removed_or_their_file_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("cache")).unwrap();
        let file = dir.path().join("p.lock.toml");
        fs::write(&file, "").unwrap();
        let pin = Root::new("stage a of p.toml", vec![Digest::of(b"a")]);
        let lock = Root::new("p.lock.toml", vec![Digest::of(b"b")]).while_there(file.clone());
        store.put_root("pin", "best", &pin).unwrap();
        store.put_root("lock", "1", &lock).unwrap();
        let listed =
            |store: &Store| store.roots().unwrap().into_iter().map(|(_, name, _)| name).collect::<Vec<_>>();
        assert_eq!(listed(&store), ["1", "best"]);
        fs::remove_file(&file).unwrap();
        assert_eq!(listed(&store), ["best"]);
        let far = Root { host: "far".into(), ..lock };
        store.put_root("lock", "1", &far).unwrap();
        assert_eq!(listed(&store), ["1", "best"], "another host's file cannot be looked for here");
        assert!(store.remove_root("pin", "best").unwrap());
        assert!(!store.remove_root("pin", "best").unwrap());
    }

    #[test]
    fn a_root_of_another_form_stops_everything() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        fs::create_dir_all(dir.path().join("root/pin")).unwrap();
        fs::write(dir.path().join("root/pin/new"), r#"{"what": "x", "host": "h", "keys": [], "more": 1}"#)
            .unwrap();
        let error = store.roots().unwrap_err().to_string();
        assert!(error.contains("root/pin/new"), "{error}");
    }
}
