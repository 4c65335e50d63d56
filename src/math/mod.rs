//! Pure functions on numbers and tensors.

pub mod elementary;
pub mod grid;
pub mod hash;
pub mod linalg;
pub mod low_rank;
pub mod moments;
pub mod pca;
pub mod random;
pub mod ridge;
pub mod softmax;
#[cfg(test)]
pub(crate) mod testing;
