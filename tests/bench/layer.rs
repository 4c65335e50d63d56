//! Times one layer of a model over random hidden states and says how much memory the process took at most. `tests/bench/layer` runs it.
//!
//! `cargo bench --bench layer -- MODEL LAYER SEQUENCES LENGTH RUNS [train]` loads layer LAYER of the folder and nothing else of it, and prints one
//! JSON object: what attends, seconds of each run, peak resident memory and how much of the memory at the end is pages of the file (Linux).
//! With `train` a run goes forward and back: gradients of all of its attention, and of what entered it, through frozen experts.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement may panic, and prints")]

use std::{path::Path, time::Instant};

use candle_core::{Device, Tensor, Var};
use mla_run::{
    artifact::{
        Artifact,
        checkpoint::{Checkpoint, files_in},
    },
    model::{Batch, Config, Layer, Params, probe::NoProbe},
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
    let mut words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let trains = words.last().is_some_and(|word| word == "train") && words.pop().is_some();
    let [folder, numbers @ ..] = &words[..] else { panic!("MODEL LAYER SEQUENCES LENGTH RUNS") };
    let numbers: Vec<usize> = numbers.iter().map(|n| n.parse().unwrap()).collect();
    let &[index, sequences, length, runs] = &numbers[..] else { panic!("MODEL LAYER SEQUENCES LENGTH RUNS") };
    let checkpoint = Checkpoint::load(&files_in(Path::new(folder)).unwrap()).unwrap();
    let config = Config::parse(&checkpoint.config).unwrap();
    let trainable = |name: &str| trains && name.contains(".self_attn.");
    let params = Params::new(&checkpoint, &trainable);
    let layer = Layer::read(&params, &config, index);
    let vars = params.finish().unwrap();
    let ids = vec![0; length];
    let batch = Batch::new((0..sequences).map(|_| &ids[..]));
    let shape = (sequences * length, config.hidden_size);
    let x = Tensor::randn(0f32, 1.0, shape, &Device::Cpu).unwrap();
    let mut seconds = Vec::new();
    for _ in 0..runs {
        let start = Instant::now();
        let result = if trains {
            let entered = Var::from_tensor(&x).unwrap();
            let y = layer.forward(entered.as_tensor(), &batch, &mut NoProbe).unwrap();
            let mut gradients = (y * &x).unwrap().sum_all().unwrap().backward().unwrap();
            assert!(!vars.is_empty() && vars.values().all(|var| gradients.get(var.as_tensor()).is_some()));
            gradients.remove(entered.as_tensor()).unwrap()
        } else {
            layer.forward(&x, &batch, &mut NoProbe).unwrap()
        };
        seconds.push(start.elapsed().as_secs_f64());
        assert!(result.abs().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap().is_finite());
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
