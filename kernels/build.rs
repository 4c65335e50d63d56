//! Build script of the crate.

fn main() {}
