//! The scan accepts what prost accepts, refuses what it refuses, and counts the same. What is accepted can be written
//! as JSON.

#![no_main]

mod limit;
#[path = "../../tests/fuzz/opinion.rs"]
mod opinion;
#[path = "../../tests/fuzz/wire.rs"]
mod wire;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| wire::check(input));
