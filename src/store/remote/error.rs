//! What can go wrong with a remote cache, and what the user can do about it.

use std::{io, path::PathBuf, time::Duration};

use super::{
    super::{digest::Digest, error::StoreError, tree::TreeFlaw},
    sign::PublicKey,
};

/// An error of a remote cache.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The address is none that can be used.
    #[error(
        "`{url}` cannot be a remote cache: {why}; write s3://BUCKET/PREFIX, gs://…, az://…, https://… or file:///FOLDER"
    )]
    Url {
        /// The address.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// The service's own settings do not fit.
    #[error("the settings for `{url}` do not fit; they come from the environment (AWS_*, GOOGLE_*, AZURE_*)")]
    Settings {
        /// The address.
        url: String,
        /// What the service's client says.
        source: Box<object_store::Error>,
    },
    /// Nothing says whose records to take.
    #[error(
        "nothing says whose records may be taken from `{url}`; write `trust = [\"…\"]` under [cache] with the key that \
         `mla-run cache key show FILE` prints, or `unsigned = true` to take any"
    )]
    NoTrust {
        /// The address.
        url: String,
    },
    /// Nothing may be pushed.
    #[error("nothing can be pushed to `{url}`: {why}")]
    ReadOnly {
        /// The address.
        url: String,
        /// Why, and what to do.
        why: &'static str,
    },
    /// The remote is a cache of another version.
    #[error("`{url}` says `{found}` but this version reads `{expected}`; use another address")]
    Format {
        /// The address.
        url: String,
        /// Its first line.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// What came is not what was asked for. Nothing of it was published.
    #[error("{object} was refused; who made it can put a sound one there: `mla-run cache push --replace`")]
    Refused {
        /// The object in the remote.
        object: String,
        /// What is wrong with it.
        source: Refusal,
    },
    /// The service refused, or went on failing.
    #[error("cannot {doing} {object}")]
    Service {
        /// What was tried: `read`, `write`.
        doing: &'static str,
        /// The object in the remote.
        object: String,
        /// Its answer.
        source: Box<object_store::Error>,
    },
    /// No byte came, again and again.
    #[error("cannot {doing} {object}: nothing moved for {} s; try again, or look at the network", waited.as_secs_f64())]
    Stalled {
        /// What was tried.
        doing: &'static str,
        /// The object in the remote.
        object: String,
        /// For how long.
        waited: Duration,
    },
    /// The connection was closed early, again and again.
    #[error("cannot read {object}: the connection ends after {got} of {size} bytes; try again")]
    Cut {
        /// The object in the remote.
        object: String,
        /// How many came.
        got: u64,
        /// How many there are.
        size: u64,
    },
    /// The local cache lacks what is to be pushed.
    #[error("blob {blob} {flaw}; run the pipeline to make it again")]
    Lost {
        /// The blob.
        blob: Digest,
        /// What is wrong with it.
        flaw: super::super::Flaw,
    },
    /// The local cache lacks the record to be pushed.
    #[error("there is no sound record {0} in the local cache; run the pipeline to make it again")]
    NoRecord(Digest),
    /// The local cache cannot be used.
    #[error("the local cache cannot be used")]
    Store(#[from] StoreError),
    /// A key file cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The threads for transfers could not be started.
    #[error("cannot start the threads for transfers")]
    Runtime(#[source] io::Error),
}

/// Why something from the remote was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It has no signature.
    #[error("the record is not signed; push it with a key, or set `unsigned = true` and no `trust`")]
    Unsigned,
    /// It is signed by somebody whom nobody trusts.
    #[error("the record is signed by {0}, which is not under `trust`; add it if that is right")]
    UnknownSigner(PublicKey),
    /// The signature does not fit the bytes.
    #[error("the record was changed after {0} signed it")]
    BadSignature(PublicKey),
    /// The line of the signature is not one.
    #[error("the line of the signature cannot be read")]
    SignatureForm,
    /// The checksum does not fit.
    #[error("the record is damaged: its checksum does not fit")]
    Seal,
    /// The lines are not those of a record.
    #[error("the record is sealed but has another form; another version may have made it")]
    Form,
    /// It is the record of another key.
    #[error("it holds the record of another key, {0}")]
    OtherKey(Digest),
    /// A port's name would lead out of a folder.
    #[error("output {0:?} cannot be the name of an output")]
    Port(String),
    /// An output's listing cannot be right.
    #[error("output `{port}`: {flaw}")]
    Tree {
        /// The output port.
        port: String,
        /// What is wrong.
        flaw: TreeFlaw,
    },
    /// The object has another size than the record says.
    #[error("it has {found} bytes where the record says {said}")]
    Size {
        /// The size that the record says.
        said: u64,
        /// The size found; at least, when it was not read to the end.
        found: u64,
    },
    /// The object's bytes have another digest.
    #[error("its bytes have another digest, {0}")]
    Digest(Digest),
    /// The object is larger than such objects are.
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
    /// A record without one of its blobs.
    #[error("the remote has lost it; push the record again from a cache that has it")]
    Missing,
}

/// What is wrong with a file that holds a secret key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read or written.
    #[error("cannot {doing} the key file {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It is there already.
    #[error("{} is there already; a key that is overwritten cannot be brought back, so name another file", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// It holds something else.
    #[error("{} does not hold a secret key; `mla-run cache key new FILE` makes one", path.display())]
    Form {
        /// The file.
        path: PathBuf,
    },
    /// The system gave no random bytes.
    #[error("the system gives no random bytes for a key: {0}")]
    Random(String),
}

/// A result of a remote cache.
pub type Result<T, E = RemoteError> = std::result::Result<T, E>;

impl RemoteError {
    /// For `map_err`: what came was refused.
    pub(super) fn refused(object: &object_store::path::Path, source: Refusal) -> Self {
        Self::Refused { object: object.to_string(), source }
    }

    /// Whether nothing was sent because what the user wrote does not allow it.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Url { .. }
                | Self::Settings { .. }
                | Self::NoTrust { .. }
                | Self::ReadOnly { .. }
                | Self::Key(_)
        )
    }

    /// Whether something came that is not what it should be; other objects may still be right.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}
