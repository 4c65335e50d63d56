#![doc = include_str!("ARCHITECTURE.md")]

pub mod artifact;
pub mod cli;
pub mod device;
pub mod engine;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(feature = "hub")]
pub mod hub;
pub mod kernel;
pub mod manifest;
pub mod math;
pub mod model;
pub mod plan;
pub mod stage;
pub mod store;
