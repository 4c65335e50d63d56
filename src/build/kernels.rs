//! Compiles `kernels/*.cu` to PTX. Knows nothing of Rust code.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Writes `NAME.ptx` for each `kernels/NAME.cu`, and a digest of sources, flags and compiler.
pub(crate) fn compile() {
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
