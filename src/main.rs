//! The `mla-run` binary: parse, run, exit code.

fn main() {}
