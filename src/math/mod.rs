//! Pure functions on numbers and tensors.
