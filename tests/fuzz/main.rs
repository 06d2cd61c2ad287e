//! The fuzz targets of `fuzz/`, each for a bounded number of inputs: noise, and what is whole with damage in it. None may
//! panic or have more memory at once than [`ALLOCATED_BYTES_MAX`] beyond what the process had before.
//!
//! `FOREBAY_FUZZ_CASES` makes more of them.

mod configuration;
mod framing;
mod json;
mod memory;
mod opinion;
mod recovery;
mod wire;

use std::alloc::System;
use std::path::{Path, PathBuf};

use cap::Cap;
use forebay::otlp::Signal;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// Inputs are at most some KiB, requests at most 256 KiB inflated.
const ALLOCATED_BYTES_MAX: usize = 16 << 20;
const CASES_DEFAULT: u32 = 400;

/// Runs `check` over whole inputs with edits (where, what, how) and over noise.
fn run(seeds: &[Vec<u8>], head: &[u8], check: fn(&[u8])) {
    let cases = std::env::var("FOREBAY_FUZZ_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(CASES_DEFAULT);
    let mut runner = TestRunner::new(Config { cases, ..Config::default() });
    let edits = vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 0..6);
    let input = (any::<prop::sample::Index>(), vec(any::<u8>(), head.len()), edits, vec(any::<u8>(), 0..80));
    let before = ALLOCATOR.allocated();
    let result = runner.run(&input, |(seed, random, edits, noise)| {
        let mut bytes: Vec<u8> = head.iter().zip(random).map(|(mask, byte)| mask & byte).collect();
        match seeds {
            [] => bytes.extend(noise),
            seeds => {
                let start = bytes.len();
                bytes.extend_from_slice(seed.get::<Vec<u8>>(seeds));
                for (at, value, how) in edits {
                    let at = start + at.index(bytes.len() - start + 1);
                    match how {
                        0 if at < bytes.len() => bytes[at] = value,
                        1 => bytes.insert(at, value),
                        2 => drop(bytes.splice(at..at, noise.iter().copied())),
                        _ => bytes.truncate(at.max(start)),
                    }
                }
            }
        }
        check(&bytes);
        let peak = ALLOCATOR.max_allocated().saturating_sub(before);
        prop_assert!(peak <= ALLOCATED_BYTES_MAX, "{peak} bytes at once");
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}

fn files(dir: &str, extension: &str) -> Vec<Vec<u8>> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).expect("listed") {
            let path = entry.expect("entry").path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let mut paths = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(dir), &mut paths);
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    let files: Vec<_> = paths.iter().map(|path| std::fs::read(path).expect("readable")).collect();
    assert!(!files.is_empty(), "{dir} has no {extension}");
    files.into_iter().filter(|bytes| bytes.len() < 8 << 10).collect()
}

/// One test: the allocator counts for the whole process.
#[test]
fn no_input_makes_a_parser_or_recovery_panic_or_take_much_memory() {
    recovery::check(&[]);
    run(&[], &[], recovery::check);
    for (form, extension) in [(0, "yaml"), (1, "toml")] {
        let seeds: Vec<_> = files("config", extension).into_iter().map(|text| [vec![form], text].concat()).collect();
        run(&seeds, &[], configuration::check);
    }
    run(&[], &[0xff], configuration::check);
    for extension in ["pb", "json", "gz"] {
        run(&files("tests/corpus", extension), &[0xff, 0xff, 0xff, 0xff, 0x0f, 0], framing::check);
    }
    run(&[], &[0xff; 6], framing::check);
    for (extension, check) in [("pb", wire::check as fn(&[u8])), ("json", json::check)] {
        for signal in ["traces", "metrics", "logs"] {
            let first = Signal::ALL.iter().position(|known| known.name() == signal).expect("known") as u8;
            let whole = files(&format!("tests/corpus/{signal}"), extension);
            let seeds: Vec<_> = whole.into_iter().map(|bytes| [vec![first], bytes].concat()).collect();
            run(&seeds, &[], check);
        }
        run(&[], &[0xff; 4], check);
    }
    println!("fuzz: {} KiB at once at the most", ALLOCATOR.max_allocated() >> 10);
}
