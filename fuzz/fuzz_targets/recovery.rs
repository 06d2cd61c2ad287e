//! Opening a data directory that was spoiled: the body is `tests/fuzz/recovery.rs`, which `cargo test` runs too.

#![no_main]

mod limit;
#[path = "../../tests/fuzz/memory.rs"]
mod memory;
#[path = "../../tests/fuzz/recovery.rs"]
mod recovery;

libfuzzer_sys::fuzz_target!(|input: &[u8]| recovery::check(input));
