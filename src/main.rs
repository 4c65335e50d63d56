//! The `mla-run` binary: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    mla_run::cli::main()
}
