//! Fuzzes records and checkpoint listings as the cache reads them.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mla_run::fuzzing::record(bytes));
