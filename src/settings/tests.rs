use super::*;
use std::time::Duration;

#[test]
fn durations_are_read_as_go_writes_them() {
    for (text, ms) in [("200ms", 200), ("1h30m", 5_400_000), ("1.5s", 1500), ("0", 0), ("100us", 0), ("0s", 0)] {
        assert_eq!(parse_duration(text).map(|d| d.as_millis()), Ok(ms), "{text}");
    }
    assert_eq!(parse_duration("100ms"), Ok(Duration::from_millis(100)));
    for text in ["", "5", "-1s", "1x", "s", "1..5s", "99999999h", "1e400s"] {
        assert!(parse_duration(text).is_err(), "{text}");
    }
}

#[test]
fn byte_sizes_have_binary_and_decimal_units() {
    for (text, bytes) in [("64MiB", 64 << 20), ("5_000", 5000), ("4 MB", 4_000_000), ("1.5GiB", 3 << 29), ("7", 7)] {
        assert_eq!(parse_byte_size(text), Ok(bytes), "{text}");
    }
    for text in ["", "MiB", "-1", "1XB", "99999999999999TiB", "1.2.3"] {
        assert!(parse_byte_size(text).is_err(), "{text}");
    }
}

#[test]
fn secrets_never_show_in_debug_output() {
    assert_eq!(format!("{:?}", Secret("hush".to_owned())), "[REDACTED]");
    let mut node = Node::new(Origin::whole("f"), Value::Text("hush".to_owned()));
    node.substituted = true;
    assert!(!format!("{node:?} {}", node.describe()).contains("hush"));
}

#[test]
fn the_known_keys_of_an_optional_map_are_not_demanded() {
    let node = Node::empty_map(Origin::whole("f"));
    let retry = read(&node, |table| table.table("retry_on_failure", Retry::read).unwrap_or_default());
    assert_eq!(retry, Ok(Retry::default()));
}
