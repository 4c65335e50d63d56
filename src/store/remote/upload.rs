//! Writing one file as an object, large ones in parts. A part that fails is sent again, and no file is ever whole in memory.
//! Knows no record.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::{Path as FilePath, PathBuf},
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::{
    MultipartId, MultipartUpload, ObjectStoreExt,
    multipart::{MultipartStore, PartId},
    path::Path,
};

use super::{
    Link, Moved,
    error::{RemoteError, Result},
    retry::{Watch, patiently},
};
use crate::store::StoreError;

/// Services take at most ten thousand parts.
const MOST_PARTS: u64 = 9_000;

/// Writes a file of a known size as an object.
pub(super) async fn upload(link: &Link, object: &Path, path: &FilePath, size: u64) -> Result<()> {
    let file = File::open(path).map_err(StoreError::io("read", path))?;
    let part = part_size(size, link.tuning.part);
    let source = Source { file, path: path.to_owned(), size, part };
    if size <= part {
        return whole(link, object, &source).await;
    }
    match &link.place.parts {
        Some(parts) => in_parts(link, object, &source, parts.as_ref()).await,
        None => in_sequence(link, object, &source).await,
    }
}

/// The bytes in a part: as tuned, or more when there would be too many parts.
fn part_size(size: u64, tuned: u64) -> u64 {
    let least = size.div_ceil(MOST_PARTS);
    if least <= tuned { tuned.max(1) } else { least.next_multiple_of(1 << 20) }
}

struct Source {
    file: File,
    path: PathBuf,
    size: u64,
    part: u64,
}

impl Source {
    fn count(&self) -> usize {
        self.size.div_ceil(self.part) as usize
    }

    /// The bytes of a part. Blocks for a moment: the file is in the local cache, and other transfers go on in their threads.
    fn part(&self, index: usize) -> Result<Bytes> {
        let start = index as u64 * self.part;
        let mut bytes = vec![0; self.part.min(self.size - start) as usize];
        self.file.read_exact_at(&mut bytes, start).map_err(StoreError::io("read", &self.path))?;
        Ok(bytes.into())
    }
}

async fn whole(link: &Link, object: &Path, source: &Source) -> Result<()> {
    let _permit = link.permits.acquire().await;
    let bytes = if source.size == 0 { Bytes::new() } else { source.part(0)? };
    let wait = Watch::sending(&link.tuning, source.size);
    let put =
        patiently(link, object, async || wait.over(link.place.store.put(object, bytes.clone().into())).await);
    put.await.map_err(|failed| failed.error("write", object))?;
    (link.on_bytes)(Moved::Up(source.size));
    Ok(())
}

async fn in_parts(link: &Link, object: &Path, source: &Source, parts: &dyn MultipartStore) -> Result<()> {
    let wait = Watch::waiting(&link.tuning);
    let id = patiently(link, object, async || wait.over(parts.create_multipart(object)).await)
        .await
        .map_err(|failed| failed.error("write", object))?;
    let upload = Upload { link, object, source, parts, id };
    let send = |index| upload.part(index);
    let sent =
        stream::iter(0..source.count()).map(send).buffered(link.tuning.parallel.max(1)).try_collect().await;
    let done = match sent {
        Ok(sent) => upload.complete(sent).await,
        Err(error) => Err(error),
    };
    if done.is_err() {
        drop(wait.over(parts.abort_multipart(object, &upload.id)).await); // else the service's own clean-up does it
    }
    done
}

/// An upload in parts that has begun.
struct Upload<'a> {
    link: &'a Link,
    object: &'a Path,
    source: &'a Source,
    parts: &'a dyn MultipartStore,
    id: MultipartId,
}

impl Upload<'_> {
    async fn part(&self, index: usize) -> Result<PartId> {
        let _permit = self.link.permits.acquire().await;
        let bytes = self.source.part(index)?;
        let wait = Watch::sending(&self.link.tuning, bytes.len() as u64);
        let put = patiently(self.link, self.object, async || {
            wait.over(self.parts.put_part(self.object, &self.id, index, bytes.clone().into())).await
        });
        let part = put.await.map_err(|failed| failed.error("write", self.object))?;
        (self.link.on_bytes)(Moved::Up(bytes.len() as u64));
        Ok(part)
    }

    /// Puts the parts together. Not tried again: the first try may have worked and only its answer be lost, and then there are
    /// no parts any more. So the object itself is asked for.
    async fn complete(&self, sent: Vec<PartId>) -> Result<()> {
        let done = self.parts.complete_multipart(self.object, &self.id, sent);
        let Err(failed) = wait_long(self.link).over(done).await else { return Ok(()) };
        let head = self.link.place.store.head(self.object);
        match Watch::waiting(&self.link.tuning).over(head).await {
            Ok(meta) if meta.size == self.source.size => Ok(()),
            _ => Err(failed.error("complete", self.object)),
        }
    }
}

/// Services may take minutes to put many parts together.
fn wait_long(link: &Link) -> Watch {
    Watch::sending(&link.tuning, 1 << 20)
}

/// Part after part, for a folder: there is no network whose failures a second try could mend.
async fn in_sequence(link: &Link, object: &Path, source: &Source) -> Result<()> {
    let _permit = link.permits.acquire().await;
    let failed = |source| RemoteError::Service {
        doing: "write",
        object: object.to_string(),
        source: Box::new(source),
    };
    let mut upload: Box<dyn MultipartUpload> =
        link.place.store.put_multipart(object).await.map_err(failed)?;
    for index in 0..source.count() {
        let bytes = source.part(index)?;
        let sent = bytes.len() as u64;
        if let Err(error) = upload.put_part(bytes.into()).await {
            drop(upload.abort().await);
            return Err(failed(error));
        }
        (link.on_bytes)(Moved::Up(sent));
    }
    upload.complete().await.map(drop).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_as_tuned_until_there_would_be_too_many() {
        let mib = 1 << 20;
        for (size, part) in [
            (0, 8 * mib),
            (8 * mib, 8 * mib),
            (9_000 * 8 * mib, 8 * mib),
            (9_000 * 8 * mib + 1, 9 * mib),
            (5 << 40, 583 * mib),
        ] {
            assert_eq!(part_size(size, 8 * mib), part, "{size}");
            assert!(size.div_ceil(part) <= MOST_PARTS, "{size}");
        }
        assert_eq!(part_size(10, 0), 1 << 20, "nothing is divided by nothing");
        assert_eq!(part_size(0, 0), 1);
    }
}
