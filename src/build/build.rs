//! The build script: names the code of each stage and the arithmetic that enters keys and, with the feature `cuda`, compiles
//! `kernels/*.cu` to PTX.
//!
//! Reads `CUDA_HOME` (where nvcc is; default: the search path) and `CUDA_COMPUTE_CAP` (the oldest GPU to run on, such as `90`;
//! default 80: PTX runs on newer ones too).

mod code;
mod kernels;
mod lock;

use std::{env, fmt::Write, fs, path::Path};

use self::{code::Sources, lock::Lock};

fn main() {
    for changed in ["Cargo.lock", "src"] {
        println!("cargo:rerun-if-changed={changed}");
    }
    let lock = Lock::parse(&fs::read_to_string("Cargo.lock").expect("Cargo.lock"));
    // The crates whose rounding can reach a result.
    let numerics = lock.of(&["candle-core", "candle-nn", "faer", "gemm"]).join(" ");
    println!("cargo:rustc-env=MLA_RUN_NUMERICS={numerics}");
    write_code(&Sources::read(Path::new(".")), &lock);
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        kernels::compile();
    }
}

/// Writes `code.rs`: a table from the module of a stage to the code that it reaches.
fn write_code(sources: &Sources, lock: &Lock) {
    let mut table = String::from("&[\n");
    for stage in sources.stages() {
        let code = sources.closure(&["stage", stage], lock);
        let _infallible = writeln!(table, "({stage:?}, &{:?}),", code.iter().collect::<Vec<_>>());
    }
    let out = env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    fs::write(Path::new(&out).join("code.rs"), table + "]\n").expect("OUT_DIR can be written");
}
