//! The Hugging Face hub: which commit a revision is, which files a repository has there, and the files, in the cache that all
//! tools of the hub share. Knows no stage and reads no environment but what `hf-hub` reads (`HF_ENDPOINT`, `HF_TOKEN`).
//!
//! What is asked for by a branch is looked up once a process; after that only commits count. A commit's list of files is kept
//! beside its snapshot, so that a pipeline that ran once runs without a network. Every file is checked against the object id
//! that git has for it, each time that a stage takes it.

mod bring;
mod check;
mod error;
mod list;

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use hf_hub::{HFClient, HFRepository, HFResult, RepoTypeAny, split_id};
use tokio::runtime::Runtime;

pub use self::error::HubError;
use self::error::Result;
use crate::engine::{
    action::{Files, Progress, Stop},
    hub::{Hub, HubFailure, Pinned, Repo, RepoKind},
};

/// How the hub is reached.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The address, in place of `HF_ENDPOINT` and the public one.
    pub endpoint: Option<String>,
    /// The folder that holds what was brought, in place of `HF_HUB_CACHE` and what follows from `HF_HOME`.
    pub cache: Option<PathBuf>,
    /// Takes only what is in that folder.
    pub offline: bool,
    /// How often a step is tried.
    pub attempts: u32,
    /// The pause after the first failure; it doubles.
    pub pause: Duration,
    /// How long there may be no answer and no byte.
    pub stall: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        let (pause, stall) = (Duration::from_secs(1), Duration::from_mins(2));
        Self { endpoint: None, cache: None, offline: false, attempts: 5, pause, stall }
    }
}

/// The hub and the folder for what comes from it.
pub struct HuggingFace {
    cache: PathBuf,
    settings: Settings,
    link: Mutex<Option<Arc<Link>>>,
    commits: Mutex<BTreeMap<(RepoKind, String, String), String>>,
}

/// What sends requests.
struct Link {
    client: HFClient,
    runtime: Runtime,
}

impl Link {
    fn repository(&self, kind: RepoKind, id: &str) -> HFRepository<RepoTypeAny> {
        let (owner, name) = split_id(id);
        let kind = match kind {
            RepoKind::Model => RepoTypeAny::Model,
            RepoKind::Dataset => RepoTypeAny::Dataset,
        };
        self.client.repository(kind, owner, name)
    }
}

impl HuggingFace {
    /// A hub that nothing was asked of yet; most runs ask nothing.
    pub fn new(settings: Settings) -> Self {
        let cache = settings.cache.clone().unwrap_or_else(hf_hub::resolve_cache_dir);
        let link = Mutex::new(None);
        Self { cache, settings, link, commits: Mutex::default() }
    }

    fn link(&self) -> Result<Arc<Link>> {
        let mut link = self.link.lock().expect("no thread panics while it holds this");
        if let Some(link) = &*link {
            return Ok(link.clone());
        }
        // It tries again by itself, with pauses that grow from this one.
        let mut builder = HFClient::builder().retry_base_delay(self.settings.pause / 10);
        if let Some(endpoint) = &self.settings.endpoint {
            builder = builder.endpoint(endpoint);
        }
        let client = builder.cache_dir(&self.cache).build().map_err(HubError::Settings)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|source| HubError::Io { path: self.cache.clone(), source })?;
        Ok(link.insert(Arc::new(Link { client, runtime })).clone())
    }

    /// Waits for an answer, but not for ever.
    fn patiently<T>(
        &self,
        link: &Link,
        (kind, id): (RepoKind, &str),
        question: impl Future<Output = HFResult<T>>,
    ) -> Result<T> {
        let limited = async { tokio::time::timeout(self.settings.stall, question).await };
        match link.runtime.block_on(limited) {
            Ok(answer) => answer.map_err(HubError::asking(kind, id)),
            Err(_) => {
                Err(HubError::Stalled { id: id.to_owned(), seconds: self.settings.stall.as_secs_f64() })
            }
        }
    }

    /// The folder of a repository in the cache.
    fn folder(&self, kind: RepoKind, id: &str) -> PathBuf {
        self.cache.join(format!("{kind}s--{}", id.replace('/', "--")))
    }

    fn snapshot(&self, kind: RepoKind, id: &str, commit: &str) -> PathBuf {
        self.folder(kind, id).join("snapshots").join(commit)
    }

    /// The commit that a revision is now or, offline, was when it was last asked for.
    fn commit(&self, repo: &Repo) -> Result<String> {
        if is_commit(&repo.revision) {
            return Ok(repo.revision.clone());
        }
        let key = (repo.kind, repo.id.clone(), repo.revision.clone());
        let mut commits = self.commits.lock().expect("no thread panics while it holds this");
        if let Some(commit) = commits.get(&key) {
            return Ok(commit.clone());
        }
        let commit = if self.settings.offline { self.known_commit(repo)? } else { self.ask_commit(repo)? };
        commits.insert(key, commit.clone());
        Ok(commit)
    }

    fn known_commit(&self, repo: &Repo) -> Result<String> {
        let path = self.folder(repo.kind, &repo.id).join("refs").join(&repo.revision);
        let known = fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        known.filter(|commit| is_commit(commit)).ok_or_else(|| HubError::Offline {
            id: repo.id.clone(),
            what: format!("revision `{}`", repo.revision),
            cache: self.cache.clone(),
        })
    }

    fn ask_commit(&self, repo: &Repo) -> Result<String> {
        let (owner, name) = split_id(&repo.id);
        let only = || vec!["sha".to_owned()];
        let link = self.link()?;
        let (model, dataset) = (link.client.model(owner, name), link.client.dataset(owner, name));
        let asked = self.patiently(&link, (repo.kind, &repo.id), async {
            match repo.kind {
                RepoKind::Model => {
                    let info = model.info().revision(&*repo.revision).expand(only());
                    info.send().await.map(|info| info.sha)
                }
                RepoKind::Dataset => {
                    let info = dataset.info().revision(&*repo.revision).expand(only());
                    info.send().await.map(|info| info.sha)
                }
            }
        });
        let commit = asked?
            .filter(|commit| is_commit(commit))
            .ok_or_else(|| HubError::NoCommit { id: repo.id.clone(), revision: repo.revision.clone() })?;
        // As `huggingface_hub` does, so that all tools know it when there is no network.
        let path = self.folder(repo.kind, &repo.id).join("refs").join(&repo.revision);
        list::replace(&path, commit.as_bytes())?;
        Ok(commit)
    }
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl Hub for HuggingFace {
    fn pin(&self, repo: &Repo) -> std::result::Result<Pinned, HubFailure> {
        let commit = self.commit(repo)?;
        let files = self.list(repo, &commit)?;
        let (prefix, id) = (repo.prefix.clone(), repo.id.clone());
        Ok(Pinned { prefix, kind: repo.kind, id, commit, files })
    }

    fn fetch(
        &self,
        pinned: &Pinned,
        progress: &dyn Progress,
        stop: &Stop,
    ) -> std::result::Result<Files, HubFailure> {
        Ok(self.bring(pinned, progress, stop)?)
    }
}
