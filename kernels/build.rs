//! The build script: names the arithmetic that enters keys and, with the feature `cuda`, compiles `kernels/*.cu` to PTX.
//!
//! Reads `CUDA_HOME` (where nvcc is; default: the search path) and `CUDA_COMPUTE_CAP` (the oldest GPU to run on, such as `90`;
//! default 80: PTX runs on newer ones too).

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    println!("cargo:rerun-if-changed=Cargo.lock");
    println!(
        "cargo:rustc-env=MLA_RUN_NUMERICS={}",
        numerics(&fs::read_to_string("Cargo.lock").expect("Cargo.lock"))
    );
    if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        compile_kernels();
    }
}

/// `name-version` of each crate whose rounding can reach a result.
fn numerics(lock: &str) -> String {
    let value = |line: &str, key: &str| {
        line.strip_prefix(key).map(|rest| rest.trim_matches([' ', '=', '"']).to_owned())
    };
    let mut found = Vec::new();
    for package in lock.split("[[package]]") {
        let name = package.lines().find_map(|line| value(line, "name"));
        let version = package.lines().find_map(|line| value(line, "version"));
        if let (Some(name), Some(version)) = (name, version)
            && matches!(name.as_str(), "candle-core" | "candle-nn" | "gemm" | "faer")
        {
            found.push(format!("{name}-{version}"));
        }
    }
    found.join(" ")
}

/// Writes `NAME.ptx` for each `kernels/NAME.cu`, and a digest of sources, flags and compiler.
fn compile_kernels() {
    for variable in ["CUDA_HOME", "CUDA_COMPUTE_CAP"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=kernels");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let nvcc =
        env::var_os("CUDA_HOME").map_or_else(|| "nvcc".into(), |home| Path::new(&home).join("bin/nvcc"));
    let cap = env::var_os("CUDA_COMPUTE_CAP").unwrap_or_else(|| "80".into());
    let arch = format!("-arch=compute_{}", cap.display());
    let mut digest = blake3::Hasher::new();
    digest.update(arch.as_bytes()).update(&run(Command::new(&nvcc).arg("--version")));
    for source in sources() {
        digest.update(&fs::read(&source).expect("a kernel's source"));
        if source.extension().is_some_and(|e| e == "cu") {
            let ptx = out.join(source.with_extension("ptx").file_name().expect("a file"));
            run(Command::new(&nvcc).args(["-ptx", "-O3", "-std=c++17", &arch, "-o"]).arg(ptx).arg(&source));
        }
    }
    println!("cargo:rustc-env=MLA_RUN_KERNELS={}", &digest.finalize().to_hex()[..16]);
}

fn sources() -> Vec<PathBuf> {
    let entries = fs::read_dir("kernels").expect("the folder `kernels`");
    let mut sources: Vec<_> = entries.map(|entry| entry.expect("a folder entry").path()).collect();
    sources.retain(|path| path.extension().is_some_and(|e| e == "cu" || e == "cuh"));
    sources.sort();
    sources
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|e| {
        panic!(
            "cannot run {}: {e}; set CUDA_HOME to a CUDA 12 or 13 toolkit",
            command.get_program().display()
        )
    });
    assert!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}
