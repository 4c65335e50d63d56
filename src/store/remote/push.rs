//! Pushing: the blobs of a record, then the record, signed. What the remote has stays as it is, unless it is to be replaced.

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStoreExt;
use serde::Serialize;

use super::{
    Remote,
    error::{RemoteError, Result},
    retry::{Failed, Watch, patiently},
    upload,
};
use crate::store::{Digest, Record, Store, disk, record};

/// What a push did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pushed {
    /// Records written.
    pub records: u64,
    /// Records that the remote had.
    pub records_there: u64,
    /// Blobs uploaded.
    pub blobs: u64,
    /// Their sizes together.
    pub bytes: u64,
    /// Blobs that the remote had.
    pub blobs_there: u64,
    /// Their sizes together.
    pub bytes_there: u64,
}

impl Pushed {
    fn blob(&mut self, size: u64, was_there: bool) {
        let (blobs, bytes) = if was_there {
            (&mut self.blobs_there, &mut self.bytes_there)
        } else {
            (&mut self.blobs, &mut self.bytes)
        };
        *blobs += 1;
        *bytes += size;
    }
}

impl std::ops::AddAssign for Pushed {
    fn add_assign(&mut self, other: Self) {
        self.records += other.records;
        self.records_there += other.records_there;
        self.blobs += other.blobs;
        self.bytes += other.bytes;
        self.blobs_there += other.blobs_there;
        self.bytes_there += other.bytes_there;
    }
}

impl Remote {
    /// Puts a record and its blobs into the remote, unless they are there.
    pub fn push(&self, store: &Store, record: &Record) -> Result<Pushed> {
        self.put(store, record, false)
    }

    /// Puts a record and its blobs into the remote, also in place of what it has: others refuse that, so no one can use it.
    pub fn replace(&self, store: &Store, record: &Record) -> Result<Pushed> {
        self.put(store, record, true)
    }

    fn put(&self, store: &Store, record: &Record, replace: bool) -> Result<Pushed> {
        self.require_push()?;
        let signed = self.signed(store, &record.digest)?;
        let files = record.outputs.values().flat_map(|tree| &tree.files);
        let blobs: BTreeSet<(Digest, u64)> = files.map(|file| (file.blob, file.size)).collect();
        for (blob, size) in &blobs {
            // What is damaged here must not become what others get.
            store.check_blob(blob, *size)?.map_err(|flaw| RemoteError::Lost { blob: *blob, flaw })?;
        }
        self.runtime.block_on(async {
            self.prepare().await?;
            let mut pushed = Pushed::default();
            let sent = blobs.iter().map(|(blob, size)| async move {
                Ok::<_, RemoteError>((*size, self.send(store, blob, *size, replace).await?))
            });
            let mut sent = stream::iter(sent).buffer_unordered(self.link.tuning.parallel.max(1));
            while let Some((size, was_there)) = sent.try_next().await? {
                pushed.blob(size, was_there);
            }
            let object = self.link.place.sharded("act", &record.digest);
            if self.link.write(&object, signed, replace).await? {
                pushed.records += 1;
            } else {
                pushed.records_there += 1;
            }
            Ok(pushed)
        })
    }

    /// Pushes several records, and stops at the first that cannot be.
    pub fn push_all<'r>(
        &self,
        store: &Store,
        records: impl IntoIterator<Item = &'r Record>,
    ) -> Result<Pushed> {
        let mut all = Pushed::default();
        for record in records {
            all += self.push(store, record)?;
        }
        Ok(all)
    }

    /// The sealed bytes of a local record, with our signature if we have a key.
    fn signed(&self, store: &Store, key: &Digest) -> Result<Vec<u8>> {
        let bytes = disk::read_if_present(&store.record_path(key))?;
        let sealed =
            bytes.filter(|bytes| record::unseal(bytes).is_some()).ok_or(RemoteError::NoRecord(*key))?;
        Ok(match &self.access.sign_with {
            Some(secret) => secret.sign(&sealed),
            None => sealed,
        })
    }

    /// Uploads a blob; whether it was there already. One of another size is a leftover of something that went wrong.
    async fn send(&self, store: &Store, blob: &Digest, size: u64, replace: bool) -> Result<bool> {
        let object = self.link.place.sharded("blob", blob);
        if replace {
            upload::upload(&self.link, &object, &store.blob_path(blob), size).await?;
            return Ok(false);
        }
        let wait = Watch::waiting(&self.link.tuning);
        let head =
            patiently(&self.link, &object, async || wait.over(self.link.place.store.head(&object)).await);
        match head.await {
            Ok(meta) if meta.size == size => return Ok(true),
            Ok(_) | Err(Failed::Service(object_store::Error::NotFound { .. })) => {}
            Err(failed) => return Err(failed.error("look for", &object)),
        }
        upload::upload(&self.link, &object, &store.blob_path(blob), size).await?;
        Ok(false)
    }
}
