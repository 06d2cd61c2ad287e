//! Any request through both transports: the body is `tests/fuzz/framing.rs`, which `cargo test` runs too.

#![no_main]

mod limit;
#[path = "../../tests/fuzz/framing.rs"]
mod framing;

libfuzzer_sys::fuzz_target!(|input: &[u8]| framing::check(input));
