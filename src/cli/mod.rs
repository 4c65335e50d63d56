//! The only place that prints, reads the environment or knows a terminal.

pub mod diagnostic;
