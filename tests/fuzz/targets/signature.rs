//! Fuzzes signed records as a remote gives them.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mla_run::fuzzing::signature(bytes));
