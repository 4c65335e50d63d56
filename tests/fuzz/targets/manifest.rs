//! Fuzzes a manifest to its plan, or to its faults as shown.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mla_run::fuzzing::manifest(bytes));
