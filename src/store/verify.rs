//! Listing and checking the whole cache. Knows nothing of pipelines.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rayon::prelude::*;
use serde::Serialize;

use super::{
    Store, clock,
    digest::Digest,
    disk,
    error::{Result, StoreError},
    record::Record,
    stamp::Stamp,
};

/// What [`Store::verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Blobs whose bytes were hashed and fit.
    pub blobs: u64,
    /// Their sizes together.
    pub bytes: u64,
    /// Records that are sound and have all their blobs.
    pub records: u64,
    /// One line per object that was wrong; it is in `bad/` now.
    pub damaged: Vec<String>,
    /// One line per record that lacks a blob; its stage runs again.
    pub incomplete: Vec<String>,
}

impl Verified {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.damaged.is_empty() && self.incomplete.is_empty()
    }
}

impl Store {
    /// All sound records, oldest first.
    pub fn ls(&self) -> Result<Vec<Record>> {
        let mut records = Vec::new();
        for (digest, _) in self.objects("act")? {
            records.extend(self.record(&digest)?);
        }
        records.sort_by_key(|r| (r.made, r.digest));
        Ok(records)
    }

    /// Hashes every blob and checks every record; wrong objects go to `bad/`.
    pub fn verify(&self) -> Result<Verified> {
        self.check(1.0, false)
    }

    /// As [`Store::verify`], for a share of the blobs that is another one each time. `repair` removes incomplete records.
    pub fn check(&self, share: f64, repair: bool) -> Result<Verified> {
        let salt = clock::run_id();
        let drawn = |digest: &Digest| {
            let draw = Digest::derive(
                "mla-run 2026-11 verify subset v1",
                &[salt.as_bytes(), digest.as_bytes()].concat(),
            );
            let bytes = draw.as_bytes().first_chunk().copied().unwrap_or_default();
            f64::from(u32::from_le_bytes(bytes)) <= share * f64::from(u32::MAX)
        };
        let checked: Vec<(Digest, Option<u64>)> = self
            .objects("blob")?
            .into_par_iter()
            .filter(|(digest, _)| drawn(digest))
            .map(|(digest, path)| Ok((digest, self.verify_blob(&digest, &path)?)))
            .collect::<Result<_>>()?;
        let mut report = Verified::default();
        for (digest, size) in checked {
            match size {
                Some(size) => {
                    report.blobs += 1;
                    report.bytes += size;
                }
                None => report.damaged.push(format!("blob {digest} had other bytes")),
            }
        }
        for (digest, _) in self.objects("act")? {
            match self.record(&digest)? {
                None => report.damaged.push(format!("record {digest} was damaged")),
                Some(record) => match self.missing(&record)? {
                    None => report.records += 1,
                    Some(what) => {
                        if repair {
                            let path = self.sharded("act", &digest);
                            disk::remove(&path).map_err(StoreError::io("remove", path))?;
                        }
                        report.incomplete.push(format!("record {digest} ({}): {what}", record.kind));
                    }
                },
            }
        }
        Ok(report)
    }

    fn missing(&self, record: &Record) -> Result<Option<String>> {
        for (port, tree) in &record.outputs {
            for file in &tree.files {
                if let Err(flaw) = self.check_blob(&file.blob, file.size)? {
                    return Ok(Some(format!("output `{port}`: {} {flaw}", file.name)));
                }
            }
        }
        Ok(None)
    }

    fn verify_blob(&self, digest: &Digest, path: &Path) -> Result<Option<u64>> {
        let meta = fs::symlink_metadata(path).map_err(StoreError::io("read", path))?;
        if !meta.is_file() {
            self.quarantine(path)?;
            return Ok(None);
        }
        Ok(self.rehash_blob(digest, Stamp::of(&meta))?.is_ok().then_some(meta.len()))
    }

    /// The objects of `blob/` or `act/`, sorted by digest. Names that are no digest are left alone.
    pub(crate) fn objects(&self, kind: &str) -> Result<Vec<(Digest, PathBuf)>> {
        let mut objects = Vec::new();
        for shard in disk::list(&self.root().join(kind))? {
            if !shard.path().is_dir() {
                continue;
            }
            for entry in disk::list(&shard.path())? {
                let name = [shard.file_name(), entry.file_name()].map(|n| n.to_string_lossy().into_owned());
                if let Ok(digest) = name.concat().parse() {
                    objects.push((digest, entry.path()));
                }
            }
        }
        Ok(objects)
    }
}
