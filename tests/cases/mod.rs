//! What a user can count on, one area a file.

mod cache;
mod checkout;
mod crash;
mod explain;
mod export;
mod parity;
mod rerun;
mod run;
