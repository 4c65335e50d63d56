//! Times one layer of a model over random hidden states and says how much memory the process took at most. `tests/bench/layer` runs it.
//!
//! `cargo bench --bench layer -- MODEL LAYER SEQUENCES LENGTH RUNS` loads layer LAYER of the folder and nothing else of it, and prints one
//! JSON object: what attends, seconds of each run, peak resident memory and how much of the memory at the end is pages of the file (Linux).
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement may panic, and prints")]

use std::{path::Path, time::Instant};

use candle_core::{Device, Tensor};
use mla_run::{
    artifact::{
        Artifact,
        checkpoint::{Checkpoint, files_in},
    },
    model::{Batch, Config, Layer, probe::NoProbe},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc; // as the program has

/// A size in `/proc/self/status`, in bytes.
fn status(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

fn main() {
    // Cargo adds `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let [folder, numbers @ ..] = &words[..] else { panic!("MODEL LAYER SEQUENCES LENGTH RUNS") };
    let numbers: Vec<usize> = numbers.iter().map(|n| n.parse().unwrap()).collect();
    let &[index, sequences, length, runs] = &numbers[..] else { panic!("MODEL LAYER SEQUENCES LENGTH RUNS") };
    let checkpoint = Checkpoint::load(&files_in(Path::new(folder)).unwrap()).unwrap();
    let config = Config::parse(&checkpoint.config).unwrap();
    let layer = Layer::load(&checkpoint, &config, index).unwrap();
    let ids = vec![0; length];
    let batch = Batch::new((0..sequences).map(|_| &ids[..]));
    let shape = (sequences * length, config.hidden_size);
    let x = Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
    let mut seconds = Vec::new();
    for _ in 0..runs {
        let start = Instant::now();
        let y = layer.forward(&x, &batch, &mut NoProbe).unwrap();
        seconds.push(start.elapsed().as_secs_f64());
        assert!(y.abs().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().is_finite());
    }
    let kind = format!("{:?}", config.layers[index]).to_lowercase();
    println!(
        "{}",
        serde_json::json!({
            "kind": kind,
            "seconds": seconds,
            "peak_bytes": status("VmHWM"),
            "file_bytes": status("RssFile"),
        })
    );
}
