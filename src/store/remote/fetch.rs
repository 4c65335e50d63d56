//! Reading one object, however the connection behaves: what stalls or is cut off is taken up again where it stopped. Knows
//! sizes, no meaning.

use std::{
    fs::File,
    io::{self, Read},
};

use bytes::Bytes;
use futures_util::{TryStreamExt, stream::BoxStream};
use object_store::{GetOptions, GetRange, GetResultPayload, ObjectStore, path::Path};

use super::{
    Link, Moved,
    error::{Refusal, RemoteError, Result},
    retry::{Failed, Watch, pause},
};

/// Takes the bytes of an object as they come.
pub(super) trait Sink {
    /// The next bytes.
    fn take(&mut self, bytes: &[u8]) -> Result<()>;
    /// The object begins anew: all bytes so far are void.
    fn restart(&mut self) -> Result<()>;
}

/// Reads an object into a sink; false if there is none. `fits` is asked about the size that the service says and about the
/// bytes that have come, so that what cannot be right ends at once.
pub(super) async fn fetch(
    link: &Link,
    object: &Path,
    fits: &dyn Fn(u64) -> Result<(), Refusal>,
    sink: &mut dyn Sink,
) -> Result<bool> {
    let _permit = link.permits.acquire().await;
    let mut transfer = Transfer { link, object, fits, sink, got: 0, etag: None };
    let (mut failures, mut refused_ranges, mut mark) = (0, 0, 0);
    loop {
        let error = match transfer.attempt().await {
            Ok(found) => return Ok(found),
            Err(Ended::Refused(error)) => return Err(error),
            Err(Ended::Range(error)) => {
                refused_ranges += 1;
                error
            }
            Err(Ended::Early(error)) => error,
        };
        // Progress restores patience, but not for a trickle of a few bytes between failures.
        if transfer.got >= mark + ENOUGH {
            (failures, refused_ranges, mark) = (0, 0, transfer.got);
        }
        failures += 1;
        if failures >= link.tuning.attempts {
            return Err(error);
        }
        tracing::debug!(%object, got = transfer.got, failures, %error, "taking the transfer up again");
        if refused_ranges >= 2 {
            // The service cannot give the rest alone, or the object is another one now.
            transfer.sink.restart()?;
            (transfer.got, transfer.etag) = (0, None);
            refused_ranges = 0; // `mark` stays: only what goes beyond the last time is progress
        }
        tokio::time::sleep(pause(&link.tuning, failures)).await;
    }
}

const ENOUGH: u64 = 1 << 20;

/// Reads a small object whole; `None` if there is none.
pub(super) async fn small(link: &Link, object: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let fits = |size: u64| if size > limit { Err(Refusal::TooLarge(limit)) } else { Ok(()) };
    Ok(fetch(link, object, &fits, &mut bytes).await?.then_some(bytes))
}

impl Sink for Vec<u8> {
    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.extend_from_slice(bytes);
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.clear();
        Ok(())
    }
}

type Body = BoxStream<'static, object_store::Result<Bytes>>;

/// How an attempt ended before its end.
enum Ended {
    /// Another attempt will not help.
    Refused(RemoteError),
    /// The service does not give the rest of this object.
    Range(RemoteError),
    /// The connection did not last.
    Early(RemoteError),
}

struct Transfer<'a> {
    link: &'a Link,
    object: &'a Path,
    fits: &'a dyn Fn(u64) -> Result<(), Refusal>,
    sink: &'a mut dyn Sink,
    got: u64,
    etag: Option<String>,
}

impl Transfer<'_> {
    async fn attempt(&mut self) -> Result<bool, Ended> {
        let resumed = self.got > 0;
        let wait = Watch::waiting(&self.link.tuning);
        let mut options = GetOptions::new();
        if resumed {
            options = options.with_range(Some(GetRange::Offset(self.got))).with_if_match(self.etag.clone());
        }
        let answer = match wait.over(self.link.place.store.get_opts(self.object, options)).await {
            Err(Failed::Service(object_store::Error::NotFound { .. })) if !resumed => return Ok(false),
            Err(failed @ Failed::Stalled(_)) => return Err(Ended::Early(failed.error("read", self.object))),
            Err(failed) if resumed => return Err(Ended::Range(failed.error("read", self.object))),
            Err(failed) if failed.may_pass() => return Err(Ended::Early(failed.error("read", self.object))),
            Err(failed) => return Err(Ended::Refused(failed.error("read", self.object))),
            Ok(answer) => answer,
        };
        let size = answer.meta.size;
        self.check(size)?;
        self.etag.clone_from(&answer.meta.e_tag);
        match answer.payload {
            GetResultPayload::File(file, _) => self.file(&file),
            GetResultPayload::Stream(body) => self.stream(body, size).await,
        }
    }

    async fn stream(&mut self, mut body: Body, size: u64) -> Result<bool, Ended> {
        let wait = Watch::waiting(&self.link.tuning);
        loop {
            match wait.over(body.try_next()).await {
                Ok(Some(bytes)) => self.take(&bytes)?,
                Ok(None) if self.got >= size => return Ok(true),
                Ok(None) => {
                    let object = self.object.to_string();
                    return Err(Ended::Early(RemoteError::Cut { object, got: self.got, size }));
                }
                Err(_) if self.got == size => return Ok(true), // all is here; how the connection ends is nobody's concern
                Err(failed) => return Err(Ended::Early(failed.error("read", self.object))),
            }
        }
    }

    /// The file of a folder is read in large pieces: its stream would give small ones, each by way of another thread.
    fn file(&mut self, mut file: &File) -> Result<bool, Ended> {
        let mut piece = vec![0; 1 << 20];
        loop {
            match file.read(&mut piece) {
                Ok(0) => return Ok(true),
                Ok(n) => self.take(&piece[..n])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let error = object_store::Error::Generic { store: "folder", source: Box::new(error) };
                    return Err(Ended::Refused(Failed::Service(error).error("read", self.object)));
                }
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Ended> {
        self.got += bytes.len() as u64;
        self.check(self.got)?;
        self.sink.take(bytes).map_err(Ended::Refused)?;
        (self.link.on_bytes)(Moved::Down(bytes.len() as u64));
        Ok(())
    }

    fn check(&self, size: u64) -> Result<(), Ended> {
        (self.fits)(size).map_err(|refusal| Ended::Refused(RemoteError::refused(self.object, refusal)))
    }
}
