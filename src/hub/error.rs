//! Why the hub gave nothing, and whether asking again may help. Knows no request.

use std::path::PathBuf;

use hf_hub::HFError;

use crate::engine::hub::{HubFailure, RepoKind};

pub(super) type Result<T> = std::result::Result<T, HubError>;

/// Why the hub gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The settings are no settings.
    #[error("the hub cannot be used: {0}; see HF_ENDPOINT, HF_TOKEN and HF_HOME")]
    Settings(HFError),
    /// The service answered with an error, or did not answer.
    #[error("{kind} `{id}`: {what}{hint}")]
    Service {
        /// What the repository holds.
        kind: RepoKind,
        /// `owner/name`.
        id: String,
        /// What happened.
        what: String,
        /// What `hf-hub` says.
        answer: Box<HFError>,
        /// What the user can do.
        hint: &'static str,
    },
    /// No answer and no byte came.
    #[error(
        "nothing has come of `{id}` for {seconds} s; without a network, set HF_HUB_OFFLINE=1 to use what was fetched before"
    )]
    Stalled {
        /// `owner/name`.
        id: String,
        /// How long.
        seconds: f64,
    },
    /// The service knows the revision but not its commit.
    #[error("`{id}` has no commit at `{revision}`; name a branch, a tag or a commit of 40 digits")]
    NoCommit {
        /// `owner/name`.
        id: String,
        /// What was asked for.
        revision: String,
    },
    /// It is not here, and the network may not be used.
    #[error(
        "{what} of `{id}` is not in {}, and HF_HUB_OFFLINE is set; run once without it, or give a folder in place of the hub",
        cache.display()
    )]
    Offline {
        /// `owner/name`.
        id: String,
        /// What is not here.
        what: String,
        /// The folder.
        cache: PathBuf,
    },
    /// No file is wanted.
    #[error("{kind} `{id}` has no file that matches {globs} at {commit}{examples}")]
    NoMatch {
        /// What the repository holds.
        kind: RepoKind,
        /// `owner/name`.
        id: String,
        /// The globs.
        globs: String,
        /// The commit.
        commit: String,
        /// Some of the files that there are.
        examples: String,
    },
    /// A glob that is none.
    #[error("`{glob}` is not a glob: {source}")]
    Glob {
        /// As the user wrote it.
        glob: String,
        /// What is wrong.
        source: globset::Error,
    },
    /// A path that a file in a folder cannot have.
    #[error("`{id}` lists the file `{path}`, which would lie outside its folder; it is not taken")]
    Path {
        /// `owner/name`.
        id: String,
        /// As listed.
        path: String,
    },
    /// Other bytes than the commit has.
    #[error(
        "`{path}` of `{id}` has other bytes than its commit says, also when it is fetched again; the service or the network spoils it"
    )]
    Damaged {
        /// `owner/name`.
        id: String,
        /// The file.
        path: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A stop was asked for.
    #[error("stopped before the end")]
    Stopped,
}

impl HubError {
    /// An answer of the service, with what the user can do about it.
    pub(super) fn asking(kind: RepoKind, id: &str) -> impl FnOnce(HFError) -> Self {
        let id = id.to_owned();
        move |answer| {
            let hint = match &answer {
                // Of a repository that one may not see, a hub says that there is no such revision.
                HFError::AuthRequired { .. }
                | HFError::Forbidden { .. }
                | HFError::RepoNotFound { .. }
                | HFError::RevisionNotFound { .. } => {
                    "; check name and revision and, if it is private or gated, that HF_TOKEN may read it"
                }
                HFError::RateLimited { .. } => "; with HF_TOKEN set, more requests are allowed",
                HFError::Request { .. } => {
                    "; without a network, set HF_HUB_OFFLINE=1 to use what was fetched before"
                }
                _ => "",
            };
            Self::Service { kind, id, what: words(&answer), answer: Box::new(answer), hint }
        }
    }

    /// Whether another attempt may not meet it.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Service { answer, .. } => match &**answer {
                HFError::Request { .. } | HFError::RateLimited { .. } | HFError::Io(_) => true,
                HFError::Http { context } => context.status.is_server_error(),
                _ => false,
            },
            Self::Io { .. } | Self::Stalled { .. } => true,
            _ => false,
        }
    }
}

/// What happened. Of a request that got no answer, the whole chain says the address thrice and the cause last.
fn words(answer: &HFError) -> String {
    let HFError::Request { url, source } = answer else { return answer.to_string() };
    let mut cause: &dyn std::error::Error = source;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let host = url.as_deref().and_then(|url| url.split('/').nth(2)).unwrap_or("the hub");
    format!("no answer from {host}: {cause}")
}

impl From<HubError> for HubFailure {
    fn from(error: HubError) -> Self {
        match error {
            HubError::Stopped => Self::Stopped,
            error if error.may_pass() => Self::Passing(error.into()),
            error => Self::Final(error.into()),
        }
    }
}
