//! Reading JSON never panics, what it makes is valid, and writing that and reading it again gives the same request.

#![no_main]

mod limit;
#[path = "../../tests/fuzz/opinion.rs"]
mod opinion;
#[path = "../../tests/fuzz/json.rs"]
mod json;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| json::check(input));
