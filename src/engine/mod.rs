//! The graph of actions, their keys and their execution. Knows no tensors and no TOML.
//!
//! A [`graph::Graph`] of [`graph::Node`]s goes into an [`executor::Engine`]. Nodes become ready as their producers finish; a
//! ready node's [`key::Key`] is made from its own declaration and the digests in its producers' records; the store answers
//! *hit* or *miss*; a miss is queued, runs on the CPU pool or on the device, and is recorded. Because inputs enter keys by
//! content, a rerun that gives the same bytes makes the stages after it hits. Every step is
//! an [`event::Event`].

pub mod action;
pub mod cluster;
pub mod event;
pub mod executor;
mod failure;
#[cfg(test)]
pub(crate) mod fake;
pub mod graph;
pub mod hub;
pub mod key;
mod latest;
pub mod limits;
mod memory;
pub mod options;
mod preview;
pub mod reason;
mod relay;
mod resolve;
pub mod roots;
pub mod shared;
pub mod slurm;
pub mod state;
pub mod summary;
#[cfg(test)]
mod tests;
pub mod ticket;
pub mod value;
mod worker;

pub(crate) use failure::chain;
