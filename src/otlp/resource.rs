//! What a request says of the resource that it comes from, without decoding it.

use super::wire::{self, MAX_DEPTH};

/// `service.name` of the first resource in a valid `Export*ServiceRequest`, which is built alike for all signals.
pub fn service_name(request: &[u8]) -> Option<&str> {
    let first = delimited_fields(request, 1).next()?;
    let resource = delimited_fields(first, 1).next()?;
    let value = delimited_fields(resource, 1).find_map(|pair| {
        let key = delimited_fields(pair, 1).last()?;
        (key == b"service.name").then(|| delimited_fields(pair, 2).last()).flatten()
    })?;
    std::str::from_utf8(delimited_fields(value, 1).last()?).ok()
}

/// The values of every field of that number that has a length; ends where the message is not valid.
fn delimited_fields(message: &[u8], wanted: u32) -> impl Iterator<Item = &[u8]> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < message.len() {
            let (number, wire_type, next) = wire::key(message, at, message.len()).ok()?;
            if wire_type == 2 {
                let (start, end) = wire::delimited(message, next, message.len()).ok()?;
                at = end;
                if number == wanted {
                    return Some(&message[start..end]);
                }
            } else {
                at = wire::skip(message, number, wire_type, next, message.len(), MAX_DEPTH).ok()?;
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::{Signal, json};

    #[test]
    fn the_name_of_the_service_is_found_in_all_signals_and_missed_without_harm() {
        let resource = r#"{"attributes":[{"key":"host","value":{"intValue":"4"}},{"key":"service.name","value":{"stringValue":"checkout"}}]}"#;
        for (signal, list) in
            [(Signal::Traces, "resourceSpans"), (Signal::Metrics, "resourceMetrics"), (Signal::Logs, "resourceLogs")]
        {
            let named = format!(r#"{{"{list}":[{{"resource":{resource}}}]}}"#);
            let named = json::to_protobuf(signal, named.as_bytes()).expect("valid");
            assert_eq!(service_name(&named), Some("checkout"));
            let nameless = format!(r#"{{"{list}":[{{"resource":{{}}}}]}}"#);
            assert_eq!(service_name(&json::to_protobuf(signal, nameless.as_bytes()).expect("valid")), None);
            for end in 0..named.len() {
                let _cut = service_name(&named[..end]);
            }
        }
        assert_eq!(service_name(&[]), None);
    }
}
