//! The `mla-run` binary: parse, run, exit code.

use std::process::ExitCode;

/// A no-op over thousands of stages is mostly small allocations, and training is mostly large ones that come back at once.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    mla_run::cli::main()
}
