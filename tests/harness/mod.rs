//! What test cases share.

pub(crate) mod golden;
mod latent;
pub(crate) mod pipelines;
pub(crate) mod space;
