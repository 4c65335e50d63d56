//! What a user can count on, one area a file.

mod cache;
mod checkout;
mod crash;
mod errors;
mod explain;
mod export;
mod gc;
mod healing;
mod history;
#[cfg(feature = "hub")]
mod hub;
mod lock;
mod parity;
mod parity_dense;
mod pipelines;
mod rerun;
mod run;
mod shape;
mod shards;
mod shared;
mod sharing;
mod slurm;
mod splits;
mod verify;
mod words;
