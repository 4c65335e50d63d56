//! Pure functions on numbers and tensors.

pub mod grid;
pub mod hash;
