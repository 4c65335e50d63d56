//! What the engine asks of a cluster: to take stages that are ready, to tell what became of them, to let them go. Knows no scheduler.

use super::{action::Class, ticket::Ticket};
use crate::store::Digest;

/// Runs stages on other hosts that see the same cache. What they make is found there, so a run that dies loses nothing.
pub trait Cluster: Send + Sync {
    /// Takes stages that are ready. Those that an earlier run handed over and that still run are not handed over again.
    fn submit(&self, tickets: &[Ticket]) -> Result<(), String>;

    /// What is new of the stages handed over. Called about once a second; asks the cluster much less often.
    fn news(&self) -> Vec<(Digest, News)>;

    /// Ends all that was handed over.
    fn cancel(&self);
}

/// What became of a stage that was handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// It waits or runs; in words.
    Going(String),
    /// It failed there; in words.
    Failed(String),
    /// Its job ended without a result; in words, and what may have ended it, where another job may have better luck.
    Lost(String, Option<Class>),
}
