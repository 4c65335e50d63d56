//! Fuzzes stored keys, and the encoding of the values in them.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mla_run::fuzzing::key(bytes));
