//! Memory beyond a limit ends the process: an input that asks for it is found as a crash.

use std::alloc::System;

use cap::Cap;

/// For everything that a target and the fuzzer itself hold.
const ALLOCATED_BYTES_MAX: usize = 512 << 20;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, ALLOCATED_BYTES_MAX);
