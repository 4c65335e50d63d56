//! What test cases share.

pub(crate) mod golden;
#[cfg(feature = "hub")]
pub(crate) mod hub;
mod latent;
pub(crate) mod parity;
pub(crate) mod pipelines;
pub(crate) mod space;
