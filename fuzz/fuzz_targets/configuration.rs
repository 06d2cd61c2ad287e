//! Any text as a configuration: the body is `tests/fuzz/configuration.rs`, which `cargo test` runs too.

#![no_main]

mod limit;
#[path = "../../tests/fuzz/configuration.rs"]
mod configuration;

libfuzzer_sys::fuzz_target!(|input: &[u8]| configuration::check(input));
