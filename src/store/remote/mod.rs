//! A cache that several machines share: the objects of a local cache under the same names, in a bucket or a folder.
//!
//! ```text
//! <prefix>/FORMAT            as in a local cache
//! <prefix>/blob/aa/<62 hex>  as in a local cache
//! <prefix>/act/aa/<62 hex>   a sealed record and a line with its signature
//! ```
//!
//! What comes from there is not believed. A record counts when it is signed by a trusted key, is sealed, is the one that was
//! asked for, and names files that stay in their folder; a blob counts when it has the size and the digest that the record
//! says. Only when all of that is here is anything published locally, blobs first. Pushing goes in the same order, so that a
//! record in the remote has its blobs there. Checkpoints and views are not shared. Knows no stage and no environment.

mod error;
mod fetch;
mod place;
pub(crate) mod pull;
mod push;
mod retry;
pub(crate) mod sign;
#[cfg(test)]
mod tests;
mod upload;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::TryStreamExt;
use object_store::{ObjectStore, PutMode, path::Path};
use tokio::{runtime::Runtime, sync::Semaphore};

pub use error::{KeyFileError, Refusal, RemoteError, Result};
pub use push::Pushed;
pub use sign::{NotAKey, PublicKey, SecretKey};

use self::{
    place::Place,
    retry::{Watch, patiently},
};
use super::digest::Digest;

const FORMAT: &[u8] = b"mla-run cache 1\n";

/// A remote cache. Several threads may use it at once.
pub struct Remote {
    runtime: Runtime,
    link: Link,
    access: Access,
    format_seen: AtomicBool,
}

/// Whose records are taken, and how ours are signed.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// Records signed by one of these keys are taken.
    pub trust: Vec<PublicKey>,
    /// Signs what is pushed.
    pub sign_with: Option<SecretKey>,
    /// Without trusted keys, takes any record; without a signing key, pushes records as they are.
    pub unsigned: bool,
    /// Nothing is pushed.
    pub read_only: bool,
}

/// Patience and parallelism.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// How long to wait for a connection.
    pub connect: Duration,
    /// How long no byte may come before a transfer is taken up again.
    pub stall: Duration,
    /// How often a step is tried, with no progress in between.
    pub attempts: u32,
    /// The pause after the first failure; it doubles.
    pub pause: Duration,
    /// How many transfers run at once.
    pub parallel: usize,
    /// Files above this size are uploaded in parts of it (larger ones for very large files).
    pub part: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            attempts: 5,
            pause: Duration::from_millis(250),
            parallel: 8,
            part: 8 << 20,
        }
    }
}

/// Bytes that moved just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// To the remote.
    Up(u64),
    /// From the remote.
    Down(u64),
}

/// The remote's objects and how to treat them.
struct Link {
    url: String,
    place: Place,
    tuning: Tuning,
    /// One permit per transfer; it bounds the memory for parts, too.
    permits: Semaphore,
    on_bytes: Box<dyn Fn(Moved) + Send + Sync>,
}

impl Remote {
    /// Makes ready to use a remote; nothing is sent yet.
    ///
    /// `options` are settings of the service under the names of its environment variables: `AWS_ACCESS_KEY_ID`.
    pub fn open(
        url: &str,
        options: &BTreeMap<String, String>,
        access: Access,
        tuning: Tuning,
    ) -> Result<Self> {
        let place = Place::open(url, options, &tuning)?;
        Self::at(url, place, access, tuning)
    }

