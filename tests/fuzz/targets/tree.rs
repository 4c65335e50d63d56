//! Fuzzes listings of names.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mla_run::fuzzing::tree(bytes));
