//! What the engine asks of a cache that other machines share. Knows no service and no signatures.

use crate::store::{Digest, Record};

/// A cache that other machines share.
pub trait Shared: Send + Sync {
    /// Brings what a key produced into the local cache; `false` when nobody has put it there.
    fn fetch(&self, key: &Digest) -> Result<bool, String>;

    /// Puts what was made here there, if this machine may.
    fn publish(&self, record: &Record) -> Result<(), String>;
}
