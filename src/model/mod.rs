//! Architectures, thin, over shared blocks; run layer by layer over packed sequences.
//!
//! A layer is loaded, all sequences are pushed through it, it is dropped: the memory needed is one layer plus the hidden states.
//! Small models may keep all their layers ([`Model`]). Knows no stage, no text and no loss.

mod arch;
pub mod audit;
pub mod batch;
pub mod block;
pub mod cache;
pub mod config;
pub mod decoder;
pub mod maps;
pub mod params;
pub mod probe;
pub mod quantization;
pub mod rope;
pub mod sample;
pub mod storage;
pub mod tape;
#[cfg(test)]
pub(crate) mod testing;
pub mod text_encoder;

pub use audit::Audit;
pub use batch::Batch;
pub use cache::KvCache;
pub use config::Config;
pub use decoder::{Layer, Mlp, Model, Shell};
pub use params::{ExpertWeights, ModelError, Params};
pub use probe::Probe;

#[cfg(test)]
mod tests;
