//! The scan accepts what prost accepts, refuses what it refuses, and counts the same. What is accepted can be written
//! as JSON.

use forebay::otlp::{json, wire};

use super::opinion;

/// The first byte chooses the signal.
pub fn check(input: &[u8]) {
    let Some((signal, bytes)) = opinion::signal(input) else { return };
    match (wire::scan(signal, bytes), opinion::of(signal, bytes)) {
        (Ok(ours), Ok(theirs)) => {
            assert_eq!(ours.items, theirs.items as u64, "items");
            assert_eq!(ours.identified, theirs.identified as u64, "identified");
            json::write_json(signal, bytes, &mut Vec::new()).expect("what is valid can be written");
        }
        (Err(error), Err(_)) => {
            assert!(error.offset <= bytes.len() && !error.path.is_empty(), "{error:?}");
        }
        (ours, theirs) => panic!("the scan says {ours:?}, prost says {:?}", theirs.map(|opinion| opinion.items)),
    }
}
