//! Patience: how long to wait for a sign of life, and how often to try again. Knows no object.

use std::time::Duration;

use object_store::{Error, path::Path};

use super::{Link, Tuning, error::RemoteError};

/// The slowest sending that is not taken for a stall. What the network takes of a request's body cannot be seen, so a body has
/// the time that this speed needs.
const SLOWEST_BYTES_PER_SECOND: u64 = 4 << 10;

/// How a step failed.
#[derive(Debug)]
pub(super) enum Failed {
    /// The service's answer.
    Service(Error),
    /// There was none in this time.
    Stalled(Duration),
}

impl Failed {
    /// The error for the user.
    pub(super) fn error(self, doing: &'static str, object: &Path) -> RemoteError {
        let object = object.to_string();
        match self {
            Self::Service(source) => RemoteError::Service { doing, object, source: Box::new(source) },
            Self::Stalled(waited) => RemoteError::Stalled { doing, object, waited },
        }
    }

    /// Whether another try may do better.
    pub(super) fn may_pass(&self) -> bool {
        !matches!(
            self,
            Self::Service(
                Error::NotFound { .. }
                    | Error::AlreadyExists { .. }
                    | Error::Precondition { .. }
                    | Error::NotModified { .. }
                    | Error::InvalidPath { .. }
                    | Error::NotSupported { .. }
                    | Error::NotImplemented { .. }
                    | Error::PermissionDenied { .. }
                    | Error::Unauthenticated { .. }
                    | Error::UnknownConfigurationKey { .. }
            )
        )
    }
}

/// A limit to the time without a sign of life.
pub(super) struct Watch(Duration);

impl Watch {
    /// For an answer that needs no long request.
    pub(super) fn waiting(tuning: &Tuning) -> Self {
        Self(tuning.stall)
    }

    /// For a request with so many bytes.
    pub(super) fn sending(tuning: &Tuning, bytes: u64) -> Self {
        Self(tuning.stall + Duration::from_secs(bytes / SLOWEST_BYTES_PER_SECOND))
    }

    /// Waits that long for a step.
    pub(super) async fn over<T>(
        &self,
        step: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, Failed> {
        match tokio::time::timeout(self.0, step).await {
            Ok(done) => done.map_err(Failed::Service),
            Err(_) => Err(Failed::Stalled(self.0)),
        }
    }
}

/// The pause after so many failures in a row.
pub(super) fn pause(tuning: &Tuning, failures: u32) -> Duration {
    tuning.pause * 2_u32.pow(failures.saturating_sub(1).min(7))
}

/// Tries a step again while that may help.
pub(super) async fn patiently<T>(
    link: &Link,
    object: &Path,
    mut step: impl AsyncFnMut() -> Result<T, Failed>,
) -> Result<T, Failed> {
    let mut failures = 0;
    loop {
        match step().await {
            Err(failed) if failed.may_pass() => {
                failures += 1;
                if failures >= link.tuning.attempts {
                    return Err(failed);
                }
                tracing::debug!(%object, failures, ?failed, "trying again");
                tokio::time::sleep(pause(&link.tuning, failures)).await;
            }
            done => return done,
        }
    }
}
