//! The graph of actions, their keys and their execution. Knows no tensors and no TOML.

pub mod action;
