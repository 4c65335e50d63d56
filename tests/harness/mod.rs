//! What test cases share.

pub(crate) mod golden;
mod latent;
