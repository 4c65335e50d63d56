//! Architectures, thin, over shared blocks; run layer by layer.
