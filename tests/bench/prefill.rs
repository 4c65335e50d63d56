//! Times the forward pass of a model in memory over a batch of sequences. `tests/bench/prefill` compares it with transformers.
//!
//! `cargo bench --bench prefill -- MODEL SEQUENCES LENGTH RUNS` prints one JSON object: seconds of each run and a sum over the last
//! hidden states, so that both sides can be seen to compute the same.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement may panic, and prints")]

use std::{path::Path, time::Instant};

use mla_run::{
    artifact::{
        Artifact,
        checkpoint::{Checkpoint, files_in},
    },
    model::{Batch, Model, probe::NoProbe},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc; // as the program has

fn main() {
    // Cargo adds `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let [folder, numbers @ ..] = &words[..] else { panic!("MODEL SEQUENCES LENGTH RUNS") };
    let numbers: Vec<usize> = numbers.iter().map(|n| n.parse().unwrap()).collect();
    let &[sequences, length, runs] = &numbers[..] else { panic!("MODEL SEQUENCES LENGTH RUNS") };
    let files = files_in(Path::new(folder)).unwrap();
    let model = Model::frozen(&Checkpoint::load(&files).unwrap()).unwrap();
    let vocab = model.config.vocab_size;
    let id = |s: usize, i: usize| ((s * 7919 + i * 104_729 + 13) % vocab) as u32;
    let ids: Vec<Vec<u32>> = (0..sequences).map(|s| (0..length).map(|i| id(s, i)).collect()).collect();
    let batch = Batch::new(ids.iter().map(Vec::as_slice));
    let (mut seconds, mut sum) = (Vec::new(), 0f32);
    for _ in 0..runs {
        let start = Instant::now();
        let hidden = model.hidden(&batch, &mut NoProbe).unwrap();
        seconds.push(start.elapsed().as_secs_f64());
        sum = hidden.abs().unwrap().mean_all().unwrap().to_scalar().unwrap();
    }
    println!("{}", serde_json::json!({"seconds": seconds, "mean_absolute": sum}));
}
