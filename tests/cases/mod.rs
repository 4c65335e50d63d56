//! What a user can count on, one area a file.

mod export;
mod parity;
