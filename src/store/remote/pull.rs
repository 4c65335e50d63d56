//! Pulling: a record from the remote and the blobs that it names, checked before anything of them is seen locally.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufWriter, Seek, Write},
    path::PathBuf,
};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    Remote,
    error::{Refusal, RemoteError, Result},
    fetch::{self, Sink},
    sign,
};
use crate::store::{Digest, Lookup, Record, Store, StoreError, TreeFile, disk, record};

/// No record is larger; more is not read.
const LARGEST_RECORD: u64 = 64 << 20;

impl Remote {
    /// Brings what a key produced into the local cache, unless it is there. `None` if the remote does not have it.
    pub fn pull(&self, store: &Store, key: &Digest) -> Result<Option<Record>> {
        let replace = match store.lookup(key)? {
            Lookup::Hit(record) => return Ok(Some(record)),
            Lookup::Miss(slot) => slot.lost.is_some(),
        };
        self.require_pull()?;
        let Some((record, sealed)) = self.runtime.block_on(self.record(key))? else { return Ok(None) };
        loop {
            let room = Room::new(store)?;
            let files = self.runtime.block_on(self.blobs(store, &record, &room))?;
            let _no_clean_up = store.publishing()?;
            store.put_hashed(&files)?;
            // While the others were fetched, a clean-up may have taken blobs that were here.
            let mut whole = true;
            for tree in record.outputs.values() {
                whole &= store.has(tree)?;
            }
            if whole {
                store.publish_sealed(key, &sealed, replace)?;
                break;
            }
        }
        store.forget_checkpoints(key);
        Ok(Some(store.record(key)?.unwrap_or(record)))
    }

    /// The record of a key in the remote, checked, and its sealed bytes.
    async fn record(&self, key: &Digest) -> Result<Option<(Record, Vec<u8>)>> {
        if !self.is_there().await? {
            return Ok(None);
        }
        let object = self.link.place.sharded("act", key);
        let Some(bytes) = fetch::small(&self.link, &object, LARGEST_RECORD).await? else { return Ok(None) };
        let checked = check(key, &bytes, &self.access.trust);
        checked.map(Some).map_err(|refusal| RemoteError::refused(&object, refusal))
    }

    /// Fetches the blobs that the local cache lacks.
    async fn blobs(&self, store: &Store, record: &Record, room: &Room) -> Result<Vec<(TreeFile, PathBuf)>> {
        let files = record.outputs.values().flat_map(|tree| &tree.files);
        let named: BTreeSet<(Digest, u64)> = files.map(|file| (file.blob, file.size)).collect();
        let mut lacking = Vec::new();
        for (blob, size) in named {
            if !is_here(store, &blob, size)? {
                lacking.push(TreeFile { name: blob.to_string(), blob, size });
            }
        }
        let fetched = lacking.into_iter().enumerate().map(|(i, file)| {
            let path = room.0.join(i.to_string());
            async move {
                self.blob(&file, path.clone()).await?;
                Ok::<_, RemoteError>((file, path))
            }
        });
        stream::iter(fetched).buffer_unordered(self.link.tuning.parallel.max(1)).try_collect().await
    }

    async fn blob(&self, file: &TreeFile, path: PathBuf) -> Result<()> {
        let object = self.link.place.sharded("blob", &file.blob);
        let refused = |refusal| RemoteError::refused(&object, refusal);
        let said = file.size;
        let fits = |found: u64| if found > said { Err(Refusal::Size { said, found }) } else { Ok(()) };
        let mut sink = Hashed::new(path)?;
        if !fetch::fetch(&self.link, &object, &fits, &mut sink).await? {
            return Err(refused(Refusal::Missing));
        }
        let (digest, found) = sink.finish()?;
        match () {
            () if found != said => Err(refused(Refusal::Size { said, found })),
            () if digest != file.blob => Err(refused(Refusal::Digest(digest))),
            () => Ok(()),
        }
    }
}

/// Everything about a record that can be checked without its blobs.
pub(crate) fn check(
    key: &Digest,
    bytes: &[u8],
    trust: &[sign::PublicKey],
) -> Result<(Record, Vec<u8>), Refusal> {
    let sealed = sign::verified(bytes, trust)?;
    if record::unseal(sealed).is_none() {
        return Err(Refusal::Seal);
    }
    let record: Record = record::first_line(sealed).ok_or(Refusal::Form)?;
    if record.digest != *key {
        return Err(Refusal::OtherKey(record.digest));
    }
    for (port, tree) in &record.outputs {
        if port.is_empty() || port.starts_with('.') || port.contains(['/', '\0']) {
            return Err(Refusal::Port(port.clone()));
        }
        tree.check().map_err(|flaw| Refusal::Tree { port: port.clone(), flaw })?;
    }
    Ok((record, sealed.to_vec()))
}

/// Whether a blob is in the local cache. A blob of another size is not asked about: a record that lies about a size must not
/// have a sound blob put away as damaged.
fn is_here(store: &Store, blob: &Digest, size: u64) -> Result<bool> {
    let fits = fs::symlink_metadata(store.blob_path(blob)).is_ok_and(|meta| meta.len() == size);
    Ok(fits && store.check_blob(blob, size)?.is_ok())
}

/// A private folder for what comes; removed when dropped.
struct Room(PathBuf);

impl Room {
    fn new(store: &Store) -> Result<Self> {
        let room = Self(store.lease().fresh("pull"));
        disk::make_dir(&room.0)?;
        Ok(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        drop(disk::remove(&self.0)); // what stays is swept with the lease
    }
}

/// Writes to a file and hashes on the way.
struct Hashed {
    file: BufWriter<File>,
    path: PathBuf,
    hasher: blake3::Hasher,
}

impl Hashed {
    fn new(path: PathBuf) -> Result<Self> {
        let file = File::create_new(&path).map_err(StoreError::io("write", &path))?;
        Ok(Self { file: BufWriter::with_capacity(1 << 20, file), path, hasher: blake3::Hasher::new() })
    }

    fn finish(mut self) -> Result<(Digest, u64)> {
        self.file.flush().map_err(StoreError::io("write", &self.path))?;
        Ok((Digest::from_bytes(self.hasher.finalize().into()), self.hasher.count()))
    }
}

impl Sink for Hashed {
    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        Ok(self.file.write_all(bytes).map_err(StoreError::io("write", &self.path))?)
    }

    fn restart(&mut self) -> Result<()> {
        self.hasher.reset();
        // Seeking writes out what is buffered, so nothing stale comes after the cut.
        let mut cut = || {
            self.file.rewind()?;
            self.file.get_ref().set_len(0)
        };
        Ok(cut().map_err(StoreError::io("write", &self.path))?)
    }
}
