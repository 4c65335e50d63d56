//! Brings files into the shared cache and checks them. Several at once, each tried again after a pause; what is here is kept, and a
//! file with wrong bytes is fetched once more. Knows no globs.

use std::{
    io,
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt, future, stream};
use hf_hub::{
    HFError, HFRepository, RepoTypeAny,
    progress::{DownloadEvent, ProgressEvent, ProgressHandler},
};

use super::{HubError, HuggingFace, Settings, check, error::Result};
use crate::engine::{
    action::{Files, Progress, Stop},
    hub::{Pinned, RepoFile},
};

/// Files that are on their way at once.
const AT_ONCE: usize = 4;
const LOOK: Duration = Duration::from_millis(100);

impl HuggingFace {
    /// The places of the files, all of them here and checked.
    pub(super) fn bring(&self, pinned: &Pinned, progress: &dyn Progress, stop: &Stop) -> Result<Files> {
        let place = self.snapshot(pinned.kind, &pinned.id, &pinned.commit);
        let here = |file: &&RepoFile| {
            place.join(&file.path).metadata().is_ok_and(|data| data.is_file() && data.len() == file.bytes)
        };
        let missing: Vec<&RepoFile> = pinned.files.iter().filter(|file| !here(file)).collect();
        self.download(pinned, &missing, false, (progress, stop))?;
        let spoilt = check_all(&place, &pinned.files, (progress, stop))?;
        if !spoilt.is_empty() {
            self.download(pinned, &spoilt, true, (progress, stop))?;
            let again: Vec<RepoFile> = spoilt.into_iter().cloned().collect();
            if let Some(file) = check_all(&place, &again, (progress, stop))?.first() {
                return Err(HubError::Damaged { id: pinned.id.clone(), path: file.path.clone() });
            }
        }
        Ok(pinned.files.iter().map(|file| (file.path.clone(), place.join(&file.path))).collect())
    }

    fn download(
        &self,
        pinned: &Pinned,
        files: &[&RepoFile],
        again: bool,
        (progress, stop): (&dyn Progress, &Stop),
    ) -> Result<()> {
        let Some(first) = files.first() else { return Ok(()) };
        if self.settings.offline {
            let what = format!("`{}`{}", first.path, if again { " with the right bytes" } else { "" });
            return Err(HubError::Offline { id: pinned.id.clone(), what, cache: self.cache.clone() });
        }
        progress.phase("downloading", Some(files.iter().map(|file| file.bytes).sum()), "bytes");
        let (link, moved) = (self.link()?, Arc::new(AtomicU64::new(0)));
        let transfer = Transfer {
            repository: link.repository(pinned.kind, &pinned.id),
            pinned,
            again,
            moved: moved.clone(),
            waits: AtomicBool::new(false),
            settings: &self.settings,
        };
        let work = stream::iter(files.iter().map(|file| transfer.one(file)))
            .buffer_unordered(AT_ONCE)
            .try_collect::<Vec<()>>();
        let watch = async {
            let (mut told, mut since) = (0, Instant::now());
            loop {
                tokio::time::sleep(LOOK).await;
                let new = tell(progress, &moved, told);
                told += new;
                if new > 0 || transfer.waits.swap(false, Ordering::Relaxed) {
                    since = Instant::now();
                }
                if stop.is_raised() {
                    return HubError::Stopped;
                }
                if since.elapsed() > self.settings.stall {
                    let seconds = self.settings.stall.as_secs_f64();
                    return HubError::Stalled { id: pinned.id.clone(), seconds };
                }
            }
        };
        link.runtime.block_on(async {
            let (work, watch) = (pin!(work), pin!(watch));
            match future::select(work, watch).await {
                future::Either::Left((done, _)) => done.map(drop),
                future::Either::Right((error, _)) => Err(error),
            }
        })
    }
}

/// Files of one commit on their way.
struct Transfer<'a> {
    repository: HFRepository<RepoTypeAny>,
    pinned: &'a Pinned,
    /// What is here is fetched again.
    again: bool,
    moved: Arc<AtomicU64>,
    /// Another process fetches a file of ours.
    waits: AtomicBool,
    settings: &'a Settings,
}

impl Transfer<'_> {
    /// One file, tried again while that may help. While another process fetches it, we wait.
    async fn one(&self, file: &RepoFile) -> Result<()> {
        let mut failures = 0;
        loop {
            let counter = Counter { moved: self.moved.clone(), seen: AtomicU64::new(0) };
            let fetched = self
                .repository
                .download_file()
                .filename(&*file.path)
                .revision(&*self.pinned.commit)
                .force_download(self.again)
                .progress(counter)
                .send()
                .await;
            let error = match fetched {
                Ok(_) => return Ok(()),
                Err(HFError::CacheLockTimeout { .. }) => {
                    self.waits.store(true, Ordering::Relaxed);
                    continue;
                }
                Err(error) => HubError::asking(self.pinned.kind, &self.pinned.id)(error),
            };
            failures += 1;
            if !error.may_pass() || failures >= self.settings.attempts {
                return Err(error);
            }
            tracing::info!(file = file.path, %error, "tried again");
            tokio::time::sleep(self.settings.pause * 2_u32.pow(failures.saturating_sub(1).min(6))).await;
        }
    }
}

/// Tells of what moved since the last time; returns how much that was.
fn tell(progress: &dyn Progress, moved: &AtomicU64, told: u64) -> u64 {
    let new = moved.load(Ordering::Relaxed).saturating_sub(told);
    if new > 0 {
        progress.advance(new);
    }
    new
}

/// The files whose bytes are not those of the commit.
fn check_all<'a>(
    place: &Path,
    files: &'a [RepoFile],
    (progress, stop): (&dyn Progress, &Stop),
) -> Result<Vec<&'a RepoFile>> {
    progress.phase("checking", Some(files.iter().map(|file| file.bytes).sum()), "bytes");
    let mut spoilt = Vec::new();
    for file in files {
        let path: PathBuf = place.join(&file.path);
        let seen = |n| {
            progress.advance(n);
            if stop.is_raised() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
        };
        match check::oid(&path, file.lfs, seen) {
            Ok(oid) if oid == file.oid => {}
            Ok(_) => spoilt.push(file),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(HubError::Stopped),
            Err(source) => return Err(HubError::Io { path, source }),
        }
    }
    Ok(spoilt)
}

/// Counts the bytes of one file, whose events tell how far it is.
struct Counter {
    moved: Arc<AtomicU64>,
    seen: AtomicU64,
}

impl ProgressHandler for Counter {
    fn on_progress(&self, event: &ProgressEvent) {
        let now = match event {
            ProgressEvent::Download(DownloadEvent::Progress { files }) => {
                files.iter().map(|file| file.bytes_completed).sum()
            }
            ProgressEvent::Download(DownloadEvent::AggregateProgress { bytes_completed, .. }) => {
                *bytes_completed
            }
            _ => return,
        };
        let before = self.seen.fetch_max(now, Ordering::Relaxed);
        self.moved.fetch_add(now.saturating_sub(before), Ordering::Relaxed);
    }
}
