//! Deleting what nothing names any more. Knows no policy.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{
    super::{
        Store, clock,
        digest::Digest,
        disk,
        error::{Result, StoreError},
        lease, record,
    },
    Collected, Policy, age,
};

/// Blobs that no record names, with the time at which that was first seen: nanoseconds since 1970.
type Condemned = BTreeMap<Digest, i64>;

impl Store {
    /// Deletes the blobs that are not in `named`, once nobody can be reading them.
    pub(super) fn sweep_blobs(
        &self,
        named: &BTreeMap<Digest, u64>,
        others: Option<i64>,
        dry_run: bool,
        report: &mut Collected,
    ) -> Result<()> {
        let list = self.root().join("gc").join("condemned");
        // A list that cannot be read only puts deletions off.
        let old: Condemned =
            disk::read_if_present(&list)?.and_then(|bytes| record::first_line(&bytes)).unwrap_or_default();
        let (now, mut new) = (clock::now_ns(), Condemned::new());
        for (digest, path) in self.objects("blob")? {
            let size = fs::symlink_metadata(&path).map_or(0, |meta| meta.len());
            if named.contains_key(&digest) {
                report.left_bytes += size;
                continue;
            }
            let since = old.get(&digest).copied().unwrap_or(now);
            if others.is_some_and(|other| other <= since) {
                report.waiting += 1;
                report.waiting_bytes += size;
                report.left_bytes += size;
                new.insert(digest, since);
                continue;
            }
            report.blobs += 1;
            report.bytes += size;
            if !dry_run {
                disk::remove(&path).map_err(StoreError::io("remove", &path))?;
            }
        }
        if dry_run || new == old {
            return Ok(());
        }
        self.sweep_views()?;
        self.replace_file(&list, &record::seal(&[&record::to_json(&new)]))
    }

    /// Removes views that show a blob which is gone.
    fn sweep_views(&self) -> Result<()> {
        for view in disk::list(&self.root().join("view"))? {
            let mut links =
                walkdir::WalkDir::new(view.path()).into_iter().filter_map(std::result::Result::ok);
            if links.any(|entry| entry.path_is_symlink() && !entry.path().exists()) {
                disk::remove(&view.path()).map_err(StoreError::io("remove", view.path()))?;
            }
        }
        Ok(())
    }

    /// Removes old checkpoints of keys that nobody runs, old wrong objects, and the journals of the given runs.
    pub(super) fn sweep_others(&self, policy: &Policy, report: &mut Collected) -> Result<()> {
        let is_old = |path: &Path| age(path).is_some_and(|age| age > policy.older_than);
        let mut gone: Vec<PathBuf> = Vec::new();
        for entry in disk::list(&self.root().join("ckpt"))? {
            let claim = self.root().join("claim").join(entry.file_name());
            let kept = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let kept = kept.is_some_and(|key: Digest| policy.keep.contains_key(&key));
            if is_old(&entry.path()) && !kept && (!claim.exists() || lease::is_dead(&claim)) {
                gone.push(entry.path());
            }
        }
        gone.extend(
            disk::list(&self.root().join("bad"))?.iter().map(fs::DirEntry::path).filter(|p| is_old(p)),
        );
        gone.extend(
            disk::list(&self.root().join("job"))?.iter().map(fs::DirEntry::path).filter(|p| is_old(p)),
        );
        gone.extend(policy.runs.iter().map(|run| self.root().join("run").join(run)));
        for path in gone {
            report.others += 1;
            if !policy.dry_run {
                disk::remove(&path).map_err(StoreError::io("remove", &path))?;
            }
        }
        Ok(())
    }
}