    fn at(url: &str, place: Place, access: Access, tuning: Tuning) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("remote")
            .enable_all()
            .build()
            .map_err(RemoteError::Runtime)?;
        let permits = Semaphore::new(tuning.parallel.max(1));
        let link = Link { url: url.to_owned(), place, tuning, permits, on_bytes: Box::new(|_| ()) };
        Ok(Self { runtime, link, access, format_seen: AtomicBool::new(false) })
    }

    /// Calls `f` whenever bytes moved; from several threads.
    #[must_use]
    pub fn on_bytes(mut self, f: impl Fn(Moved) + Send + Sync + 'static) -> Self {
        self.link.on_bytes = Box::new(f);
        self
    }

    /// The keys of all records in the remote, sorted.
    pub fn list(&self) -> Result<Vec<Digest>> {
        if !self.runtime.block_on(self.is_there())? {
            return Ok(Vec::new());
        }
        self.runtime.block_on(self.link.list())
    }

    /// Refuses to pull where nothing says whose records may be taken.
    pub fn require_pull(&self) -> Result<()> {
        if self.access.trust.is_empty() && !self.access.unsigned {
            return Err(RemoteError::NoTrust { url: self.link.url.clone() });
        }
        Ok(())
    }

    /// Refuses to push where that is not allowed or cannot be signed.
    pub fn require_push(&self) -> Result<()> {
        let why = if self.access.read_only {
            "`read-only = true` is set"
        } else if !self.link.place.writable {
            "records cannot be created once over plain HTTP; use a bucket or a folder"
        } else if self.access.sign_with.is_none() && !self.access.unsigned {
            "no key signs what is pushed; make one with `mla-run cache key new FILE` and write \
             `sign-with = \"FILE\"` under [cache], or `unsigned = true`"
        } else {
            return Ok(());
        };
        Err(RemoteError::ReadOnly { url: self.link.url.clone(), why })
    }

    /// Whether the remote is a cache of this version; false when there is nothing.
    async fn is_there(&self) -> Result<bool> {
        if self.format_seen.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let Some(found) = fetch::small(&self.link, &self.link.place.object("FORMAT"), 1 << 10).await? else {
            return Ok(false);
        };
        if found != FORMAT {
            let found = String::from_utf8_lossy(&found).lines().next().unwrap_or_default().to_owned();
            let expected = String::from_utf8_lossy(FORMAT).trim_end().to_owned();
            return Err(RemoteError::Format { url: self.link.url.clone(), found, expected });
        }
        self.format_seen.store(true, Ordering::Relaxed);
        Ok(true)
    }

    /// Makes the remote a cache of this version, unless it is one.
    async fn prepare(&self) -> Result<()> {
        if !self.is_there().await? {
            self.link.write(&self.link.place.object("FORMAT"), FORMAT.to_vec(), false).await?;
            self.is_there().await?; // another one may have been first
        }
        Ok(())
    }
}

impl Link {
    /// Writes a small object, unless its name is taken and it must not be replaced; whether it was written.
    async fn write(&self, object: &Path, bytes: Vec<u8>, replace: bool) -> Result<bool> {
        let mode = if replace { PutMode::Overwrite } else { PutMode::Create };
        let bytes = bytes::Bytes::from(bytes);
        let put = patiently(self, object, async || {
            let wait = Watch::sending(&self.tuning, bytes.len() as u64);
            wait.over(self.place.store.put_opts(object, bytes.clone().into(), mode.clone().into())).await
        });
        match put.await {
            Ok(_) => Ok(true),
            Err(retry::Failed::Service(object_store::Error::AlreadyExists { .. })) => Ok(false),
            Err(failed) => Err(failed.error("write", object)),
        }
    }

    async fn list(&self) -> Result<Vec<Digest>> {
        let act = self.place.object("act");
        let depth = act.parts().count();
        let mut entries = self.place.store.list(Some(&act));
        let mut keys = Vec::new();
        let wait = Watch::waiting(&self.tuning);
        while let Some(meta) = wait.over(entries.try_next()).await.map_err(|e| e.error("list", &act))? {
            let name: String = meta.location.parts().skip(depth).map(|p| p.as_ref().to_owned()).collect();
            keys.extend(name.parse::<Digest>().ok()); // what is no digest is not ours
        }
        keys.sort_unstable();
        Ok(keys)
    }
}
