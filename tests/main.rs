//! The one integration test binary: what a user sees, and the rules that the source keeps.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod cases;
mod code;
mod harness;
mod tidy;
