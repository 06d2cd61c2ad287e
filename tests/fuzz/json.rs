//! Reading JSON never panics, what it makes is valid, and writing that and reading it again gives the same request.

use forebay::otlp::{json, wire};

use super::opinion;

/// The first byte chooses the signal.
pub fn check(input: &[u8]) {
    let Some((signal, text)) = opinion::signal(input) else { return };
    let Ok(bytes) = json::to_protobuf(signal, text) else { return };
    wire::scan(signal, &bytes).expect("what was read is valid");
    let mut line = Vec::new();
    json::write_json(signal, &bytes, &mut line).expect("what was read can be written");
    assert!(!line.contains(&b'\n'));
    let again = json::to_protobuf(signal, &line).expect("what was written can be read");
    let canonical = |bytes: &[u8]| opinion::of(signal, bytes).expect("valid").canonical;
    assert_eq!(canonical(&bytes), canonical(&again));
}
