//! What a user can count on, one area a file.

mod cache;
mod checkout;
mod crash;
mod errors;
mod explain;
mod export;
mod lock;
mod parity;
mod pipelines;
mod rerun;
mod run;
mod shape;
mod splits;
mod words;
